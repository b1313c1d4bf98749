"""So many at once and then so many a second; for one or for each of many keys, in bounded memory."""

from bisect import bisect_left
from collections.abc import Hashable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.common.rate_limit import Rate, RateLimit, RateLimits

MINUTE_S = 60.0
TEN: Mapping[Hashable, Rate] = {"ana": Rate.per_minute(10)}
ALL: Mapping[Hashable, Rate] = {"all": Rate.per_minute(100)}


def a_limits(most: int = 100) -> RateLimits:
    return RateLimits(most=most)


def taken(limit: RateLimit, *, now: float, spare: float = 0.0) -> int:
    """Take as often as it goes at one instant; return how often that was."""
    count = 0
    while limit.take(now=now, spare=spare) and count < 1_000:
        count += 1
    return count


def counted(limits: RateLimits, rates: Mapping[Hashable, Rate], *, now: float) -> int:
    """The same, where it is asked first and counted afterwards."""
    count = 0
    while limits.wait_s(rates, now=now) == 0 and count < 1_000:
        limits.count(rates, now=now)
        count += 1
    return count


# --- one bucket --------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [0.0, 5.5, 1e6])
def test_the_burst_goes_at_once_and_then_one_a_step(now: float) -> None:
    limit = RateLimit(Rate(per_s=10, burst=4))
    assert taken(limit, now=now) == 4
    assert limit.wait_s(now=now) == pytest.approx(0.1)
    assert [taken(limit, now=now + at) for at in (0.05, 0.1, 0.2, 0.45)] == [0, 1, 1, 2]
    assert taken(limit, now=now + 100) == 4


def test_asking_takes_nothing() -> None:
    limit = RateLimit(Rate(per_s=1, burst=1))
    assert all(limit.wait_s(now=3.0) == 0 for _ in range(10))
    assert limit.take(now=3.0)


def test_who_is_refused_puts_nothing_off() -> None:
    limit = RateLimit(Rate(per_s=2, burst=1))
    assert limit.take(now=1.0)
    assert not any(limit.take(now=1.0) for _ in range(1_000))
    assert limit.take(now=1.5)


def test_what_is_counted_though_it_was_not_there_has_to_be_waited_for() -> None:
    limit = RateLimit(Rate(per_s=2, burst=1))
    for _ in range(5):
        limit.count(now=1.0)
    assert limit.wait_s(now=1.0) == pytest.approx(2.5)


def test_spare_ones_are_left_to_others() -> None:
    limit = RateLimit(Rate(per_s=8, burst=8))
    assert taken(limit, now=1.0, spare=3) == 5
    assert limit.wait_s(now=1.0, spare=3) == pytest.approx(1 / 8)
    assert taken(limit, now=1.0) == 3


def test_the_smallest_bucket_has_no_spare_ones() -> None:
    limit = RateLimit(Rate(per_s=1, burst=1))
    assert [limit.take(now=now, spare=0.25) for now in (1.0, 1.5, 2.0)] == [True, False, True]


def test_a_clock_that_stands_still_or_steps_back_gives_nothing_away() -> None:
    limit = RateLimit(Rate(per_s=2, burst=1))
    assert limit.take(now=10.0)
    assert [limit.take(now=now) for now in (10.0, 9.0, 10.0, 10.49)] == [False] * 4
    assert limit.take(now=10.5)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.sampled_from([0, 1, 4, 60])), max_size=30), st.sampled_from([1.0, 3.0, 50.0])
)
def test_in_any_second_no_more_are_taken_than_a_burst_and_a_seconds_worth(
    steps: list[tuple[float, int]], per_s: float
) -> None:
    limit, now = RateLimit(Rate(per_s=per_s, burst=per_s)), 1_000.0
    taken_at: list[float] = []
    for pause_s, tries in steps:
        now += pause_s
        taken_at += [now for _ in range(tries) if limit.take(now=now)]
    for first, at in enumerate(taken_at):
        assert bisect_left(taken_at, at + 1) - first <= 2 * per_s


# --- one for each key --------------------------------------------------------------------------------


def test_a_key_that_was_never_counted_need_not_wait() -> None:
    assert a_limits().wait_s({**TEN, **ALL}, now=1e6) == 0


def test_ten_a_minute_are_ten_at_once_and_then_one_every_six_seconds() -> None:
    limits = a_limits()
    assert counted(limits, TEN, now=100.0) == 10
    assert limits.wait_s(TEN, now=100.0) == pytest.approx(6.0)
    assert limits.wait_s(TEN, now=105.9) == pytest.approx(0.1)
    assert counted(limits, TEN, now=106.01) == 1
    assert counted(limits, TEN, now=106.01 + MINUTE_S) == 10


def test_the_emptiest_bucket_decides() -> None:
    limits = a_limits()
    others: list[Mapping[Hashable, Rate]] = [{f"operator-{n}": Rate.per_minute(10)} for n in range(11)]
    assert [counted(limits, {**other, **ALL}, now=5.0) for other in others] == [10] * 10 + [0]
    assert limits.wait_s({**others[10], **ALL}, now=5.0) == pytest.approx(0.6)
    assert limits.wait_s(others[10], now=5.0) == 0


def test_a_key_that_is_forgotten_begins_anew() -> None:
    limits = a_limits()
    counted(limits, TEN, now=0.0)
    limits.forget("ana")
    assert counted(limits, TEN, now=0.0) == 10
    limits.forget("nobody")


def test_no_more_keys_are_kept_than_were_said_and_the_oldest_is_forgotten() -> None:
    limits, one = a_limits(most=3), Rate.per_minute(1)
    for n in range(1_000):
        limits.count({n: one, "always": one}, now=float(n))
    assert len(limits) == 3
    assert limits.wait_s({999: one}, now=999.0) == pytest.approx(MINUTE_S)
    assert limits.wait_s({997: one}, now=999.0) == 0
    assert limits.wait_s({"always": one}, now=999.0) > MINUTE_S
