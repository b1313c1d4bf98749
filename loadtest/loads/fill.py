"""Live calls on many numbers as a load: what they cost, and what another call costs beside them.

Each live call has its own operator, who dialled or answered. Meanwhile users call and hang up, as in `ring`; a number
whose slots are all in use gets one more call in each direction. Rates and common figures are in `job.py`.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from loadtest.common.clock import instant
from loadtest.loads.calls import PATIENCE_S, Ring, permit
from loadtest.loads.generator import Shot
from loadtest.loads.job import DRAIN_S, Job, drained, most_staying
from loadtest.loads.scenarios import Step
from loadtest.loads.soak import PASSING
from loadtest.measure.process import cpu_s, own_bytes
from loadtest.measure.results import StepResult
from loadtest.operators.signalling_bot import Crew, SignallingBot
from loadtest.operators.softphone_wire import Json, RequestFailed
from loadtest.simulator.errors import NotPossible
from loadtest.simulator.meta_sim import SimUser
from loadtest.simulator.state import Call, CallState, Number

#: Calls that are set up, or ended, at a time.
_AT_ONCE: Final = 16
#: Pause before the gateway is measured.
_QUIET_S: Final = 1.0
#: Interval of the softphones' heartbeats: a measurement of this length sees each once.
_HEARTBEAT_S: Final = 15.0
#: Memory of fewer calls is lost in the noise.
_WEIGHABLE: Final = 100
#: Pause before a retry, if the gateway is not ready to place calls.
_AGAIN_S: Final = 0.1
_KNOCKS: Final = 25
_KNOCK_EVERY_S: Final = 0.02
_Thing = TypeVar("_Thing")


@asynccontextmanager
async def filling(job: Job) -> AsyncIterator["Fill"]:
    """Yield the load; at the end users hang up the remaining calls."""
    most, keys = most_staying(job.form), list(job.stack.config.operators.items())
    async with Crew(job.stack.url, {}) as crew:
        # The first operators are for calls that come and go.
        (operator,) = await crew.join(dict(keys[-most - 1 :][:1]))
        await operator.set_available(False)
        staying = Staying(job, crew, dict(keys[-most:]) if most else {})
        yield Fill(job, staying, operator)
        await staying.end()
        await crew.log_out()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A call to set up and keep."""

    number: Number
    user: SimUser
    dialled: bool


