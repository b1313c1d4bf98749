"""The worker processes as the gateway sees them: started, talked to, watched, restarted.

Theory of operation. `WorkerPool` has one supervisor task for each worker, all in one TaskGroup under one root task that
lives from `start` to `aclose`. A supervisor starts a process, emits `WorkerUp`, reads frames until the process ends (or
is killed, because it sent nothing for too long), emits what was lost, waits, and starts the next process.

When a worker dies, `WorkerDown` with its legs is emitted first, then a `LegFailed` for each leg. Pending requests raise
`WorkerGone`.

Nothing here is stopped by cancellation, which would leave behind a process that nobody waits for. `aclose` closes the
socket; the process ends, and its supervisor does not start another.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from media import frames, sdp
from media.errors import MediaError, MediaTimeout, NoWorker, UnknownLeg, WorkerGone, from_reason
from media.model import (
    EventSink,
    LegFailed,
    LegFailure,
    LegId,
    MediaConfig,
    MediaEvent,
    Tone,
    WorkerDown,
    WorkerId,
    WorkerUp,
    unheard,
)
from media.stats import LegStats

log = logging.getLogger(__name__)

#: Longest time from starting a process to its first frame; Python has to load its libraries.
START_TIMEOUT_S: Final = 20.0
#: A worker that lived at least this long is restarted without delay.
HEALTHY_S: Final = 30.0
#: How long a worker may take to end by itself after its socket is closed.
STOP_TIMEOUT_S: Final = 3.0
_ROOT: Final = Path(__file__).resolve().parent.parent


class _Worker:
    """One process and the connection to it, from start to end."""

    def __init__(self, index: WorkerId, config: MediaConfig, on_event: Callable[[frames.Event], None]) -> None:
        self.index = index
        self._config = config
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[frames.Reply]] = {}
        self._heard_at = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._hung_up = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the process and return when it is ready for commands. Raises: NoWorker."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "media.worker",
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C goes to the gateway only
                )
            except BaseException:
                ours.close()
                raise
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        if self._hung_up:
            raise NoWorker("the pool is closed")
        self._write(frames.Start(self._config, self.index))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await self._read()
        except TimeoutError:
            raise NoWorker("the worker process did not start in time") from None
        if not isinstance(first, frames.Ready):
            detail = first.detail if isinstance(first, frames.NotReady) else "the worker process ended during its start"
            raise NoWorker(detail)

    async def run(self) -> None:
        """Read frames until the process ends; kill it if it falls silent."""
        self._heard_at = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            while (message := await self._read()) is not None:
                self._take(message)
            watching.cancel()

    async def ask(self, command: frames.Command) -> frames.Reply:
        """Send a command and return its reply. Raises: MediaError."""
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        future: asyncio.Future[frames.Reply] = loop.create_future()
        self._waiting[number] = future
        try:
            self._write(frames.Request(number, command))
            async with asyncio.timeout(self._config.request_timeout_s):
                return await future
        except TimeoutError:
            raise MediaTimeout("the worker did not answer in time") from None
        finally:
            self._waiting.pop(number, None)

    def tell(self, command: frames.Command) -> None:
        """Send a command without waiting for the reply."""
        self._write(frames.Request(next(self._numbers), command))

    def hang_up(self) -> None:
        """Close the socket, which makes the process end. Idempotent."""
        self._hung_up = True
        if self._writer is not None:
            self._writer.close()

    async def end(self) -> None:
        """Close the socket and wait for the process to end; kill it if it does not."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerGone("the worker process ended"))
        self.hang_up()
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        if self._process is None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()

    def _take(self, message: frames.FromWorker) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        match message:
            case frames.Reply(number):
                if (future := self._waiting.get(number)) is not None and not future.done():
                    future.set_result(message)
            case frames.Failure(number, reason, detail):
                if (future := self._waiting.get(number)) is not None and not future.done():
                    future.set_exception(from_reason(reason, detail))
            case frames.Ready() | frames.NotReady() | frames.Beat():
                pass
            case _:
                self._on_event(message)

    async def _watch(self) -> None:
        """Kill the process when it has been silent for too long."""
        loop, interval = asyncio.get_running_loop(), self._config.heartbeat_s
        while True:
            due = loop.time() + interval
            await asyncio.sleep(interval)
            if loop.time() - due > interval:
                # This process itself was stalled; frames that arrived in the meantime are still to be read.
                self._heard_at = loop.time()
            elif loop.time() - self._heard_at > self._config.heartbeat_timeout_s:
                log.error("media worker %d sent no heartbeat and was killed", self.index)
                self._kill()
                return

    def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _write(self, message: frames.ToWorker) -> None:
        if self._writer is None or self._writer.is_closing():
            raise WorkerGone("the worker process ended")
        self._writer.write(frames.pack(message))

    async def _read(self) -> frames.FromWorker | None:
        body = await frames.read(self._reader)
        try:
            return None if body is None else frames.from_worker.decode(body)
        except msgspec.DecodeError:
            log.error("media worker %d sent an invalid frame", self.index)
            return None


