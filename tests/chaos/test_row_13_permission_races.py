"""Row 13: many dials to one contact at the same instant spend a permission no further than it goes."""

import asyncio
import random

import pytest

from gateway.calls.driver import CallDriver
from gateway.common.ids import OperatorId
from policy.decision import Refusal
from tests.support.harness.chaos import Chaos
from tests.support.harness.world import ANA, CONNECTED_LIMIT, NUMBER_ID, World, a_world


async def dial(world: World, operator: int, rng: random.Random) -> CallDriver | Refusal:
    for _ in range(rng.randrange(4)):  # who asks when within a few turns of the loop is chance
        await asyncio.sleep(0)
    return await world.admission.place(NUMBER_ID, f"+{ANA.wa_id}", operator=OperatorId(f"op{operator}"))


async def passed(world: World, dials: int, rng: random.Random) -> int:
    """Dial from so many softphones at once and return how many the gate lets through."""
    for n in range(dials):
        await world.login(f"op{n}", leg=True)
    answers = await asyncio.gather(*(dial(world, n, rng) for n in range(dials)))
    return sum(isinstance(answer, CallDriver) for answer in answers)


@pytest.mark.row(13, "of many dials at once exactly as many pass as the permission still allows")
async def test_permission_races(chaos: Chaos) -> None:
    rounds, dials = chaos.size(test=2, short=20, long=200), chaos.size(test=100, short=1_000, long=1_000)
    rng, wrong = random.Random(chaos.seed), 0
    for _ in range(rounds):
        used = rng.randrange(CONNECTED_LIMIT + 1)
        async with a_world(outgoing_slots=1_000) as world:
            world.engagements.has_call = lambda keys: False  # type: ignore[method-assign]  # reservations alone
            await world.had_calls(used)
            wrong += await passed(world, dials, rng) != CONNECTED_LIMIT - used
    chaos.note("rounds", rounds)
    chaos.note("dials at once", dials)
    chaos.promise("rounds in which more or fewer passed", wrong, at_most=0)


async def test_a_gate_without_reservations_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world(outgoing_slots=1_000) as world:
        monkeypatch.setattr(type(world.engagements), "has_call", lambda self, keys: False)
        monkeypatch.setattr(type(world.engagements), "calls_that_may_connect", lambda self, keys: 0)
        await world.had_calls(CONNECTED_LIMIT - 1)
        assert await passed(world, 20, random.Random(1)) > 1
