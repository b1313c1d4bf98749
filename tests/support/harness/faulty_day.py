"""A gateway in memory, in virtual time, whose Meta is behind a bad line; and operators who dial, answer and ask."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import looptime

from gateway.callflow.call import CallInput, CallState, InputKind
from gateway.calls.driver import CallDriver
from gateway.common.errors import GraphError
from gateway.common.ids import CallId, UserRef
from gateway.meta.graph import GraphClient
from gateway.meta.health import MetaHealth
from gateway.operators.phone import Phone
from gateway.store.records import Change
from policy.decision import Refusal
from policy.pack import load_pack
from tests.support.fakes.clock import START, FakeClock
from tests.support.fakes.faulty_meta import FaultyHttp, FaultyMeta, Shares
from tests.support.fakes.memory_store import MemoryStore
from tests.support.harness.world import NUMBER_ID, World

SHARES = Shares(fail=0.30, hang=0.10, cut=0.05)
ANSWER_S = 6.0
OPERATORS = 20
#: A first call of Meta's patience is over, and every repeated `terminate` has got through.
SETTLED_S = 1_800.0


class LoopClock(FakeClock):
    """The time of day goes with the loop's virtual time."""

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time())


class LeanStore(MemoryStore):
    """A store that takes everything and keeps nothing: what a long day needs is in memory."""

    def _apply(self, changes: tuple[Change, ...]) -> None:
        pass


class TimedGraph:
    """The client, with the longest time that anybody waited for one of its answers."""

    def __init__(self, client: GraphClient) -> None:
        self._client = client
        self.slowest_s = 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def timed(*args: Any) -> Any:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            try:
                return await method(*args)
            finally:
                self.slowest_s = max(self.slowest_s, loop.time() - begun)

        return timed


class FaultyDay(World):
    """A gateway in memory whose Meta is behind a bad line, and its operators."""

    def __init__(
        self, tasks: asyncio.TaskGroup, *, seed: int, shares: Shares = SHARES, http: type[FaultyHttp] = FaultyHttp
    ) -> None:
        self.rng = random.Random(seed)
        clock = LoopClock()
        self.meta = FaultyMeta(self.rng, shares, tasks.create_task)
        self.health = MetaHealth(token_for=lambda number: "token", clock=clock, rng=self.rng)
        client = GraphClient(
            base_url="http://meta.invalid",
            token_for=lambda number: "token",
            clock=clock,
            health=self.health,
            http=partial(http, self.meta),
        )
        self.timed = TimedGraph(client)
        self.running: dict[CallId, asyncio.Task[None]] = {}
        super().__init__(
            tasks,
            incoming_slots=OPERATORS,
            outgoing_slots=OPERATORS,
            clock=clock,
            store=LeanStore(),
            graph=self.timed,
            pack=load_pack("meta"),
            health=self.health,
        )
        self.meta.now = lambda: clock.now().timestamp()
        self.meta.deliver = lambda value: self.deliver(**value)
        self.phones: list[Phone] = []
        self.said: Counter[str] = Counter()
        self.late = 0
        self.longest_accept_s = 0.0

    def _started(self, driver: CallDriver, task: asyncio.Task[None]) -> None:
        super()._started(driver, task)
        self.running[driver.call.call_id] = task

    async def over(self, driver: CallDriver) -> None:
        """Wait until a call has ended and everything that it asked for is done."""
        await asyncio.wait((self.running[driver.call.call_id],))

    async def within(self, driver: CallDriver, seconds: float) -> CallState:
        """Give a call so long and return its state then."""
        await asyncio.wait((self.running[driver.call.call_id],), timeout=seconds)
        return driver.call.state

    # --- what operators do -------------------------------------------------------------------------

    async def dial(self, phone: Phone, user: UserRef) -> None:
        """Call somebody; after 6 s the operator must know how it stands."""
        await self.allow_calls(user)
        placed = await self.admission.place(NUMBER_ID, f"+{user.wa_id}", operator=phone.operator)
        if isinstance(placed, Refusal):
            self.said[f"dial: {placed.reason}"] += 1
            return
        if await self.within(placed, ANSWER_S) in (CallState.PREPARING, CallState.REQUESTING):
            self.late += 1
        if self.rng.random() < 0.3:
            placed.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=phone.operator))
        await self.over(placed)
        self._count("dial", placed)

    async def answer(self, phone: Phone, user: UserRef) -> None:
        """A user calls, and the operator picks up."""
        before = len(self.drivers)
        assert user.wa_id is not None
        await self.meta.user_calls(user.wa_id)
        taken = [driver for driver in self.drivers[before:] if driver.origin.user.wa_id == user.wa_id]
        if not taken:
            self.said["call in: not taken"] += 1
            return
        (driver,) = taken
        await asyncio.sleep(self.rng.uniform(0.2, 4))
        begun = asyncio.get_running_loop().time()
        if driver.claim(phone.operator):
            self.hub.take(phone, driver.call.call_id)
            while driver.call.state in (CallState.RINGING, CallState.CLAIMED, CallState.ACCEPTING):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            self.longest_accept_s = max(self.longest_accept_s, asyncio.get_running_loop().time() - begun)
        await self.over(driver)
        self._count("call in", driver)

    async def ask(self, user: UserRef) -> None:
        """Ask somebody for permission, with a template."""
        try:
            asked = await self.admission.ask_permission(NUMBER_ID, f"+{user.wa_id}", asked_by="api")
            self.said["ask: " + (asked.reason if isinstance(asked, Refusal) else "sent")] += 1
        except GraphError as error:
            self.said[f"ask: {error.reason}"] += 1

    def _count(self, what: str, driver: CallDriver) -> None:
        outcome = driver.call.outcome
        assert outcome is not None
        self.said[f"{what}: {outcome.result}/{outcome.reason}"] += 1

    async def work(self, phone: Phone, jobs: list[int]) -> None:
        """Do one job after the other until there are none."""
        while jobs:
            user = UserRef(wa_id=str(5_511_900_000_000 + jobs.pop()))
            kind = self.rng.random()
            if kind < 0.6:
                await self.dial(phone, user)
            elif kind < 0.9:
                await self.answer(phone, user)
            else:
                await self.ask(user)
            await asyncio.sleep(self.rng.uniform(0, 2))

    async def settle(self) -> None:
        """Wait until nothing is owed to Meta any more."""
        async with asyncio.timeout(SETTLED_S):
            while len(self.owed_hangups) or len(self.registry):  # noqa: ASYNC110 - several things must hold
                await asyncio.sleep(1)


@asynccontextmanager
async def a_faulty_day(**more: Any) -> AsyncIterator[FaultyDay]:
    async with asyncio.TaskGroup() as tasks:
        day = FaultyDay(tasks, **more)
        await day.store.start()
        for index in range(OPERATORS):
            phone, _ = await day.login(f"op{index}")
            day.phones.append(phone)
        yield day
        day.hub.close()
        for task in tuple(tasks._tasks):
            task.cancel()


def in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    """Run with a loop whose time passes only where everybody waits; it is not uvloop's, at any size."""
    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(work)


async def a_day(day: FaultyDay, jobs: int) -> None:
    """Let all operators work until the jobs are done and Meta has heard everything."""
    left = list(range(jobs))
    async with asyncio.TaskGroup() as tasks:
        for phone in day.phones:
            tasks.create_task(day.work(phone, left))
    await day.settle()
