"""How much a load needs, and what its steps add up to."""

import resource

import pytest

from loadtest.loads.built_in import BUILT_IN
from loadtest.loads.job import (
    WARM_UP,
    Job,
    Load,
    most_staying,
    needed_operators,
    needed_world,
    operators_for,
    overall,
    short_of_descriptors,
    stepped,
)
from loadtest.loads.scenarios import Form, Scenario, Step, Work
from loadtest.measure.results import Result, StepResult
from loadtest.simulator.config import SimConfig


@pytest.mark.parametrize("scenario", [one for one in BUILT_IN if one.work is not Work.GATE], ids=lambda one: one.name)
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_each_built_in_load_has_a_world_that_can_be(scenario: Scenario, long: bool) -> None:
    form = scenario.form(long=long)
    config = SimConfig(**needed_world(scenario.work, form), silent=True)  # type: ignore[arg-type]
    assert len({user.wa_id for user in config.users}) == len(config.users)
    assert needed_operators(scenario.work, form) <= 1_500 + most_staying(form)
    if scenario.work is Work.DIAL:
        calls = sum(step.count for step in form.steps)
        # A user may be connected five times in 24 hours, a number may place 10,000 calls.
        assert len(config.users) * 5 >= calls
        assert len(config.numbers) * 10_000 >= calls


def test_operators_are_as_many_as_are_busy_and_a_few_more() -> None:
    quick, slow = Step(rate_per_s=100, seconds=1), Step(rate_per_s=100, seconds=1, graph_ms=100)
    assert 10 < operators_for(quick, 0.05) < 30
    assert 40 < operators_for(slow, 0.05) < 70
    assert operators_for(Step(rate_per_s=0.1, seconds=1), 0.0) >= 4


def step(rate: float, *, held: bool = True, graph_ms: float = 0.0, **figures: float) -> StepResult:
    series = f"Graph {graph_ms:g} ms" if graph_ms else ""
    result = StepResult(label="", rate_per_s=rate, graph_ms=graph_ms, count=10, held=held, series=series)
    result.figures = {"cpu_ms": 1.0} | figures
    return result


def test_saturation_is_the_highest_rate_that_was_held_with_the_quickest_graph() -> None:
    steps = [step(50, cpu_ms=2.0), step(100, cpu_ms=2.5), step(150, held=False, cpu_ms=9.0), step(400, graph_ms=80)]
    assert overall(Work.RING, steps) == {"saturation_per_s": 100, "cpu_growth": 1.25}
    assert overall(Work.RING, [step(50, held=False)]) == {"saturation_per_s": 0}
    assert overall(Work.RING, []) == {}


def test_the_last_answer_of_a_burst_is_that_of_the_slowest_round() -> None:
    assert overall(Work.BURST, [step(1, last_answer_ms=5), step(1, last_answer_ms=9)]) == {"last_answer_ms": 9}
    assert overall(Work.BURST, [step(1, last_answer_ms=5), step(1)]) == {}


def test_of_intake_the_events_of_the_best_rate_held_count() -> None:
    steps = [step(50, events_per_s=500), step(100, events_per_s=900), step(150, held=False, events_per_s=5_000)]
    assert overall(Work.INTAKE, steps) == {"saturation_per_s": 100, "events_per_s": 900}


def test_of_a_number_that_is_filled_the_worst_counts_and_what_it_adds_to_the_others() -> None:
    empty = step(50, cpu_ms=9.0, call_cpu_ms=2.0, ack_p99_ms=4.0, lost=0.0, fallen=0.0)
    full = step(
        50, cpu_ms=99.0, call_cpu_ms=2.5, ack_p99_ms=5.5, lost=1.0, fallen=2.0, refusal_in_p99_ms=3.0, let_in=0.0
    )
    figures = overall(Work.FILL, [empty, full])
    assert figures == {
        "cpu_growth": 1.25,
        "ack_p99_more_ms": 1.5,
        "lost": 1.0,
        "fallen": 2.0,
        "refusal_in_p99_ms": 3.0,
        "let_in": 0.0,
    }
    del full.figures["call_cpu_ms"]
    assert "cpu_growth" not in overall(Work.FILL, [empty, full])


def test_what_became_of_events_while_the_database_was_slow_is_added_up() -> None:
    steps = [step(200, lost=0.0, missing=0.0, spooled=3.0), step(200, held=False, lost=1.0, missing=0.0, spooled=4.0)]
    assert overall(Work.INTAKE, steps) == {"lost": 1.0, "missing": 0.0, "spooled": 7.0}


def test_a_number_that_is_filled_gets_one_call_more_through_to_the_gateway() -> None:
    form = Form(steps=(Step(rate_per_s=10, seconds=1, live=20, numbers=3),), slots=10)
    world = SimConfig(**needed_world(Work.FILL, form), silent=True)  # type: ignore[arg-type]
    limits = world.effective_limits
    assert (limits.concurrent_in > 10, limits.concurrent_out) == (True, 10)
    assert len(world.numbers) == 3 + 1
    # Nobody is two of those who answer, who dials where there is no room, and who stays in a call.
    assert needed_operators(Work.FILL, form) == 60 + 1 + operators_for(WARM_UP, form.talk_s)


def test_more_softphones_than_the_system_has_descriptors_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 2_000))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    fill, gate = (
        next(one for one in BUILT_IN if one.name == "fill"),
        next(one for one in BUILT_IN if one.name == "gate"),
    )
    assert short_of_descriptors([fill, gate], long=False) == []
    (said,) = short_of_descriptors([fill, gate], long=True)
    assert said.startswith("fill: needs 3,0")
    assert said.endswith("the system allows 2,000 (ulimit -Hn)")
    assert asked == [(2_000, 2_000)] * 2


async def test_a_rate_that_was_not_held_ends_its_series_only(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def one(job: Job, load: Load, now: Step, index: int) -> StepResult:
        done.append(now.label)
        result = step(now.rate_per_s, graph_ms=now.graph_ms, held=now.rate_per_s < 100)
        job.result.steps.append(result)
        return result

    monkeypatch.setattr("loadtest.loads.job._step", one)
    rates = [Step(rate_per_s=rate, seconds=1, graph_ms=ms) for ms in (0, 80) for rate in (50, 100, 150)]
    result = Result(scenario="x", what="", work="ring", form="short", seed=1)

    class NoStack:
        class sim:
            class webhooks:
                on_answer = None

    job = Job(stack=NoStack(), form=Form(steps=tuple(rates)), work=Work.RING, seed=1, result=result)  # type: ignore[arg-type]
    await stepped(job, Load(job))
    assert done == ["20/s", "50/s", "100/s", "50/s, Graph 80 ms", "100/s, Graph 80 ms"]
    assert result.figures["saturation_per_s"] == 50
    assert any("100/s was not held" in line for line in result.load)
