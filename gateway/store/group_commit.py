"""Group commit: one task writes the changes of all callers, many groups per transaction, in order.

Theory of operation. A group is the changes of one `write` or `write_soon`; it is written as a whole or not at all.
Groups queue. The writer closes a batch at 64 groups, 5 ms after the first group with a waiting caller, or 30 ms after
the first group without one, whichever comes first, and applies it as one transaction. Groups that queued up during a
commit do not wait that long again.

* The connection breaks: reconnect at once and repeat the batch. Every change may be applied twice: an insert does
  nothing the second time, a save carries a version. Only if that fails too is the database *down*.
* Down: waiting callers and new `write`s get StoreDown, `write_soon` groups stay queued; the writer retries every
  200 ms.
* A group with bad data makes its batch fail: the groups are then applied one by one, and only its own caller gets the
  error.
* A call's record is saved at each step, and only the newest counts: while the database is down, a new record replaces
  the queued one. The queue is bounded. Decisions are only a history, so they may fill just a part of it: the rest is
  for calls and facts.
* Idle: a ping every second keeps `up` correct.
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


#: Opens a link; the argument is called when the connection is lost.
Connect = Callable[[Callable[[], object]], Awaitable[Link]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterLimits:
    """The limits of the writer's batches, queue and waits."""

    batch_groups: int = 64
    batch_wait_s: float = 0.005  #: after the first group with a waiting caller
    patience_s: float = 0.03  #: after the first group without one, as most of a call's: fewer commits cost less
    timeout_s: float = 1.0  #: without an answer for this long, the database is down
    queue_groups: int = 20_000
    queue_decisions: int = 12_000  #: with this many groups queued, decisions are dropped
    retry_s: float = 0.2
    heartbeat_s: float = 1.0
    flush_s: float = 2.0  #: time to write the queue at the end