class WorkerPool:
    """The `MediaEngine` that runs legs in worker processes on this machine."""

    def __init__(self, config: MediaConfig) -> None:
        self._config = config
        self._on_event: EventSink = unheard
        #: All running processes, and those of them that are ready for commands.
        self._lives: set[_Worker] = set()
        self._alive: dict[WorkerId, _Worker] = {}
        self._homes: dict[LegId, WorkerId] = {}
        self._stopping = asyncio.Event()
        self._root: asyncio.Task[None] | None = None

    @property
    def workers(self) -> Sequence[WorkerId]:
        """Return the workers that are alive and ready."""
        return tuple(self._alive)

    def pids(self) -> dict[WorkerId, int]:
        """Return the process ids of the live workers; for operators and tests."""
        return {index: worker.pid for index, worker in self._alive.items()}

    def pick_worker(self) -> WorkerId:
        """Return the worker with the fewest legs. Raises: NoWorker."""
        if not self._alive:
            raise NoWorker()
        homes = list(self._homes.values())
        return min(self._alive, key=lambda worker: (homes.count(worker), worker))

    async def start(self, on_event: EventSink) -> None:
        """Start the workers and return when all are ready. Raises: NoWorker."""
        self._on_event = on_event
        loop = asyncio.get_running_loop()
        ready = [loop.create_future() for _ in range(self._config.workers)]
        # The one task outside any TaskGroup: it owns all other tasks, and ends in aclose.
        self._root = loop.create_task(self._run(ready))
        try:
            await asyncio.gather(*ready)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close all legs and end the workers. Idempotent."""
        self._stopping.set()
        if self._root is not None:
            await self._root

    async def answer_meta(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        """See `MediaEngine`."""
        sdp.check_size(offer_sdp)  # here, since too long a frame would end the worker and all its calls
        return await self._make(leg, worker, frames.AnswerMeta(leg, offer_sdp))

    async def offer_meta(self, leg: LegId, worker: WorkerId) -> str:
        """See `MediaEngine`."""
        return await self._make(leg, worker, frames.OfferMeta(leg))

    async def accept_meta_answer(self, leg: LegId, answer_sdp: str) -> None:
        """See `MediaEngine`."""
        sdp.check_size(answer_sdp)
        await self._home(leg).ask(frames.AcceptMetaAnswer(leg, answer_sdp))

    async def answer_browser(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        """See `MediaEngine`."""
        sdp.check_size(offer_sdp)
        return await self._make(leg, worker, frames.AnswerBrowser(leg, offer_sdp))

    async def join(self, a: LegId, b: LegId) -> None:
        """See `MediaEngine`."""
        home = self._home(a)
        if self._home(b) is not home:
            raise MediaError("the legs live in different workers")
        await home.ask(frames.Join(a, b))

    async def part(self, leg: LegId) -> None:
        """See `MediaEngine`."""
        await self._home(leg).ask(frames.Part(leg))

    async def play(self, leg: LegId, tone: Tone | None) -> None:
        """See `MediaEngine`."""
        await self._home(leg).ask(frames.Play(leg, tone))

    async def close(self, leg: LegId) -> LegStats | None:
        """See `MediaEngine`. A leg whose worker died has no statistics."""
        home = self._alive.get(self._homes.pop(leg, WorkerId(-1)))
        if home is None:
            return None
        try:
            return (await home.ask(frames.Close(leg))).stats
        except WorkerGone:
            return None

    async def stats(self, leg: LegId) -> LegStats | None:
        """See `MediaEngine`."""
        home = self._alive.get(self._homes.get(leg, WorkerId(-1)))
        return None if home is None else (await home.ask(frames.GetStats(leg))).stats

    async def _make(self, leg: LegId, worker: WorkerId, command: frames.Command) -> str:
        home = self._alive.get(worker)
        if home is None:
            raise WorkerGone("the worker process ended")
        if leg in self._homes:
            raise MediaError("the leg exists already")
        self._homes[leg] = worker
        try:
            reply = await home.ask(command)
        except BaseException:
            # Refused, timed out or cancelled: in no case may a half-made leg remain.
            if self._homes.pop(leg, None) is not None:
                with contextlib.suppress(WorkerGone):
                    home.tell(frames.Close(leg))
            raise
        return reply.sdp or ""

    def _home(self, leg: LegId) -> _Worker:
        index = self._homes.get(leg)
        if index is None:
            raise UnknownLeg()
        home = self._alive.get(index)
        if home is None:  # it has died, and its LegFailed events are about to be sent
            raise WorkerGone("the worker process ended")
        return home

    async def _run(self, ready: list[asyncio.Future[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            for index, first in enumerate(ready):
                group.create_task(self._supervise(WorkerId(index), first))
            await self._stopping.wait()
            for worker in self._lives:
                worker.hang_up()

    async def _supervise(self, index: WorkerId, first: asyncio.Future[None]) -> None:
        """Keep one worker running until the pool closes."""
        loop = asyncio.get_running_loop()
        pause_s = self._config.restart_min_s
        while not self._stopping.is_set():
            began_at = loop.time()
            try:
                await self._one_life(index, first)
            except (NoWorker, OSError) as error:
                if not first.done():
                    first.set_exception(error if isinstance(error, NoWorker) else NoWorker(str(error)))
                    return
                log.error("media worker %d did not start: %s", index, error)
            except Exception:
                log.exception("media worker %d: unexpected error in its supervisor", index)
            if loop.time() - began_at > HEALTHY_S:
                pause_s = self._config.restart_min_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            pause_s = min(pause_s * 2, self._config.restart_max_s)

    async def _one_life(self, index: WorkerId, first: asyncio.Future[None]) -> None:
        """Start a worker and return when it has ended. Raises: NoWorker, OSError."""
        worker = _Worker(index, self._config, self._tell)
        self._lives.add(worker)
        try:
            await worker.start()
            self._alive[index] = worker
            if not first.done():
                first.set_result(None)
            self._tell(WorkerUp(index))
            await worker.run()
        finally:
            was_up = self._alive.pop(index, None) is not None
            await worker.end()
            self._lives.discard(worker)
            if was_up:
                self._mourn(index)

    def _mourn(self, index: WorkerId) -> None:
        lost = tuple(leg for leg, home in self._homes.items() if home == index)
        for leg in lost:
            del self._homes[leg]
        if self._stopping.is_set():
            return
        self._tell(WorkerDown(index, lost))
        for leg in lost:
            self._tell(LegFailed(leg, LegFailure.WORKER_DIED))

    def _tell(self, event: MediaEvent) -> None:
        try:
            self._on_event(event)
        except Exception:  # a bug in the listener must not cost a worker and all its calls
            log.exception("the event listener failed on %s", type(event).__name__)
