"""Keep webhook deliveries on disk while the database is down: durable, in order, bounded.

Theory of operation. One thread does everything that touches the file (`spool_file`), in the order in which it was
asked. Deliveries that came in while it wrote are written next, up to 64 at once: under load one fsync serves many, and
a single delivery does not wait for others. `append` waits for the fsync, but no longer than `PATIENCE_S`.

* If the spool or its disk is full, the delivery is refused whole (SpoolDown), `problem` says why, and Meta sends it
  again.
* `is_empty` also counts deliveries that are being written, so there is no instant at which a delivery that the database
  did not take is counted nowhere.
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

#: Deliveries per fsync.
BATCH: Final = 64
#: How long a caller waits for the disk.
PATIENCE_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """Something for the thread to do, and the future that its caller waits for."""

    done: "asyncio.Future[Any]"
    append: Delivery | None = None
    work: Callable[[], Any] = lambda: None


class Spool:
    """The spool. Call `start` first and `aclose` last; call everything in the event loop."""

    def __init__(self, folder: Path, *, max_bytes: int, patience_s: float = PATIENCE_S) -> None:
        self._file = SpoolFile(folder, max_bytes=max_bytes)
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = Held()
        self._writing = self._writing_bytes = 0
        self._not_empty = asyncio.Event()
        #: Why it accepts nothing (or nothing so large), in words; None while it works.
        self.problem: str | None = "the spool is not open"
        self._refused_bytes = 0  #: the size of the smallest delivery that was refused

    # --- contents ----------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        return self.deliveries == 0

    @property
    def deliveries(self) -> int:
        """Return the number of deliveries, including those that are being written."""
        return self._held.deliveries + self._writing

    @property
    def bodies_bytes(self) -> int:
        return self._held.bodies_bytes + self._writing_bytes

    @property
    def last_seq(self) -> int:
        """Return the seq of the last delivery that an earlier process left; 0 if it left none."""
        return self._held.last_seq

    async def until_some(self) -> None:
        """Wait until there is a delivery."""
        await self._not_empty.wait()

    # --- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file. If that fails, the gateway starts all the same, and `problem` says why."""
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._run_thread, name="spool", daemon=True)
        self._thread.start()
        self.problem = None
        with suppress(SpoolDown):
            await self._run_job(self._file.open)
        if not self.is_empty:
            log.warning("spool_left_over", deliveries=self.deliveries)

    async def aclose(self) -> None:
        """Finish all jobs that are queued, and close the file."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def try_again(self) -> None:
        """Probe the file; clear `problem` if it can be written again."""
        with suppress(SpoolDown):
            await self._run_job(self._file.probe)
            self.problem = None

    # --- deliveries --------------------------------------------------------------------------------

    async def append(self, body: bytes, received_at: datetime) -> None:
        """Return when the delivery is on disk, after all others. Raises: SpoolDown if it is not, or not in time."""
        if self._writing_bytes + self._held.bodies_bytes + len(body) > self._max_bytes:
            words = f"the spool is full: {self.deliveries} deliveries (GATEWAY_SPOOL_MAX_MB)"
            raise self._refusal(words, size_bytes=len(body))
        delivery = Delivery(received_at=received_at, body=body)
        if self.is_empty:
            log.warning("spool_in_use")
        await self._run_job(append=delivery)

    async def oldest(self, limit: int, limit_bytes: int) -> list[Delivery]:
        """Return the oldest deliveries. Raises: SpoolDown."""
        found: list[Delivery] = await self._run_job(lambda: self._file.oldest(limit, limit_bytes))
        return found

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        """Remove deliveries that are kept elsewhere now. Raises: SpoolDown."""
        if deliveries:
            await self._run_job(lambda: self._file.remove(deliveries))

    async def refuse(self, delivery: Delivery, reason: str) -> None:
        """Set apart a delivery that can never be stored, for a person to look at. Raises: SpoolDown."""
        await self._run_job(lambda: self._file.refuse(delivery, reason))

    async def _run_job(self, work: Callable[[], Any] = lambda: None, *, append: Delivery | None = None) -> Any:
        """Run a job in the thread and return its result. After `PATIENCE_S` give up waiting; the job still runs."""
        if self._thread is None or self._loop is None:
            raise SpoolDown("the spool is not open")
        job = _Job(done=self._loop.create_future(), append=append, work=work)
        if append is not None:
            self._writing += 1
            self._writing_bytes += len(append.body)
        self._jobs.put(job)
        try:
            async with asyncio.timeout(self._patience_s):
                return await job.done
        except TimeoutError as error:
            raise self._refusal("the disk of the spool does not answer") from error

    def _refusal(self, words: str, *, size_bytes: int = 0) -> SpoolDown:
        """Set `problem` and return the error to raise; `size_bytes`: what was refused, 0 if anything would be."""
        self._refused_bytes = min(self._refused_bytes, size_bytes) if self.problem is not None else size_bytes
        if self.problem != words:
            log.error("spool_down", detail=words)
            self.problem = words
        return SpoolDown(words)

    # --- back in the loop --------------------------------------------------------------------------

    def _settle_jobs(self, jobs: Sequence[_Job], result: Any, error: SpoolDown | None, held: Held) -> None:
        """Update the counts after jobs were done, and give their callers the result."""
        for job in jobs:
            if job.append is not None:
                self._writing -= 1
                self._writing_bytes -= len(job.append.body)
        before, self._held = self._held, held
        size_bytes = max((len(job.append.body) for job in jobs if job.append is not None), default=None)
        if error is not None:
            self._refusal(str(error), size_bytes=size_bytes or 0)
        elif held != before and (size_bytes is None or size_bytes >= self._refused_bytes):
            self.problem = None  # a write succeeded, and there is room again for the size that was refused
        if held.deliveries:
            self._not_empty.set()
        else:
            self._not_empty.clear()
            if before.deliveries:
                log.info("spool_empty")
        for job in jobs:
            if not job.done.done():
                job.done.set_exception(error) if error is not None else job.done.set_result(result)

    # --- the thread --------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        """Run jobs in the thread until None comes; then close the file."""
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
                self._run_and_report([first], first.work)
                continue
            batch = [first]
            while waiting and waiting[0] is not None and waiting[0].append is not None:
                batch.append(waiting[0])
                waiting.popleft()
            self._append_batch(batch)
        self._file.close()

    def _append_batch(self, batch: Sequence[_Job]) -> None:
        """Write `batch` in one transaction; if that fails, write each delivery by itself, since some may fit."""
        deliveries = [job.append for job in batch if job.append is not None]
        if len(batch) > 1:
            with suppress(SpoolDown):
                self._file.append(deliveries)
                self._report_result(batch, None, None)
                return
        for job, delivery in zip(batch, deliveries, strict=True):
            self._run_and_report([job], partial(self._file.append, [delivery]))

    def _run_and_report(self, jobs: Sequence[_Job], work: Callable[[], Any]) -> None:
        try:
            self._report_result(jobs, work(), None)
        except SpoolDown as error:
            self._report_result(jobs, None, error)
        except Exception as error:  # any bug: a dead thread would be worse
            log.exception("spool_broken")
            self._report_result(jobs, None, SpoolDown(f"the spool is broken: {type(error).__name__}"))

    def _report_result(self, jobs: Sequence[_Job], result: Any, error: SpoolDown | None) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed, so no caller waits any more
            self._loop.call_soon_threadsafe(self._settle_jobs, jobs, result, error, self._file.held)
