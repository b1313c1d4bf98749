"""Pauses grow to the last one and stay there, and chance makes them shorter only."""

import pytest

from gateway.common.backoff import Backoff


def test_each_failure_has_the_next_pause_and_the_last_one_stays() -> None:
    backoff = Backoff((1.0, 2.0, 5.0))
    assert [backoff.pause_s(before) for before in (0, 1, 2, 3, 1_000_000)] == [1.0, 2.0, 5.0, 5.0, 5.0]


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 10.0), (0.5, 9.0), (1.0, 8.0)])
def test_chance_takes_its_share_of_a_pause(chance: float, pause_s: float) -> None:
    assert Backoff((10.0,), jitter=0.2).pause_s(0, chance=chance) == pytest.approx(pause_s)


def test_without_jitter_chance_takes_nothing() -> None:
    assert Backoff((10.0,)).pause_s(0, chance=0.7) == 10.0
