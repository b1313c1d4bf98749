"""The media plane under load: calls through a whole gateway, with the far ends' RTP from a pump.

`Plane` knows the worker process and the paths of packets; `AnchoredCalls` are the live calls, from the operators' login
to their logout. What is measured is in `media.py`.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from loadtest.loads.media_ends import PumpedOperator, PumpedUser
from loadtest.loads.media_pump import Line, Pump
from loadtest.loads.media_talk import Pair, paired
from loadtest.measure.process import busy_s, children, pin, rss_bytes
from loadtest.measure.stack import NEVER_OVERLOADED, GatewayDied, Stack
from loadtest.net.udp_chaos import UdpChaos, udp_chaos
from loadtest.operators.signalling_bot import Crew, Policy
from loadtest.simulator.relay import Relay
from loadtest.simulator.state import Call, CallState

#: Gateway settings: one worker, on loopback, that keeps a leg without media for a while.
ENVIRONMENT: Final = {
    "GATEWAY_MEDIA_WORKERS": "1",
    "GATEWAY_MEDIA_BIND_ADDRESS": "127.0.0.1",
    "GATEWAY_MEDIA_PORTS": "0",
    "GATEWAY_MEDIA_TIMEOUT_S": "120",
    **NEVER_OVERLOADED,  # many calls are set up before anything is measured
}
_UP_S: Final = 15.0
_AT_ONCE: Final = 8


def worker_pid(gateway_pid: int) -> int:
    """Return the pid of the gateway's media worker. Raises: GatewayDied unless there is exactly one."""
    workers = []
    for pid in children(gateway_pid):
        with contextlib.suppress(OSError):
            if b"media.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                workers.append(pid)
    if len(workers) != 1:
        raise GatewayDied(f"The gateway has {len(workers)} media workers instead of one.")
    return workers[0]


class Plane:
    """Carries RTP between the users and the operators of one gateway. See `plane`."""

    def __init__(self, stack: Stack, pump: Pump, relay: Relay, chaos: UdpChaos) -> None:
        self.stack, self.pump, self.chaos = stack, pump, chaos
        self.worker = worker_pid(stack.gateway_pid)
        #: Its memory before the first call; memory that calls free stays with the process.
        self.empty_bytes = rss_bytes(self.worker)
        #: Whether new calls of users go through the proxy.
        self.through_proxy = False
        self._relay = relay
        stack.sim.calls.use_relay(relay)
        stack.sim.calls.media_kind = self._user

    def _user(self, *args: Any, **more: Any) -> PumpedUser:
        port = self.chaos.port if self.through_proxy else self._relay.port
        return PumpedUser(self.pump, *args, port=port, **more)

    def cpu_s(self) -> float:
        """Return the CPU time of the worker. Raises: GatewayDied."""
        try:
            return busy_s(self.worker)
        except OSError as gone:
            raise GatewayDied("The media worker ended unexpectedly.") from gone

    def rss_bytes(self) -> int:
        """Return the worker's memory. Raises: GatewayDied."""
        try:
            return rss_bytes(self.worker)
        except OSError as gone:
            raise GatewayDied("The media worker ended unexpectedly.") from gone


@asynccontextmanager
async def plane(stack: Stack, *, seed: int) -> AsyncIterator[Plane]:
    """Take over the users' media of a running stack; the worker gets the gateway's core, the gateway ours."""
    pump = Pump()
    try:
        relay = await Relay.open("127.0.0.1", create=pump.open)
        try:
            async with udp_chaos((relay.host, relay.port), seed=seed) as chaos:
                found = Plane(stack, pump, relay, chaos)
                pin(found.worker, frozenset(os.sched_getaffinity(stack.gateway_pid)))
                pin(stack.gateway_pid, frozenset(os.sched_getaffinity(0)))
                yield found
        finally:
            await relay.close()
    finally:
        pump.close()


class AnchoredCalls:
    """The live calls. Call `add` as often as needed; see `anchored_calls`."""

    def __init__(self, plane: Plane, crew: Crew) -> None:
        self.plane = plane
        self.pairs: list[Pair] = []
        self.operators: list[PumpedOperator] = []
        self._crew = crew
        self._calls: list[Call] = []

    async def add(self, count: int) -> None:
        """Log in this many operators, let as many users call, and wait until all calls are active.

        Raises: RequestFailed, TimeoutError, PeerFailed.
        """
        sim, done = self.plane.stack.sim, len(self.operators)
        keys = dict(list(self.plane.stack.config.operators.items())[done : done + count])
        users = list(sim.world.users)[done : done + count]
        operators = [bot for bot in await self._crew.join(keys) if isinstance(bot, PumpedOperator)]
        places = asyncio.Semaphore(_AT_ONCE)

        async def call(wa_id: str) -> Call:
            async with places:
                call = sim.user(wa_id).call()
                await sim.until(lambda: _talks(call) or not call.live, timeout_s=_UP_S)
                return call

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call(wa_id)) for wa_id in users]
        calls = [task.result() for task in tasks]
        lost = sum(not call.live for call in calls)
        if lost:
            raise TimeoutError(f"{lost} of {count} calls ended before they became active")
        async with asyncio.timeout(_UP_S):
            while not all(bot.call is not None and bot.call["state"] == "active" for bot in operators):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        self.operators += operators
        self._calls += calls
        self.pairs += _pairs(calls, operators)

    async def hold(self, *, on: bool) -> None:
        """Put all calls on hold, or resume them. Raises: RequestFailed, TimeoutError."""
        async with asyncio.TaskGroup() as group:
            for operator in self.operators:
                group.create_task(operator.hold(on=on))

    @property
    def live(self) -> int:
        """Number of calls still up."""
        return sum(call.live for call in self._calls)


def _talks(call: Call) -> bool:
    return call.state is CallState.ACTIVE and call.media.connected.is_set()


def _pairs(calls: Sequence[Call], operators: Sequence[PumpedOperator]) -> list[Pair]:
    lines: dict[str, Line] = {}
    for operator in operators:
        assert operator.call is not None
        assert operator.line is not None
        lines[operator.call["user"]["number"].removeprefix("+")] = operator.line
    pairs = []
    for call in calls:
        assert isinstance(call.media, PumpedUser)
        assert call.media.line is not None
        pairs.append(paired(call.media.line, lines[call.facts.user.wa_id]))
    return pairs


@asynccontextmanager
async def anchored_calls(plane: Plane) -> AsyncIterator[AnchoredCalls]:
    """Yield an empty set of calls; at the end all operators send `bye`, which ends their calls."""
    async with Crew(plane.stack.url, {}, policy=Policy(), bot=partial(PumpedOperator, plane.pump)) as crew:
        try:
            yield AnchoredCalls(plane, crew)
        finally:
            await crew.log_out()
