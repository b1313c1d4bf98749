"""Every state that is not a conversation leaves by itself, whatever hangs; what hangs is cut and told again later."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.callflow.call import CallInput, CallState, InputKind, Timeouts, new_call
from gateway.callflow.outcome import EndReason, Result
from gateway.callflow.step import step
from gateway.calls import driver as driver_module
from gateway.calls.driver import CallDriver
from gateway.common.ids import CallId, MetaCallId, OperatorId
from gateway.store.records import CallRecord
from media.engine import LegFailure, LegId, LegStats, WorkerId
from media.errors import WorkerGone
from policy.facts import Direction
from tests.support.fakes.clock import START
from tests.support.fakes.graph import unreachable
from tests.support.fakes.media import FakeMedia
from tests.support.harness.waiting import until
from tests.support.harness.world import NUMBER_ID, WACID, World, a_world

TIMEOUTS = Timeouts()
#: More than all deadlines of a call together.
LONG_S = 300.0


@given(
    direction=st.sampled_from(Direction),
    kinds=st.lists(st.sampled_from([kind for kind in InputKind if kind is not InputKind.DEADLINE]), max_size=8),
)
def test_from_wherever_a_call_is_its_deadlines_alone_end_it(direction: Direction, kinds: list[InputKind]) -> None:
    wacid = MetaCallId("wacid.TEST") if direction is Direction.USER_INITIATED else None
    call, now = new_call(CallId("c"), direction, deadline_at=30.0, created_at=START, meta_call_id=wacid), 1.0
    for kind in kinds:
        received = CallInput(kind=kind, operator=OperatorId("ana"), meta_call_id=MetaCallId("wacid.TEST"))
        call, _ = step(call, received, now=now, at=START, timeouts=TIMEOUTS)
    for _ in range(len(CallState)):
        if call.state in (CallState.ENDED, CallState.ACTIVE) and call.deadline_at is None:
            return  # a conversation ends by its people, or by the media watchdog
        assert call.deadline_at is not None
        assert call.deadline_at <= now + LONG_S
        now = max(now, call.deadline_at)
        call, _ = step(call, CallInput(kind=InputKind.DEADLINE), now=now, at=START, timeouts=TIMEOUTS)
    raise AssertionError(f"still {call.state}")


class HangingMedia(FakeMedia):
    """An engine that never answers, for the methods named."""

    hanging: frozenset[str] = frozenset()

    async def _hang(self, method: str) -> None:
        if method in self.hanging:
            await asyncio.Event().wait()

    async def answer_meta(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        await self._hang("answer_meta")
        return await super().answer_meta(leg, worker, offer_sdp)

    async def offer_meta(self, leg: LegId, worker: WorkerId) -> str:
        await self._hang("offer_meta")
        return await super().offer_meta(leg, worker)

    async def join(self, a: LegId, b: LegId) -> None:
        await self._hang("join")
        await super().join(a, b)

    async def close(self, leg: LegId) -> LegStats | None:
        if leg.endswith("/meta"):
            await self._hang("close")
        return await super().close(leg)


def nothing_left(world: World, base: int) -> None:
    assert len(world.registry) == 0
    assert (world.number.incoming.in_use, world.number.outgoing.in_use) == (0, 0)
    assert len(world.tasks._tasks) - base == len(world.owed_hangups._owed)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("hanging", ["answer_meta", "join", "close", "pre_accept", "accept", "terminate", "reject"])
async def test_a_users_call_ends_whatever_hangs(hanging: str) -> None:
    async with a_world() as world:
        hang(world, hanging)
        phone, _ = await world.login()
        base = len(world.tasks._tasks)
        driver = await world.user_calls()
        assert driver is not None
        await asyncio.sleep(1)
        if driver.claim(phone.operator):
            world.hub.take(phone, driver.call.call_id)
        await asyncio.sleep(5)
        driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=phone.operator))
        await asyncio.sleep(LONG_S)
        nothing_left(world, base)
        assert phone.call is None
        if hanging == "terminate":
            assert len(world.owed_hangups) == 1  # it was asked, and nobody said yes


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("hanging", ["offer_meta", "close", "connect", "terminate"])
async def test_a_call_of_ours_ends_whatever_hangs(hanging: str) -> None:
    async with a_world() as world:
        hang(world, hanging)
        phone, _ = await world.login()
        base = len(world.tasks._tasks)
        await world.allow_calls()
        placed = await world.admission.place(NUMBER_ID, "+5511900000001", operator=phone.operator)
        assert isinstance(placed, CallDriver)
        await asyncio.sleep(LONG_S)
        nothing_left(world, base)
        assert phone.call is None


def hang(world: World, method: str) -> None:
    """Let one method of Meta's or of the media engine's never answer."""
    world.media.__class__ = HangingMedia
    world.media.hanging = frozenset({method})  # type: ignore[attr-defined]
    world.graph.hold(method)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_what_hangs_longer_than_the_call_is_cut() -> None:
    async with a_world() as world:
        hang(world, "close")
        driver = await world.user_calls()
        assert driver is not None
        await world.meta_terminates()
        await asyncio.sleep(driver_module.LINGER_S - 1)
        assert len(world.registry) == 0  # the slot does not wait for it
        assert len(world.tasks._tasks) == 1
        await asyncio.sleep(2)
        assert not world.tasks._tasks


# --- what nobody hears is told again -----------------------------------------------------------------


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_an_end_that_meta_did_not_hear_outlives_the_call_and_the_process() -> None:
    async with a_world() as world:
        world.graph.fail("terminate", *[unreachable("terminate")] * 100)
        driver = await world.user_calls()
        assert driver is not None
        await asyncio.sleep(31)  # nobody answers
        record = await ended(world, driver)
        assert record.state == "ended"
        assert len(world.owed_hangups) == 1
        assert await world.store.unfinished_calls() == [record]
    async with a_world(store=world.store, clock=world.clock) as after:
        (await after.recovery()).close()
        await after.graph.arrival("terminate")
        await asyncio.sleep(1)
        assert await after.store.unfinished_calls() == []


async def ended(world: World, driver: CallDriver) -> CallRecord:
    await until(lambda: not len(world.registry), timeout_s=LONG_S, every_s=1)
    return await world.record(driver.call.call_id)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_dial_of_unknown_fate_is_ended_when_it_turns_up_late() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        await world.allow_calls()
        world.graph.fail("connect", unreachable("connect"))
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=phone.operator)
        assert isinstance(driver, CallDriver)
        record = await ended(world, driver)
        assert record.result is Result.INDETERMINATE
        await world.meta_says("RINGING", "wacid.LATE", biz_opaque_callback_data=driver.call.call_id)
        assert (await world.graph.arrival("terminate")).args["call"] == "wacid.LATE"
        await asyncio.sleep(1)
        assert (await world.record(driver.call.call_id)).meta_call_id == "wacid.LATE"
        assert await world.store.unfinished_calls() == []


# --- nothing leaves before it is kept ----------------------------------------------------------------


async def test_no_connect_leaves_before_the_calls_record_is_durable() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        await world.allow_calls()
        write, kept = world.store.write, asyncio.Event()

        async def slowly(*changes: Any) -> None:
            await kept.wait()
            await write(*changes)

        world.store.write = slowly  # type: ignore[method-assign]
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=phone.operator)
        assert isinstance(driver, CallDriver)
        for _ in range(50):
            await asyncio.sleep(0)
        assert world.graph.ops() == []
        kept.set()
        await world.graph.arrival("connect")


async def test_a_call_that_cannot_be_kept_is_not_placed() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        await world.allow_calls()
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=phone.operator)
        assert isinstance(driver, CallDriver)
        world.store.fail_with()
        await world.until(lambda: not len(world.registry))
        world.store.heal()
        record = await world.record(driver.call.call_id)
        assert (record.result, record.reason) == (Result.GATEWAY, EndReason.STORE_DOWN)
        assert "connect" not in world.graph.ops()
        assert world.number.outgoing.in_use == 0


# --- a media worker dies -----------------------------------------------------------------------------


async def test_a_workers_death_ends_its_call_and_tells_meta() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await world.user_calls()
        assert driver is not None
        await world.until(lambda: driver.call.state is CallState.RINGING)
        driver.claim(phone.operator)
        world.hub.take(phone, driver.call.call_id)
        await world.until(lambda: driver.call.state is CallState.ACTIVE)
        other = await world.user_calls("wacid.OTHER")
        assert other is not None
        await world.until(lambda: other.call.state is CallState.RINGING)
        world.media.fail("close", WorkerGone("killed"))
        driver.feed(CallInput(kind=InputKind.MEDIA_FAILED, reason=EndReason.WORKER_DIED, detail=LegFailure.WORKER_DIED))
        assert (await world.graph.arrival("terminate")).args["call"] == WACID
        await world.meta_terminates(talked_s=3)
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.GATEWAY, EndReason.WORKER_DIED)
        assert world.number.incoming.in_use == 1
        assert other.call.state is CallState.RINGING
        assert phone.call is None
        assert line.states[-1] == "ended"
