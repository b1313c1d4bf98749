"""Calls that stay are as many as wanted, each with an operator; what happens where there is no room is told apart."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.loads import fill as fill_load
from loadtest.loads.fill import Fill, Staying
from loadtest.loads.job import Job, needed_world
from loadtest.loads.scenarios import Form, Step, Work
from loadtest.measure.results import Result, StepResult
from loadtest.operators.softphone_wire import RequestFailed
from loadtest.simulator.meta_sim import MetaSim
from loadtest.simulator.payloads import Direction
from loadtest.simulator.state import CallState
from tests.loadtest.helpers import answer_sdp, offer_sdp, running

IN, OUT = Direction.USER_INITIATED, Direction.BUSINESS_INITIATED


class Operator:
    """Does what the gateway would when an operator is free, or dials."""

    def __init__(self, sim: MetaSim) -> None:
        self.sim = sim
        #: Answers to dials, before one comes through.
        self.refusals: list[str] = []
        self.dialled = 0

    async def set_available(self, available: bool) -> None:
        """Pick up the oldest call that rings."""
        if available:
            rings = next(call for call in self.sim.world.live_calls() if call.state is CallState.RINGING)
            self.sim.calls.accept(rings.id, answer_sdp(), None)

    async def dial(self, number_id: str, to: str) -> dict[str, Any]:
        """Ask Meta for a call."""
        if self.refusals:
            raise RequestFailed({"code": "refused", "refusal": {"reason": self.refusals.pop(0)}})
        self.dialled += 1
        ours = f"{id(self)}-{self.dialled}"
        number, user = self.sim.world.number(number_id), self.sim.world.user(to.removeprefix("+"))
        self.sim.calls.connect(number, user, offer_sdp(), ours)
        return {"call_id": ours}

    async def hang_up(self) -> None:
        """End the last call."""
        self.sim.calls.business_terminates(self.sim.world.live_calls()[-1].id)


class Operators:
    """A crew of them."""

    def __init__(self, sim: MetaSim, refusals: tuple[str, ...] = ()) -> None:
        self.sim, self.refusals = sim, refusals
        self.names: list[str] = []

    async def join(self, keys: Mapping[str, str]) -> list[Operator]:
        """Log in; the first one has the refusals."""
        self.names += keys
        joined = [Operator(self.sim) for _ in keys]
        joined[-1].refusals = list(self.refusals)
        return joined


@asynccontextmanager
async def a_job(*steps: Step, slots: int = 1_000) -> AsyncIterator[tuple[Job, MetaSim]]:
    form = Form(steps=steps, slots=slots)
    async with running(**needed_world(Work.FILL, form), silent=True) as sim:
        stack: Any = SimpleNamespace(sim=sim, gateway_pid=os.getpid())
        result = Result(scenario="x", what="", work="fill", form="short", seed=1)
        yield Job(stack=stack, form=form, work=Work.FILL, seed=1, result=result), sim


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_QUIET_S", "_AGAIN_S", "_KNOCK_EVERY_S"):
        monkeypatch.setattr(fill_load, name, 0.0)


def a_result() -> StepResult:
    """Return a step of which the gateway used 0.4 cores."""
    figures = {"cpu_ms": 4.0, "cpu_share": 0.4}
    return StepResult(label="", rate_per_s=1, graph_ms=0, count=1, figures=figures)


def staying(job: Job, crew: Operators, count: int) -> Staying:
    return Staying(job, crew, {f"op{index}": "key" for index in range(count)})  # type: ignore[arg-type]


def by_number(sim: MetaSim) -> list[tuple[int, int]]:
    """Return how many calls each number has, from users and to users."""
    counts = Counter((call.facts.number.phone_number_id, call.facts.direction) for call in sim.world.live_calls())
    return [(counts[number, IN], counts[number, OUT]) for number in sim.world.numbers]


async def test_each_number_has_half_of_its_calls_from_users_and_only_the_missing_ones_are_added() -> None:
    async with a_job(Step(rate_per_s=1, seconds=1, live=7, numbers=2)) as (job, sim):
        crew = Operators(sim)
        calls = staying(job, crew, 14)
        numbers = list(sim.world.numbers.values())
        await calls.grow(numbers[1:2], 3)
        assert by_number(sim) == [(0, 0), (2, 1), (0, 0)]
        await calls.grow(numbers[1:3], 7)
        assert by_number(sim) == [(0, 0), (4, 3), (4, 3)]
        assert await calls.grow(numbers[1:3], 7) == {}
        assert {call.state for call in sim.world.live_calls()} == {CallState.ACTIVE}
        assert len(set(crew.names)) == len(calls.up) == 14
        await calls.end()
        assert sim.world.live == 0


async def test_of_many_calls_it_is_said_what_each_takes() -> None:
    async with a_job(Step(rate_per_s=1, seconds=1, live=100)) as (job, sim):
        took = await staying(job, Operators(sim), 100).grow(list(sim.world.numbers.values())[1:], 100)
        assert set(took) == {"kib_per_operator", "kib_per_call"}


async def test_a_dial_that_is_refused_for_the_moment_is_tried_again_and_any_other_counts() -> None:
    async with a_job(Step(rate_per_s=1, seconds=1, live=2)) as (job, sim):
        calls = staying(job, Operators(sim, ("STORE_DOWN", "OVERLOADED")), 2)
        await calls.grow(list(sim.world.numbers.values())[1:], 2)
        assert (len(calls.up), job.result.figures) == (2, {})
    async with a_job(Step(rate_per_s=1, seconds=1, live=2)) as (job, sim):
        calls = staying(job, Operators(sim, ("NO_PERMISSION",)), 2)
        await calls.grow(list(sim.world.numbers.values())[1:], 2)
        assert (len(calls.up), job.result.figures) == (1, {"refused: no_permission": 1})


async def knocked(job: Job, sim: MetaSim, operator: Operator, *, asked_for: str) -> Fill:
    """Knock once at the second number, each way, while the gateway asks Meta for this where a user calls."""
    fill = Fill(job, staying(job, Operators(sim), 0), operator)  # type: ignore[arg-type]
    fill._more["idle_cpu_share"] = 0.1
    number = list(sim.world.numbers.values())[1]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fill._knock(number))
        await sim.until(lambda: sim.world.live == 1)
        call = sim.world.live_calls()[0]
        sim.world.heard(asked_for, call.id)
        if asked_for == "reject":
            sim.calls.reject(call.id)
    fill.finish(job.form.steps[0], [], step := a_result())
    assert sim.world.live == 0
    assert step.figures["let_in"] == fill._more["let_in"]
    assert step.figures["call_cpu_ms"] == pytest.approx(3.0)
    fill._more["idle_cpu_share"] = step.figures["cpu_share"]
    fill.finish(job.form.steps[0], [], never_idle := a_result())
    assert "call_cpu_ms" not in never_idle.figures
    return fill


@pytest.mark.parametrize(
    ("asked_for", "refusals", "let_in", "timed", "figures"),
    [
        ("reject", ("NUMBER_BUSY",), 0, {"refusal_in", "refusal_out"}, {}),
        ("pre_accept", ("NUMBER_BUSY",), 1, {"refusal_out"}, {}),
        ("reject", (), 1, {"refusal_in"}, {}),
        # Not for want of room: no time of a refusal, and nothing was let in.
        ("reject", ("STORE_DOWN",), 0, {"refusal_in"}, {"refused: store_down": 1}),
    ],
)
async def test_who_knocks_is_refused_or_let_in(
    monkeypatch: pytest.MonkeyPatch,
    asked_for: str,
    refusals: tuple[str, ...],
    let_in: int,
    timed: set[str],
    figures: dict[str, float],
) -> None:
    monkeypatch.setattr(fill_load, "_KNOCKS", 1)
    async with a_job(Step(rate_per_s=1, seconds=1, live=0), slots=1) as (job, sim):
        operator = Operator(sim)
        operator.refusals = list(refusals)
        fill = await knocked(job, sim, operator, asked_for=asked_for)
        assert fill._more["let_in"] == let_in
        assert {name for name in fill.instants if name.startswith("refusal")} == timed
        assert all(0 <= took_ms < 5_000 for name in timed for took_ms in fill.instants[name])
        assert job.result.figures == figures


async def test_a_call_that_fell_is_counted() -> None:
    async with a_job(Step(rate_per_s=1, seconds=1, live=2)) as (job, sim):
        calls = staying(job, Operators(sim), 2)
        await calls.grow(list(sim.world.numbers.values())[1:], 2)
        fill = Fill(job, calls, Operator(sim))  # type: ignore[arg-type]
        fill._more["idle_cpu_share"] = 0.1
        for fallen, hang_up in ((0.0, True), (1.0, False)):
            step = a_result()
            fill.finish(job.form.steps[0], [], step)
            assert step.figures["fallen"] == fallen
            if hang_up:
                sim.calls.business_terminates(calls.up[0].id)
