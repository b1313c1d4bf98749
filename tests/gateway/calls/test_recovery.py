"""What a crash left is ended at Meta, closed here, counted meanwhile, and never rings again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.callflow.outcome import EndReason, Result
from gateway.calls import owed_hangups
from gateway.calls.recovery import EXPECTED_FOR
from gateway.common.ids import CallId, MetaCallId, UserRef
from gateway.store.records import CallRecord, EndOwed
from policy.facts import Direction
from tests.support.fakes.clock import START
from tests.support.fakes.graph import refused, unreachable
from tests.support.generators import records as make
from tests.support.harness.waiting import until
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world


def left(state: str = "active", **more: Any) -> CallRecord:
    return make.call(phone_number_id=NUMBER_ID, state=state, created_at=START, **more)


def dialled(state: str = "requesting", **more: Any) -> CallRecord:
    """A call of ours to which Meta had not answered."""
    return left(state, direction=Direction.BUSINESS_INITIATED, meta_call_id=None, user=ANA, **more)


@asynccontextmanager
async def after_a_crash(*calls: CallRecord, **more: Any) -> AsyncIterator[World]:
    async with a_world(**more) as world:
        await world.store.write(*calls)
        yield world


async def recover(world: World) -> None:
    (await world.recovery()).close()
    await world.until(lambda: not len(world.owed_hangups))


async def test_a_call_that_was_live_is_ended_at_meta_and_closed() -> None:
    call = left()
    async with after_a_crash(call) as world:
        await recover(world)
        assert world.graph.only("terminate").args["call"] == call.meta_call_id
        closed = await world.record(call.call_id)
        assert (closed.state, closed.ended_at, closed.version) == ("ended", START, call.version + 1)
        assert (closed.result, closed.reason) == (Result.GATEWAY, EndReason.INTERNAL)
        assert closed.detail
        assert await world.store.unfinished_calls() == []


async def test_it_does_not_ring_again_and_nothing_is_sent_before_the_gateway_serves() -> None:
    call = left()
    async with after_a_crash(call) as world:
        await world.recovery()
        assert call.meta_call_id is not None
        assert await world.user_calls(call.meta_call_id) is None
        assert world.graph.ops() == []


async def test_an_outcome_that_was_known_stays() -> None:
    call = left("ending", result=Result.USER, reason=EndReason.DECLINED, detail="said so")
    async with after_a_crash(call) as world:
        await recover(world)
        closed = await world.record(call.call_id)
        assert (closed.result, closed.reason, closed.detail) == (Result.USER, EndReason.DECLINED, "said so")


async def test_a_call_that_ended_is_left_alone() -> None:
    call = left("ended")
    async with after_a_crash(call) as world:
        await recover(world)
        assert await world.record(call.call_id) == call
        assert world.graph.ops() == []


async def test_a_call_that_ended_unheard_is_ended_again_and_its_record_stays_as_it_is() -> None:
    call = left("ended", result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_OPERATOR)
    async with after_a_crash(call) as world:
        await world.store.write(EndOwed(call_id=call.call_id, owed=True))
        await recover(world)
        assert world.graph.only("terminate").args["call"] == call.meta_call_id
        assert await world.record(call.call_id) == call
        assert await world.store.unfinished_calls() == []


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("error", [refused("terminate", 138004), unreachable("terminate"), refused("terminate", 190)])
async def test_a_call_that_meta_does_not_end_is_closed_here_and_told_again(error: Any) -> None:
    call = left()
    async with after_a_crash(call) as world:
        world.graph.fail("terminate", *[error] * 4)
        (await world.recovery()).close()
        await world.graph.arrival("terminate")
        assert (await world.record(call.call_id)).state == "ended"
        assert await world.store.unfinished_calls() != []
        await world.graph.arrival("terminate", count=5, timeout_s=60)
        await world.until(lambda: not len(world.owed_hangups))
        assert await world.store.unfinished_calls() == []


async def test_a_second_crash_before_meta_heard_forgets_nothing() -> None:
    calls = [left(user=UserRef(wa_id=f"551190000000{n}")) for n in range(3)]
    async with after_a_crash(*calls) as first:
        first.graph.hold("terminate")
        (await first.recovery()).close()
        await first.graph.arrival("terminate", count=3)
    async with a_world(store=first.store, clock=first.clock) as second:
        await recover(second)
        assert {sent.args["call"] for sent in second.graph.sent} == {call.meta_call_id for call in calls}
        assert await second.store.unfinished_calls() == []
    async with a_world(store=first.store, clock=first.clock) as third:
        await recover(third)
        assert third.graph.ops() == []


async def test_left_over_calls_take_slots_until_their_end_is_confirmed() -> None:
    ours = left(direction=Direction.BUSINESS_INITIATED, user=ANA)
    async with after_a_crash(left(), left(), left(), ours, incoming_slots=2) as world:
        told = world.graph.hold("terminate")
        (await world.recovery()).close()
        await world.graph.arrival("terminate", count=4)
        assert (world.number.incoming.in_use, world.number.outgoing.in_use) == (2, 1)
        told.set()
        await world.until(lambda: not len(world.owed_hangups))
        assert (world.number.incoming.in_use, world.number.outgoing.in_use) == (0, 0)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_while_meta_is_silent_left_over_calls_hold_slots_no_longer_than_live_ones_would() -> None:
    async with after_a_crash(left()) as world:
        world.graph.hold("terminate")
        (await world.recovery()).close()
        await asyncio.sleep(59)
        assert world.number.incoming.in_use == 1
        await asyncio.sleep(2)
        assert world.number.incoming.in_use == 0
        assert len(world.owed_hangups) == 1


async def test_a_terminate_webhook_confirms_without_a_request() -> None:
    call = left()
    async with after_a_crash(call) as world:
        world.graph.hold("terminate")
        (await world.recovery()).close()
        await world.graph.arrival("terminate")
        world.graph.fail("terminate", unreachable("terminate"))
        await world.meta_terminates(str(call.meta_call_id), talked_s=30)
        world.graph.hold("terminate").set()
        await world.until(lambda: not len(world.owed_hangups))
        assert world.graph.ops() == ["terminate"]
        record = await world.record(call.call_id)
        assert (record.duration_s, record.meta_status) == (30, "COMPLETED")


async def test_a_number_that_is_configured_no_more_costs_nothing() -> None:
    call = make.call(state="active", phone_number_id="999")
    async with after_a_crash(call) as world:
        await recover(world)
        assert world.graph.ops() == []
        assert (await world.record(call.call_id)).state == "ended"


# --- a connect without an answer --------------------------------------------------------------------


@pytest.mark.parametrize("event", ["connect", "RINGING", "ACCEPTED"])
async def test_a_call_without_metas_id_is_ended_when_a_webhook_tells_it(event: str) -> None:
    call = dialled()
    async with after_a_crash(call) as world:
        (await world.recovery()).close()
        assert world.graph.ops() == []
        closed = await world.record(call.call_id)
        assert (closed.state, closed.result) == ("ended", Result.INDETERMINATE)
        await world.meta_says(event, "wacid.LATE", biz_opaque_callback_data=call.call_id)
        assert (await world.graph.arrival("terminate")).args["call"] == "wacid.LATE"
        await world.until(lambda: not len(world.owed_hangups))
        await world.meta_terminates("wacid.LATE", direction="BUSINESS_INITIATED", talked_s=7)
        record = await world.record(call.call_id)
        assert (record.meta_call_id, record.duration_s) == ("wacid.LATE", 7)
        contact = await world.contacts.get(world.number, ANA)
        assert [fact.key for fact in contact.state.connected] == ["connected/wacid.LATE"]
        assert await world.store.unfinished_calls() == []


async def test_what_came_without_our_id_before_is_not_lost() -> None:
    call = dialled()
    async with after_a_crash(call) as world:
        (await world.recovery()).close()
        await world.meta_terminates("wacid.LATE", direction="BUSINESS_INITIATED", talked_s=7)
        await world.meta_says("ACCEPTED", "wacid.LATE", biz_opaque_callback_data=call.call_id)
        await world.until(lambda: not len(world.owed_hangups))
        record = await world.record(call.call_id)
        assert (record.meta_call_id, record.duration_s) == ("wacid.LATE", 7)


async def test_one_whose_first_webhook_is_its_end_needs_no_request() -> None:
    call = dialled("unconfirmed")
    async with after_a_crash(call) as world:
        (await world.recovery()).close()
        await world.meta_terminates(
            "wacid.LATE", direction="BUSINESS_INITIATED", biz_opaque_callback_data=call.call_id, talked_s=7
        )
        assert not len(world.owed_hangups)
        assert world.graph.ops() == []
        record = await world.record(call.call_id)
        assert (record.meta_call_id, record.duration_s) == ("wacid.LATE", 7)
        assert await world.store.unfinished_calls() == []


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_it_is_expected_for_a_while_and_reserves_for_less() -> None:
    call = dialled()
    async with after_a_crash(call) as world:
        (await world.recovery()).close()
        await asyncio.sleep(59)
        assert world.number.outgoing.in_use == 1
        await asyncio.sleep(2)
        assert world.number.outgoing.in_use == 0
        assert len(world.owed_hangups) == 1
        await asyncio.sleep(owed_hangups.EXPECT_S)
        assert not len(world.owed_hangups)
        assert await world.store.unfinished_calls() == []


async def test_it_is_expected_again_after_another_crash_but_not_for_ever() -> None:
    call = dialled()
    async with after_a_crash(call) as first:
        (await first.recovery()).close()
    async with a_world(store=first.store, clock=first.clock) as second:
        (await second.recovery()).close()
        assert len(second.owed_hangups) == 1
    first.clock.advance((EXPECTED_FOR + timedelta(seconds=1)).total_seconds())
    async with a_world(store=first.store, clock=first.clock) as third:
        (await third.recovery()).close()
        assert not len(third.owed_hangups)
        assert third.number.outgoing.in_use == 0
        assert await third.store.unfinished_calls() == []


async def test_it_counts_as_placed() -> None:
    call = dialled()
    async with after_a_crash(call) as world:
        await recover_only(world)
        placed = await world.store.placed_calls([NUMBER_ID], START - timedelta(days=1))
        assert placed[NUMBER_ID] == [call.created_at]


async def recover_only(world: World) -> None:
    (await world.recovery()).close()


# --- many -------------------------------------------------------------------------------------------


class SlowMeta:
    """Every request takes 200 ms."""

    def __init__(self, world: World) -> None:
        self.terminate_now = world.graph.terminate
        self.at_once = self.most = 0

    async def terminate(self, number: Any, call: Any) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.2)
        self.at_once -= 1
        await self.terminate_now(number, call)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_thousand_calls_are_ended_within_seconds_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [
        replace(left(), call_id=CallId(f"call{n}"), meta_call_id=MetaCallId(f"wacid.{n}"), user=UserRef(wa_id=f"55{n}"))
        for n in range(1_000)
    ]
    async with after_a_crash(*calls, incoming_slots=1_000) as world:
        slow, loop = SlowMeta(world), asyncio.get_running_loop()
        monkeypatch.setattr(world.graph, "terminate", slow.terminate)
        began = loop.time()
        (await world.recovery()).close()
        assert world.number.incoming.in_use == 1_000
        await until(lambda: not len(world.owed_hangups), timeout_s=60, every_s=0.1)
        assert loop.time() - began <= 6
        assert slow.most == owed_hangups.AT_A_TIME
        assert {sent.args["call"] for sent in world.graph.sent} == {call.meta_call_id for call in calls}
        assert world.number.incoming.in_use == 0
