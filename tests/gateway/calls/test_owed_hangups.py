"""An end that Meta did not hear is told again, with growing pauses, until it is confirmed."""

import asyncio
from itertools import pairwise

import pytest

from gateway.calls import owed_hangups
from gateway.common.ids import CallId, MetaCallId
from gateway.contacts.webhook_facts import KnownCall
from policy.facts import Direction
from tests.support.fakes.graph import refused, unreachable
from tests.support.harness.world import ANA, NUMBER_ID, WACID, World, a_world

VIRTUAL = pytest.mark.looptime
ASYNCIO = pytest.mark.asyncio(loop_factories=["asyncio"])
OURS = KnownCall(user=ANA, direction=Direction.BUSINESS_INITIATED)


def keep_trying(world: World, *, told: list[str] | None = None, after_s: float = 0.0) -> None:
    then = None if told is None else lambda: told.append("done")
    world.owed_hangups.keep_trying(NUMBER_ID, WACID, CallId("call"), after_s=after_s, then=then)


def unconfirmed(world: World) -> float:
    return world.metrics.registry.get_sample_value("wacg_calls_unconfirmed") or 0.0


@VIRTUAL
@ASYNCIO
async def test_pauses_double_up_to_a_minute_and_never_end_early() -> None:
    async with a_world() as world:
        world.graph.fail("terminate", *[unreachable("terminate")] * 9)
        told: list[str] = []
        keep_trying(world, told=told)
        loop, at = asyncio.get_running_loop(), []
        for count in range(1, 11):
            await world.graph.arrival("terminate", count=count, timeout_s=100)
            at.append(loop.time())
        pauses = [later - earlier for earlier, later in pairwise(at)]
        for pause, limit in zip(pauses, (2, 4, 8, 16, 32, 60, 60, 60, 60), strict=True):
            assert 0.8 * limit <= pause <= limit + 0.1
        await world.until(lambda: bool(told))
        assert (told, len(world.owed_hangups), unconfirmed(world)) == (["done"], 0, 0.0)


@VIRTUAL
@ASYNCIO
async def test_it_gives_up_after_hours_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    async with a_world() as world:
        world.graph.fail("terminate", *[refused("terminate", 190)] * 1_000)
        told: list[str] = []
        keep_trying(world, told=told)
        await asyncio.sleep(owed_hangups.GIVE_UP_S - 200)
        assert (told, unconfirmed(world)) == ([], 1.0)
        await asyncio.sleep(300)
        assert (told, len(world.owed_hangups)) == (["done"], 0)
        assert "call_end_given_up" in capsys.readouterr().out


@VIRTUAL
@ASYNCIO
async def test_who_has_just_failed_waits_and_a_webhook_ends_the_waiting() -> None:
    async with a_world() as world:
        told: list[str] = []
        keep_trying(world, told=told, after_s=2.0)
        await asyncio.sleep(1.9)
        assert world.graph.ops() == []
        await world.meta_terminates()
        await world.until(lambda: bool(told))
        assert world.graph.ops() == []


async def test_to_ask_twice_is_to_ask_once_and_both_are_told() -> None:
    async with a_world() as world:
        told: list[str] = []
        keep_trying(world, told=told)
        keep_trying(world, told=told)
        await world.until(lambda: len(told) == 2)
        assert world.graph.ops() == ["terminate"]


@pytest.mark.parametrize("details", ["Call has already ended", "Call not found"])
async def test_what_has_ended_already_is_confirmed(details: str) -> None:
    async with a_world() as world:
        world.graph.fail("terminate", refused("terminate", 100, details))
        keep_trying(world)
        await world.until(lambda: not len(world.owed_hangups))
        assert world.graph.ops() == ["terminate"]


@VIRTUAL
@ASYNCIO
async def test_a_bug_is_no_reason_to_forget_a_call() -> None:
    async with a_world() as world:
        terminate, broken = world.graph.terminate, [RuntimeError("bug"), asyncio.CancelledError()]

        async def sometimes(*given: object) -> None:
            if broken:
                raise broken.pop()
            await terminate(*given)  # type: ignore[arg-type]

        world.graph.terminate = sometimes  # type: ignore[assignment, method-assign]
        keep_trying(world)
        await world.graph.arrival("terminate", timeout_s=30)
        await world.until(lambda: not len(world.owed_hangups))


async def test_a_call_of_which_nobody_was_told_does_not_turn_up() -> None:
    async with a_world() as world:
        assert not world.owed_hangups.turned_up(CallId("stranger"), MetaCallId("wacid.X"), over=False)
        world.owed_hangups.expect(NUMBER_ID, CallId("call"), OURS)
        world.owed_hangups.expect(NUMBER_ID, CallId("call"), OURS)
        assert unconfirmed(world) == 1.0
        assert world.owed_hangups.turned_up(CallId("call"), MetaCallId("wacid.X"), over=True)
        assert not world.owed_hangups.turned_up(CallId("call"), MetaCallId("wacid.X"), over=True)
        assert world.registry.known(MetaCallId("wacid.X")) == OURS
        assert (world.graph.ops(), unconfirmed(world)) == ([], 0.0)
