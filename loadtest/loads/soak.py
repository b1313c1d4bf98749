"""Many calls of all kinds, one after another in parallel lanes, and what they leave behind in the gateway's process.

Hours of work in minutes: null media, operators and users that act by policy, calls in both directions that are
answered, declined or given up. The process is watched from outside (Linux: `/proc`) and by its metrics.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import linear_regression
from typing import Final

from loadtest.measure.process import descriptors, own_bytes, total
from loadtest.measure.stack import Stack
from loadtest.operators.signalling_bot import Crew, NobodyFree
from loadtest.operators.softphone_wire import Json, RequestFailed
from loadtest.simulator.config import Behaviour, UserSpec, crowd
from loadtest.simulator.errors import NotPossible
from loadtest.simulator.meta_sim import SimUser
from loadtest.simulator.state import Call, CallState

#: Refusals that pass after a moment. Busy: for the gateway, the last call has not quite ended.
PASSING: Final = frozenset({"busy", "user_busy", "overloaded", "store_down"})
_CALL_S: Final = 30.0
_PAUSE_S: Final = 0.1
#: A user may have five connected calls in 24 hours, so each is called at most four times.
_CALLS_PER_USER: Final = 4
_SHARE_OUT: Final = 0.5
_SHARE_GIVEN_UP: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The gateway's process after a number of calls."""

    calls: int
    #: Private memory: what would be freed if the process ended.
    own_bytes: int
    descriptors: int
    tasks: int
    live: int


@dataclass(slots=True, kw_only=True)
class Soak:
    """What was done, and what was observed."""

    samples: list[Sample] = field(default_factory=list)
    #: Meta's ids of all calls.
    call_ids: list[str] = field(default_factory=list)
    #: Calls by direction and end, as the simulated Meta saw them.
    ended: Counter[str] = field(default_factory=Counter)
    #: Refused calls, by cause; they have no id.
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        """Number of calls that have ended, including refused ones."""
        return len(self.call_ids) + self.refused.total()


def soak_users(calls: int, lanes: int) -> tuple[UserSpec, ...]:
    """Return the users that a soak of this many calls needs: most answer, one in ten declines."""
    count = max(lanes, calls // _CALLS_PER_USER + 1)
    return tuple(
        UserSpec(
            wa_id=user.wa_id,
            name=user.name,
            behaviour=Behaviour.AUTO_DECLINE if index % 10 == 9 else Behaviour.AUTO_ACCEPT,
            after_s=0.0,
        )
        for index, user in enumerate(crowd(count))
    )


async def soak(
    stack: Stack,
    crew: Crew,
    *,
    calls: int,
    lanes: int,
    seed: int,
    samples: int = 40,
    progress: Callable[[int], None] = lambda done: None,
) -> Soak:
    """Make `calls` calls, `lanes` at a time, with users from `soak_users`; sample the process in between.

    The crew's policy must accept and hang up, and it needs one operator more than lanes. Raises: TimeoutError if a call
    does not end.
    """
    found, every = Soak(), max(1, calls // samples)
    users = [stack.sim.user(wa_id) for wa_id in stack.sim.world.users]
    numbers = list(stack.sim.world.numbers.values())
    left = iter(range(calls))
    looking = asyncio.Lock()

    async def lane(index: int) -> None:
        rng, mine = random.Random(f"{seed}/{index}"), users[index::lanes]
        for turn, _ in enumerate(left):
            user, number = mine[turn % len(mine)], numbers[turn % len(numbers)]
            if rng.random() < _SHARE_OUT:
                await _out(stack, crew, user, number.spec.phone_number_id, found)
            else:
                await _in(stack, user, found, gives_up=rng.random() < _SHARE_GIVEN_UP)
            if found.calls % every == 0:
                async with looking:
                    if not found.samples or found.samples[-1].calls < found.calls:
                        found.samples.append(await look(stack, found.calls))
                progress(found.calls)

    async with asyncio.TaskGroup() as group:
        for index in range(lanes):
            group.create_task(lane(index))
    return found


async def _in(stack: Stack, user: SimUser, found: Soak, *, gives_up: bool) -> None:
    """Run a user's call: an operator answers and hangs up, or the user gives up at once."""
    try:
        call = user.call()
    except NotPossible:
        found.refused["in: not possible"] += 1
        return
    if gives_up:
        user.hang_up()
    await _until_ended(stack, call, found)


async def _out(stack: Stack, crew: Crew, user: SimUser, number_id: str, found: Soak) -> None:
    """Run an operator's call: the user answers or declines."""
    try:
        async with asyncio.timeout(_CALL_S):
            call_id = None
            while call_id is None:
                call_id = await _placed(stack, crew, await _dial(stack, crew, number_id, f"+{user.wa_id}"))
    except RequestFailed as failure:
        found.refused[f"out: {failure.reason}"] += 1
    except TimeoutError:
        found.refused["out: never reached Meta"] += 1
    else:
        await _until_ended(stack, stack.sim.world.calls[call_id], found)


async def _placed(stack: Stack, crew: Crew, view: Json) -> str | None:
    """Return Meta's id of a call; None if the gateway gave it up before `connect` because of a slow database."""
    # The gateway sends its own id once, with `connect`.
    placed, key = stack.sim.world.opaque, (view["number_id"], view["call_id"])
    bot = next(bot for bot in crew.bots if bot.operator == view["operator"])
    await stack.sim.until(lambda: key in placed or bot.call is None, timeout_s=_CALL_S)
    return placed.get(key)


async def _dial(stack: Stack, crew: Crew, number_id: str, to: str) -> Json:
    """Let a free operator dial, and retry while the gateway reports a passing refusal.

    Raises: RequestFailed, TimeoutError.
    """
    async with asyncio.timeout(_CALL_S):
        while True:
            await stack.sim.until(lambda: crew.free() is not None, timeout_s=_CALL_S)
            try:
                return await crew.dial(number_id, to)
            except NobodyFree:
                continue
            except RequestFailed as failure:
                if failure.reason not in PASSING:
                    raise
            await asyncio.sleep(_PAUSE_S)


async def _until_ended(stack: Stack, call: Call, found: Soak) -> None:
    await stack.sim.until(lambda: call.state is CallState.ENDED, timeout_s=_CALL_S)
    found.call_ids.append(call.id)
    found.ended[f"{call.facts.direction} {call.end_reason}"] += 1


# Sampling the process


async def look(stack: Stack, calls: int) -> Sample:
    """Measure the gateway's process. Raises: OSError, aiohttp.ClientError."""
    figures = await stack.metrics()
    return Sample(
        calls=calls,
        own_bytes=own_bytes(stack.gateway_pid),
        descriptors=descriptors(stack.gateway_pid),
        tasks=int(figures["wacg_tasks"]),
        live=int(total(figures, "wacg_calls_active")),
    )


def bytes_per_call(samples: Sequence[Sample]) -> float:
    """Return the slope of the least-squares line. Raises: ValueError for a single sample."""
    return linear_regression([one.calls for one in samples], [one.own_bytes for one in samples]).slope
