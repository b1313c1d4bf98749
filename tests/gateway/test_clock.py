from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.clock import Clock, SystemClock
from tests.support.fake_clock import START, FakeClock


def test_the_system_clock_is_aware_and_in_utc() -> None:
    clock: Clock = SystemClock()
    assert clock.now().tzinfo is UTC


def test_the_system_clock_goes_forward() -> None:
    clock = SystemClock()
    first = clock.now()
    assert timedelta(0) <= clock.now() - first < timedelta(seconds=10)


def test_the_fake_clock_moves_only_when_told() -> None:
    clock: FakeClock = FakeClock()
    assert clock.now() == clock.now() == START
    assert clock.advance(1.5) == START + timedelta(seconds=1.5) == clock.now()


def test_the_fake_clock_can_jump_back() -> None:
    clock = FakeClock()
    clock.set(START - timedelta(hours=1))
    assert clock.now() == START - timedelta(hours=1)


def test_the_fake_clock_turns_every_zone_into_utc() -> None:
    clock = FakeClock(datetime(2026, 11, 22, 9, 0, tzinfo=timezone(timedelta(hours=-3))))
    assert clock.now() == START
    assert clock.now().tzinfo is UTC


def test_the_fake_clock_refuses_a_naive_instant() -> None:
    with pytest.raises(ValueError, match="time zone"):
        FakeClock(START.replace(tzinfo=None))
