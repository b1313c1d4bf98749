"""The wall clock, as something that is handed in.

`SystemClock` is the only reader of the wall clock in this repository; timers use `loop.time()` instead. Not
responsible for time zones or windows (see `policy`).

`MetaClock` is what the gateway runs on: every instant that counts (permissions, windows, the age of a call) is set or
counted by Meta, so it is judged by Meta's clock, as soon as an answer of Meta's has told it. The machine's clock may
then be an hour off, or be put back and forth, and nothing is decided otherwise.
"""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from statistics import median
from typing import Final, Protocol

#: A `Date` header has whole seconds and was on its way for a while: two clocks that agree so well are the same.
AGREED_S: Final = 2.0
#: Answers that are listened to: the last three, so that one wrong one is outvoted and two right ones are believed.
HEARD: Final = 3
#: An answer that took longer says too little about its instant.
SLOW_S: Final = 2.0


class Clock(Protocol):
    """Tells the time of day."""

    def now(self) -> datetime:
        """Return the present instant, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - the one place that may ask


def steady_s() -> float:
    """Return seconds that nobody sets, and that do not stand still while the machine sleeps, where it can tell."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)  # noqa: TID251 - as above


class MetaClock:
    """Meta's clock, carried on from its answers by a clock that nobody sets; until the first two, the machine's.

    What two clocks differ by less than `AGREED_S` is noise, and the machine's finer clock is used.
    """

    def __init__(self, wall: Clock, *, steady: Callable[[], float] = steady_s) -> None:
        self._wall = wall
        self.steady = steady
        self._metas: deque[float] = deque(maxlen=HEARD)  # Meta's UNIX time minus the steady clock
        self._median: float | None = None  # of these; None: too few

    def now(self) -> datetime:
        ours = self._wall.now()
        offset_s = self._offset_s(ours)
        if abs(offset_s) < AGREED_S:
            return ours
        try:
            return ours + timedelta(seconds=offset_s)
        except OverflowError:
            return ours  # no instant that a calendar has

    @property
    def offset_s(self) -> float:
        """Meta's clock minus the machine's; 0 as long as nothing is known."""
        return self._offset_s(self._wall.now())

    def _offset_s(self, ours: datetime) -> float:
        return 0.0 if self._median is None else self._median + self.steady() - ours.timestamp()

    def heard(self, date: str | None, *, asked_at: float) -> None:
        """Take the `Date` of an answer to a request that was sent at `asked_at`, both on the steady clock's scale."""
        took_s = self.steady() - asked_at
        if date is None or not 0 <= took_s <= SLOW_S:
            return
        said_s = _unix_s(date)
        if said_s is not None:
            # Half a second: the header is cut down to whole ones.
            self._metas.append(said_s + 0.5 - (asked_at + took_s / 2))
            self._median = median(self._metas) if len(self._metas) > 1 else None


@lru_cache(maxsize=4)  # the same for all answers of a second
def _unix_s(date: str) -> float | None:
    """Read a `Date`; None if it is none, or has no time zone."""
    try:
        said = parsedate_to_datetime(date)
    except ValueError:
        return None
    return None if said.tzinfo is None else said.timestamp()


#: Beyond this somebody should set the machine's clock, though nothing is decided by it.
WARN_OFFSET: Final = timedelta(seconds=5)
