"""A seeded schedule of kills at random moments, and how long each recovery took.

It works on anything that can be killed and restarted: a `Stack`, a database, a media worker.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol


class Victim(Protocol):
    """Anything that can be killed and restarted."""

    async def kill(self) -> None:
        """Kill without warning, and return when the process is gone."""
        ...

    async def restart(self) -> None:
        """Start again, and return when it is ready."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One round. Times in seconds."""

    round: int
    #: How long it had run since it was ready.
    lived_s: float
    #: From the kill until it was ready again.
    away_s: float


def moments(*, rounds: int, seed: int, least_s: float, most_s: float) -> Iterator[float]:
    """Yield for each round how long the victim runs, drawn uniformly. Raises: ValueError."""
    if not 0 <= least_s <= most_s:
        raise ValueError("least_s and most_s must not be negative, and least_s not above most_s")
    rng = random.Random(seed)
    return (rng.uniform(least_s, most_s) for _ in range(rounds))


async def kill_rounds(
    victim: Victim, *, rounds: int, seed: int, least_s: float = 0.2, most_s: float = 2.0, down_s: float = 0.0
) -> AsyncIterator[Kill]:
    """Let the victim run, kill it, leave it down for `down_s`, restart it; yield after each round.

    The caller checks the promises between rounds, while the load runs beside it. Raises: what `kill` and `restart`
    raise.
    """
    loop = asyncio.get_running_loop()
    for number, lives_s in enumerate(moments(rounds=rounds, seed=seed, least_s=least_s, most_s=most_s), 1):
        await asyncio.sleep(lives_s)
        killed_at = loop.time()
        await victim.kill()
        await asyncio.sleep(down_s)
        await victim.restart()
        yield Kill(round=number, lived_s=lives_s, away_s=loop.time() - killed_at)
