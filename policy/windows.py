"""Rolling windows: how many instants still count, and when fewer will.

An instant counts while it is younger than the window; at exactly the window's age it no longer does (guide R4, R8:
"in 24 hours" is a rolling window, to the second). Instants later than `now` count: Meta's clock and ours differ a
little, and an event that we know of has happened.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

DAY: Final = timedelta(hours=24)
WEEK: Final = timedelta(days=7)
#: An instant before all others.
ALWAYS: Final = datetime.min.replace(tzinfo=UTC)


def count_in(instants: Sequence[datetime], *, window: timedelta, now: datetime) -> int:
    """Count the instants, sorted ascending, that are younger than `window` at `now`."""
    return len(instants) - bisect_right(instants, now - window)


def fewer_than(instants: Sequence[datetime], *, limit: int, window: timedelta) -> datetime | None:
    """Return the instant from which on fewer than `limit` of the sorted instants count; None: never.

    The answer may lie in the past; it is ALWAYS if there were never that many.
    """
    if limit <= 0:
        return None
    if len(instants) < limit:
        return ALWAYS
    return instants[-limit] + window


def is_within(instant: datetime, *, window: timedelta, now: datetime) -> bool:
    """Return whether one instant still counts."""
    return now - instant < window
