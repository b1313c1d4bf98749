"""Row 13: many dials to one contact at the same instant spend a permission no further than it goes."""

import asyncio
import random
from datetime import timedelta

import pytest

from gateway.driver import CallDriver
from gateway.ids import OperatorId
from policy.decision import Refusal
from policy.facts import CallConnected, Direction, PermissionGranted
from tests.support.chaos import Chaos
from tests.support.world import ANA, NUMBER_ID, World, a_world

LIMIT = 5  #: connected calls in 24 hours, pack `guide`


async def with_calls(world: World, count: int) -> None:
    """The contact has granted permission and picked up so many calls an hour ago."""
    contact = await world.contacts.get(world.number, ANA, "Ana")
    at = world.clock.now() - timedelta(hours=1)
    calls = [CallConnected(at=at, key=f"connected/{n}", direction=Direction.BUSINESS_INITIATED) for n in range(count)]
    world.contacts.apply(contact, PermissionGranted(at=at, key="grant"), *calls, seen_at=world.clock.now())


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
        used = rng.randrange(LIMIT + 1)
        async with a_world(outgoing_slots=1_000) as world:
            world.registry.is_busy = lambda keys: False  # type: ignore[method-assign]  # reservations alone
            await with_calls(world, used)
            wrong += await passed(world, dials, rng) != LIMIT - used
    chaos.note("rounds", rounds)
    chaos.note("dials at once", dials)
    chaos.promise("rounds in which more or fewer passed", wrong, at_most=0)


async def test_a_gate_without_reservations_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world(outgoing_slots=1_000) as world:
        monkeypatch.setattr(type(world.registry), "is_busy", lambda self, keys: False)
        monkeypatch.setattr(type(world.registry), "in_flight", lambda self, keys: 0)
        await with_calls(world, LIMIT - 1)
        assert await passed(world, 20, random.Random(1)) > 1
