"""What a crash left is ended at Meta, closed here, and never rings again."""

import asyncio
from dataclasses import replace

import pytest

from gateway import recovery
from gateway.outcome import EndReason, Result
from gateway.recovery import LeftOver
from gateway.registry import Registry
from tests.support import records as make
from tests.support.fake_clock import START, FakeClock
from tests.support.fake_graph import FakeGraph, refused, unreachable
from tests.support.memory_store import MemoryStore


class Crashed:
    """What a new process finds."""

    def __init__(self) -> None:
        self.store, self.graph, self.clock, self.registry = MemoryStore(), FakeGraph(), FakeClock(), Registry()
        self.store.heal()
        self.left_over = LeftOver(self.store, self.graph, self.clock)

    async def recover(self) -> None:
        await self.left_over.find(self.registry)
        await self.left_over.close()


async def test_a_call_that_was_live_is_ended_at_meta_and_closed() -> None:
    crashed = Crashed()
    call = make.call(state="active")
    await crashed.store.write(call)
    await crashed.recover()
    assert crashed.graph.only("terminate").args["call"] == call.meta_call_id
    closed = await crashed.store.call(call.call_id)
    assert closed is not None
    assert (closed.state, closed.ended_at, closed.version) == ("ended", START, call.version + 1)
    assert (closed.result, closed.reason) == (Result.GATEWAY, EndReason.INTERNAL)
    assert closed.detail


async def test_it_does_not_ring_again() -> None:
    crashed = Crashed()
    call = make.call()
    await crashed.store.write(call)
    await crashed.left_over.find(crashed.registry)
    assert call.meta_call_id is not None
    assert crashed.registry.has_ended(call.meta_call_id)
    assert crashed.graph.ops() == []  # nothing is sent before the gateway serves


async def test_an_outcome_that_was_known_stays() -> None:
    crashed = Crashed()
    call = make.call(state="ending", result=Result.USER, reason=EndReason.DECLINED, detail="said so")
    await crashed.store.write(call)
    await crashed.recover()
    closed = await crashed.store.call(call.call_id)
    assert closed is not None
    assert (closed.result, closed.reason, closed.detail) == (Result.USER, EndReason.DECLINED, "said so")


async def test_a_call_that_meta_never_named_is_closed_here_only() -> None:
    crashed = Crashed()
    call = make.call(state="requesting", meta_call_id=None)
    await crashed.store.write(call)
    await crashed.recover()
    closed = await crashed.store.call(call.call_id)
    assert closed is not None
    assert (closed.state, crashed.graph.ops()) == ("ended", [])


@pytest.mark.parametrize("error", [refused("terminate", 138004), unreachable("terminate")])
async def test_a_call_that_meta_will_not_end_is_closed_all_the_same(error: Exception) -> None:
    crashed = Crashed()
    calls = [make.call(state="active"), make.call(state="active")]
    for call in calls:
        await crashed.store.write(call)
    crashed.graph.fail("terminate", error)  # type: ignore[arg-type]
    await crashed.recover()
    assert await crashed.store.unfinished_calls() == []
    assert crashed.graph.ops() == ["terminate"] * 2


async def test_a_call_that_ended_is_left_alone() -> None:
    crashed = Crashed()
    call = make.call(state="ended")
    await crashed.store.write(call)
    await crashed.recover()
    assert await crashed.store.call(call.call_id) == replace(call)
    assert crashed.graph.ops() == []


async def test_many_calls_are_ended_some_at_a_time() -> None:
    crashed = Crashed()
    for _ in range(3 * recovery.AT_A_TIME):
        await crashed.store.write(make.call(state="active"))
    answer = crashed.graph.hold("terminate")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(crashed.recover())
        await crashed.graph.arrival("terminate", count=recovery.AT_A_TIME)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(crashed.graph.sent) == recovery.AT_A_TIME
        answer.set()
    assert await crashed.store.unfinished_calls() == []
