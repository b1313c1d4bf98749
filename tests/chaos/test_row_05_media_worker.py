"""A media worker that is killed, or hangs, ends its own calls; all others go on, and it is started again."""

import asyncio
import os
import random
import signal
from dataclasses import replace

import pytest

from media.engine import WorkerPool
from media.model import LegConnected, LegFailed, LegFailure, LegId, MediaEvent, WorkerId, WorkerUp
from tests.loopback.peers import CONFIG, Peer, until
from tests.support.generators.hostile import gather_on_loopback
from tests.support.harness.chaos import Chaos


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


class Pool:
    """Workers with calls, and when each thing was said of them."""

    def __init__(self, *, workers: int = 2, heartbeat_timeout_s: float) -> None:
        config = replace(
            CONFIG,
            workers=workers,
            heartbeat_s=0.25,
            heartbeat_timeout_s=heartbeat_timeout_s,
            # The pause doubles from death to death; here they follow each other as in no real life.
            restart_min_s=0.05,
            restart_max_s=0.5,
        )
        self.said: list[tuple[float, MediaEvent]] = []
        self.engine = WorkerPool(config)
        self.peers: list[Peer] = []

    async def __aenter__(self) -> "Pool":
        await self.engine.start(self._told)
        return self

    async def __aexit__(self, *error: object) -> None:
        for peer in self.peers:
            await peer.close()
        await self.engine.aclose()

    def _told(self, event: MediaEvent) -> None:
        self.said.append((asyncio.get_running_loop().time(), event))

    def when(self, event: MediaEvent, *, after: float = 0.0) -> float | None:
        """Return when an event was first said."""
        return next((at for at, one in self.said if one == event and at >= after), None)

    async def pair(self, name: str, worker: WorkerId) -> tuple[tuple[LegId, LegId], tuple[Peer, Peer]]:
        """Return a connected call in a worker."""
        legs, peers = (LegId(f"{name} browser"), LegId(f"{name} meta")), (Peer(), Peer())
        self.peers += peers
        await peers[0].answered(await self.engine.answer_browser(legs[0], worker, await peers[0].offer()))
        await peers[1].answered(await self.engine.answer_meta(legs[1], worker, await peers[1].offer(lite=True)))
        await until(lambda: all(self.when(LegConnected(leg)) is not None for leg in legs))
        await until(lambda: all(peer.pc.connectionState == "connected" for peer in peers))
        await self.engine.join(*legs)
        return legs, peers


async def harm(pool: Pool, number: signal.Signals, rng: random.Random, name: str) -> dict[str, float]:
    """Harm one worker of two while both carry calls; return what it cost."""
    unlucky, lucky = rng.sample([WorkerId(0), WorkerId(1)], 2)
    lost = [(await pool.pair(f"{name} lost {n}", unlucky))[0] for n in range(2)]
    _, (operator, user) = await pool.pair(f"{name} kept", lucky)
    pid, kept_pid = (pool.engine.pids()[worker] for worker in (unlucky, lucky))
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        talking = group.create_task(operator.say(name, times=50, pace_s=0.01))
        await asyncio.sleep(rng.uniform(0, 0.2))
        began_at = loop.time()
        os.kill(pid, number)
        died = [LegFailed(leg, LegFailure.WORKER_DIED) for pair in lost for leg in pair]
        await until(lambda: all(pool.when(event) is not None for event in died), timeout_s=15)
        await until(lambda: pool.when(WorkerUp(unlucky), after=began_at) is not None, timeout_s=15)
        await talking
    up_at = pool.when(WorkerUp(unlucky), after=began_at)
    told_at = max(at for event in died if (at := pool.when(event)) is not None)
    assert up_at is not None
    await until(lambda: len(user.heard) >= 50, timeout_s=1)
    legs, _ = await pool.pair(f"{name} again", unlucky)
    failures = [one for _, one in pool.said if isinstance(one, LegFailed) and one not in died]
    for leg in (*legs, LegId(f"{name} kept browser"), LegId(f"{name} kept meta")):
        await pool.engine.close(leg)
    while pool.peers:
        await pool.peers.pop().close()
    pool.said = [(at, one) for at, one in pool.said if isinstance(one, WorkerUp)]
    return {
        "told after": told_at - began_at,
        "up after": up_at - began_at,
        "frames lost": 50 - len(user.heard),
        "others": len(failures) + (pool.engine.pids()[lucky] != kept_pid),
    }


@pytest.mark.row(5, "a media worker that is killed or hangs ends its calls only, and is started again")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_worker_that_dies_or_hangs_ends_its_calls_only(chaos: Chaos) -> None:
    silence_s = chaos.size(test=1.0, short=2.0, long=5.0)
    kills, stops = chaos.size(test=(1, 1), short=(5, 3), long=(20, 10))
    rng = random.Random(chaos.seed)
    async with Pool(heartbeat_timeout_s=silence_s) as pool:
        killed = [await harm(pool, signal.SIGKILL, rng, f"kill {n}") for n in range(kills)]
        stopped = [await harm(pool, signal.SIGSTOP, rng, f"stop {n}") for n in range(stops)]

    both = killed + stopped
    chaos.note("workers killed, workers stopped, each with two calls", f"{kills}, {stops}")
    chaos.promise("calls of the other worker harmed", sum(cost["others"] for cost in both), at_most=0)
    chaos.promise("frames of the other worker lost", sum(cost["frames lost"] for cost in both), at_most=0)
    chaos.promise("a death is known after", max(c["told after"] for c in killed), at_most=0.5, unit="s", timed=True)
    chaos.promise(
        "silence is known after", max(c["told after"] for c in stopped), at_most=silence_s + 2, unit="s", timed=True
    )
    chaos.promise("a new worker takes calls after", max(c["up after"] for c in killed), at_most=5, unit="s", timed=True)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_pool_that_does_not_watch_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def blind(worker: object) -> None:
        await asyncio.sleep(3_600)

    monkeypatch.setattr("media.pool._Worker._watch", blind)
    async with Pool(workers=1, heartbeat_timeout_s=0.3) as pool:
        legs, _ = await pool.pair("a", WorkerId(0))
        pid = pool.engine.pids()[WorkerId(0)]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await until(lambda: pool.when(LegFailed(legs[0], LegFailure.WORKER_DIED)) is not None, timeout_s=1)
        os.kill(pid, signal.SIGKILL)