class Staying:
    """The calls that stay up."""

    def __init__(self, job: Job, crew: Crew, keys: Mapping[str, str]) -> None:
        """`keys`: name and key of one operator for each call."""
        self.up: list[Call] = []
        self._job, self._stack, self._crew = job, job.stack, crew
        self._keys = iter(keys.items())
        sim = self._stack.sim
        self._users = (sim.user(wa_id) for wa_id in list(sim.world.users)[: len(keys)])
        #: Number of calls requested so far, by number and direction.
        self._counts: Counter[tuple[str, bool]] = Counter()

    async def grow(self, numbers: Sequence[Number], live: int) -> dict[str, float]:
        """Bring each number to `live` calls; return the memory that an operator and a call took."""
        wanted = [one for number in numbers for one in self._missing(number, live)]
        if not wanted:
            return {}
        await permit(self._stack, [(one.user, one.number) for one in wanted if one.dialled])
        began_bytes = await self._weigh()
        bots = await self._crew.join(dict(itertools.islice(self._keys, len(wanted))))
        # A free operator is told of every call, so operators become available only when a call is there to answer.
        await _each(bots, lambda bot: bot.set_available(False))
        logged_in_bytes = await self._weigh()
        await _each(zip(wanted, bots, strict=True), self._begin)
        if len(wanted) < _WEIGHABLE:
            return {}
        up_bytes = await self._weigh()
        took = {"kib_per_operator": logged_in_bytes - began_bytes, "kib_per_call": up_bytes - logged_in_bytes}
        return {name: size / 1_024 / len(wanted) for name, size in took.items()}

    def _missing(self, number: Number, live: int) -> Iterator[_Wanted]:
        """Yield the calls that the number lacks: half of them from users, and these first."""
        for dialled, count in ((False, live - live // 2), (True, live // 2)):
            key = number.spec.phone_number_id, dialled
            while self._counts[key] < count:
                self._counts[key] += 1
                yield _Wanted(number=number, user=next(self._users), dialled=dialled)

    async def _weigh(self) -> int:
        """Return the gateway's memory, once it has finished its work."""
        await drained(self._stack, len(self.up))
        await asyncio.sleep(_QUIET_S)
        return own_bytes(self._stack.gateway_pid)

    async def _begin(self, pair: tuple[_Wanted, SignallingBot]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                call = await self._called(*pair)
                await self._stack.sim.until(lambda: call.state is CallState.ACTIVE, timeout_s=PATIENCE_S)
        except (RequestFailed, NotPossible, TimeoutError, ConnectionError) as failure:
            self._job.count_refusal(failure)
        else:
            self.up.append(call)
            self._job.progress(f"{len(self.up):,} calls up", len(self.up) / most_staying(self._job.form))

    async def _called(self, wanted: _Wanted, bot: SignallingBot) -> Call:
        """Return the call once Meta knows it."""
        if not wanted.dialled:
            call = wanted.user.call(number=wanted.number)
            await bot.set_available(True)
            return call
        number_id, world = wanted.number.spec.phone_number_id, self._stack.sim.world
        key = number_id, (await _dialled(bot, number_id, f"+{wanted.user.wa_id}"))["call_id"]
        await self._stack.sim.until(lambda: key in world.opaque, timeout_s=PATIENCE_S)
        return world.calls[world.opaque[key]]

    async def end(self) -> None:
        """Let the users hang up."""
        sim = self._stack.sim

        async def hang_up(call: Call) -> None:
            if call.live:
                sim.user(call.facts.user.wa_id).hang_up()
                await sim.until(lambda: sim.webhooks.pending < _AT_ONCE, timeout_s=DRAIN_S)

        with contextlib.suppress(TimeoutError):
            await _each(self.up, hang_up)
        await drained(self._stack)


async def _dialled(bot: SignallingBot, number_id: str, to: str) -> Json:
    """Dial, and retry while the gateway is not ready; return the call's view. Raises: RequestFailed."""
    while True:
        try:
            return await bot.dial(number_id, to)
        except RequestFailed as failure:
            if failure.reason not in PASSING:
                raise
        await asyncio.sleep(_AGAIN_S)


class Fill(Ring):
    """Users call and hang up beside live calls; with each step there are more live calls."""

    def __init__(self, job: Job, staying: Staying, operator: SignallingBot) -> None:
        """`operator` dials on numbers without a free slot."""
        super().__init__(job)
        self._staying, self._operator = staying, operator
        sim, most = self.stack.sim, most_staying(job.form)
        self._all_numbers = list(sim.world.numbers.values())
        self._caller, self._called, *others = (sim.user(wa_id) for wa_id in list(sim.world.users)[most:])
        self._users = itertools.cycle([user.wa_id for user in others])
        #: The gateway's first request about each surplus call, and when.
        self._answers: dict[str, asyncio.Future[tuple[str, float]]] = {}
        #: Figures of the step that do not come from its calls.
        self._more: dict[str, float] = {}

    def begin(self, step: Step) -> None:
        super().begin(step)
        self._numbers = itertools.cycle(self._all_numbers[: step.numbers])

    @asynccontextmanager
    async def ready(self, step: Step) -> AsyncIterator[None]:
        """Set up live calls, and operators for the others; at the end, try one more call if no slot is free."""
        filled = self._all_numbers[1 : step.numbers + 1]
        self._more = await self._staying.grow(filled, step.live)
        self.staying = len(self._staying.up)
        self._more["idle_cpu_share"] = await self._idle_share(min(_HEARTBEAT_S, step.seconds))
        async with super().ready(step):
            self.acks.clear()
            yield
        acks = self.acks.copy()
        if step.live == 2 * self.job.form.slots:
            await self._knock(filled[0])
        self.acks = acks

    async def _idle_share(self, seconds: float) -> float:
        """Return the share of a core that the gateway uses without calls, for its connected softphones."""
        before_s, began_at = cpu_s(self.stack.gateway_pid), instant()
        await asyncio.sleep(seconds)
        return (cpu_s(self.stack.gateway_pid) - before_s) / (instant() - began_at)

    async def _knock(self, number: Number) -> None:
        """Call and dial on a number whose slots are all in use."""
        await permit(self.stack, [(self._called, number)])
        self._more["let_in"] = 0.0
        for _ in range(_KNOCKS):
            await asyncio.sleep(_KNOCK_EVERY_S)
            await self._count_knock("refusal_in", self._call(number))
            await self._count_knock("refusal_out", self._dial(number))

    async def _count_knock(self, name: str, knock: Awaitable[float | None]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                took_s = await knock
        except (RequestFailed, NotPossible, TimeoutError, ConnectionError) as failure:
            self.job.count_refusal(failure)
            return
        if took_s is None:
            self._more["let_in"] += 1
        else:
            self.instants.setdefault(name, []).append(1_000 * took_s)

    async def _call(self, number: Number) -> float | None:
        """Return how long it took until the Graph received the reject; None: the call was not rejected."""
        left_at = instant()
        call = self._caller.call(number=number)
        answer = self._answers[call.id] = asyncio.get_running_loop().create_future()
        try:
            action, heard_at = await answer
        finally:
            if call.live:
                self._caller.hang_up()
        return heard_at - left_at if action == "reject" else None

    async def _dial(self, number: Number) -> float | None:
        """Return how long it took until the operator was told that no slot is free; None: one was free."""
        left_at = instant()
        try:
            await self._operator.dial(number.spec.phone_number_id, f"+{self._called.wa_id}")
        except RequestFailed as failure:
            if failure.reason != "number_busy":
                raise
            return instant() - left_at
        await self._operator.hang_up()
        return None

    def _heard(self, action: str, call_id: str) -> None:
        super()._heard(action, call_id)
        answer = self._answers.get(call_id)
        if answer is not None and not answer.done():
            answer.set_result((action, instant()))

    def finish(self, step: Step, shots: Sequence[Shot], result: StepResult) -> None:
        super().finish(step, shots, result)
        result.figures |= self._more
        used, idle = result.figures["cpu_share"], result.figures["idle_cpu_share"]
        if idle < used:  # otherwise it was not idle yet, and the cost of calls is unknown
            result.figures["call_cpu_ms"] = result.figures["cpu_ms"] * (used - idle) / used
        result.figures["fallen"] = float(step.live * step.numbers - sum(call.live for call in self._staying.up))


async def _each(things: Iterable[_Thing], work: Callable[[_Thing], Awaitable[None]]) -> None:
    """Run `work` for all of them, a few at a time."""
    left = iter(things)

    async def lane() -> None:
        for one in left:
            await work(one)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(lane())
