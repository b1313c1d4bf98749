"""Legs that come and go leave nothing: no socket, no task, no memory."""

import asyncio
import gc
import os
from collections.abc import Sized
from dataclasses import replace
from statistics import linear_regression

import pytest

from loadtest.measure.process import descriptors, rss_bytes
from media.engine import WorkerPool
from media.leg import MediaLeg
from media.model import LegConnected, LegId, MediaEvent
from tests.loopback.peers import CONFIG, Peer, Stage, until
from tests.support.generators.hostile import gather_on_loopback
from tests.support.harness.chaos import Chaos

PROMISE = "legs that come and go leave no socket, no task and less than 1 KiB a call"


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


async def call(stage: Stage, name: str) -> None:
    """Set up two legs, let both sides say a word, and close all."""
    (a, operator), (b, user) = await stage.browser(f"{name} browser"), await stage.meta(f"{name} meta")
    stage.host.join(a, b)
    await operator.say("hello")
    await user.say("hello")
    await until(lambda: bool(operator.heard and user.heard))
    for leg, peer in ((a, operator), (b, user)):
        await stage.host.close(leg)
        await peer.close()
    stage.peers.clear()
    stage.events.clear()


def open_now() -> tuple[int, int]:
    """Return how many tasks and how many files and sockets there are."""
    return len(asyncio.all_tasks()), descriptors(os.getpid())


async def left_after(stage: Stage, count: int) -> tuple[int, int]:
    """Return how many tasks and descriptors more there are after so many calls."""
    await call(stage, "warm-up")
    before = open_now()
    for n in range(count):
        await call(stage, str(n))
    for _ in range(50):
        if open_now() == before:
            break
        await asyncio.sleep(0.01)
    tasks, files = open_now()
    return tasks - before[0], files - before[1]


@pytest.mark.row(32, PROMISE)
async def test_tasks_and_sockets_are_back_to_the_start(chaos: Chaos) -> None:
    count = chaos.size(test=3, short=60, long=1_000)
    async with Stage() as stage:
        tasks, files = await left_after(stage, count)
        gc.collect()
        objects = sum(isinstance(one, MediaLeg) for one in gc.get_objects())
        host = stage.host
        tables: list[Sized] = [host._legs, host._owners, host._answers, host._epitaphs, host._making]
        tables += [host._shared._by_ufrag, host._shared._by_address]
        kept = sum(map(len, tables))

    chaos.note("pairs of legs", count)
    chaos.promise("tasks left", tasks, at_most=0)
    chaos.promise("descriptors left", files, at_most=0)
    chaos.promise("entries left in the host's tables", kept + objects, at_most=0)


@pytest.mark.row(32, PROMISE)
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_worker_process_stays_as_large_as_it_was(chaos: Chaos) -> None:
    rounds = chaos.size(test=4, short=12, long=50)
    each = chaos.size(test=1, short=10, long=20)
    events: list[MediaEvent] = []
    pool = WorkerPool(replace(CONFIG, heartbeat_s=0.05))
    await pool.start(events.append)
    (pid,) = pool.pids().values()
    for n in range(chaos.size(test=1, short=60, long=200)):
        await worker_call(pool, events, f"warm-up {n}")
    sizes: list[float] = []
    files: list[int] = []
    for number in range(rounds):
        for n in range(each):
            await worker_call(pool, events, f"{number} {n}")
        await asyncio.sleep(0.2)  # it collects at a beat without legs
        sizes.append(rss_bytes(pid) / 1_024)
        files.append(descriptors(pid))
    await pool.aclose()

    slope = linear_regression(range(0, rounds * each, each), sizes).slope
    chaos.note("calls after the warm-up", rounds * each)
    chaos.note("the worker's memory at the end", sizes[-1] / 1_024, unit="MiB")
    # Over a hundred calls one step of the heap is more than a kibibyte a call; a leg that stays is ten of them.
    most = chaos.size(test=4.0, short=4.0, long=1.0)
    chaos.promise("growth of its memory a call", slope, at_most=most, unit="KiB", timed=True)
    chaos.promise("growth of its descriptors", max(files) - files[0], at_most=0)


async def worker_call(pool: WorkerPool, events: list[MediaEvent], name: str) -> None:
    legs, worker = (LegId(f"{name} browser"), LegId(f"{name} meta")), pool.pick_worker()
    operator, user = Peer(), Peer()
    await operator.answered(await pool.answer_browser(legs[0], worker, await operator.offer()))
    await user.answered(await pool.answer_meta(legs[1], worker, await user.offer(lite=True)))
    await until(lambda: all(LegConnected(leg) in events for leg in legs))
    await until(lambda: all(peer.pc.connectionState == "connected" for peer in (operator, user)))
    await pool.join(*legs)
    await user.say("hello")
    await until(lambda: bool(operator.heard))
    for leg, peer in zip(legs, (operator, user), strict=True):
        await pool.close(leg)
        await peer.close()
    events.clear()


async def test_a_leg_that_keeps_its_socket_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[asyncio.DatagramTransport] = []

    async def careless(leg: MediaLeg) -> None:
        leg.endpoint.shut()
        for timer in leg._timers.values():
            timer.cancel()
        kept.append(leg.ice.link.transport)
        await leg._dtls.close()
        await leg.ice.transport.stop() if leg.side == "browser" else None
        leg.finished.set()

    async with Stage() as stage:
        await call(stage, "good")
        with monkeypatch.context() as patched:
            patched.setattr(MediaLeg, "_shut", careless)
            tasks, files = await left_after(stage, 2)
        assert files >= 2
        for transport in kept:
            if transport is not stage.host._shared._transport:
                transport.close()
        await asyncio.sleep(0.01)
        del tasks
