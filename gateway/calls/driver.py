"""Run one call: feed it one input at a time, perform its effects, keep its one timer.

The driver keeps the order of a call's inputs and owns its resources: the Meta leg, the slot, its tasks. Every decision
is made in `callflow`. All tasks of a call live in its TaskGroup; a bug in one of them ends this call, releases its slot
and affects no other call.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from gateway.callflow import effects as fx
from gateway.callflow.call import Call, CallInput, CallState, InputKind, MetaEnd
from gateway.callflow.effects import Effect, StopReason
from gateway.callflow.outcome import EndReason, Outcome, Result
from gateway.callflow.step import broken, claim, step
from gateway.calls.context import CallContext, Origin
from gateway.calls.performer import Performer
from gateway.common.errors import GatewayError, StoreError
from gateway.common.ids import OperatorId
from gateway.common.shielding import safely, was_cancelled
from gateway.contacts import webhook_facts
from gateway.contacts.directory import Contact
from gateway.contacts.webhook_facts import KnownCall
from gateway.meta.events import CallAnswered, CallEvent, CallStatus, CallTerminated
from gateway.numbers.slots import Lease
from gateway.store.records import CallRecord
from gateway.wire import views
from gateway.wire.messages import CallView
from media.engine import LegId, WorkerId
from policy.facts import Direction, Fact

log = structlog.get_logger()

#: How long requests of a call may still run after its end; then they are cancelled.
LINGER_S: Final = 15.0
#: States logged at level info, for those who run the gateway; `call_finished` tells the end. Others are for debugging.
_TOLD: Final = frozenset({CallState.RINGING, CallState.ACTIVE, CallState.UNCONFIRMED, CallState.CANCELLING})


_STATUS_INPUT: Final = {
    "RINGING": InputKind.META_RINGING,
    "ACCEPTED": InputKind.META_ACCEPTED,
    "REJECTED": InputKind.META_REJECTED,
}


def terminated(event: CallTerminated) -> CallInput:
    """Return Meta's `terminate` as an input."""
    end = MetaEnd(status=event.status, start_at=event.start_at, end_at=event.end_at, duration_s=event.duration_s)
    return CallInput(kind=InputKind.META_TERMINATE, meta_call_id=event.meta_call_id, meta_end=end, detail=event.error)


