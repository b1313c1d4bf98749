"""Calls that come in when there is no room for them: recorded, rejected at Meta, and forgotten.

This is cheap and bounded: such a call gets no driver, no media and no task of its own. A few rejections are sent at a
time and a bounded number of calls waits for them; a call that cannot be rejected in time is left to ring out.
`admission` decides which calls are turned away. Calls that a rule of their number refuses do not come here: they are
few, and each has a driver until Meta has been told.
"""

import asyncio
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.callflow.outcome import EndReason, Outcome, Result
from gateway.calls.registry import Registry
from gateway.common.background import Start
from gateway.common.clock import Clock
from gateway.common.errors import GraphError
from gateway.common.ids import CallId, MetaCallId, PhoneNumberId
from gateway.common.metrics import Metrics
from gateway.contacts.webhook_facts import KnownCall
from gateway.meta.events import CallOffered
from gateway.meta.graph import Graph
from gateway.numbers.number import Number
from gateway.store.records import CallRecord
from gateway.store.store import Store
from gateway.wire import views
from policy.decision import Refusal
from policy.facts import Direction
from policy.reasons import Reason

log = structlog.get_logger()

#: Concurrent requests to Meta: about 80 rejections a second.
AT_A_TIME: Final = 16
#: How many calls may wait for a request.
WAITING: Final = 400
#: A call that has waited this long is left to ring out: its caller has gone, or is about to.
PATIENCE_S: Final = 10.0
#: How long the last requests may take when the gateway stops.
STOP_S: Final = 1.0

#: Why a call is turned away, and the word in its record.
NO_ROOM: Final = {
    Reason.NUMBER_BUSY: EndReason.NO_SLOT,
    Reason.OVERLOADED: EndReason.OVERLOAD,
    Reason.DRAINING: EndReason.DRAINED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    number_id: PhoneNumberId
    meta_call_id: MetaCallId
    until: float  #: loop time


class Overflow:
    """The calls that are being turned away. `start` runs a task in the background of the gateway."""

    def __init__(
        self,
        *,
        graph: Graph,
        store: Store,
        registry: Registry,
        metrics: Metrics,
        clock: Clock,
        start: Start,
        at_a_time: int = AT_A_TIME,
        waiting: int = WAITING,
    ) -> None:
        self._graph = graph
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._start = start
        self._at_a_time = at_a_time
        self._max_waiting = waiting
        self._waiting: deque[_Waiting] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    def turn_away(self, number: Number, event: CallOffered, refusal: Refusal) -> None:
        """Record the call and have it rejected at Meta; never suspends."""
        outcome = _outcome_of(refusal)
        self._registry.bury(event.meta_call_id, KnownCall(user=event.user, direction=Direction.USER_INITIATED))
        self._store.write_soon(self._record(number, event, outcome))
        self._metrics.calls_ended_total.labels(
            direction=Direction.USER_INITIATED.value, result=outcome.result.value, reason=outcome.reason.value
        ).inc()
        log.info("call_turned_away", number_id=number.id, user=event.user.key, reason=outcome.reason.value)
        self._queue_rejection(number.id, event.meta_call_id)

    def _record(self, number: Number, event: CallOffered, outcome: Outcome) -> CallRecord:
        now = self._clock.now()
        return CallRecord(
            call_id=CallId(uuid.uuid4().hex),
            version=1,
            phone_number_id=number.id,
            direction=Direction.USER_INITIATED,
            state="ended",
            user=event.user,
            user_name=event.user_name,
            created_at=now,
            ended_at=now,
            meta_call_id=event.meta_call_id,
            result=outcome.result,
            reason=outcome.reason,
            detail=outcome.detail,
        )

    # --- telling Meta ------------------------------------------------------------------------------

    def _queue_rejection(self, number_id: PhoneNumberId, meta_call_id: MetaCallId) -> None:
        if self._closed or len(self._waiting) >= self._max_waiting:
            self._count_left_ringing()
            return
        until = asyncio.get_running_loop().time() + PATIENCE_S
        self._waiting.append(_Waiting(number_id=number_id, meta_call_id=meta_call_id, until=until))
        if len(self._workers) < self._at_a_time:
            worker = self._start(self._reject_waiting())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _reject_waiting(self) -> None:
        """Reject waiting calls until there are none."""
        while self._waiting:
            call = self._waiting.popleft()
            if asyncio.get_running_loop().time() >= call.until:
                self._count_left_ringing()
                continue
            try:
                await self._graph.reject(call.number_id, call.meta_call_id)
            except GraphError as error:
                log.warning("call_end_not_delivered", detail=error.public)
                self._count_left_ringing()

    def _count_left_ringing(self) -> None:
        self._metrics.calls_left_ringing_total.inc()

    async def aclose(self) -> None:
        """Let requests in progress finish; calls that still wait are left to ring out."""
        self._closed = True
        for _ in range(len(self._waiting)):
            self._waiting.popleft()
            self._count_left_ringing()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=STOP_S)
            for worker in late:
                worker.cancel()


def _outcome_of(refusal: Refusal) -> Outcome:
    return Outcome(result=Result.REFUSED, reason=NO_ROOM[refusal.reason], detail=views.TITLES[refusal.reason])
