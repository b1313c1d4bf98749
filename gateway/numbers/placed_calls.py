"""Count the calls that a business number has placed in the last 24 hours, to all users.

`admission` counts a call when it is dialled; `calls.driver` takes it back if Meta did not accept it. `policy.rules`
applies the limit.

Source: Meta, "Business-initiated calls": new calls of a number in 24 hours (138005), read 2026-11-22.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from policy.windows import DAY, count_in, fewer_than

#: Instants older than this are forgotten; well beyond the window, because a clock may be set back.
FORGET_AFTER: Final = 2 * DAY
#: Meta also counts calls that we did not place. After it says that the limit is reached, we wait this long.
BACK_OFF: Final = timedelta(seconds=60)


class PlacedCalls:
    """The instants of the calls that one number placed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._instants: list[datetime] = []  # ascending
        self._full_until: datetime | None = None

    def add(self, *instants: datetime) -> None:
        """Count calls; a call counts as soon as it is sent to Meta."""
        for instant in instants:
            insort(self._instants, instant)

    def preload(self, instants: Iterable[datetime]) -> None:
        """Set the calls from before this process started, as the store has them."""
        self._instants = sorted(instants)

    def take_back(self, instant: datetime) -> None:
        """Stop counting a call that failed before Meta accepted it."""
        place = bisect_left(self._instants, instant)
        if place < len(self._instants) and self._instants[place] == instant:
            del self._instants[place]

    def meta_says_full(self, *, now: datetime) -> None:
        """Record that Meta refused a call with 138005, whatever our count is."""
        self._full_until = now + BACK_OFF

    def count(self, *, now: datetime) -> int:
        """Return how many calls count now; at least the limit while Meta says that it is reached."""
        self._forget(now)
        counted = count_in(self._instants, window=DAY, now=now)
        return max(counted, self.limit) if self._is_full(now) else counted

    def frees_at(self, *, now: datetime) -> datetime | None:
        """Return when one more call may be placed; None: at no time."""
        until = fewer_than(self._instants, limit=self.limit, window=DAY)
        if until is not None and self._full_until is not None and self._is_full(now):
            return max(until, self._full_until)
        return until

    def next_frees_at(self, *, now: datetime) -> datetime | None:
        """Return when the count falls by one; None: it is 0."""
        counted = count_in(self._instants, window=DAY, now=now)
        return self._instants[-counted] + DAY if counted else None

    def _is_full(self, now: datetime) -> bool:
        # A clock that was set back must not make the pause longer.
        return self._full_until is not None and now < self._full_until <= now + BACK_OFF

    def _forget(self, now: datetime) -> None:
        old = bisect_left(self._instants, now - FORGET_AFTER)
        if old:
            del self._instants[:old]