class CallDriver:
    """One live call."""

    def __init__(self, call: Call, origin: Origin, context: CallContext, *, lease: Lease | None) -> None:
        self.call = call
        self.origin = origin
        self.meta_leg = LegId(f"{call.call_id}/meta")
        self._context = context
        self._lease = lease
        self._inputs: asyncio.Queue[CallInput | float] = asyncio.Queue()  # a float: this deadline has expired
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._tasks: asyncio.TaskGroup  # from the start of `run` on
        self._begun = 0.0
        self._setup_s: float | None = None  #: from the first input to the conversation
        self._record_written: asyncio.Task[StoreError | None] | None = None
        self._finished = False
        self._performer = Performer(self, context)

    # --- what others ask ---------------------------------------------------------------------------

    @property
    def contact_keys(self) -> frozenset[str]:
        return self.origin.contact_keys

    @property
    def is_business_initiated(self) -> bool:
        return self.call.direction is Direction.BUSINESS_INITIATED

    @property
    def is_over(self) -> bool:
        return self._finished

    @property
    def was_accepted(self) -> bool:
        return self.call.accepted_at is not None

    @property
    def may_connect(self) -> bool:
        """Tell whether this call may still become a connected business-initiated one."""
        return self.is_business_initiated and not self.was_accepted

    @property
    def worker(self) -> WorkerId | None:
        return self.origin.worker

    def known(self) -> KnownCall:
        """Return the user and direction of this call, which an event about it may omit."""
        return KnownCall(user=self.origin.user, direction=self.call.direction)

    def feed(self, received: CallInput) -> None:
        """Queue an input; it is applied after those that came before. An ended call has no loop: apply it at once."""
        if self.call.state is CallState.ENDED:
            safely(lambda: self._apply_input(received))
        else:
            self._inputs.put_nowait(received)

    def told(self, event: CallEvent) -> None:
        """Hand the call a webhook event about it."""
        match event:
            case CallAnswered():
                self.feed(CallInput(kind=InputKind.META_ANSWER, sdp=event.sdp, meta_call_id=event.meta_call_id))
            case CallStatus():
                self.feed(CallInput(kind=_STATUS_INPUT[event.status], meta_call_id=event.meta_call_id))
            case CallTerminated():
                self.feed(terminated(event))

    def claim(self, operator: OperatorId) -> bool:
        """Give the call to the first operator who answers; return False for every later one."""
        claimed = claim(self.call, operator)
        if claimed is None:
            return False
        self.call = claimed
        self.feed(CallInput(kind=InputKind.OPERATOR_ACCEPT, operator=operator))
        return True

    def shown_by(self, take: Callable[[], None]) -> None:
        """Let the operator's phone take the call. If `take` fails, end the call: no phone could hang it up."""
        try:
            take()
        except BaseException:
            self.feed(CallInput(kind=InputKind.BROKEN))
            raise

    def operator_leg_changed(self) -> None:
        """Join the legs anew: the operator's browser lost its leg (the user hears hold audio) or made a new one."""
        if self.call.state is CallState.ACTIVE and not self.call.held:
            self.feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=False))

    async def until_kept(self) -> None:
        """Wait until the record is durable; nothing is sent to Meta before, so a restart finds the call.

        Raises: StoreError.
        """
        error = await self._record_written if self._record_written is not None else None
        if error is not None:
            raise error

    def view(self) -> CallView:
        """Return the call as softphones and the API are shown it."""
        return views.call_view(self.record(), worker=self.worker)

    def record(self) -> CallRecord:
        """Return the call as it is stored."""
        call, ended, origin, outcome = self.call, self.call.meta_end, self.origin, self.call.outcome
        return CallRecord(
            call_id=call.call_id,
            version=call.version,
            phone_number_id=origin.number.id,
            direction=call.direction,
            state="held" if call.held and call.state is CallState.ACTIVE else call.state,
            user=origin.user,
            user_name=origin.user_name,
            created_at=call.created_at,
            meta_call_id=call.meta_call_id,
            operator=call.operator,
            ringing_at=call.ringing_at,
            accepted_at=call.accepted_at,
            ended_at=call.ended_at,
            result=outcome.result if outcome else None,
            reason=outcome.reason if outcome else None,
            detail=outcome.detail if outcome else None,
            meta_status=ended.status if ended else None,
            meta_start_at=ended.start_at if ended else None,
            meta_end_at=ended.end_at if ended else None,
            duration_s=ended.duration_s if ended else None,
            leg_stats={} if call.leg_stats is None else {"meta_leg": call.leg_stats},
        )

    # --- the loop ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the call until it is ENDED. Never raises, except on cancellation."""
        call = self.call
        with structlog.contextvars.bound_contextvars(
            call_id=call.call_id, number_id=self.origin.number.id, direction=call.direction.value
        ):
            await self._run_loop()

    async def _run_loop(self) -> None:
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        try:
            async with asyncio.timeout(None) as lingering, asyncio.TaskGroup() as tasks:
                self.feed(self.origin.first)
                self._tasks = tasks
                while self.call.state is not CallState.ENDED:
                    self._apply_input(await self._next_input())
                while not self._inputs.empty():  # inputs still queued may fill in values that are unknown
                    late = self._inputs.get_nowait()
                    if isinstance(late, CallInput):
                        self._apply_input(late)
                lingering.reschedule(loop.time() + LINGER_S)
        except TimeoutError:  # the call has ended, but a peer never answered: cancel those requests
            log.error("call_lingered", seconds=LINGER_S)
            safely(self._owe_hangup)
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            log.exception("call_broken")
            await self._abandon()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._finish(self.call.outcome or Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL))

    async def _next_input(self) -> CallInput:
        """Wait for the next input or the deadline; an input that came before the deadline is returned first."""
        self._set_timer()
        while True:
            received = await self._inputs.get()
            if not isinstance(received, float):
                return received
            if received == self.call.deadline_at:  # otherwise the deadline moved while this was queued
                self._timer_at = None
                return CallInput(kind=InputKind.DEADLINE)

    def _set_timer(self) -> None:
        """Set the timer to the current deadline, if that has changed."""
        deadline_at = self.call.deadline_at
        if deadline_at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline_at
        if deadline_at is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_at, self._inputs.put_nowait, deadline_at)

    def _apply_input(self, received: CallInput) -> None:
        """Take one step with an input and perform its effects."""
        loop_time = asyncio.get_running_loop().time()
        # A timer that fires early must not step back in time.
        now = max(loop_time, self.call.deadline_at or 0.0) if received.kind is InputKind.DEADLINE else loop_time
        before = self.call
        self.call, effects = step(
            before, received, now=now, at=self._context.clock.now(), timeouts=self._context.timeouts
        )
        if self.call is before:
            log.debug("input_ignored", state=before.state.value, input=received.kind.value)
            return
        self._publish_change(before, received)
        for effect in effects:
            self._perform_effect(effect)

    def _publish_change(self, before: Call, received: CallInput) -> None:
        """Log and store what a step changed, and show it to the operator."""
        call, context = self.call, self._context
        if call.meta_call_id is not None and before.meta_call_id is None:
            context.registry.learn_meta_id(self, call.meta_call_id)
        if call.state is not before.state:
            if call.state is CallState.ACTIVE:
                self._setup_s = round(asyncio.get_running_loop().time() - self._begun, 3)
                context.metrics.call_setup_seconds.labels(direction=call.direction.value).observe(self._setup_s)
            tell = log.info if call.state in _TOLD else log.debug
            tell("call_state", state=call.state.value, cause=received.kind.value, detail=received.detail)
        record = self.record()
        context.store.write_soon(record)
        if call.operator is not None and before.state is not CallState.ENDED:
            context.phones.show(call.operator, views.call_view(record, worker=self.worker))

    # --- effects -----------------------------------------------------------------------------------

    def _perform_effect(self, effect: Effect) -> None:
        """Perform at once what need not wait, and the rest in a task of its own."""
        phones, tasks = self._context.phones, self._tasks
        match effect:
            case fx.Ring():
                phones.ring(self.call.call_id, self.view())
            case fx.StopRinging(reason=reason, but=but, detail=detail):
                phones.stop_ringing(self.call.call_id, reason, but=but, detail=detail)
            case fx.Finish(outcome=outcome):
                self._note_fact(self._given_up_fact())
                self._finish(outcome)
            case fx.MakeOffer():
                self._record_written = tasks.create_task(self._write_record())
                tasks.create_task(self._performer.perform(effect))
            case fx.Join():
                self._note_fact(self._picked_up_fact())
                tasks.create_task(self._performer.perform(effect))
            case _:
                tasks.create_task(self._performer.perform(effect))

    # --- the end -----------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        """Release slot and phone, leave the registry, report the end. Idempotent; a failed step skips no other."""
        if self._finished:
            return
        self._finished = True
        context = self._context
        if self._lease is not None:
            safely(self._lease.release)
        safely(lambda: context.registry.remove(self))
        operator = self.call.claimed_by
        if operator is not None:  # also an operator who answered a moment too late
            safely(lambda: context.phones.release(operator, self.call.call_id))
        if self.is_business_initiated:
            safely(lambda: self._settle_dial(outcome))
        safely(lambda: self._report_end(outcome))

    def never_began(self) -> None:
        """Release everything that was taken for a call that could not be started."""
        self._finish(Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL))

    def _settle_dial(self, outcome: Outcome) -> None:
        """Correct the count of placed calls, and watch for a call that Meta may have placed without answering."""
        if not self._may_have_been_placed(outcome):
            self.origin.number.placed.take_back(self.call.created_at)
        elif self.call.meta_call_id is None:
            self._context.owed_hangups.expect(self.origin.number.id, self.call.call_id, self.known())
        if outcome.reason is EndReason.GRAPH_ERROR:
            contact = self._context.contacts.peek(self.origin.number.id, self.origin.user)
            if contact is not None:  # a refusal by Meta may have changed the gate's answer
                self._context.contact_listener.contact_changed(self.origin.number, contact)

    def _report_end(self, outcome: Outcome) -> None:
        self._context.metrics.calls_ended_total.labels(
            direction=self.call.direction.value, result=outcome.result.value, reason=outcome.reason.value
        ).inc()
        ended = self.call.meta_end
        log.info(
            "call_finished",
            result=outcome.result.value,
            reason=outcome.reason.value,
            detail=outcome.detail,
            operator=self.call.operator,
            setup_s=self._setup_s,
            duration_s=ended.duration_s if ended else None,
            confirmed=ended is not None,
        )

    def _may_have_been_placed(self, outcome: Outcome) -> bool:
        """Tell whether Meta counts this call as placed by the number (see also `placed_calls` of the store)."""
        return self.call.meta_call_id is not None or outcome.result is Result.INDETERMINATE

    async def _abandon(self) -> None:
        """Clean up after a bug: leave nothing that Meta or the media worker might keep alive."""
        context = self._context
        call = self.call = broken(self.call, at=context.clock.now())
        safely(self._owe_hangup)
        safely(lambda: context.phones.stop_ringing(call.call_id, StopReason.FAILED))
        safely(lambda: context.store.write_soon(self.record()))
        if call.operator is not None:
            operator = call.operator
            safely(lambda: context.phones.show(operator, self.view()))
        try:
            async with asyncio.timeout(LINGER_S):
                await self._performer.close_media()
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            log.exception("call_media_not_closed")

    def _owe_hangup(self) -> None:
        """Have the call ended at Meta, unless Meta has confirmed its end."""
        call = self.call
        if call.meta_call_id is not None and call.meta_end is None:
            self._context.owed_hangups.keep_trying(self.origin.number.id, call.meta_call_id, call.call_id)

    async def _write_record(self) -> StoreError | None:
        """Make the record durable. Runs while the offer is made, so that the call does not wait for it."""
        try:
            await self._context.store.write(self.record())
        except StoreError as error:
            return error
        return None

    # --- facts for the gate ------------------------------------------------------------------------

    def _picked_up_fact(self) -> Fact | None:
        """Return the fact that an operator picked up a user's call; None for other calls.

        What Meta tells by webhook, with Meta's own instant, becomes a fact in `intake.inbox`.
        """
        call = self.call
        if self.is_business_initiated or call.meta_call_id is None:
            return None
        return webhook_facts.connected(call.meta_call_id, call.direction, at=self._context.clock.now())

    def _given_up_fact(self) -> Fact | None:
        """Return the fact that a user did not answer our call, if no `terminate` has told it."""
        call = self.call
        if not self.is_business_initiated or call.meta_call_id is None or self.was_accepted or call.meta_end:
            return None
        if call.outcome is None or call.outcome.result is Result.META or call.outcome.reason is EndReason.DECLINED:
            return None
        return webhook_facts.unanswered(call.meta_call_id, at=call.ended_at or self._context.clock.now())

    def _note_fact(self, fact: Fact | None) -> None:
        """Apply a fact: now if the contact is in memory, so that the next decision counts it; otherwise in a task."""
        if fact is None:
            return
        contact = self._context.contacts.peek(self.origin.number.id, self.origin.user)
        if contact is not None:
            self._write_fact(contact, fact)
        else:
            self._tasks.create_task(self._load_contact_and_note(fact))

    async def _load_contact_and_note(self, fact: Fact) -> None:
        origin = self.origin
        try:
            contact = await self._context.contacts.get(origin.number, origin.user, origin.user_name)
            self._write_fact(contact, fact)
        except GatewayError as error:  # an unavailable store must not end the call
            log.warning("fact_not_kept", fact=type(fact).__name__, detail=error.public)

    def _write_fact(self, contact: Contact, fact: Fact) -> None:
        context = self._context
        context.store.write_soon(*context.contacts.apply(contact, fact, seen_at=context.clock.now()))
