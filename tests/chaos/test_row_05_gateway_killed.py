"""Row 5: a gateway that is killed with calls up forgets none of them: ended at Meta, recorded, slots right.

Signalling calls through a real gateway process; half of what is at Meta rings, the rest are people who talk. In the
moment of the kill more operators dial, so that `connect` requests are cut on their way.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtest.measure.process import total
from loadtest.measure.stack import Stack, StackConfig, operators
from loadtest.operators.signalling_bot import Crew, SignallingBot
from loadtest.operators.softphone_wire import RequestFailed
from loadtest.simulator.config import Behaviour, Timers, crowd
from loadtest.simulator.meta_sim import SimUser
from loadtest.simulator.state import Call
from tests.support.harness.chaos import Chaos, Scale
from tests.support.harness.postgres import execute
from tests.support.harness.waiting import LOOP_GRAIN_S

ROOT = Path(__file__).resolve().parent.parent.parent
#: Nothing ends by itself while we look, and Meta repeats its webhooks until the gateway is back.
PATIENT = Timers(
    answer_after_s=0.0,
    ringing_after_s=0.0,
    user_initiated_ring_s=600.0,
    business_initiated_ring_s=600.0,
    webhook_retry_s=(0.2, 0.3, 0.5, *[1.0] * 20),
)
UP_S = 120.0
#: A call whose `connect` had no answer keeps its slot for a minute.
HOLD_S = 75.0


@dataclass(slots=True, kw_only=True)
class Round:
    """One kill."""

    calls: int  #: at Meta when the gateway was killed
    reconciled_s: float  #: from the restart's readiness until Meta thought none of them alive
    started_s: float  #: from the kill to readiness
    alive: int  #: calls that Meta still thought alive in the end
    unrecorded: int  #: calls without exactly one finished record
    unpermitted: int  #: permissions that were told and are not there any more
    slots_wrong: int  #: slots taken in the end, but for calls of which nobody knows whether Meta has them


def at_the_kill(calls: int) -> int:
    """Return how many dial in the moment of the kill."""
    return max(2, calls // 20)


def config(database: str, calls: int, rounds: int) -> StackConfig:
    talking = max(2, calls // 2)
    return StackConfig(
        port=0,
        admin_port=0,
        sim_port=0,
        null_media=True,
        operators=operators(talking + at_the_kill(calls)),
        environment={
            "GATEWAY_DATABASE_URL": database,
            "GATEWAY_MAX_SETUPS_PER_S": "10000",
            "GATEWAY_RING_TIMEOUT_S": "55",
        },
        sim={
            "users": crowd(calls + rounds * at_the_kill(calls), behaviour=Behaviour.AUTO_ACCEPT, after_s=0.0),
            "timers": PATIENT,
            "history": 10 * calls,
        },
    )


@asynccontextmanager
async def a_stack(database: str, calls: int, *, rounds: int = 1, **environment: str) -> AsyncIterator[Stack]:
    made = config(database, calls, rounds)
    async with Stack(StackConfig(**{**_fields(made), "environment": {**made.environment, **environment}})) as stack:
        for wa_id in stack.sim.world.users:
            stack.sim.user(wa_id).grant()
        await stack.sim.until(lambda: stack.sim.webhooks.pending == 0, timeout_s=UP_S)
        yield stack


def _fields(made: StackConfig) -> dict[str, Any]:
    return {name: getattr(made, name) for name in made.__slots__}


async def kill_once(
    stack: Stack, database: str, *, calls: int, turn: int = 0, rng: random.Random, patience_s: float = 30.0
) -> Round:
    """Bring calls up, kill the gateway, start it again, and look."""
    permitted = await _permissions(database)
    loop, sim = asyncio.get_running_loop(), stack.sim
    users = [sim.user(wa_id) for wa_id in sim.world.users]
    # Another quarter is dialled at each turn: five connected calls a day with one contact is all the rules allow.
    first, late = turn * (calls // 4) % calls, calls + turn * at_the_kill(calls)
    up = [*users[first:calls], *users[:first]]
    # Whoever is dialled in the moment of the kill may be kept for a minute: nobody knows whether Meta has that call.
    more = users[late : late + at_the_kill(calls)]
    async with Crew(stack.url, stack.config.operators) as crew:
        await _bring_up(stack, crew, up)
        async with asyncio.TaskGroup() as dials:
            for user in more:
                dials.create_task(_dial_into_nothing(stack, crew, user))
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            killed_at = loop.time()
            await stack.kill()
        left = [*sim.world.live_calls()]
    for call in rng.sample(left, len(left) // 20):  # people do not wait for a restart
        sim.user(call.facts.user.wa_id).hang_up()
    await stack.restart()
    ready_at = loop.time()
    reconciled_s = await _until_over(stack, left, since=ready_at, patience_s=patience_s)
    await sim.until(lambda: sim.webhooks.pending == 0, timeout_s=30)
    return Round(
        calls=len(left),
        reconciled_s=reconciled_s,
        started_s=ready_at - killed_at,
        alive=len(sim.world.live_calls()),
        unrecorded=await _unrecorded(database, [call.id for call in left]),
        unpermitted=permitted - await _permissions(database),
        slots_wrong=await _slots_wrong(stack),
    )


async def _bring_up(stack: Stack, crew: Crew, users: Sequence[SimUser]) -> None:
    """Let a quarter be called, and the rest call: as many as there are operators are answered, the others ring."""
    number_id = stack.sim.number.spec.phone_number_id
    dialled = len(users) // 4
    for first in range(0, dialled, 20):
        async with asyncio.TaskGroup() as dials:
            for bot, user in zip(crew.bots[first : min(first + 20, dialled)], users[first:dialled], strict=False):
                dials.create_task(_dial(bot, number_id, user))
    spare = len(crew.bots) - at_the_kill(len(users))
    for bot in crew.bots[spare:]:  # they dial in the moment of the kill
        await bot.request("status", available=False)
    for number, user in enumerate(users[dialled:]):
        user.call()
        if number % 20 == 19:
            await stack.sim.until(lambda: stack.sim.webhooks.pending < 20, timeout_s=UP_S)
    world = stack.sim.world
    await stack.sim.until(
        lambda: len(world.live_calls()) == len(users) and crew.in_calls == spare and not stack.sim.webhooks.pending,
        timeout_s=UP_S,
    )


async def _dial(bot: SignallingBot, number_id: str, user: SimUser) -> None:
    """Dial until it goes through: a machine that is busy with other things makes the database look away."""
    for last in (*[False] * 50, True):
        try:
            await bot.dial(number_id, f"+{user.wa_id}")
        except RequestFailed:
            if last:
                raise
            await asyncio.sleep(0.2)
        else:
            return


async def _dial_into_nothing(stack: Stack, crew: Crew, user: SimUser) -> None:
    bot = crew.free()
    if bot is None:
        return
    try:
        await bot.dial(stack.sim.number.spec.phone_number_id, f"+{user.wa_id}")
    except (RequestFailed, ConnectionError, TimeoutError):
        return  # nobody answers any more


async def _until_over(stack: Stack, calls: Sequence[Call], *, since: float, patience_s: float) -> float:
    world, ids = stack.sim.world, {call.id for call in calls}
    with contextlib.suppress(TimeoutError):
        await stack.sim.until(lambda: not ids & {call.id for call in world.live_calls()}, timeout_s=patience_s)
    return asyncio.get_running_loop().time() - since


async def _permissions(database: str) -> int:
    (row,) = await execute(database, "select count(*) as n from facts where fact ->> 'kind' = 'permission_granted'")
    return int(row["n"])


async def _unrecorded(database: str, ids: list[str]) -> int:
    """Count calls without exactly one finished record whose end Meta has confirmed; the last may take a moment."""
    missing = len(ids)
    for _ in range(100):
        rows = await execute(
            database,
            "select count(*) as n, count(distinct meta_call_id) as d from calls"
            " where meta_call_id = any($1) and state = 'ended' and not end_owed",
            ids,
        )
        missing = len(ids) - (rows[0]["d"] if rows[0]["n"] == rows[0]["d"] else 0)
        if not missing:
            break
        await asyncio.sleep(0.1)
    return missing


async def _slots_wrong(stack: Stack) -> int:
    figures: dict[str, float] = {}
    for _ in range(50):
        figures = await stack.metrics()
        if not total(figures, "wacg_slots_in_use") and not total(figures, "wacg_calls_unconfirmed"):
            break
        await asyncio.sleep(0.1)
    unknown = total(figures, "wacg_calls_unconfirmed")
    return int(max(0.0, total(figures, "wacg_slots_in_use") - unknown) + total(figures, "wacg_calls_active"))


async def _slots_left(stack: Stack, patience_s: float) -> int:
    """Return the slots that are still taken when the last call that nobody knows of has been waited for."""
    left = total(await stack.metrics(), "wacg_slots_in_use")
    give_up_at = asyncio.get_running_loop().time() + patience_s
    while left and asyncio.get_running_loop().time() < give_up_at:
        await asyncio.sleep(1.0)
        left = total(await stack.metrics(), "wacg_slots_in_use")
    return int(left)


#: Put before everything else on the path of a gateway: it closes records and tells Meta nothing.
FORGETFUL = """
from gateway.calls.owed_hangups import OwedHangups

