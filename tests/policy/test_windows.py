"""Rolling windows, at their edges."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.windows import ALWAYS, DAY, count_in, fewer_than, is_within
from tests.policy.make import T0, TICK, hours
from tests.policy.strategies import instants


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (T0 + DAY - TICK, 1),
        (T0 + DAY, 0),  # exactly 24 h old: no longer counts
        (T0 + DAY + TICK, 0),
        (T0 - TICK, 1),  # known, though our clock is behind
    ],
)
def test_an_instant_counts_until_it_is_as_old_as_the_window(now: datetime, expected: int) -> None:
    assert count_in([T0], window=DAY, now=now) == expected
    assert is_within(T0, window=DAY, now=now) is bool(expected)


def test_fewer_than_a_limit_that_was_never_reached_is_always() -> None:
    assert fewer_than([T0], limit=2, window=DAY) == ALWAYS


def test_fewer_than_nothing_is_never() -> None:
    assert fewer_than([], limit=0, window=DAY) is None


def test_the_instant_that_makes_room_is_the_one_the_limit_counts_back_to() -> None:
    assert fewer_than([hours(0), hours(1), hours(2)], limit=2, window=DAY) == hours(1) + DAY


@given(st.lists(instants(), min_size=1), st.integers(1, 8))
def test_there_is_room_from_that_instant_on_and_not_before(listed: list[datetime], limit: int) -> None:
    listed.sort()
    free_at = fewer_than(listed, limit=limit, window=DAY)
    assert free_at is not None
    assert count_in(listed, window=DAY, now=max(free_at, listed[0])) < limit
    if free_at != ALWAYS:
        assert count_in(listed, window=DAY, now=free_at - TICK) >= limit
