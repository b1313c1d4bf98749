"""Kills at random moments, and how long it took to be back: a seeded schedule for whatever can be killed.

Not responsible for what is killed (a `Stack`, a database, a media worker) nor for what must have survived.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol


class Victim(Protocol):
    """What can be killed and started again."""

    async def kill(self) -> None:
        """Kill without warning, and return when it is gone."""
        ...

    async def restart(self) -> None:
        """Start again, and return when it serves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One round. Times in seconds."""

    round: int
    #: It had lived so long since it was ready.
    lived_s: float
    #: From the kill until it served again.
    away_s: float


def moments(*, rounds: int, seed: int, least_s: float, most_s: float) -> Iterator[float]:
    """Yield how long the victim lives in each round, evenly spread. Raises: ValueError."""
    if not 0 <= least_s <= most_s:
        raise ValueError("least_s and most_s are not in order, or negative")
    rng = random.Random(seed)
    return (rng.uniform(least_s, most_s) for _ in range(rounds))


async def kill_rounds(
    victim: Victim, *, rounds: int, seed: int, least_s: float = 0.2, most_s: float = 2.0, down_s: float = 0.0
) -> AsyncIterator[Kill]:
    """Let the victim live, kill it, leave it down for `down_s`, start it again; yield after each round.

    Whoever iterates checks in between. The load runs beside it. Raises: what `kill` and `restart` raise.
    """
    loop = asyncio.get_running_loop()
    for number, lives_s in enumerate(moments(rounds=rounds, seed=seed, least_s=least_s, most_s=most_s), 1):
        await asyncio.sleep(lives_s)
        killed_at = loop.time()
        await victim.kill()
        await asyncio.sleep(down_s)
        await victim.restart()
        yield Kill(round=number, lived_s=lives_s, away_s=loop.time() - killed_at)
