"""What must be true of a gateway after any load: nothing left over, no phone rung twice, no limit exceeded."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from loadtest.measure.process import accepted_sockets, total
from loadtest.measure.results import Check
from loadtest.measure.stack import Stack
from loadtest.simulator.state import ViolationKind

_SETTLE_S: Final = 20.0
_LOOK_S: Final = 0.2
#: Metrics that are 0 while nobody uses the gateway.
_LIVE: Final = ("wacg_calls_active", "wacg_slots_in_use", "wacg_softphones_connected")
#: Meta's errors for requests above a limit or without permission.
_ABOVE: Final = (138002, 138005, 138006, 138009, 138012)


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The state of the gateway before the load."""

    tasks: int

    @classmethod
    async def look(cls, stack: Stack) -> Self:
        """Read the state while no operator is connected. Raises: aiohttp.ClientError, TimeoutError."""
        await stack.sim.until(lambda: bool(stack.sim.webhooks.verified), timeout_s=_SETTLE_S)
        await stack.sim.webhooks.let_go()
        await _settled(stack, None)
        return cls(tasks=int((await stack.metrics())["wacg_tasks"]))


async def _settled(stack: Stack, tasks: int | None) -> tuple[Mapping[str, float], int]:
    """Return the gateway's metrics and open connections once nothing is left over, or after the longest wait."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _SETTLE_S
    while True:
        figures = await stack.metrics()
        sockets = accepted_sockets(stack.gateway_pid, (stack.port,))
        left = sockets + sum(total(figures, name) for name in _LIVE)
        if (not left and (tasks is None or figures["wacg_tasks"] <= tasks)) or loop.time() > give_up_at:
            return figures, sockets
        await asyncio.sleep(_LOOK_S)


async def invariants(stack: Stack, before: Before) -> list[Check]:
    """Check what is left once all clients of the load have logged out. Raises: aiohttp.ClientError, TimeoutError."""
    await stack.sim.webhooks.let_go()
    figures, sockets = await _settled(stack, before.tasks)
    world, webhooks = stack.sim.world, stack.sim.webhooks
    above = {code: count for code, count in sorted(world.refused.items()) if code in _ABOVE}
    twice = sum(violation.kind is ViolationKind.RUNG_TWICE for violation in world.violations)
    return [
        none("calls left", total(figures, "wacg_calls_active")),
        none("slots left", total(figures, "wacg_slots_in_use")),
        none("softphones left", total(figures, "wacg_softphones_connected")),
        none("accepted sockets left", sockets),
        _at_most("tasks", figures["wacg_tasks"], before.tasks),
        none("calls that Meta still considers live", len(world.live_calls())),
        none("webhooks that Meta gave up on", webhooks.lost),
        none("calls rung twice", twice),
        none("other rules of Meta broken", len(world.violations) - twice),
        none("requests above one of Meta's limits", sum(above.values())),
        none("changes that were never written", total(figures, "wacg_store_dropped_total")),
    ]


def none(name: str, found: float) -> Check:
    """Return the check that a count is zero."""
    return _at_most(name, found, 0)


def _at_most(name: str, found: float, most: float) -> Check:
    return Check(name=name, found=f"{found:g}", wanted="none" if not most else f"<= {most:g}", kept=found <= most)
