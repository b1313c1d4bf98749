"""Calls that a number placed in 24 hours: how many, and when one more may be."""

from datetime import timedelta

import pytest

from gateway.numbers.placed_calls import BACK_OFF, PlacedCalls
from tests.support.generators.records import T0, at

DAY_S = 86_400
TICK = timedelta(microseconds=1)


def placed(*seconds: float, limit: int = 2) -> PlacedCalls:
    calls = PlacedCalls(limit)
    calls.add(*(at(second) for second in seconds))
    return calls


def test_nothing_was_placed() -> None:
    calls = placed()
    assert calls.count(now=T0) == 0
    assert calls.next_frees_at(now=T0) is None


def test_a_call_counts_until_it_is_a_day_old() -> None:
    calls = placed(0)
    assert calls.count(now=at(DAY_S) - TICK) == 1
    assert calls.count(now=at(DAY_S)) == 0


def test_the_instant_of_the_next_call_is_that_of_the_one_which_leaves_room() -> None:
    calls = placed(0, 10, 20)
    assert calls.count(now=at(30)) == 3
    assert calls.next_frees_at(now=at(30)) == at(DAY_S)
    assert calls.frees_at(now=at(30)) == at(DAY_S + 10)
    assert calls.count(now=at(DAY_S + 10)) == 1


def test_order_does_not_matter() -> None:
    assert placed(20, 0, 10).frees_at(now=at(30)) == placed(0, 10, 20).frees_at(now=at(30))


def test_what_came_to_nothing_is_taken_back_once() -> None:
    calls = placed(0, 10, 10)
    calls.take_back(at(10))
    assert calls.count(now=at(10)) == 2
    calls.take_back(at(5))
    calls.take_back(at(99))
    assert calls.count(now=at(10)) == 2


def test_a_limit_of_none_never_frees() -> None:
    assert placed(limit=0).frees_at(now=T0) is None


def test_what_an_earlier_process_placed_counts() -> None:
    calls = PlacedCalls(2)
    calls.preload([at(10), at(0)])
    assert calls.frees_at(now=at(20)) == at(DAY_S)


def test_a_clock_that_is_put_back_an_hour_and_forth_loses_nothing() -> None:
    calls = placed(0, 10)
    assert calls.count(now=at(DAY_S + 3_600)) == 0
    assert calls.count(now=at(20)) == 2
    assert calls.count(now=at(-3_600)) == 2


def test_memory_holds_the_calls_of_two_days() -> None:
    calls = placed(*range(1_000), limit=10)
    calls.count(now=at(3 * DAY_S))
    assert calls._instants == []


class TestMetaSaysFull:
    @pytest.mark.parametrize("own", [(), (0, 1, 2)])
    def test_the_limit_counts_as_reached_for_a_minute(self, own: tuple[float, ...]) -> None:
        calls = placed(*own)
        calls.meta_says_full(now=at(10))
        assert calls.count(now=at(10)) == max(2, len(own))
        until = calls.frees_at(now=at(10))
        assert until is not None
        assert until >= at(10) + BACK_OFF
        assert calls.count(now=at(10) + BACK_OFF) == len(own)

    def test_a_clock_that_is_put_back_does_not_make_it_longer(self) -> None:
        calls = placed()
        calls.meta_says_full(now=at(3_600))
        assert calls.count(now=at(0)) == 0
