from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from gateway.common.clock import Clock, MetaClock, SystemClock, steady_s
from tests.support.fakes.clock import START, FakeClock


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


# --- Meta's clock ----------------------------------------------------------------------------------


class Steady:
    """Seconds that nobody sets; both clocks of a test move with `wait`."""

    def __init__(self, wall: FakeClock) -> None:
        self.seconds = 5_000.0
        self.wall = wall

    def __call__(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall.advance(seconds)


def a_meta_clock(*, behind_s: float = 0.0) -> tuple[MetaClock, FakeClock, Steady]:
    """Return a clock whose machine is so far behind Meta's, at noon."""
    wall = FakeClock(START - timedelta(seconds=behind_s))
    steady = Steady(wall)
    return MetaClock(wall, steady=steady), wall, steady


def answer(clock: MetaClock, steady: Steady, metas: datetime, *, took_s: float = 0.2) -> None:
    """Meta answers in `took_s`; `metas` is its time in the middle of that."""
    asked_at = steady()
    steady.wait(took_s)
    clock.heard(format_datetime(metas, usegmt=True), asked_at=asked_at)


def near(clock: Clock, instant: datetime) -> bool:
    return abs(clock.now() - instant) <= timedelta(seconds=1)


def test_until_meta_has_spoken_twice_the_machines_clock_counts() -> None:
    clock, wall, steady = a_meta_clock(behind_s=3_600)
    answer(clock, steady, START)
    assert clock.now() == wall.now()
    assert clock.offset_s == 0
    answer(clock, steady, START)
    assert near(clock, START)
    assert clock.offset_s == pytest.approx(3_600, abs=1)


@pytest.mark.parametrize("behind_s", [3_600, -3_600])
def test_a_machine_that_is_an_hour_off_is_corrected_in_both_directions(behind_s: float) -> None:
    clock, _, steady = a_meta_clock(behind_s=behind_s)
    for _ in range(3):
        answer(clock, steady, START)
    steady.wait(600)
    assert near(clock, START + timedelta(seconds=600))


@pytest.mark.parametrize("jump_s", [3_600, -3_600])
def test_a_jump_of_the_machines_clock_changes_nothing_even_before_the_next_answer(jump_s: float) -> None:
    clock, wall, steady = a_meta_clock()
    for _ in range(3):
        answer(clock, steady, START)
    before = clock.now()
    wall.advance(jump_s)
    assert near(clock, before)
    assert clock.offset_s == pytest.approx(-jump_s, abs=1)


def test_what_is_less_than_two_seconds_is_noise() -> None:
    clock, wall, steady = a_meta_clock(behind_s=1.2)
    for _ in range(3):
        answer(clock, steady, START)
    assert clock.now() == wall.now()
    assert 0 < clock.offset_s < 2


def test_one_wrong_answer_is_outvoted() -> None:
    clock, _, steady = a_meta_clock()
    for metas in (START, START + timedelta(days=1), START):
        answer(clock, steady, metas, took_s=0.0)
    assert near(clock, START)


def test_two_answers_that_agree_are_believed() -> None:
    clock, _, steady = a_meta_clock()
    for metas in (START, START, START + timedelta(hours=1), START + timedelta(hours=1)):
        answer(clock, steady, metas, took_s=0.0)
    assert near(clock, START + timedelta(hours=1))


def test_a_slow_answer_says_nothing() -> None:
    clock, wall, steady = a_meta_clock(behind_s=3_600)
    for _ in range(3):
        answer(clock, steady, START, took_s=2.1)
    assert clock.now() == wall.now()


@pytest.mark.parametrize(
    "date", [None, "", "soon", "Sun, 22 Nov 2026 12:00:00", "Sun, 99 Nov 2026 12:00:00 GMT", "0", "\x00" * 50]
)
def test_what_is_no_date_is_not_heard(date: str | None) -> None:
    clock, wall, steady = a_meta_clock(behind_s=3_600)
    for _ in range(3):
        clock.heard(date, asked_at=steady())
    assert clock.now() == wall.now()


def test_an_instant_that_no_calendar_has_is_not_used() -> None:
    clock, wall, steady = a_meta_clock()
    for _ in range(3):
        clock.heard("Fri, 31 Dec 9999 23:59:59 GMT", asked_at=steady())
    steady.wait(10)
    assert clock.now() == wall.now()


def test_the_steady_clock_goes_forward() -> None:
    first = steady_s()
    assert 0 <= steady_s() - first < 10
    assert MetaClock(SystemClock()).now().tzinfo is UTC
