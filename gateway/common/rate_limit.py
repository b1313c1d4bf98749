"""The rate limiter: a token bucket. Nothing here waits or reads a clock. [P]

Theory of operation. A bucket holds up to `burst` tokens and refills at `per_s` tokens per second. It is stored as one
number, the instant at which it will be full: taking a token moves that instant by one step. `now` is loop time
everywhere; a clock that stops or steps back never adds tokens. The rolling windows of Meta's rules are in `policy`.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

#: A shorter wait counts as none: sums of steps are not exact.
_NOTHING_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Rate:
    """The capacity of a bucket and its refill rate in tokens per second."""

    per_s: float
    burst: float

    @classmethod
    def per_minute(cls, count: int) -> "Rate":
        """Return the rate for `count` per minute, all of which may come at once."""
        return cls(per_s=count / 60, burst=count)


class RateLimit:
    """One token bucket, full at first."""

    __slots__ = ("_full_at", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._full_at = float("-inf")

    def wait_s(self, *, now: float, spare: float = 0.0) -> float:
        """Return how long until there is a token plus `spare` others; 0 if there is now. Takes no token."""
        rate = self.rate
        needed = min(1.0 + spare, rate.burst)  # never more than the bucket can hold
        wait_s = self._full_at - now - (rate.burst - needed) / rate.per_s
        return wait_s if wait_s > _NOTHING_S else 0.0

    def count(self, *, now: float) -> None:
        """Take a token, even from an empty bucket: then the wait grows."""
        self._full_at = max(self._full_at, now) + 1 / self.rate.per_s

    def take(self, *, now: float, spare: float = 0.0) -> bool:
        """Take a token if the bucket has it plus `spare` others; return whether it was taken."""
        if self.wait_s(now=now, spare=spare):
            return False
        self.count(now=now)
        return True


class RateLimits:
    """One bucket per key, at most `most`: the least recently used one is dropped first."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._limits: OrderedDict[Hashable, RateLimit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._limits)

    def wait_s(self, rates: Mapping[Hashable, Rate], *, now: float) -> float:
        """Return how long until the bucket of each key has a token; 0 if all have one now."""
        return max((self._limits[key].wait_s(now=now) for key in rates if key in self._limits), default=0.0)

    def count(self, rates: Mapping[Hashable, Rate], *, now: float) -> None:
        """Take a token from the bucket of each key."""
        for key, rate in rates.items():
            self._limits.setdefault(key, RateLimit(rate)).count(now=now)
            self._limits.move_to_end(key)
        while len(self._limits) > self._most:
            self._limits.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """Drop the bucket of a key, so that its next one is full."""
        self._limits.pop(key, None)
