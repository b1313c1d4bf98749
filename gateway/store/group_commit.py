"""Group commit: one task writes everybody's changes, many groups to a transaction, in order.

Theory of operation. A group is what one caller hands in; it is written whole or not at all. Groups queue; the writer
closes a batch at 64 groups, 5 ms after the first group that somebody waits for, or 30 ms after the first that nobody
waits for, whichever is earliest, and applies it as one transaction. What queued up during a commit does not wait again.

* The connection is cut: connect again at once and repeat the batch (every change may be applied twice: inserts do
  nothing the second time, saves carry versions). Only if that fails too is the database *down*.
* Down: whoever waits gets StoreDown, new `write`s get it at once, `write_soon` groups stay in line; every 200 ms the
  writer tries again.
* A group with bad data fails its batch: the groups are applied one by one, and the error goes to its own caller.
* A call's record is saved at each step, and only the newest counts: while the database is away, one takes the place
  of the one that still waits. The queue is bounded; decisions, which only tell what was, get no more than a part of it,
  so that there is room for calls and facts.
* Idle: a ping every second, so that `up` is right before somebody relies on it.

Not responsible for SQL (see `gateway.sql`) nor for keeping what was refused (see the spool).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.common.errors import StoreDown, StoreError
from gateway.common.ids import CallId
from gateway.store.records import CallRecord, Change, DecisionRecord

log = structlog.get_logger(__name__)


class Link(Protocol):
    """One connection to the database. Methods raise StoreDown when it is lost, StoreError for bad data."""

    @property
    def closed(self) -> bool: ...
    async def apply(self, groups: Sequence[Sequence[Change]], /) -> None: ...
    async def ping(self) -> None: ...
    def terminate(self) -> None: ...
    async def close(self) -> None: ...


#: Opens a link; the argument is called when the link is lost.
Connect = Callable[[Callable[[], object]], Awaitable[Link]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterLimits:
    batch_groups: int = 64
    batch_wait_s: float = 0.005  #: from the first group that somebody waits for
    patience_s: float = 0.03  #: from the first group that nobody waits for: most of a call's; fewer commits cost less
    timeout_s: float = 1.0  #: no answer for so long: down
    queue_groups: int = 20_000
    queue_decisions: int = 12_000  #: with so many groups in the queue, decisions are dropped
    retry_s: float = 0.2
    heartbeat_s: float = 1.0
    flush_s: float = 2.0  #: at the end, for what is still queued


@dataclass(slots=True, kw_only=True, eq=False)
class _Group:
    changes: Sequence[Change]
    queued_at: float  #: loop time
    done: "asyncio.Future[None] | None"  #: None: nobody waits
    abandoned: bool = False  #: its caller was told StoreDown

    def finish(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)

    def abandon(self, after_s: float) -> None:
        self.abandoned = True
        self.fail(StoreDown(f"no answer within {after_s} s"))


class Writer:
    """Runs in one task: `run()`, until `close()`."""

    def __init__(self, connect: Connect, limits: WriterLimits) -> None:
        self._connect = connect
        self._limits = limits
        self._link: Link | None = None
        self._queue: deque[_Group] = deque()
        self._hurried = False  #: since the last batch a group came that somebody waits for
        self._waiting_calls: dict[CallId, _Group] = {}  #: in the queue while the database is away, each with one record
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._cuts = 0  #: connections lost in a row without a commit in between
        self._closing = False
        self._overflowing = False
        self.dropped = 0  #: groups of `write_soon` lost: no room, bad data, or never written before the end

    @property
    def up(self) -> bool:
        return self._up.is_set()

    async def until_up(self) -> None:
        await self._up.wait()

    @property
    def backlog(self) -> int:
        """Groups that wait to be written."""
        return len(self._queue)

    # --- callers --------------------------------------------------------------------------------

    async def write(self, changes: Sequence[Change]) -> None:
        """Return when `changes` are durable, all of them.

        Raises: StoreDown: not durable as far as we know; hand them in again. StoreError: they never will be
        """
        if not changes:
            return
        if not self.up or self._closing:
            raise StoreDown
        if len(self._queue) >= self._limits.queue_groups:
            raise StoreDown("the queue is full")
        loop = asyncio.get_running_loop()
        group = self._put(changes, done := loop.create_future())
        late = loop.call_later(self._limits.timeout_s, group.abandon, self._limits.timeout_s)
        try:
            await done
        finally:
            late.cancel()

    def write_soon(self, changes: Sequence[Change]) -> None:
        """Queue `changes` behind everything handed in before; while the database is away they wait."""
        if not changes:
            return
        if not self.up and not self._closing and self._took_place(changes):
            return
        if self._closing or self._is_full_for(changes):
            self.dropped += 1
            if not self._overflowing:
                self._overflowing = True
                log.error("store_queue_full", groups=len(self._queue))
            return
        group = self._put(changes, None)
        call = _only_call(changes)
        if call is not None and not self.up:
            self._waiting_calls[call.call_id] = group

    def _took_place(self, changes: Sequence[Change]) -> bool:
        """Put a call's record where an older one of the same call waits; False: none does."""
        call = _only_call(changes)
        group = self._waiting_calls.get(call.call_id) if call is not None else None
        if group is None:
            return False
        group.changes = changes
        return True

    def _is_full_for(self, changes: Sequence[Change]) -> bool:
        queued, limits = len(self._queue), self._limits
        return queued >= limits.queue_groups or (
            queued >= limits.queue_decisions and all(isinstance(change, DecisionRecord) for change in changes)
        )

    def _put(self, changes: Sequence[Change], done: "asyncio.Future[None] | None") -> _Group:
        group = _Group(changes=changes, queued_at=asyncio.get_running_loop().time(), done=done)
        self._queue.append(group)
        hurries = done is not None and not self._hurried
        self._hurried |= hurries
        if hurries or len(self._queue) in (1, self._limits.batch_groups):  # the first opens a batch, the last closes it
            self._wake.set()
        return group

    def close(self) -> None:
        """Take no more changes; `run` returns when the queue is empty."""
        self._closing = True
        self._wake.set()

    # --- the writer's task ----------------------------------------------------------------------

    async def run(self) -> None:
        try:
            while self._queue or not self._closing:
                if await self._linked():
                    await self._turn()
            if self._link is not None:
                with suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(self._limits.timeout_s):
                        await self._link.close()
        finally:
            self._end()

    def _end(self) -> None:
        self._closing = True
        self._up.clear()
        if self._link is not None:
            self._link.terminate()
        for group in self._queue:
            group.fail(StoreDown("the gateway stops"))
        lost = sum(group.done is None for group in self._queue)
        self._queue.clear()
        if lost:
            self.dropped += lost
            log.error("store_changes_lost", groups=lost)

    async def _linked(self) -> bool:
        """Connect if need be; after a failure pause and return False."""
        if self._link is not None and not self._link.closed:
            return True
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                self._link = await self._connect(self._wake.set)
        except Exception as error:  # whatever it is, a dead writer would be worse
            await self._go_down(error)
            return False
        if self._cuts == 0 or (self._cuts > 1 and not self._queue):
            self._go_up()  # else the next commit shows
        return True

    async def _turn(self) -> None:
        batch = await self._next_batch()
        if batch:
            await self._commit(batch)
        elif self._link is not None and not self._link.closed and not self._closing:
            await self._guarded(self._link.ping())

    async def _next_batch(self) -> list[_Group]:
        """Wait for a batch; empty when idle for long, when the link was lost, or at the end."""
        loop, limits = asyncio.get_running_loop(), self._limits
        ping_at = loop.time() + limits.heartbeat_s
        while not self._queue:
            if self._closing or self._link is None or self._link.closed:
                return []
            if not await self._woken(ping_at - loop.time()):
                return []
        while len(self._queue) < limits.batch_groups and not self._closing:
            if not await self._woken(self._close_at() - loop.time()):
                break
        self._hurried = False
        self._waiting_calls.clear()  # what is taken out of the queue must not be changed any more
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), limits.batch_groups))]
        return [group for group in batch if not group.abandoned]

    def _close_at(self) -> float:
        """Return until when the batch may wait for more groups."""
        patient_at = self._queue[0].queued_at + self._limits.patience_s
        hurried_at = (each.queued_at + self._limits.batch_wait_s for each in self._queue if each.done is not None)
        return min(patient_at, next(hurried_at, patient_at))

    async def _woken(self, timeout_s: float) -> bool:
        """Wait for `_wake`, False after `timeout_s`. No await may stand between a caller's test and this call."""
        if timeout_s <= 0:
            return False
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await self._wake.wait()
        return False

    async def _commit(self, batch: list[_Group]) -> None:
        """Apply `batch`; what could not be tried is put back to the head of the queue."""
        assert self._link is not None
        error = await self._guarded(self._link.apply([group.changes for group in batch]), unsent=batch)
        if error is None:
            for group in batch:
                group.finish()
        elif not isinstance(error, StoreDown):
            await self._isolate(batch, error)

    async def _isolate(self, batch: list[_Group], error: Exception) -> None:
        """One of `batch` holds bad data: apply each alone, so that the error meets its own caller only."""
        if len(batch) == 1:
            self._refuse(batch[0], error)
            return
        for position, group in enumerate(batch):
            assert self._link is not None
            alone = await self._guarded(self._link.apply([group.changes]), unsent=batch[position:])
            if isinstance(alone, StoreDown):
                return
            if alone is None:
                group.finish()
            else:
                self._refuse(group, alone)

    def _refuse(self, group: _Group, error: Exception) -> None:
        kinds = sorted({type(change).__name__ for change in group.changes})
        log.error("store_change_refused", error=str(error), kinds=kinds)
        if group.done is None:
            self.dropped += 1
        group.fail(error)

    async def _guarded(self, work: Awaitable[None], unsent: Sequence[_Group] = ()) -> Exception | None:
        """Do `work` within the time limit and return its error; StoreDown puts `unsent` back in line."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await work
        except asyncio.CancelledError:
            self._queue.extendleft(reversed(unsent))  # for `_end`
            raise
        except (StoreDown, TimeoutError) as error:
            self._queue.extendleft(reversed(unsent))
            await self._cut(error)
            return error if isinstance(error, StoreDown) else StoreDown("no answer")
        except Exception as error:  # bad data, or a bug: either way it is this group's
            self._go_up()  # it answered
            return error
        self._go_up()
        return None

    async def _cut(self, error: Exception) -> None:
        """The link is lost or silent. One cut is repaired unseen; silence, or a second cut, means down."""
        if self._link is not None:
            self._link.terminate()
            self._link = None
        self._cuts += 1
        if self._cuts > 1 or isinstance(error, TimeoutError):
            await self._go_down(error)

    async def _go_down(self, error: Exception) -> None:
        """Tell everybody who waits, then pause before the next try."""
        self._cuts = max(self._cuts, 2)
        if self.up:
            log.error("store_down", error=str(error) or type(error).__name__)
        self._up.clear()
        for group in self._queue:
            group.fail(StoreDown(str(error)))
        self._queue = deque(group for group in self._queue if group.done is None)
        await asyncio.sleep(self._limits.retry_s)

    def _go_up(self) -> None:
        self._cuts = 0
        self._overflowing = False
        if not self.up:
            self._up.set()
            log.info("store_up", backlog=len(self._queue))


def _only_call(changes: Sequence[Change]) -> CallRecord | None:
    """Return the record, where a group is a call's record and nothing else."""
    (change,) = changes if len(changes) == 1 else (None,)
    return change if isinstance(change, CallRecord) else None
