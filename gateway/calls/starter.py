"""Begin calls and keep their tasks. Each call gets an id, a deadline and a driver, and is registered before it runs.

`admission` decides whether a call may begin.
"""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from gateway.callflow.call import Call, CallInput, InputKind, new_call
from gateway.calls.context import CallContext, Origin
from gateway.calls.driver import CallDriver
from gateway.common.background import Start
from gateway.common.ids import CallId, OperatorId, UserRef
from gateway.contacts.directory import Contact
from gateway.contacts.engagements import contact_keys
from gateway.meta.events import CallOffered
from gateway.numbers.number import Number
from gateway.numbers.slots import Lease
from gateway.store.records import CallRecord
from media.engine import WorkerId
from policy.facts import Direction


class CallStarter:
    """Begins calls and keeps their tasks; one instance for all numbers."""

    def __init__(self, context: CallContext, start: Start) -> None:
        self._context = context
        self._start = start
        self._tasks: set[asyncio.Task[None]] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()

    # --- beginning ---------------------------------------------------------------------------------

    def user_initiated(
        self,
        number: Number,
        event: CallOffered,
        first: CallInput,
        *,
        left_s: float,
        worker: WorkerId | None,
        lease: Lease | None,
    ) -> CallDriver:
        """Begin a user's call, which may ring for `left_s`."""
        call = self._new_call(Direction.USER_INITIATED, left_s, meta_call_id=event.meta_call_id)
        origin = self._origin(number, event.user, event.user_name, worker, first)
        driver = CallDriver(call, origin, self._context, lease=lease)
        # The record is queued for writing before the event that began the call, so an acknowledged call has a record.
        # A business-initiated call writes its own before `connect` (see `CallDriver.until_kept`).
        self._register_and_start(driver, record=driver.record())
        return driver

    def business_initiated(
        self,
        number: Number,
        contact: Contact,
        operator: OperatorId,
        *,
        worker: WorkerId,
        lease: Lease,
        show: Callable[[CallId], None],
    ) -> CallDriver:
        """Begin a call to a contact; `show` lets the operator's phone take it."""
        call = self._new_call(Direction.BUSINESS_INITIATED, self._context.timeouts.prepare_s, operator=operator)
        origin = self._origin(number, contact.user, contact.name, worker, CallInput(kind=InputKind.START))
        driver = CallDriver(call, origin, self._context, lease=lease)
        number.placed.add(call.created_at)
        self._register_and_start(driver)
        driver.shown_by(lambda: show(call.call_id))
        return driver

    def _new_call(self, direction: Direction, time_left_s: float, **known: Any) -> Call:
        return new_call(
            CallId(uuid.uuid4().hex),
            direction,
            deadline_at=asyncio.get_running_loop().time() + time_left_s,
            created_at=self._context.clock.now(),
            **known,
        )

    def _origin(
        self, number: Number, user: UserRef, user_name: str | None, worker: WorkerId | None, first: CallInput
    ) -> Origin:
        """Return the origin, with a key for each known name of the user (number, BSUID), not only the one given."""
        known = self._context.contacts.peek(number.id, user)
        return Origin(
            number=number,
            user=user,
            user_name=user_name,
            contact_keys=contact_keys(number.id, user, *((known.user,) if known else ())),
            worker=worker,
            first=first,
        )

    def _register_and_start(self, driver: CallDriver, *, record: CallRecord | None = None) -> None:
        """Register the call before anything else can happen to it, then start its task."""
        try:
            self._context.registry.add(driver)
            if record is not None:
                self._context.store.write_soon(record)
            self._start_task(driver)
        except BaseException:
            driver.never_began()
            raise

    def _start_task(self, driver: CallDriver) -> None:
        direction, number_id = driver.call.direction.value, driver.origin.number.id
        alive = self._context.metrics.calls_active.labels(direction=direction, number=number_id)
        alive.inc()  # whatever can fail comes before the task is started
        task = self._start(driver.run())
        self._tasks.add(task)
        self._none_left.clear()

        def ended(task: asyncio.Task[None]) -> None:
            alive.dec()
            self._tasks.discard(task)
            if not self._tasks:
                self._none_left.set()

        task.add_done_callback(ended)

    # --- all live calls ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of live calls."""
        return len(self._tasks)

    async def until_none_left(self) -> None:
        """Wait until there is no live call."""
        await self._none_left.wait()

    async def end_all(self, *, within_s: float) -> None:
        """End all live calls at Meta; those that take longer than `within_s` are cancelled."""
        for call in self._context.registry:
            call.feed(CallInput(kind=InputKind.SHUTDOWN))
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within_s)
            for task in late:
                task.cancel()
