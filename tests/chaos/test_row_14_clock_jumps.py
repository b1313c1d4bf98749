"""Row 14: the machine's clock jumps back and forth by an hour; no call is dropped and nothing is decided wrongly."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from gateway.admission.gate import Checked
from gateway.callflow.call import CallState
from gateway.calls.driver import CallDriver
from gateway.common.clock import MetaClock
from gateway.common.ids import UserRef
from loadtest.common.clock import wall_clock
from loadtest.operators.signalling_bot import Crew, Policy
from loadtest.simulator.state import CallState as SimState
from policy.contact import fold
from policy.decision import Allow, Decision, Refusal
from policy.facts import CallConnected, Direction, Fact, PermissionGranted
from policy.gate import evaluate
from policy.pack import load_pack
from policy.request import PlaceCall
from tests.support.fakes.clock import START
from tests.support.harness.chaos import Chaos
from tests.support.harness.faulty_day import LeanStore, in_virtual_time
from tests.support.harness.running import KEYS, running
from tests.support.harness.waiting import until
from tests.support.harness.world import NUMBER_ID, World

HOUR_S = 3_600.0
EDGES_S = (-1_800.0, -600.0, -60.0, -5.0, 5.0, 60.0, 600.0, 1_800.0)
LIVE_CALLS = 20


def true_now() -> datetime:
    """The time of day at Meta: it goes with the loop."""
    return START + timedelta(seconds=asyncio.get_running_loop().time())


class JumpingClock:
    """The machine's clock: somebody sets it wrong by up to an hour, again and again."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.wrong_by_s = 0.0
        self.jumps = 0

    def now(self) -> datetime:
        return true_now() + timedelta(seconds=self.wrong_by_s)

    def jump(self) -> None:
        self.jumps += 1
        self.wrong_by_s = self._rng.choice([-HOUR_S, -HOUR_S, 0.0, HOUR_S, HOUR_S, self._rng.uniform(-HOUR_S, HOUR_S)])


class Jumps(World):
    """A gateway in memory whose machine's clock jumps; Meta's answers tell its clock, as Graph's would."""

    def __init__(self, tasks: asyncio.TaskGroup, rng: random.Random, *, by_metas_clock: bool) -> None:
        self.rng = rng
        self.wall = JumpingClock(rng)
        self.metas = MetaClock(self.wall, steady=asyncio.get_running_loop().time)
        clock: Any = self.metas if by_metas_clock else self.wall
        super().__init__(
            tasks, incoming_slots=10_000, outgoing_slots=10_000, clock=clock, store=LeanStore(), pack=load_pack("guide")
        )
        self.wrong: Counter[str] = Counter()

    def hear(self, *, took_s: float = 0.2) -> None:
        """Meta has answered a request that was sent a moment ago."""
        asked_at = asyncio.get_running_loop().time() - took_s
        self.metas.heard(format_datetime(true_now() - timedelta(seconds=took_s / 2), usegmt=True), asked_at=asked_at)

    # --- decisions ---------------------------------------------------------------------------------

    def facts(self, key: str) -> list[Fact]:
        """A permission and calls with edges around this instant, none nearer than the clock's own error."""

        def around(ago: timedelta = timedelta(0)) -> datetime:
            edge_s = self.rng.choice(EDGES_S) + self.rng.uniform(-1, 1)
            return (true_now() + timedelta(seconds=edge_s) - ago).replace(microsecond=0)

        granted = PermissionGranted(at=around(timedelta(days=3)), key=f"{key}/permission", expires_at=around())
        calls = [
            CallConnected(at=around(timedelta(days=1)), key=f"{key}/{index}", direction=Direction.BUSINESS_INITIATED)
            for index in range(self.rng.choice([0, 4, 5, 6]))
        ]
        return [granted, *calls]

    async def decide(self, index: int) -> None:
        """Ask the gate about a new contact, and compare with what is true."""
        user = UserRef(wa_id=str(5_511_910_000_000 + index))
        facts = self.facts(f"fact-{index}")
        contact = await self.contacts.get(self.number, user)
        for fact in facts:
            self.contacts.apply(contact, fact, seen_at=true_now())
        answer = (await self.checked(user)).overview.place
        truth = evaluate(self.number.pack, self.number.state, fold(facts), PlaceCall(), now=true_now())
        if kind_of(answer) != kind_of(truth):
            self.wrong["allowed" if isinstance(answer, Allow) else "refused"] += 1

    async def checked(self, user: UserRef) -> Checked:
        checked = await self.admission.check(NUMBER_ID, f"+{user.wa_id}")
        assert isinstance(checked, Checked)
        return checked

    # --- calls -------------------------------------------------------------------------------------

    async def offer(self, index: int, *, age_s: float) -> CallDriver | None:
        """A user calls; the webhook is so old when it comes, by Meta's clock."""
        wa_id = str(5_511_920_000_000 + index)
        at = int(true_now().timestamp() - age_s)
        more: dict[str, Any] = {"from": wa_id, "from_user_id": None, "timestamp": str(at)}
        return await self.user_calls(f"wacid.{index:06d}", **more)

    async def start_calls(self) -> list[CallDriver]:
        """Bring some calls up and leave some ringing; both are to outlive every jump."""
        calls = []
        for index in range(LIVE_CALLS):
            driver = await self.offer(1_000_000 + index, age_s=0)
            assert driver is not None
            operator, _ = await self.login(f"op{index}")
            await self.reach(driver, CallState.RINGING)
            assert driver.claim(operator.operator)
            await self.reach(driver, CallState.ACTIVE)
            calls.append(driver)
        return calls

    async def reach(self, driver: CallDriver, state: CallState) -> None:
        await self.until(lambda: driver.call.state is state)

    async def ring(self, index: int) -> None:
        """A fresh call rings as long as it should, and one whose caller is gone never does."""
        fresh = await self.offer(2 * index, age_s=self.rng.uniform(0, 3))
        if fresh is None:
            self.wrong["not rung"] += 1
        else:
            left_s = (fresh.call.deadline_at or 0.0) - asyncio.get_running_loop().time()
            self.wrong["ring time"] += not 30.0 - 7.0 <= left_s <= 30.001
        if await self.offer(2 * index + 1, age_s=self.rng.uniform(63, 600)) is not None:
            self.wrong["rung dead"] += 1