OwedHangups.keep_trying = lambda self, *given, **more: None
"""


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_gateway_that_forgets_would_be_seen(database: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORGETFUL, encoding="utf-8")
    async with a_stack(database, 4, PYTHONPATH=f"{tmp_path}:{ROOT}") as stack:
        seen = await kill_once(stack, database, calls=4, rng=random.Random(1), patience_s=2.0)
    assert seen.alive > 0
    assert seen.reconciled_s >= 2.0 - LOOP_GRAIN_S


@pytest.mark.row(5, "gateway killed with calls up: each is ended at Meta, no record is lost, slots are right")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_killed_gateway_forgets_no_call(chaos: Chaos, database: str) -> None:
    calls, count = chaos.size(test=20, short=200, long=1_000), chaos.size(test=1, short=3, long=20)
    rng = random.Random(chaos.seed)
    async with a_stack(database, calls, rounds=count) as stack:
        rounds = [await kill_once(stack, database, calls=calls, turn=turn, rng=rng) for turn in range(count)]
        left = await _slots_left(stack, chaos.size(test=0.0, short=HOLD_S, long=HOLD_S))
    chaos.note("calls at Meta when killed", sum(each.calls for each in rounds))
    chaos.note("longest restart", max(each.started_s for each in rounds), unit="s")
    chaos.promise(
        "slowest reconciliation after the restart", max(each.reconciled_s for each in rounds), at_most=10, unit="s"
    )
    chaos.promise("calls that Meta still thinks alive", sum(each.alive for each in rounds), at_most=0)
    chaos.promise("calls without their record", sum(each.unrecorded for each in rounds), at_most=0)
    chaos.promise("permissions lost", sum(each.unpermitted for each in rounds), at_most=0)
    chaos.promise("slots that nobody has", sum(each.slots_wrong for each in rounds), at_most=0)
    if chaos.scale is Scale.TEST:
        chaos.note("slots kept for calls that perhaps were placed", left)
    else:
        chaos.promise("slots in use a minute after the last restart", left, at_most=0)
