"""The wall clock, as something that is handed in.

`SystemClock` is the only reader of the wall clock in this repository; timers use `loop.time()` instead. Not
responsible for time zones or windows (see `policy`).
"""

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time of day."""

    def now(self) -> datetime:
        """Return the present instant, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - the one place that may ask