def kind_of(decision: Decision) -> str:
    return decision.reason if isinstance(decision, Refusal) else "yes"


@asynccontextmanager
async def jumping(seed: int, *, by_metas_clock: bool = True) -> AsyncIterator[Jumps]:
    async with asyncio.TaskGroup() as tasks:
        world = Jumps(tasks, random.Random(seed), by_metas_clock=by_metas_clock)
        await world.store.start()
        world.hear()
        world.hear()
        yield world
        world.hub.close()
        for task in tuple(tasks._tasks):
            task.cancel()


async def a_wrong_day(world: Jumps, decisions: int) -> int:
    """Let the clock jump between decisions and calls; return how many of the live calls were dropped."""
    live = await world.start_calls()
    for index in range(decisions):
        if index % 5 == 0:
            world.wall.jump()
        if index % 7 == 0:
            world.hear()
        await world.decide(index)
        if index % 10 == 0:
            await world.ring(index)
        await asyncio.sleep(world.rng.uniform(0, 3))
    return sum(driver.call.state is not CallState.ACTIVE for driver in live)


@pytest.mark.row(14, "clock jumps of an hour: no call dropped, no decision wrong, none rung dead")
def test_the_machines_clock_jumps_all_day(chaos: Chaos) -> None:
    decisions = chaos.size(test=200, short=2_000, long=10_000)

    async def run() -> None:
        async with jumping(chaos.seed) as world:
            dropped = await a_wrong_day(world, decisions)
            chaos.note("jumps of the clock", world.wall.jumps)
            chaos.note("decisions", decisions)
            chaos.promise("live calls dropped", dropped, at_most=0)
            chaos.promise("wrongly allowed", world.wrong["allowed"], at_most=0)
            chaos.promise("wrongly refused", world.wrong["refused"], at_most=0)
            chaos.promise("calls not rung", world.wrong["not rung"], at_most=0)
            chaos.promise("calls rung though their caller was gone", world.wrong["rung dead"], at_most=0)
            chaos.promise("wrong ring times", world.wrong["ring time"], at_most=0)

    in_virtual_time(run())


def test_a_gateway_that_trusts_its_machines_clock_would_be_seen(chaos: Chaos) -> None:
    async def run() -> None:
        async with jumping(chaos.seed, by_metas_clock=False) as world:
            await a_wrong_day(world, 100)
            assert all(world.wrong[kind] for kind in ("allowed", "refused", "not rung", "rung dead"))

    in_virtual_time(run())


@pytest.mark.row(14, "a gateway whose machine is an hour off rings calls, over HTTP")
@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S])
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_machine_that_is_an_hour_off_takes_calls(chaos: Chaos, database: str, off_s: float) -> None:
    sim = {"silent": True, "clock": lambda: wall_clock() + off_s}
    async with running(database, sim=sim, media_engine="null") as run:
        await until(lambda: abs(run.gateway.ports.health.offset_s) > 60, timeout_s=15.0)
        chaos.promise(
            "offset that was learned", run.gateway.ports.health.offset_s, at_least=off_s - 2, at_most=off_s + 2
        )
        (told,) = run.gateway.ports.health.degraded(run.gateway.parts.numbers.ids)
        chaos.note("readiness", told)
        async with Crew(run.url, KEYS, policy=Policy(talk_s=0.1)):
            call = run.ana.call()
            await until(lambda: call.state is SimState.ENDED, timeout_s=15.0)
        chaos.promise("calls that were answered", int(call.answered_at is not None), at_least=1)
