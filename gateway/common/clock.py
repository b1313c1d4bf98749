"""The wall clock, as a dependency that is passed in.

`SystemClock` is the only reader of the wall clock in this repository; timers use `loop.time()` instead.

The gateway uses `MetaClock`: Meta sets or counts every instant that matters (permissions, windows, the age of a call),
so we compare them with Meta's clock, as soon as Meta's answers have told it. Then the machine's clock may be an hour
off, or be set back or forward, without changing any decision.
"""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from statistics import median
from typing import Final, Protocol

#: Clocks that differ by less count as equal: a `Date` header has whole seconds, and its transfer takes time.
AGREED_S: Final = 2.0
#: How many answers the median is taken of: one wrong answer is outvoted, two right ones are enough.
HEARD: Final = 3
#: The `Date` of an answer that took longer is too inexact.
SLOW_S: Final = 2.0


class Clock(Protocol):
    """A source of the current time."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - the only reader of the wall clock


def steady_s() -> float:
    """Return the seconds of a clock that cannot be set and, on systems that have one, runs on while suspended."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)  # noqa: TID251 - as above


class MetaClock:
    """Meta's clock, derived from the `Date` of its answers and a monotonic clock.

    Until the first two answers it is the machine's clock, and also while both differ by less than `AGREED_S`: that is
    noise, and the machine's clock is finer.
    """

    def __init__(self, wall: Clock, *, steady: Callable[[], float] = steady_s) -> None:
        self._wall = wall
        self.steady = steady
        self._metas: deque[float] = deque(maxlen=HEARD)  # Meta's Unix time minus the steady clock
        self._median: float | None = None  # of these; None: too few answers

    def now(self) -> datetime:
        ours = self._wall.now()
        offset_s = self._offset_s(ours)
        if abs(offset_s) < AGREED_S:
            return ours
        try:
            return ours + timedelta(seconds=offset_s)
        except OverflowError:
            return ours  # outside the range of datetime

    @property
    def offset_s(self) -> float:
        """Meta's clock minus the machine's; 0 while Meta's is not known."""
        return self._offset_s(self._wall.now())

    def _offset_s(self, ours: datetime) -> float:
        return 0.0 if self._median is None else self._median + self.steady() - ours.timestamp()

    def heard(self, date: str | None, *, asked_at: float) -> None:
        """Use the `Date` header of an answer. `asked_at` is when the request was sent, on the steady clock."""
        took_s = self.steady() - asked_at
        if date is None or not 0 <= took_s <= SLOW_S:
            return
        said_s = _unix_s(date)
        if said_s is not None:
            # Plus half a second: the header is truncated to whole seconds.
            self._metas.append(said_s + 0.5 - (asked_at + took_s / 2))
            self._median = median(self._metas) if len(self._metas) > 1 else None


@lru_cache(maxsize=4)  # all answers within a second have the same
def _unix_s(date: str) -> float | None:
    """Parse a `Date` header to Unix seconds; None if it is invalid or has no time zone."""
    try:
        said = parsedate_to_datetime(date)
    except ValueError:
        return None
    return None if said.tzinfo is None else said.timestamp()


#: Beyond this offset we warn that the machine's clock should be set, although decisions do not depend on it.
WARN_OFFSET: Final = timedelta(seconds=5)
