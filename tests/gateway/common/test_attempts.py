"""Failures are counted for a minute, by source, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.common.attempts import PERIOD_S, Attempts, Source

ANA = Source("ana", 10)
ALL = Source("all", 100)


def failures(attempts: Attempts, *sources: Source, now: float) -> int:
    """Fail as often as is heard at one instant; return how often that was."""
    count = 0
    while attempts.wait_s(sources, now=now) == 0 and count < 1_000:
        attempts.failed(sources, now=now)
        count += 1
    return count


def test_who_never_failed_need_not_wait() -> None:
    assert Attempts().wait_s([ANA, ALL], now=1e6) == 0


def test_ten_are_borne_at_once_then_one_every_six_seconds() -> None:
    attempts = Attempts()
    assert failures(attempts, ANA, now=100.0) == 10
    assert attempts.wait_s([ANA], now=100.0) == pytest.approx(6.0)
    assert attempts.wait_s([ANA], now=105.9) == pytest.approx(0.1)
    assert failures(attempts, ANA, now=106.01) == 1
    assert failures(attempts, ANA, now=106.01 + PERIOD_S) == 10


def test_the_fullest_source_decides() -> None:
    attempts = Attempts()
    others = [Source(f"operator-{n}", 10) for n in range(11)]
    assert [failures(attempts, other, ALL, now=5.0) for other in others] == [10] * 10 + [0]
    assert attempts.wait_s([others[10], ALL], now=5.0) == pytest.approx(0.6)
    assert attempts.wait_s([others[10]], now=5.0) == 0


def test_who_proves_who_they_are_begins_anew() -> None:
    attempts = Attempts()
    failures(attempts, ANA, now=0.0)
    attempts.forgive(ANA)
    assert failures(attempts, ANA, now=0.0) == 10
    attempts.forgive(Source("nobody", 1))


def test_no_more_sources_are_kept_than_were_said_and_the_oldest_is_forgotten() -> None:
    attempts = Attempts(most=3)
    for n in range(1_000):
        attempts.failed([Source(n, 1)], now=float(n))
    assert len(attempts) == 3
    assert attempts.wait_s([Source(999, 1)], now=999.0) == pytest.approx(PERIOD_S)
    assert attempts.wait_s([Source(996, 1)], now=999.0) == 0


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 4)), max_size=200),
    st.sampled_from([1, 3, 10, 100]),
)
def test_in_any_minute_no_more_are_heard_than_twice_the_limit(steps: list[tuple[float, int]], limit: int) -> None:
    attempts, source, now = Attempts(), Source("x", limit), 1_000.0
    heard: list[float] = []
    for pause_s, tries in steps:
        now += pause_s
        for _ in range(tries):
            if attempts.wait_s([source], now=now) == 0:
                attempts.failed([source], now=now)
                heard.append(now)
    for at in heard:
        assert sum(at <= other <= at + PERIOD_S for other in heard) <= 2 * limit + 1
