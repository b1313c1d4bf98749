"""The kill schedule repeats by its seed, keeps to its bounds, and shows a victim that forgets."""

import asyncio
from itertools import pairwise

import pytest

from loadtest.chaos.kills import Kill, kill_rounds, moments


class Victim:
    """A store that keeps numbers; `durable` says whether what it acknowledged survives."""

    def __init__(self, *, durable: bool = True) -> None:
        self.durable, self.alive, self.kept = durable, True, set[int]()
        self.told: list[str] = []

    def acknowledge(self, number: int) -> bool:
        if self.alive:
            self.kept.add(number)
        return self.alive

    async def kill(self) -> None:
        self.told.append("kill")
        self.alive = False
        if not self.durable:
            self.kept.clear()

    async def restart(self) -> None:
        self.told.append("restart")
        await asyncio.sleep(0.01)
        self.alive = True


def test_moments_repeat_by_their_seed_and_keep_to_their_bounds() -> None:
    def drawn(seed: int) -> list[float]:
        return list(moments(rounds=50, seed=seed, least_s=0.5, most_s=2.0))

    assert drawn(1) == drawn(1) != drawn(2)
    assert all(0.5 <= moment <= 2.0 for moment in drawn(1))
    assert any(abs(one - other) > 0.3 for one, other in pairwise(drawn(1)))


@pytest.mark.parametrize(("least", "most"), [(-1.0, 1.0), (2.0, 1.0)])
def test_bounds_that_cannot_be_are_refused(least: float, most: float) -> None:
    with pytest.raises(ValueError, match="least_s"):
        moments(rounds=1, seed=1, least_s=least, most_s=most)


async def test_each_round_kills_and_starts_again() -> None:
    victim = Victim()
    rounds: list[Kill] = []
    async for kill in kill_rounds(victim, rounds=3, seed=1, least_s=0.0, most_s=0.02, down_s=0.02):
        assert victim.alive
        rounds.append(kill)
    assert victim.told == ["kill", "restart"] * 3
    assert [kill.round for kill in rounds] == [1, 2, 3]
    assert all(kill.away_s >= 0.029 and kill.lived_s <= 0.02 for kill in rounds)


async def lost(victim: Victim) -> int:
    """Hand in numbers while the victim is killed; return how many acknowledged ones are gone."""
    acknowledged: set[int] = set()

    async def load() -> None:
        for number in range(10_000):
            if victim.acknowledge(number):
                acknowledged.add(number)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        loading = group.create_task(load())
        async for _ in kill_rounds(victim, rounds=3, seed=1, least_s=0.01, most_s=0.03):
            pass
        loading.cancel()
    return len(acknowledged - victim.kept)


async def test_a_store_that_acknowledges_before_it_keeps_would_be_seen() -> None:
    assert await lost(Victim(durable=True)) == 0
    assert await lost(Victim(durable=False)) > 0
