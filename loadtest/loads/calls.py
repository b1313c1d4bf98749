"""Calls in both directions as loads: users who call, and operators who call.

Instants are those at which the simulated Graph had read the request. Rates and common figures are in `job.py`.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from loadtest.common.clock import instant
from loadtest.loads.generator import NO_ANSWER, Shot
from loadtest.loads.job import BURST_OPERATORS, DIALS_PER_USER, DRAIN_S, OK, Job, Load, crew_of, operators_for
from loadtest.loads.scenarios import Step, Work
from loadtest.measure.results import StepResult
from loadtest.measure.stack import Stack
from loadtest.operators.signalling_bot import Answer, Crew, Policy
from loadtest.operators.softphone_wire import RequestFailed
from loadtest.simulator.errors import NotPossible
from loadtest.simulator.meta_sim import SimUser
from loadtest.simulator.state import Call, Number
from loadtest.simulator.webhooks import Delivery

#: A call about which the Graph has received nothing for this long is lost.
PATIENCE_S: Final = 10.0
_PERMIT_AT_ONCE: Final = 50


@dataclass(slots=True, kw_only=True)
class Track:
    """The instants of one call, as values of `instant`."""

    due_at: float
    #: Index of its arrival in the step.
    index: int
    #: Its webhook, which may have been delayed on purpose.
    webhook: Delivery
    done: asyncio.Future[None]
    heard_at: dict[str, float] = field(default_factory=dict)


# --- users call --------------------------------------------------------------------------------------


class Ring(Load):
    """Users call; each waits for 20,000 others, or for all, before calling again."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.burst = job.work is Work.BURST
        self.decides = self._last = "pre_accept" if self.burst else "accept"
        self._users = itertools.cycle(list(self.stack.sim.world.users))
        self._numbers = itertools.cycle([self.stack.sim.number])
        self._tracks: dict[str, Track] = {}
        self.stack.sim.world.heard = self._heard

    def begin(self, step: Step) -> None:
        super().begin(step)
        self._tracks.clear()

    @asynccontextmanager
    async def ready(self, step: Step) -> AsyncIterator[None]:
        """Log in operators: as many as the rate needs, or for a burst a few who let it ring."""
        count = BURST_OPERATORS if self.burst else operators_for(step, self.job.form.talk_s)
        policy = Policy(answer=Answer.IGNORE if self.burst else Answer.ACCEPT)
        async with crew_of(self.stack, count, policy):
            yield

    async def arrive(self, index: int) -> int:
        """One user calls."""
        sim, loop = self.stack.sim, asyncio.get_running_loop()
        user = sim.user(next(self._users))
        left_at = instant()
        try:
            call = user.call(number=next(self._numbers))
        except NotPossible:
            return NO_ANSWER
        webhook = sim.webhooks.sent[-1]
        held_s = webhook.fate.overtaken_s or webhook.fate.late_s
        track = Track(index=index, due_at=left_at + held_s, webhook=webhook, done=loop.create_future())
        self._tracks[call.id] = track
        try:
            async with asyncio.timeout(PATIENCE_S):
                await track.done
        except TimeoutError:
            return NO_ANSWER
        finally:
            if self.burst or not track.done.done():
                _gives_up(loop, call, user.hang_up)
        return OK

    def _heard(self, action: str, call_id: str) -> None:
        track = self._tracks.get(call_id)
        if track is not None:
            track.heard_at.setdefault(action, instant())
            if action == self._last and not track.done.done():
                track.done.set_result(None)

    def finish(self, step: Step, shots: Sequence[Shot], result: StepResult) -> None:
        """Measure times from when each call was due."""
        for track in self._tracks.values():
            late_s = shots[track.index].late_s
            left_at = track.webhook.left_at
            due_at = track.due_at - late_s if left_at is None else left_at
            for action in ("pre_accept", "accept"):
                if action in track.heard_at:
                    took_ms = 1_000 * (track.heard_at[action] - due_at)
                    self.instants.setdefault(action, []).append(took_ms)
        # `accept` is sent when `pre_accept` is answered, so the Graph's own time is in it once.
        self.instants["overhead"] = [max(0.0, one - step.graph_ms) for one in self.instants.get("accept", [])]
        answered = [track.heard_at["pre_accept"] for track in self._tracks.values() if "pre_accept" in track.heard_at]
        if self.burst:
            del self.instants["overhead"]
            if answered:
                last_due_at = max(track.due_at for track in self._tracks.values())
                result.figures["last_answer_ms"] = 1_000 * (max(answered) - last_due_at)


