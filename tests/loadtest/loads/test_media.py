"""What a load of calls with media makes of what it measured."""

import os
from typing import Any

import pytest

from loadtest.loads.media import _sum_up, media_overall
from loadtest.loads.media_plane import worker_pid
from loadtest.loads.media_talk import Direction, Stretch
from loadtest.loads.scenarios import MediaStep
from loadtest.measure.results import StepResult
from loadtest.measure.stack import GatewayDied


def step(calls: int, *, held: bool = True, **figures: float) -> StepResult:
    usual = {"injected": 0.0, "lost": 0.0, "setup_cpu_ms": 2.0, "calls_per_core": 300.0, "cpu_us": 33.0}
    usual |= {"delay_p50_ms": 0.5, "delay_p99_ms": 3.0, "worker_kb_per_call": 200.0}
    return StepResult(label="", rate_per_s=calls, graph_ms=0, count=calls, held=held, figures={**usual, **figures})


def stretch(*, sent: int = 100, heard: int = 100, delay_ms: float = 1.0, cpu_s: float = 0.01, **more: Any) -> Stretch:
    one = Direction(sent=sent, heard=heard, delays_ms=[delay_ms] * 4, strange=0)
    return Stretch(
        **{
            "to_operator": one,
            "to_user": one,
            "seconds": 1.0,
            "wanted_s": 1.0,
            "server_cpu_s": cpu_s,
            "generator_cpu_s": 0.1,
            "late_p99_ms": 1.0,
            **more,
        }
    )


def whole(*found: StepResult, faulty: int = 0) -> dict[str, float]:
    """Return the figures of all; of the first steps so many were with faults."""
    steps = [MediaStep(calls=one.count, jitter_ms=30.0 * (index < faulty)) for index, one in enumerate(found)]
    return media_overall([*steps, MediaStep(calls=1_000)], found)


def test_the_most_calls_that_were_carried_count() -> None:
    figures = whole(step(50, delay_p99_ms=1), step(100), step(200, held=False, lost=7))
    assert (figures["calls_held"], figures["delay_p99_ms"], figures["lost"]) == (100, 3, 0)


def test_calls_behind_the_proxy_show_losses_and_nothing_else() -> None:
    figures = whole(step(90, lost=3, held=False, delay_p99_ms=29), step(20, lost=0, cpu_us=40), faulty=1)
    assert (figures["lost"], figures["calls_held"], figures["cpu_us"]) == (3, 20, 40)


def test_the_set_up_among_most_legs_counts_and_nothing_is_made_up() -> None:
    silent = step(500, setup_cpu_ms=2.5)
    del silent.figures["cpu_us"]
    figures = whole(step(10, setup_cpu_ms=3.5), silent, step(20, setup_cpu_ms=3))
    assert (figures["setup_cpu_ms"], figures["calls_held"]) == (2.5, 20)
    assert "calls_held" not in whole(step(10, held=False))
    assert whole() == {}


def test_losses_on_purpose_are_counted_apart() -> None:
    figures = {"injected": 5.0}
    _sum_up([stretch(heard=97)], figures)
    assert figures["lost"] == 1
    assert figures["delivered_to_user"] == figures["delivered_to_operator"] == 97


def test_of_several_stretches_the_worst_counts() -> None:
    figures = {"injected": 0.0}
    _sum_up([stretch(delay_ms=9), stretch(cpu_s=0.02), stretch(late_p99_ms=4.0)], figures)
    assert (figures["delay_p99_ms"], figures["cpu_us"], figures["late_p99_ms"]) == (9, 100, 4)
    assert (figures["calls_per_core"], figures["cpu_share"], figures["lost"]) == (100, 0.02, 0)


def test_a_generator_without_rest_is_the_limit() -> None:
    assert not stretch().generator_was_the_limit
    assert stretch(late_p99_ms=16.0).generator_was_the_limit
    assert stretch(generator_cpu_s=0.95).generator_was_the_limit
    assert stretch(wanted_s=0.94).generator_was_the_limit


def test_a_gateway_without_a_media_worker_is_named() -> None:
    with pytest.raises(GatewayDied, match="0 media workers"):
        worker_pid(os.getpid())
