"""Calling hours: weeks, holidays, and the two nights on which clocks change."""

from datetime import UTC, date, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.hours import CallHours, Holiday, HoursError, Opening, is_open, next_open
from tests.policy.make import SECOND

NINE_TO_SIX = tuple(Opening(weekday=day, opens=time(9), closes=time(18)) for day in range(5))
SAO_PAULO = CallHours(timezone="America/Sao_Paulo", weekly=NINE_TO_SIX)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def berlin(opens: time, closes: time) -> CallHours:
    week = tuple(Opening(weekday=day, opens=opens, closes=closes) for day in range(7))
    return CallHours(timezone="Europe/Berlin", weekly=week)


# Sao Paulo is three hours behind UTC all year; 2026-11-23 is a Monday.
@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-23 11:59:59.999999", False),
        ("2026-11-23 12:00", True),
        ("2026-11-23 20:59:59.999999", True),
        ("2026-11-23 21:00", False),
        ("2026-11-22 15:00", False),  # Sunday
    ],
)
def test_open_from_the_opening_until_before_the_closing(now: str, expected: bool) -> None:
    assert is_open(SAO_PAULO, now=utc(now)) is expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-23 15:00", "2026-11-23 15:00"),  # open
        ("2026-11-23 02:00", "2026-11-23 12:00"),  # still Sunday there
        ("2026-11-23 21:00", "2026-11-24 12:00"),
        ("2026-11-27 21:00", "2026-11-30 12:00"),  # over the weekend
    ],
)
def test_the_next_opening(now: str, expected: str) -> None:
    assert next_open(SAO_PAULO, now=utc(now)) == utc(expected)


def test_a_day_that_ends_at_2359_ends_at_midnight() -> None:
    around = tuple(Opening(weekday=day, opens=time(0), closes=time(23, 59)) for day in range(7))
    hours = CallHours(timezone="America/Sao_Paulo", weekly=around)
    assert is_open(hours, now=utc("2026-11-24 02:59:59.999999"))
    assert is_open(hours, now=utc("2026-11-24 03:00"))


def test_two_openings_a_day() -> None:
    halves = (
        Opening(weekday=0, opens=time(9), closes=time(12)),
        Opening(weekday=0, opens=time(14), closes=time(18)),
    )
    hours = CallHours(timezone="America/Sao_Paulo", weekly=halves)
    assert next_open(hours, now=utc("2026-11-23 15:00")) == utc("2026-11-23 17:00")


def test_a_holiday_replaces_the_hours_of_its_day() -> None:
    monday = Holiday(day=date(2026, 11, 23), opens=time(10), closes=time(11))
    hours = CallHours(timezone="America/Sao_Paulo", weekly=NINE_TO_SIX, holidays=(monday,))
    assert next_open(hours, now=utc("2026-11-23 12:30")) == utc("2026-11-23 13:00")
    assert next_open(hours, now=utc("2026-11-23 14:00")) == utc("2026-11-24 12:00")


def test_a_holiday_without_times_is_closed() -> None:
    monday = Holiday(day=date(2026, 11, 23))
    hours = CallHours(timezone="America/Sao_Paulo", weekly=NINE_TO_SIX, holidays=(monday,))
    assert next_open(hours, now=utc("2026-11-23 12:00")) == utc("2026-11-24 12:00")


def test_a_long_row_of_holidays_is_looked_past() -> None:
    away = tuple(Holiday(day=date(2026, 11, 23) + timedelta(days=7 * week)) for week in range(20))
    mondays = (Opening(weekday=0, opens=time(9), closes=time(18)),)
    hours = CallHours(timezone="America/Sao_Paulo", weekly=mondays, holidays=away)
    assert next_open(hours, now=utc("2026-11-22 12:00")) == utc("2027-04-12 12:00")


def test_open_on_one_far_day_only() -> None:
    far = Holiday(day=date(2999, 1, 1), opens=time(9), closes=time(18))
    hours = CallHours(timezone="America/Sao_Paulo", weekly=(), holidays=(far, Holiday(day=date(2020, 1, 1))))
    assert next_open(hours, now=utc("2026-11-22 12:00")) == utc("2999-01-01 12:00")


