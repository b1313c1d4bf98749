"""The breaker opens after failures in a row, lets one probe through, and closes with the first success."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.meta.circuit_breaker import FAILURES, PROBE_S, WAITS, Breaker

NOW = 1_000.0
FIRST_WAIT_S, MAX_WAIT_S, JITTER = WAITS.pauses_s[0], WAITS.pauses_s[-1], WAITS.jitter


def a_breaker(*, seed: int = 1) -> Breaker:
    return Breaker(random.Random(seed))


def fail(breaker: Breaker, *, now: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.end(ok=False, probe=False, now=now)


def opened(*, now: float = NOW) -> Breaker:
    breaker = a_breaker()
    fail(breaker, now=now, times=FAILURES)
    return breaker


def test_it_stays_closed_one_failure_before_the_limit() -> None:
    breaker = a_breaker()
    fail(breaker, now=NOW, times=FAILURES - 1)
    assert (breaker.is_open, breaker.wait_s(now=NOW), breaker.begin()) == (False, 0.0, False)


def test_it_opens_with_the_last_failure_in_a_row() -> None:
    breaker = opened()
    assert breaker.is_open
    assert FIRST_WAIT_S * (1 - JITTER) <= breaker.wait_s(now=NOW) <= FIRST_WAIT_S
    assert breaker.failed == FAILURES


def test_a_success_in_between_begins_the_row_anew() -> None:
    breaker = a_breaker()
    fail(breaker, now=NOW, times=FAILURES - 1)
    breaker.end(ok=True, probe=False, now=NOW)
    fail(breaker, now=NOW, times=FAILURES - 1)
    assert not breaker.is_open


def test_one_probe_goes_when_the_wait_is_over_and_the_others_wait_for_it() -> None:
    breaker = opened()
    later = NOW + FIRST_WAIT_S
    assert breaker.wait_s(now=later) == 0
    assert breaker.begin()
    assert breaker.wait_s(now=later) == PROBE_S


def test_a_probe_that_fails_after_another_success_closed_it_is_one_failure_like_any_other() -> None:
    breaker = opened()
    probe = breaker.begin()
    breaker.end(ok=True, probe=False, now=NOW + 1)  # a call was ended meanwhile
    breaker.end(ok=False, probe=probe, now=NOW + 5)
    assert not breaker.is_open
    fail(breaker, now=NOW + 5, times=FAILURES - 2)
    assert not breaker.is_open
    fail(breaker, now=NOW + 5)
    assert breaker.is_open


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    probe = breaker.begin()
    breaker.end(ok=True, probe=probe, now=NOW + FIRST_WAIT_S)
    assert (breaker.is_open, breaker.wait_s(now=NOW), breaker.failed) == (False, 0.0, 0)


def test_a_probe_that_was_cut_says_nothing_and_leaves_its_place_to_the_next() -> None:
    breaker, later = opened(), NOW + FIRST_WAIT_S
    assert breaker.begin()
    breaker.end(ok=None, probe=True, now=later)
    assert (breaker.is_open, breaker.wait_s(now=later)) == (True, 0.0)


def test_waits_grow_up_to_the_limit_and_begin_anew_after_a_success() -> None:
    breaker, now, waits = opened(), NOW, []
    for _ in range(8):
        waits.append(breaker.wait_s(now=now))
        now += waits[-1]
        breaker.end(ok=False, probe=breaker.begin(), now=now)
    assert all(MAX_WAIT_S * (1 - JITTER) <= wait <= MAX_WAIT_S for wait in waits[-3:])
    assert waits[0] <= FIRST_WAIT_S < waits[2] < waits[3] < waits[5]
    breaker.end(ok=True, probe=False, now=now)
    fail(breaker, now=now, times=FAILURES)
    assert breaker.wait_s(now=now) <= FIRST_WAIT_S


def test_a_failure_that_was_under_way_when_it_opened_is_no_news() -> None:
    breaker = opened()
    wait_s = breaker.wait_s(now=NOW)
    fail(breaker, now=NOW + 1, times=20)
    assert breaker.wait_s(now=NOW) == wait_s


def test_a_success_that_nobody_waited_for_closes_it() -> None:
    breaker = opened()
    breaker.end(ok=True, probe=False, now=NOW)  # a call was ended, whatever the breaker says
    assert not breaker.is_open


def test_a_failure_beside_the_probe_does_not_make_a_second_one_possible() -> None:
    breaker, later = opened(), NOW + FIRST_WAIT_S
    assert breaker.begin()
    fail(breaker, now=later)
    assert breaker.wait_s(now=later) > 0


def test_two_breakers_do_not_come_back_together() -> None:
    one, other = a_breaker(seed=1), a_breaker(seed=2)
    for breaker in (one, other):
        fail(breaker, now=NOW, times=FAILURES)
    assert one.wait_s(now=NOW) != pytest.approx(other.wait_s(now=NOW))


@given(st.lists(st.tuples(st.floats(0, 60), st.sampled_from([True, False, None])), max_size=60))
def test_it_never_waits_longer_than_the_limit_and_always_lets_go(steps: list[tuple[float, bool | None]]) -> None:
    breaker, now = a_breaker(), NOW
    for seconds, ok in steps:
        now += seconds
        wait_s = breaker.wait_s(now=now)
        assert 0 <= wait_s <= MAX_WAIT_S
        probe = wait_s == 0 and breaker.begin()
        breaker.end(ok=ok, probe=probe, now=now)
    assert breaker.wait_s(now=now + MAX_WAIT_S) == 0
