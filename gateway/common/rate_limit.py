"""How many in how long: the one rate limiter. Nothing here waits or knows the time. [P]

Theory of operation. A bucket of `burst` tokens fills up again by `per_s` a second. It is kept as one number, the
instant at which it will be full: each token that is taken puts that off by one step. `now` is loop time everywhere; a
clock that stands still or steps back gives nothing away. Policy's rolling windows are rules of Meta's and stand there.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

#: Sums of steps are not exact.
_NOTHING_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and then so many a second."""

    per_s: float
    burst: float

    @classmethod
    def per_minute(cls, count: int) -> "Rate":
        """All of a minute's may come at once."""
        return cls(per_s=count / 60, burst=count)


class RateLimit:
    """One bucket, full at first."""

    __slots__ = ("_full_at", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._full_at = float("-inf")

    def wait_s(self, *, now: float, spare: float = 0.0) -> float:
        """Return how long until there is a token and `spare` others; 0: now. Nothing is taken."""
        rate = self.rate
        needed = min(1.0 + spare, rate.burst)  # the smallest bucket has no spare ones
        wait_s = self._full_at - now - (rate.burst - needed) / rate.per_s
        return wait_s if wait_s > _NOTHING_S else 0.0

    def count(self, *, now: float) -> None:
        """Take a token, also one that is not there yet."""
        self._full_at = max(self._full_at, now) + 1 / self.rate.per_s

    def take(self, *, now: float, spare: float = 0.0) -> bool:
        """Take a token if it is there, and `spare` others besides."""
        if self.wait_s(now=now, spare=spare):
            return False
        self.count(now=now)
        return True


class RateLimits:
    """A bucket for each key, so many at most: the one that was taken from longest ago is forgotten first."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._limits: OrderedDict[Hashable, RateLimit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._limits)

    def wait_s(self, rates: Mapping[Hashable, Rate], *, now: float) -> float:
        """Return how long until every one of these keys has a token; 0: now."""
        return max((self._limits[key].wait_s(now=now) for key in rates if key in self._limits), default=0.0)

    def count(self, rates: Mapping[Hashable, Rate], *, now: float) -> None:
        """Take a token from each of these keys."""
        for key, rate in rates.items():
            self._limits.setdefault(key, RateLimit(rate)).count(now=now)
            self._limits.move_to_end(key)
        while len(self._limits) > self._most:
            self._limits.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """Give a key a full bucket."""
        self._limits.pop(key, None)