def test_never_open_is_none() -> None:
    assert next_open(CallHours(timezone="America/Sao_Paulo", weekly=()), now=utc("2026-11-22 12:00")) is None


# Berlin, 2026-03-29: 02:00 becomes 03:00 at 01:00 UTC.
@pytest.mark.parametrize(
    ("opens", "closes", "expected"),
    [
        (time(2, 30), time(9), "2026-03-29 01:00"),  # 02:30 is skipped: open as soon as it is past
        (time(2, 15), time(2, 45), "2026-03-30 00:15"),  # wholly skipped: not on that day
        (time(3), time(9), "2026-03-29 01:00"),
        (time(4), time(9), "2026-03-29 02:00"),
    ],
)
def test_when_clocks_go_forward(opens: time, closes: time, expected: str) -> None:
    assert next_open(berlin(opens, closes), now=utc("2026-03-29 00:30")) == utc(expected)


# Berlin, 2026-10-25: 03:00 becomes 02:00 at 01:00 UTC.
@pytest.mark.parametrize(
    ("opens", "closes", "now", "expected"),
    [
        (time(2, 30), time(9), "2026-10-24 23:00", "2026-10-25 00:30"),  # the first 02:30
        (time(2, 30), time(9), "2026-10-25 01:00", "2026-10-25 01:30"),  # 02:00 again, 02:30 again
        (time(1), time(2, 15), "2026-10-25 00:20", "2026-10-25 01:00"),  # reopened by the clock itself
        (time(4), time(9), "2026-10-25 01:00", "2026-10-25 03:00"),
    ],
)
def test_when_clocks_go_back(opens: time, closes: time, now: str, expected: str) -> None:
    assert next_open(berlin(opens, closes), now=utc(now)) == utc(expected)


@given(
    st.integers(0, 2 * 365 * 86_400).map(lambda second: utc("2026-01-01") + second * SECOND),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 22), st.integers(1, 30)), min_size=1, max_size=6),
    st.lists(st.dates(date(2026, 1, 1), date(2027, 12, 31)), max_size=6),
    st.sampled_from(["America/Sao_Paulo", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
def test_the_next_opening_is_open_and_the_moment_before_it_is_not(
    now: datetime, openings: list[tuple[int, int, int]], closed: list[date], zone: str
) -> None:
    hours = CallHours(
        timezone=zone,
        weekly=tuple(
            Opening(weekday=day, opens=time(hour, 5), closes=time(hour + 1, minute)) for day, hour, minute in openings
        ),
        holidays=tuple(Holiday(day=day) for day in closed),
    )
    opens = next_open(hours, now=now)
    assert opens is not None
    assert is_open(hours, now=opens)
    if opens > now:
        assert not is_open(hours, now=opens - SECOND)
        step = (opens - now) / 50
        assert not any(is_open(hours, now=now + number * step) for number in range(50))


@pytest.mark.parametrize("name", ["Mars/Phobos", "", "../etc", "America", "America/Sao_Paulo\0"])
def test_an_unknown_time_zone_is_refused(name: str) -> None:
    with pytest.raises(HoursError):
        CallHours(timezone=name, weekly=())


@pytest.mark.parametrize("weekday", [-1, 7])
def test_there_are_seven_days(weekday: int) -> None:
    with pytest.raises(HoursError):
        Opening(weekday=weekday, opens=time(9), closes=time(18))


@pytest.mark.parametrize("closes", [time(9), time(8)])
def test_a_day_closes_after_it_opens(closes: time) -> None:
    with pytest.raises(HoursError):
        Opening(weekday=0, opens=time(9), closes=closes)
    with pytest.raises(HoursError):
        Holiday(day=date(2026, 11, 23), opens=time(9), closes=closes)


def test_a_holiday_has_both_times_or_none() -> None:
    with pytest.raises(HoursError):
        Holiday(day=date(2026, 11, 23), opens=time(9))
