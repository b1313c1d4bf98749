"""Worker processes: real ones, started, used, killed and stalled."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from media.engine import (
    LegConnected,
    LegFailed,
    LegFailure,
    LegId,
    MediaConfig,
    MediaEngine,
    MediaEvent,
    Tone,
    WorkerDown,
    WorkerId,
    WorkerPool,
    WorkerUp,
)
from media.errors import MediaError, MediaTimeout, NoWorker, SdpRefused, UnknownLeg, WorkerGone
from media.model import unheard
from tests.loopback.peers import CONFIG, Peer, until

FAST = replace(CONFIG, heartbeat_s=0.1, heartbeat_timeout_s=1.0, restart_min_s=0.05)
ROOT = Path(__file__).parents[2]


class Gateway:
    """A pool and what it said."""

    def __init__(self, config: MediaConfig) -> None:
        self.events: list[MediaEvent] = []
        self.pool = WorkerPool(config)
        self.engine: MediaEngine = self.pool
        self.peers: list[Peer] = []

    async def browser(self, name: str) -> tuple[LegId, Peer]:
        leg, peer = LegId(name), Peer()
        self.peers.append(peer)
        await peer.answered(await self.engine.answer_browser(leg, self.engine.pick_worker(), await peer.offer()))
        await until(lambda: LegConnected(leg) in self.events and peer.pc.connectionState == "connected")
        return leg, peer


@asynccontextmanager
async def gateway(config: MediaConfig = FAST) -> AsyncIterator[Gateway]:
    one = Gateway(config)
    await one.engine.start(one.events.append)
    try:
        yield one
    finally:
        for peer in one.peers:
            await peer.close()
        await one.engine.aclose()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_legs_live_in_a_worker_process() -> None:
    async with gateway() as g:
        pid = g.pool.pids()[WorkerId(0)]
        assert g.engine.workers == (WorkerId(0),)
        assert g.events == [WorkerUp(WorkerId(0))]
        (a, one), (b, other) = await g.browser("a"), await g.browser("b")
        await g.engine.play(a, Tone.RINGBACK)
        await until(lambda: len(one.heard) > 2)
        await g.engine.join(a, b)
        await one.say("hello")
        await until(lambda: other.texts == ["hello 0"])
        await g.engine.part(a)
        stats = await g.engine.stats(a)
        assert stats is not None
        assert stats.rtp_packets_received == 1
        closed = await g.engine.close(a)
        assert closed is not None
        assert await g.engine.close(a) is None
        assert await g.engine.stats(a) is None
        assert not any(isinstance(event, LegFailed) for event in g.events)
    assert not is_running(pid)
    assert not any(isinstance(event, WorkerDown) for event in g.events)
    assert LegFailed(b, LegFailure.WORKER_DIED) not in g.events


async def test_meta_legs_answer_and_offer() -> None:
    async with gateway() as g:
        user, worker = Peer(), g.engine.pick_worker()
        g.peers.append(user)
        offer = await g.engine.offer_meta(LegId("called"), worker)
        await g.engine.accept_meta_answer(LegId("called"), await user.answer(offer))
        caller = Peer()
        g.peers.append(caller)
        answer = await g.engine.answer_meta(LegId("caller"), worker, await caller.offer(lite=True))
        await caller.answered(answer)
        for leg in ("called", "caller"):
            await until(lambda leg=leg: LegConnected(LegId(leg)) in g.events)  # type: ignore[misc]


async def test_errors_of_the_worker_arrive_as_themselves() -> None:
    async with gateway() as g:
        worker = g.engine.pick_worker()
        with pytest.raises(SdpRefused, match="does not start with v=0") as refusal:
            await g.engine.answer_meta(LegId("a"), worker, "nonsense")
        assert refusal.value.reason == "sdp_refused"
        with pytest.raises(UnknownLeg):
            await g.engine.part(LegId("a"))
        with pytest.raises(WorkerGone):
            await g.engine.offer_meta(LegId("a"), WorkerId(7))
        await g.engine.offer_meta(LegId("a"), worker)
        with pytest.raises(MediaError, match="exists"):
            await g.engine.offer_meta(LegId("a"), worker)


@pytest.mark.parametrize("text", ["v=0\r\n" + "x" * (2 << 20), "v=0\r\ns=\ud800\r\n", "v=0\r\ns=\0\r\n"])
async def test_no_description_ends_a_worker(text: str) -> None:
    """A frame longer than one megabyte did, with all the calls of that worker."""
    async with gateway() as g:
        worker, called = g.engine.pick_worker(), LegId("called")
        await g.engine.offer_meta(called, worker)
        for asked in (g.engine.answer_meta, g.engine.answer_browser):
            with pytest.raises(SdpRefused):
                await asked(LegId("a"), worker, text)
        with pytest.raises(SdpRefused):
            await g.engine.accept_meta_answer(called, text)
        assert await g.engine.close(called) is not None
        assert g.events == [WorkerUp(worker)]


async def test_a_worker_that_is_killed_loses_its_legs_and_comes_back() -> None:
    async with gateway(replace(FAST, workers=2)) as g:
        (a, _), (b, other) = await g.browser("a"), await g.browser("b")
        with pytest.raises(MediaError, match="different workers"):
            await g.engine.join(a, b)
        first = WorkerId(0)
        os.kill(g.pool.pids()[first], signal.SIGKILL)
        await until(lambda: LegFailed(a, LegFailure.WORKER_DIED) in g.events)

        down = g.events.index(WorkerDown(first, (a,)))
        assert g.events.index(LegFailed(a, LegFailure.WORKER_DIED)) > down
        assert first not in g.engine.workers
        with pytest.raises(UnknownLeg):
            await g.engine.play(a, None)
        assert await g.engine.close(a) is None

        await until(lambda: WorkerUp(first) in g.events[down:])
        c, third = await g.browser("c")
        await g.engine.play(c, Tone.HOLD)
        await g.engine.play(b, Tone.HOLD)
        await until(lambda: bool(third.heard) and bool(other.heard))
        assert [e for e in g.events if isinstance(e, LegFailed)] == [LegFailed(a, LegFailure.WORKER_DIED)]


async def test_who_waits_for_a_worker_that_dies_is_told() -> None:
    async with gateway() as g:
        pid = g.pool.pids()[WorkerId(0)]
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(refused(g))
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
        assert asking.result() is WorkerGone
        with pytest.raises(NoWorker):
            g.engine.pick_worker()


async def refused(g: Gateway) -> type[MediaError] | None:
    try:
        await g.engine.offer_meta(LegId("a"), WorkerId(0))
    except MediaError as error:
        return type(error)
    return None


async def test_a_worker_that_stalls_is_killed_and_comes_back() -> None:
    async with gateway(replace(FAST, heartbeat_timeout_s=0.5, request_timeout_s=0.1)) as g:
        leg, _ = await g.browser("a")
        pid = g.pool.pids()[WorkerId(0)]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(MediaTimeout):
            await g.engine.play(leg, None)
        await until(lambda: LegFailed(leg, LegFailure.WORKER_DIED) in g.events)
        await until(lambda: g.events.count(WorkerUp(WorkerId(0))) == 2)
        assert not is_running(pid)


async def test_a_worker_does_not_heed_ctrl_c() -> None:
    async with gateway() as g:
        pid = g.pool.pids()[WorkerId(0)]
        assert os.getsid(pid) == pid
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        leg, operator = await g.browser("a")
        await g.engine.play(leg, Tone.HOLD)
        await until(lambda: bool(operator.heard))
        assert g.events.count(WorkerUp(WorkerId(0))) == 1


async def test_a_port_that_is_taken_is_said_at_the_start() -> None:
    # The other loop's test may run beside this one.
    first = 21_320 if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else 21_300
    config = replace(FAST, ports=(first, first + 10))
    async with gateway(config):
        second = WorkerPool(config)
        with pytest.raises(NoWorker, match="in use"):
            await second.start(unheard)
        await second.aclose()


async def test_a_listener_that_breaks_costs_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: MediaEvent) -> None:
        raise RuntimeError("the listener's own fault")

    pool = WorkerPool(FAST)
    await pool.start(broken)
    await pool.offer_meta(LegId("a"), pool.pick_worker())
    assert "the event listener failed on WorkerUp" in caplog.text
    await pool.aclose()


async def test_a_pool_that_was_never_started_closes() -> None:
    await WorkerPool(FAST).aclose()


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_worker_ends_by_itself_when_the_gateway_is_killed() -> None:
    program = textwrap.dedent(
        """
        import asyncio
        from media.engine import MediaConfig, WorkerPool

        async def main():
            pool = WorkerPool(MediaConfig(workers=2))
            await pool.start(lambda event: None)
            print(*pool.pids().values(), flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
        """
    )
    with subprocess.Popen(  # noqa: ASYNC220 - the loop has nothing else to do meanwhile
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        process.kill()
    await until(lambda: not any(is_running(pid) for pid in pids))