async def permit(stack: Stack, pairs: Iterable[tuple[SimUser, Number]]) -> None:
    """Let users grant permission to numbers, and wait until the gateway knows."""
    sim = stack.sim
    for index, (user, number) in enumerate(pairs):
        user.grant(number=number)
        if index % _PERMIT_AT_ONCE == 0:  # paced, because this part is not measured
            await sim.until(lambda: sim.webhooks.pending == 0, timeout_s=DRAIN_S)
    await sim.until(lambda: sim.webhooks.pending == 0, timeout_s=DRAIN_S)


def _gives_up(loop: asyncio.AbstractEventLoop, call: Call, hang_up: Callable[[], object]) -> None:
    """Let the caller give up in a moment, if the call is still up then."""

    def end() -> None:
        if call.live:
            hang_up()

    loop.call_later(1.0, end)


# --- operators call ----------------------------------------------------------------------------------


class Dial(Load):
    """Operators call users who answer at once; the operator hangs up."""

    decides = "connect"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._users = list(self.stack.sim.world.users)
        self._numbers = list(self.stack.sim.world.numbers)
        self._first = self._called = 0
        self._crew: Crew | None = None
        #: Keyed by the gateway's own id of a call.
        self._connected_at: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._by_index: dict[int, float] = {}
        self.stack.sim.world.heard = self._heard

    def _number(self, index: int) -> str:
        """Return the number that calls this user."""
        return self._numbers[index % len(self._numbers)]

    def begin(self, step: Step) -> None:
        super().begin(step)
        self._first, self._called = self._first + self._called, step.count // DIALS_PER_USER + 1
        self._connected_at.clear()
        self._by_index.clear()

    @asynccontextmanager
    async def ready(self, step: Step) -> AsyncIterator[None]:
        """Log in operators, who hang up after a while."""
        sim, indexes = self.stack.sim, range(self._first, self._first + self._called)
        await permit(
            self.stack, [(sim.user(self._users[one]), sim.world.numbers[self._number(one)]) for one in indexes]
        )
        self.acks.clear()
        count = operators_for(step, self.job.form.talk_s)
        async with crew_of(self.stack, count, Policy(talk_s=self.job.form.talk_s)) as crew:
            self._crew = crew
            yield

    async def arrive(self, index: int) -> int:
        """A free operator calls the next user; if none is free, the call waits and its time runs."""
        crew, sim = self._crew, self.stack.sim
        assert crew is not None, "ready() must be entered first"
        user = self._first + index % self._called
        began_at = instant()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while crew.free() is None:
                    await sim.until(lambda: crew.free() is not None, timeout_s=PATIENCE_S)
                view = await crew.dial(self._number(user), f"+{self._users[user]}")
                self._by_index[index] = await self._connected(view["call_id"]) - began_at
        except (RequestFailed, TimeoutError, ConnectionError) as failure:
            self.job.count_refusal(failure)
            return NO_ANSWER
        return OK

    async def _connected(self, call_id: str) -> float:
        """Return when the Graph read this call's `connect`."""
        if call_id not in self._connected_at:
            waiting = self._waiting[call_id] = asyncio.get_running_loop().create_future()
            try:
                await waiting
            finally:
                del self._waiting[call_id]
        return self._connected_at[call_id]

    def _heard(self, action: str, call_id: str) -> None:
        if action != "connect":
            return
        ours = self.stack.sim.world.calls[call_id].facts.biz_opaque_callback_data or ""
        self._connected_at[ours] = instant()
        waiting = self._waiting.get(ours)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def finish(self, step: Step, shots: Sequence[Shot], result: StepResult) -> None:
        """Measure times from when each call was due; a call that was never answered is lost as well."""
        took = self._by_index
        self.instants["connect"] = [1_000 * (took[shot.index] + shot.late_s) for shot in shots if shot.index in took]
        placed = (
            self.stack.sim.world.opaque.get((number, ours)) for ours in self._connected_at for number in self._numbers
        )
        calls = [self.stack.sim.world.calls[call_id] for call_id in placed if call_id is not None]
        result.figures["lost"] += sum(call.answered_at is None for call in calls)
