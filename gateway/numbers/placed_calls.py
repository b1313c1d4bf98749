"""How many calls a business number has placed in the last 24 hours, to anybody.

Responsible for the count and for the instant at which it falls again. Not responsible for the limit's meaning (see
`policy.rules`) nor for which calls count (see `admission`, which counts a dial, and `driver`, which takes it back).

Source: Meta, "Business-initiated calls": new calls of a number in 24 hours (138005), read 2026-11-22.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from policy.windows import DAY, count_in, fewer_than

#: Instants older than this are forgotten; well beyond the window, since clocks are put back at times.
FORGET_AFTER: Final = 2 * DAY
#: Meta counts calls that we did not place; when it says that the limit is reached, we ask again no sooner than this.
BACK_OFF: Final = timedelta(seconds=60)


class PlacedCalls:
    """The instants of one number's calls."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._instants: list[datetime] = []  # ascending
        self._full_until: datetime | None = None

    def add(self, *instants: datetime) -> None:
        """Count calls; one that is on its way to Meta counts already."""
        for instant in instants:
            insort(self._instants, instant)

    def preload(self, instants: Iterable[datetime]) -> None:
        """Take over what the store has of the time before this process."""
        self._instants = sorted(instants)

    def take_back(self, instant: datetime) -> None:
        """A call came to nothing before Meta took it."""
        place = bisect_left(self._instants, instant)
        if place < len(self._instants) and self._instants[place] == instant:
            del self._instants[place]

    def meta_says_full(self, *, now: datetime) -> None:
        """Meta refused a call with 138005, whatever we counted."""
        self._full_until = now + BACK_OFF

    def count(self, *, now: datetime) -> int:
        """Return how many calls count now; never fewer than the limit while Meta says that it is reached."""
        self._forget(now)
        counted = count_in(self._instants, window=DAY, now=now)
        return max(counted, self.limit) if self._is_full(now) else counted

    def frees_at(self, *, now: datetime) -> datetime | None:
        """Return when one more call may be placed; None: no instant makes it so."""
        until = fewer_than(self._instants, limit=self.limit, window=DAY)
        if until is not None and self._full_until is not None and self._is_full(now):
            return max(until, self._full_until)
        return until

    def next_frees_at(self, *, now: datetime) -> datetime | None:
        """Return when the count falls by one; None: it is 0."""
        counted = count_in(self._instants, window=DAY, now=now)
        return self._instants[-counted] + DAY if counted else None

    def _is_full(self, now: datetime) -> bool:
        # A clock that was put back must not make the pause longer.
        return self._full_until is not None and now < self._full_until <= now + BACK_OFF

    def _forget(self, now: datetime) -> None:
        old = bisect_left(self._instants, now - FORGET_AFTER)
        if old:
            del self._instants[:old]
