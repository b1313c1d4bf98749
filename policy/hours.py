"""Opening hours of a number in its own time zone: open now, and if not, when next.

Local wall-clock time decides. When clocks go forward, an opening inside the skipped hour happens at the instant of the
change; when they go back, both passes of the repeated hour get the same answer. A date in `holidays` replaces that
date's weekly hours. Meta's JSON is read by the gateway.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

#: Meta's latest time is 23:59 and means midnight: 24:00 cannot be written.
LAST_MINUTE: Final = time(23, 59)


class HoursError(ValueError):
    """Invalid hours: an unknown time zone, or a day that closes before it opens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Open from `opens` until just before `closes` on one day of the week (0 is Monday)."""

    weekday: int
    opens: time
    closes: time

    def __post_init__(self) -> None:
        if not 0 <= self.weekday <= 6:
            raise HoursError(f"weekday {self.weekday} is not 0 to 6")
        _check_order(self.opens, self.closes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holiday:
    """One date with its own hours; without times it is closed all day.

    The times are those in which calls are taken, not those of the holiday.
    Source: AWS End User Messaging Social, API reference, WhatsAppHolidayScheduleEntry (which passes Meta's setting
    on), read 2026-11-22. Meta's sample alone, 00:00 to 23:59 on 1 January, does not say which of the two it means.
    """

    day: date
    opens: time | None = None
    closes: time | None = None

    def __post_init__(self) -> None:
        if self.opens is not None and self.closes is not None:
            _check_order(self.opens, self.closes)
        elif self.opens is not self.closes:
            raise HoursError(f"holiday {self.day} needs both times or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHours:
    """Weekly hours and their exceptions."""

    timezone: str
    weekly: tuple[Opening, ...]
    holidays: tuple[Holiday, ...] = ()
    zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            zone = ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:  # unknown, malformed, a directory
            raise HoursError(f"unknown time zone {self.timezone!r}") from error
        object.__setattr__(self, "zone", zone)


def is_open(hours: CallHours, *, now: datetime) -> bool:
    """Return whether the number is open at `now`."""
    local = now.astimezone(hours.zone)
    wall = local.time()
    return any(
        opens <= wall and (wall < closes or closes == LAST_MINUTE) for opens, closes in _hours_of(hours, local.date())
    )


def next_open(hours: CallHours, *, now: datetime) -> datetime | None:
    """Return the first instant from `now` on that is open; None if there is none.

    None is certain: every holiday is looked at, and enough ordinary days that holidays cannot cover all of them.
    """
    if is_open(hours, now=now):
        return now
    first = now.astimezone(hours.zone).date()
    days = {first + timedelta(days=ahead) for ahead in range(7 * (len(hours.holidays) + 2) + 1)}
    days.update(holiday.day for holiday in hours.holidays if holiday.day >= first)
    for day in sorted(days):
        opened = [instant for instant in _moments(hours, day) if instant > now and is_open(hours, now=instant)]
        if opened:
            return min(opened)
    return None


def _check_order(opens: time, closes: time) -> None:
    if opens >= closes:
        raise HoursError(f"opens at {opens:%H:%M} but closes at {closes:%H:%M}")


def _hours_of(hours: CallHours, day: date) -> Iterator[tuple[time, time]]:
    special = [holiday for holiday in hours.holidays if holiday.day == day]
    spans: tuple[Opening, ...] | list[Holiday] = special
    if not special:
        spans = tuple(opening for opening in hours.weekly if opening.weekday == day.weekday())
    for span in spans:
        if span.opens is not None and span.closes is not None:
            yield span.opens, span.closes


def _moments(hours: CallHours, day: date) -> Iterator[datetime]:
    """Yield every instant of a local date at which "closed" can turn into "open"."""
    for opens, _ in _hours_of(hours, day):
        for fold in (0, 1):
            yield datetime.combine(day, opens, tzinfo=hours.zone).replace(fold=fold).astimezone(UTC)
    start = datetime.combine(day, time(), tzinfo=hours.zone).astimezone(UTC)
    end = datetime.combine(day + timedelta(days=1), time(), tzinfo=hours.zone).astimezone(UTC)
    if _offset(hours, start) != _offset(hours, end):
        yield _change(hours, start, end)


def _change(hours: CallHours, start: datetime, end: datetime) -> datetime:
    """Return the second at which the zone's offset changes; it differs between `start` and `end`."""
    while end - start > timedelta(seconds=1):
        middle = start + timedelta(seconds=(end - start) // timedelta(seconds=2))
        if _offset(hours, middle) == _offset(hours, start):
            start = middle
        else:
            end = middle
    return end


def _offset(hours: CallHours, instant: datetime) -> timedelta | None:
    return instant.astimezone(hours.zone).utcoffset()
