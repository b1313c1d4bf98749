"""From when a call's time counts."""

from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.common.clock import instant
from loadtest.loads.calls import Ring
from loadtest.loads.generator import Shot
from loadtest.loads.job import Job
from loadtest.loads.scenarios import Form, Step, Work
from loadtest.measure.results import Result, StepResult
from loadtest.simulator.faults import WebhookFaults
from tests.loadtest.helpers import callback, running
from tests.support.harness.waiting import LOOP_GRAIN_S


@pytest.mark.parametrize("held_back", [False, True])
async def test_a_call_counts_from_when_it_was_due_or_its_batch_left(held_back: bool) -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        step = Step(rate_per_s=1, seconds=1, batch=20 if held_back else 1)
        sim.faults.order([], WebhookFaults(batch_s=0.2 if held_back else 0.0))
        result = Result(scenario="x", what="", work="ring", form="short", seed=1)
        stack: Any = SimpleNamespace(sim=sim)
        ring = Ring(Job(stack=stack, form=Form(steps=(step,)), work=Work.RING, seed=1, result=result))
        ring.begin(step)
        # The generator was a second late, too.
        shot = Shot(index=0, due_s=0, took_s=0, status=200, late_s=1.0)

        def picked_up(took_s: float, status: int) -> None:
            (call,) = sim.world.live_calls()
            sim.world.heard("pre_accept", call.id)
            sim.world.heard("accept", call.id)

        sim.webhooks.on_answer = picked_up
        began_at = instant()
        assert await ring.arrive(0) == 200
        assert (instant() - began_at > 0.2 - LOOP_GRAIN_S) == held_back
        ring.finish(step, [shot], StepResult(label="", rate_per_s=1, graph_ms=0, count=1))
        (took_ms,) = ring.instants["accept"]
        assert 0 < took_ms < 150 if held_back else 1_000 < took_ms < 1_150
