"""Where webhook deliveries wait while the database does not take them: durable, in order, bounded.

Theory of operation. One thread of its own does all that touches the file, in the order in which it was asked. What
came in while it wrote is written next, up to 64 deliveries at once: under load one fsync serves many, and alone nobody
waits for company. Whoever appends waits for that fsync, and for no longer than a moment.

* Full, or the disk is: the delivery is refused whole (SpoolDown), `problem` says why, and Meta sends it again.
* `is_empty` also counts what is on its way to the disk: between a delivery that the database did not take and its
  place in the file there is no instant at which it counts nowhere.

Not responsible for handing deliveries on (see `replay`) nor for the file's format (see `spool_file`).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

import structlog

from gateway.common.errors import SpoolDown
from gateway.intake.spool_file import Delivery, Held, SpoolFile

log = structlog.get_logger(__name__)

#: Deliveries to one fsync.
BATCH: Final = 64
#: How long the disk may take.
PATIENCE_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """Something for the thread to do, and who waits for it."""

    done: "asyncio.Future[Any]"
    append: Delivery | None = None
    work: Callable[[], Any] = lambda: None


class Spool:
    """`start` first, `aclose` last; everything else from the loop in between."""

    def __init__(self, folder: Path, *, max_bytes: int, patience_s: float = PATIENCE_S) -> None:
        self._file = SpoolFile(folder, max_bytes=max_bytes)
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = Held()
        self._coming = self._coming_bytes = 0
        self._some = asyncio.Event()
        #: Why it takes nothing, or nothing larger, in words; None while it does.
        self.problem: str | None = "the spool is not open"
        self._refused_bytes = 0  #: the smallest that it did not take

    # --- what it holds -----------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        return self.deliveries == 0

    @property
    def deliveries(self) -> int:
        """Deliveries in line, those included that are just being written."""
        return self._held.deliveries + self._coming

    @property
    def bodies_bytes(self) -> int:
        return self._held.bodies_bytes + self._coming_bytes

    @property
    def last_seq(self) -> int:
        """The last in line when the file was opened: up to here an earlier process took them in. 0: none."""
        return self._held.last_seq

    async def until_some(self) -> None:
        """Wait until there is something in line."""
        await self._some.wait()

    # --- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file. Whatever is wrong with it is no reason not to start: `problem` says it."""
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()
        self.problem = None
        with suppress(SpoolDown):
            await self._ask(self._file.open)
        if not self.is_empty:
            log.warning("spool_left_over", deliveries=self.deliveries)

    async def aclose(self) -> None:
        """Finish what was asked for, and close the file."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def try_again(self) -> None:
        """See whether what was wrong has passed; `problem` says so."""
        with suppress(SpoolDown):
            await self._ask(self._file.probe)
            self.problem = None

    # --- deliveries --------------------------------------------------------------------------------

    async def append(self, body: bytes, received_at: datetime) -> None:
        """Return when the delivery is on the disk, behind all others. Raises: SpoolDown: it is not, or not yet"""
        if self._coming_bytes + self._held.bodies_bytes + len(body) > self._max_bytes:
            words = f"the spool is full: {self.deliveries} deliveries (GATEWAY_SPOOL_MAX_MB)"
            raise self._refusal(words, size_bytes=len(body))
        delivery = Delivery(received_at=received_at, body=body)
        if self.is_empty:
            log.warning("spool_in_use")
        await self._ask(append=delivery)

    async def oldest(self, limit: int, limit_bytes: int) -> list[Delivery]:
        """Return those that are next in line. Raises: SpoolDown"""
        found: list[Delivery] = await self._ask(lambda: self._file.oldest(limit, limit_bytes))
        return found

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        """These are kept elsewhere now. Raises: SpoolDown"""
        if deliveries:
            await self._ask(lambda: self._file.remove(deliveries))

    async def refuse(self, delivery: Delivery, reason: str) -> None:
        """Keep a delivery that nobody can take for a person to look at, out of line. Raises: SpoolDown"""
        await self._ask(lambda: self._file.refuse(delivery, reason))

    async def _ask(self, work: Callable[[], Any] = lambda: None, *, append: Delivery | None = None) -> Any:
        """Have something done by the thread. What takes too long is done all the same, only nobody waits any more."""
        if self._thread is None or self._loop is None:
            raise SpoolDown("the spool is not open")
        job = _Job(done=self._loop.create_future(), append=append, work=work)
        if append is not None:
            self._coming += 1
            self._coming_bytes += len(append.body)
        self._jobs.put(job)
        try:
            async with asyncio.timeout(self._patience_s):
                return await job.done
        except TimeoutError as error:
            raise self._refusal("the disk of the spool does not answer") from error

    def _refusal(self, words: str, *, size_bytes: int = 0) -> SpoolDown:
        self._refused_bytes = min(self._refused_bytes, size_bytes) if self.problem is not None else size_bytes
        if self.problem != words:
            log.error("spool_down", detail=words)
            self.problem = words
        return SpoolDown(words)

    # --- back in the loop --------------------------------------------------------------------------

    def _settle(self, jobs: Sequence[_Job], result: Any, error: SpoolDown | None, held: Held) -> None:
        """Count what was done and tell those who wait for it."""
        for job in jobs:
            if job.append is not None:
                self._coming -= 1
                self._coming_bytes -= len(job.append.body)
        before, self._held = self._held, held
        size_bytes = max((len(job.append.body) for job in jobs if job.append is not None), default=None)
        if error is not None:
            self._refusal(str(error), size_bytes=size_bytes or 0)
        elif held != before and (size_bytes is None or size_bytes >= self._refused_bytes):
            self.problem = None  # it could be written, and there is room again for what was refused
        if held.deliveries:
            self._some.set()
        else:
            self._some.clear()
            if before.deliveries:
                log.info("spool_empty")
        for job in jobs:
            if not job.done.done():
                job.done.set_exception(error) if error is not None else job.done.set_result(result)

    # --- the thread --------------------------------------------------------------------------------

    def _work(self) -> None:
        waiting: deque[_Job | None] = deque()
        while True:
            if not waiting:
                waiting.append(self._jobs.get())
            with suppress(Empty):
                while len(waiting) < BATCH:
                    waiting.append(self._jobs.get_nowait())
            first = waiting.popleft()
            if first is None:
                break
            if first.append is None:
                self._do([first], first.work)
                continue
            batch = [first]
            while waiting and waiting[0] is not None and waiting[0].append is not None:
                batch.append(waiting[0])
                waiting.popleft()
            self._append(batch)
        self._file.close()

    def _append(self, batch: Sequence[_Job]) -> None:
        """Write `batch` at once; if there is no room for all of it, there may be for some."""
        deliveries = [job.append for job in batch if job.append is not None]
        if len(batch) > 1:
            with suppress(SpoolDown):
                self._file.append(deliveries)
                self._tell(batch, None, None)
                return
        for job, delivery in zip(batch, deliveries, strict=True):
            self._do([job], partial(self._file.append, [delivery]))

    def _do(self, jobs: Sequence[_Job], work: Callable[[], Any]) -> None:
        try:
            self._tell(jobs, work(), None)
        except SpoolDown as error:
            self._tell(jobs, None, error)
        except Exception as error:  # whatever it is, a dead thread would be worse
            log.exception("spool_broken")
            self._tell(jobs, None, SpoolDown(f"the spool is broken: {type(error).__name__}"))

    def _tell(self, jobs: Sequence[_Job], result: Any, error: SpoolDown | None) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is gone, and nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, jobs, result, error, self._file.held)