@dataclass(slots=True, kw_only=True, eq=False)
class _Group:
    """Changes that are written together."""

    changes: Sequence[Change]
    queued_at: float  #: loop time
    done: "asyncio.Future[None] | None"  #: None: no caller waits
    abandoned: bool = False  #: its caller got StoreDown

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
    """The writer. Run it in one task with `run()`; it ends after `close()`."""

    def __init__(self, connect: Connect, limits: WriterLimits) -> None:
        self._connect = connect
        self._limits = limits
        self._link: Link | None = None
        self._queue: deque[_Group] = deque()
        self._hurried = False  #: a group with a waiting caller came since the last batch
        self._waiting_calls: dict[CallId, _Group] = {}  #: groups of one call record, queued while the database is down
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._cuts = 0  #: connections lost in a row without a commit in between
        self._closing = False
        self._overflowing = False
        self.dropped = 0  #: lost groups of `write_soon`: queue full, bad data, or not written before the end

    @property
    def up(self) -> bool:
        return self._up.is_set()

    async def until_up(self) -> None:
        await self._up.wait()

    @property
    def backlog(self) -> int:
        """The number of queued groups."""
        return len(self._queue)

    # --- callers --------------------------------------------------------------------------------

    async def write(self, changes: Sequence[Change]) -> None:
        """Write `changes` and return when all of them are durable.

        Raises: StoreDown: it is not known whether they are durable; write them again. StoreError: they are invalid
        """
        if not changes:
            return
        if not self.up or self._closing:
            raise StoreDown
        if len(self._queue) >= self._limits.queue_groups:
            raise StoreDown("the queue is full")
        loop = asyncio.get_running_loop()
        group = self._enqueue(changes, done := loop.create_future())
        late = loop.call_later(self._limits.timeout_s, group.abandon, self._limits.timeout_s)
        try:
            await done
        finally:
            late.cancel()

    def write_soon(self, changes: Sequence[Change]) -> None:
        """Queue `changes` behind all earlier ones, without waiting; while the database is down they stay queued."""
        if not changes:
            return
        if not self.up and not self._closing and self._replaced_queued_call(changes):
            return
        if self._closing or self._is_full_for(changes):
            self.dropped += 1
            if not self._overflowing:
                self._overflowing = True
                log.error("store_queue_full", groups=len(self._queue))
            return
        group = self._enqueue(changes, None)
        call = _only_call(changes)
        if call is not None and not self.up:
            self._waiting_calls[call.call_id] = group

    def _replaced_queued_call(self, changes: Sequence[Change]) -> bool:
        """Replace the queued record of the same call; return False if there is none."""
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

    def _enqueue(self, changes: Sequence[Change], done: "asyncio.Future[None] | None") -> _Group:
        group = _Group(changes=changes, queued_at=asyncio.get_running_loop().time(), done=done)
        self._queue.append(group)
        hurries = done is not None and not self._hurried
        self._hurried |= hurries
        if hurries or len(self._queue) in (1, self._limits.batch_groups):  # the first opens a batch, the last closes it
            self._wake.set()
        return group

    def close(self) -> None:
        """Accept no more changes; `run` returns when the queue is empty."""
        self._closing = True
        self._wake.set()

    # --- the writer's task ----------------------------------------------------------------------

    async def run(self) -> None:
        try:
            while self._queue or not self._closing:
                if await self._connected():
                    await self._write_batch_or_ping()
            if self._link is not None:
                with suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(self._limits.timeout_s):
                        await self._link.close()
        finally:
            self._fail_queued()

    def _fail_queued(self) -> None:
        """Close the link and fail every group that is still queued."""
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

    async def _connected(self) -> bool:
        """Connect if needed; after a failure, pause and return False."""
        if self._link is not None and not self._link.closed:
            return True
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                self._link = await self._connect(self._wake.set)
        except Exception as error:  # any kind: the writer must not die
            await self._go_down(error)
            return False
        if self._cuts == 0 or (self._cuts > 1 and not self._queue):
            self._go_up()  # else the next commit decides
        return True

    async def _write_batch_or_ping(self) -> None:
        batch = await self._next_batch()
        if batch:
            await self._commit(batch)
        elif self._link is not None and not self._link.closed and not self._closing:
            await self._guarded(self._link.ping())

    async def _next_batch(self) -> list[_Group]:
        """Wait for a batch; it is empty when a ping is due, when the link was lost, or at the end."""
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
        self._waiting_calls.clear()  # a group that left the queue must not change any more
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), limits.batch_groups))]
        return [group for group in batch if not group.abandoned]

    def _close_at(self) -> float:
        """Return the loop time until which the batch may wait for more groups."""
        patient_at = self._queue[0].queued_at + self._limits.patience_s
        hurried_at = (each.queued_at + self._limits.batch_wait_s for each in self._queue if each.done is not None)
        return min(patient_at, next(hurried_at, patient_at))

    async def _woken(self, timeout_s: float) -> bool:
        """Wait for `_wake`; return False after `timeout_s`. The caller must not await between its test and this."""
        if timeout_s <= 0:
            return False
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await self._wake.wait()
        return False

    async def _commit(self, batch: list[_Group]) -> None:
        """Apply `batch`; if the database is down, put it back at the head of the queue."""
        assert self._link is not None
        error = await self._guarded(self._link.apply([group.changes for group in batch]), unsent=batch)
        if error is None:
            for group in batch:
                group.finish()
        elif not isinstance(error, StoreDown):
            await self._isolate(batch, error)

    async def _isolate(self, batch: list[_Group], error: Exception) -> None:
        """Apply each group alone: one of `batch` holds bad data, and only its own caller must get the error."""
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
        """Await `work` within the time limit and return its error; on StoreDown put `unsent` back in the queue."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await work
        except asyncio.CancelledError:
            self._queue.extendleft(reversed(unsent))  # for `_fail_queued`
            raise
        except (StoreDown, TimeoutError) as error:
            self._queue.extendleft(reversed(unsent))
            await self._drop_link(error)
            return error if isinstance(error, StoreDown) else StoreDown("no answer")
        except Exception as error:  # bad data or a bug: in either case it belongs to this group
            self._go_up()  # it answered
            return error
        self._go_up()
        return None

    async def _drop_link(self, error: Exception) -> None:
        """Drop a link that is lost or silent. Silence, or a second loss in a row, means that the database is down."""
        if self._link is not None:
            self._link.terminate()
            self._link = None
        self._cuts += 1
        if self._cuts > 1 or isinstance(error, TimeoutError):
            await self._go_down(error)

    async def _go_down(self, error: Exception) -> None:
        """Fail all groups with a waiting caller, then pause before the next try."""
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
    """Return the record of a group that is one call record and nothing else."""
    (change,) = changes if len(changes) == 1 else (None,)
    return change if isinstance(change, CallRecord) else None
