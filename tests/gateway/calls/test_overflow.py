"""A call for which there is no room costs next to nothing, is kept, and is told to Meta if there is time."""

import asyncio

import pytest

from gateway.admission.overload import Overload
from gateway.callflow.outcome import EndReason, Result
from gateway.calls import overflow
from gateway.calls.overflow import Overflow
from gateway.common.ids import MetaCallId
from gateway.store.records import DecisionRecord
from tests.support.fakes.graph import unreachable
from tests.support.harness.world import NUMBER_ID, World, a_world


def one_a_second() -> Overload:
    return Overload(max_setups_per_s=1)


def left_ringing(world: World) -> float:
    return world.metrics.registry.get_sample_value("wacg_calls_left_ringing_total") or 0.0


def refused_for(world: World, reason: str) -> float:
    return world.metrics.registry.get_sample_value("wacg_setups_refused_total", {"reason": reason}) or 0.0


async def refusals(world: World) -> list[DecisionRecord]:
    return [decision for decision in await world.store.decisions(NUMBER_ID) if not decision.allowed]


async def test_above_the_ceiling_a_call_is_rejected_before_there_is_any_media() -> None:
    async with a_world(overload=one_a_second()) as world:
        assert await world.user_calls("wacid.0") is not None
        await world.graph.arrival("pre_accept")
        legs = set(world.media.legs)
        assert await world.user_calls("wacid.1") is None
        sent = await world.graph.arrival("reject")
        assert sent.args["call"] == "wacid.1"
        assert world.media.legs == legs
        assert (world.number.incoming.in_use, len(world.registry)) == (1, 1)
        assert refused_for(world, "setups_per_s") == 1


async def test_what_became_of_it_is_kept_with_its_figures() -> None:
    async with a_world(overload=one_a_second()) as world:
        for n in range(2):
            await world.user_calls(f"wacid.{n}")
        (decision,) = await refusals(world)
        assert decision.refusal is not None
        assert (decision.allowed, decision.request, decision.asked_by) == (False, "receive", "meta")
        assert (decision.refusal["reason"], decision.refusal["rule"]) == ("overloaded", "gateway/setups_per_s")
        assert (decision.refusal["limit"], decision.refusal["remedy"]) == (1, "try_again_soon")
        assert decision.refusal["retry_at"] > world.clock.now().isoformat()
        calls = await world.store.recent_calls(phone_number_ids=[NUMBER_ID], limit=5)
        (record,) = (call for call in calls if call.meta_call_id == "wacid.1")
        assert (record.state, record.result, record.reason) == ("ended", Result.REFUSED, EndReason.OVERLOAD)
        ended = {"direction": "USER_INITIATED", "result": "refused", "reason": "overload"}
        assert world.metrics.registry.get_sample_value("wacg_calls_ended_total", ended) == 1


async def test_metas_terminate_fills_the_record_and_the_call_does_not_come_back() -> None:
    async with a_world(overload=one_a_second()) as world:
        for n in range(2):
            await world.user_calls(f"wacid.{n}")
        await world.meta_terminates("wacid.1")
        assert world.registry.has_ended(MetaCallId("wacid.1"))
        assert await world.user_calls("wacid.1") is None
        calls = await world.store.recent_calls(phone_number_ids=[NUMBER_ID], limit=5)
        (record,) = (call for call in calls if call.meta_call_id == "wacid.1")
        assert record.meta_status == "COMPLETED"


async def test_a_full_number_turns_away_in_the_same_way() -> None:
    async with a_world(incoming_slots=1, overload=one_a_second()) as world:
        assert await world.user_calls("wacid.0") is not None
        assert await world.user_calls("wacid.1") is None  # the slots are asked first: they name the limit
        (decision,) = await refusals(world)
        assert decision.refusal is not None
        assert (decision.refusal["reason"], decision.refusal["observed"]) == ("number_busy", 1)
        assert refused_for(world, "slots_user_initiated") == 1


def an_overflow(world: World, tasks: asyncio.TaskGroup, **limits: int) -> Overflow:
    return Overflow(
        graph=world.graph,
        store=world.store,
        registry=world.registry,
        metrics=world.metrics,
        clock=world.clock,
        start=tasks.create_task,
        **limits,
    )


async def test_a_few_are_rejected_at_a_time_a_bounded_number_waits_and_the_rest_rings_out() -> None:
    async with a_world(incoming_slots=0) as world:
        world.admission._overflow = an_overflow(world, world.tasks, at_a_time=2, waiting=3)
        go_on = world.graph.hold("reject")
        for n in range(20):
            await world.user_calls(f"wacid.{n}")
        await world.graph.arrival("reject", count=2)
        before = left_ringing(world)
        go_on.set()
        await world.graph.arrival("reject", count=20 - int(before))
        assert before >= 15
        assert left_ringing(world) == before
        assert len(await world.store.recent_calls(phone_number_ids=[NUMBER_ID], limit=50)) == 20


async def test_who_has_waited_too_long_is_left_to_ring_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "PATIENCE_S", -1.0)
    async with a_world(incoming_slots=0) as world:
        await world.user_calls("wacid.0")
        await world.until(lambda: left_ringing(world) == 1)
        assert not world.graph.ops()


async def test_a_meta_that_cannot_be_reached_stops_nothing() -> None:
    async with a_world(incoming_slots=0) as world:
        world.graph.fail("reject", unreachable("reject"))
        await world.user_calls("wacid.0")
        await world.until(lambda: left_ringing(world) == 1)
        await world.user_calls("wacid.1")
        assert (await world.graph.arrival("reject", count=2)).args["call"] == "wacid.1"


async def test_at_the_end_nobody_waits_and_no_task_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "STOP_S", 0.05)
    async with asyncio.TaskGroup() as tasks, a_world(incoming_slots=0) as world:
        turning = world.admission._overflow = an_overflow(world, tasks, at_a_time=1, waiting=5)
        world.graph.hold("reject")
        for n in range(3):
            await world.user_calls(f"wacid.{n}")
        await world.graph.arrival("reject")
        await turning.aclose()
        await world.user_calls("wacid.late")
        assert left_ringing(world) == 3
