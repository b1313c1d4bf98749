"""Three times more calls than the gateway takes: what it takes is as quick as ever, the rest hears no at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from loadtest.loads.generator import NO_ANSWER, Shot, open_loop, percentile
from loadtest.measure.stack import Stack, StackConfig, operators
from loadtest.operators.signalling_bot import Answer, Crew, Policy
from loadtest.simulator.config import Timers, crowd
from loadtest.simulator.errors import NotPossible
from tests.support.harness.chaos import Chaos, Scale

PROMISE = "At 3 times its ceiling the gateway keeps what it takes quick, and refuses the rest at once"
#: A call that is neither taken nor refused for so long is left ringing.
PATIENCE_S: Final = 8.0
#: How long a call that was taken rings before its caller gives up.
RINGS_S: Final = 0.3
TAKEN, REFUSED = 200, 503
OPERATORS: Final = 6
#: Users who are dialled, and do not call.
DIALLED: Final = 60

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(60)]


@dataclass(slots=True)
class Load:
    """Users who call and clients who dial, and what the simulated Meta heard of each call."""

    stack: Stack
    crew: Crew
    http: aiohttp.ClientSession
    dial_shots: list[tuple[int, float, str | None]] = field(default_factory=list)
    _waiting: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    _users: list[str] = field(default_factory=list)
    _dialled: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note when `pre_accept` and `reject` reach the simulated Meta."""
        calls: Any = self.stack.sim.calls
        calls.pre_accept = self._noting(calls.pre_accept, TAKEN)
        calls.reject = self._noting(calls.reject, REFUSED)
        self._users = list(self.stack.sim.world.users)
        self._dialled, self._users = self._users[:DIALLED], self._users[DIALLED:]
        for wa_id in self._dialled:
            self.stack.sim.user(wa_id).grant()

    def _noting(self, work: Callable[..., Any], status: int) -> Callable[..., Any]:
        def noted(call_id: str, *more: Any) -> Any:
            waiting = self._waiting.get(call_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(status)
            return work(call_id, *more)

        return noted

    async def call(self, _: int) -> int:
        """A user who is in no call calls; return what the gateway said."""
        user = self.stack.sim.user(self._users.pop())
        try:
            call_id = user.call().id
        except NotPossible:  # so many wait already that Meta itself takes no more for this number
            self._users.insert(0, user.wa_id)
            return NO_ANSWER
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = waiting
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await waiting
        except TimeoutError:
            status = NO_ANSWER
        del self._waiting[call_id]
        if status != REFUSED:
            asyncio.get_running_loop().call_later(RINGS_S, self._give_up, user)
        else:
            self._users.insert(0, user.wa_id)
        return status

    def _give_up(self, user: Any) -> None:
        if user.current_call is not None:
            user.hang_up()
        self._users.insert(0, user.wa_id)

    async def dial(self, index: int) -> int:
        """A client of the API lets an operator call; the call is given up at once."""
        loop, config = asyncio.get_running_loop(), self.stack.config
        number = self.stack.sim.number.spec.phone_number_id
        headers = {"Authorization": f"Bearer {config.api_key}"}
        wanted = {
            "to": f"+{self._dialled[index % DIALLED]}",
            "operator": self.crew.bots[index % OPERATORS].operator,
        }
        began = loop.time()
        async with self.http.post(
            f"{self.stack.url}/v1/numbers/{number}/calls", json=wanted, headers=headers
        ) as answer:
            said = await answer.json(content_type=None)
        self.dial_shots.append((answer.status, loop.time() - began, answer.headers.get("Retry-After")))
        if answer.status == 201:
            async with self.http.delete(f"{self.stack.url}/v1/calls/{said['call_id']}", headers=headers):
                pass
        return int(answer.status)

    async def offer(self, *, rate: float, seconds: float, seed: int, dials: float = 0.0) -> list[Shot]:
        """Offer this many calls a second in, and a share of dials beside them."""
        async with asyncio.TaskGroup() as tasks:
            if dials:
                count = int(rate * dials * seconds)
                tasks.create_task(open_loop(self.dial, rate_per_s=rate * dials, count=count, seed=seed + 1))
            incoming = tasks.create_task(
                open_loop(self.call, rate_per_s=rate, count=int(rate * seconds), seed=seed, most=20_000)
            )
        return incoming.result()


@asynccontextmanager
async def a_load(tmp_path: Path, database: str, *, ceiling: float, users: int) -> AsyncIterator[Load]:
    """Start a gateway with this ceiling, operators who let it ring, and enough users."""
    config = StackConfig(
        port=0,
        admin_port=0,
        sim_port=0,
        data_dir=tmp_path,
        operators=operators(OPERATORS),
        null_media=True,
        sim={"users": crowd(users), "timers": Timers(answer_after_s=0.0, ringing_after_s=0.0), "history": 500},
        environment={
            "GATEWAY_DATABASE_URL": database,
            "GATEWAY_LOG_LEVEL": "error",
            "GATEWAY_MAX_SETUPS_PER_S": f"{ceiling:g}",
            "GATEWAY_MAX_LOOP_LAG_MS": "50",
        },
    )
    async with (
        Stack(config) as stack,
        Crew(stack.url, config.operators, policy=Policy(answer=Answer.IGNORE)) as crew,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        load = Load(stack, crew, http)
        load.watch()
        yield load


async def knee(load: Load, seed: int) -> float:
    """Return the highest rate, of those tried, at which nine of ten calls are taken within half a second."""
    best = 0.0
    for rate in (25, 50, 75, 100, 150, 200, 300, 400):
        shots = await load.offer(rate=rate, seconds=2.0, seed=seed + rate)
        quick = sum(shot.status == TAKEN and shot.took_s < 0.5 for shot in shots)
        if quick < 0.9 * len(shots):
            break
        best = float(rate)
    return best


def normal_after_s(shots: list[Shot]) -> float:
    """Say after how many seconds every call was taken quickly."""
    return max((shot.due_s for shot in shots if shot.status != TAKEN or shot.took_s > 1.0), default=0.0)


@pytest.mark.row(11, PROMISE)
async def test_three_times_the_ceiling(chaos: Chaos, database: str, tmp_path: Path) -> None:
    seconds = chaos.size(test=1.0, short=15.0, long=60.0)
    random.seed(chaos.seed)
    measured = 0.0
    if chaos.scale is not Scale.TEST:
        async with a_load(tmp_path, database, ceiling=10_000, users=4_000) as load:
            measured = await knee(load, chaos.seed)
        chaos.note("calls a second at which it begins to be slow", measured, unit="/s")
    # Refusing has its price as well: the ceiling leaves half of what the machine can do to that.
    ceiling = chaos.size(test=20.0, short=min(100.0, max(10.0, measured / 2)), long=min(100.0, max(10.0, measured / 2)))
    async with a_load(tmp_path, database, ceiling=ceiling, users=6_000) as load:
        shots = await load.offer(rate=3 * ceiling, seconds=seconds, seed=chaos.seed, dials=0.1)
        after = await load.offer(rate=ceiling / 2, seconds=chaos.size(test=0.3, short=7, long=7), seed=chaos.seed)
        metrics = await load.stack.metrics()
    taken = [shot.took_s for shot in shots if shot.status == TAKEN]
    refused = [shot.took_s for shot in shots if shot.status == REFUSED]
    dialled = [status for status, _, _ in load.dial_shots]
    no = [(took, retry) for status, took, retry in load.dial_shots if status in (503, 429)]
    chaos.note("ceiling", ceiling, unit="/s")
    chaos.note("offered", len(shots) / seconds, unit="/s")
    chaos.promise(
        "taken, of what the ceiling allows",
        100 * len(taken) / (ceiling * seconds),
        at_least=90,
        at_most=100 + 50 / seconds + 5,
        unit="%",
        timed=True,
    )
    chaos.promise("p99 from the call to pre_accept", percentile(taken, 0.99), at_most=1.0, unit="s", timed=True)
    chaos.note("p99 from a refused call to its reject at Meta", percentile(refused or [0.0], 0.99) * 1_000, unit="ms")
    chaos.promise(
        "p99 of a refused dial",
        percentile([took for took, _ in no] or [0.0], 0.99) * 1_000,
        at_most=50,
        unit="ms",
        timed=True,
    )
    # 403 and 409 are the rules' own noes: a contact who has not picked up often enough, an operator in a call.
    clear = (201, 403, 409, 429, 503)
    chaos.promise("dials answered otherwise", sum(status not in clear for status in dialled), at_most=0)
    chaos.promise("refused dials without Retry-After", sum(not retry for _, retry in no), at_most=0)
    if chaos.scale is not Scale.TEST:
        chaos.promise("different Retry-After", len({retry for _, retry in no}), at_least=3)
    late = percentile([shot.late_s for shot in shots], 0.99) * 1_000
    chaos.note("p99 of the generator's own lateness, which is in all of these", late, unit="ms")
    chaos.note("calls left to ring out", sum(shot.status == NO_ANSWER for shot in shots))
    chaos.note("refused by the ceiling", metrics.get('wacg_setups_refused_total{reason="setups_per_s"}', 0.0))
    chaos.note("refused for the loop's lag", metrics.get('wacg_setups_refused_total{reason="loop_lag"}', 0.0))
    chaos.promise("back to normal", normal_after_s(after), at_most=5.0, unit="s", timed=True)
    assert refused


async def test_a_gateway_without_a_ceiling_would_be_seen(database: str, tmp_path: Path) -> None:
    async with a_load(tmp_path, database, ceiling=10_000, users=200) as load:
        shots = await load.offer(rate=60, seconds=1.0, seed=1)
    assert sum(shot.status == TAKEN for shot in shots) > 20 * 1.6
