"""A clock that stands still until a test moves it."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


class FakeClock:
    """`gateway.common.clock.Clock` for tests."""

    def __init__(self, start: datetime = START) -> None:
        self.set(start)

    def now(self) -> datetime:
        return self._now

    def set(self, instant: datetime) -> None:
        """Jump to an instant, backwards as well: real clocks do."""
        if instant.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        self._now = instant.astimezone(UTC)

    def advance(self, seconds: float) -> datetime:
        """Move by some seconds and return the new instant."""
        self._now += timedelta(seconds=seconds)
        return self._now
