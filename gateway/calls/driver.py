"""Runs one call: feeds it one input at a time, performs what it asks for, keeps its one timer.

Responsible for the order of a call's inputs and for its resources: the Meta leg, the slot, its tasks. Not responsible
for any decision (see `call`, `step`). All tasks of a call live in its TaskGroup; a bug in one ends this call, gives
its slot back and touches no other.
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

#: What a call has asked for may take so long after its end; then it is cut.
LINGER_S: Final = 15.0
#: States that who runs the gateway reads of; `call_finished` says how it went on. The others only help to find a fault.
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
        self._inputs: asyncio.Queue[CallInput | float] = asyncio.Queue()  # a float: that deadline has come
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._tasks: asyncio.TaskGroup  # from the start of `run` on
        self._begun = 0.0
        self._setup_s: float | None = None  #: from the first input to the conversation
        self._kept: asyncio.Task[StoreError | None] | None = None
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
        """Return what an event about this call may leave open."""
        return KnownCall(user=self.origin.user, direction=self.call.direction)

    def feed(self, received: CallInput) -> None:
        """Hand the call an input; it is applied after those that came before. An ended call has no loop: at once."""
        if self.call.state is CallState.ENDED:
            safely(lambda: self._apply(received))
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
        """Give the call to the first operator who answers; False for everybody after."""
        claimed = claim(self.call, operator)
        if claimed is None:
            return False
        self.call = claimed
        self.feed(CallInput(kind=InputKind.OPERATOR_ACCEPT, operator=operator))
        return True

    def shown_by(self, take: Callable[[], None]) -> None:
        """Let the operator's phone take the call; a call that no phone can end would never end."""
        try:
            take()
        except BaseException:
            self.feed(CallInput(kind=InputKind.BROKEN))
            raise

    def operator_leg_changed(self) -> None:
        """The operator's browser lost its leg, or made a new one: the user hears hold audio, or the operator."""
        if self.call.state is CallState.ACTIVE and not self.call.held:
            self.feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=False))

    async def until_kept(self) -> None:
        """Wait until a restart would find this call: before that nothing leaves for Meta. Raises: StoreError."""
        error = await self._kept if self._kept is not None else None
        if error is not None:
            raise error

    def view(self) -> CallView:
        return views.call_view(self.record(), worker=self.worker)

    def record(self) -> CallRecord:
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
        """Live until ENDED. Never raises but for cancellation."""
        call = self.call
        with structlog.contextvars.bound_contextvars(
            call_id=call.call_id, number_id=self.origin.number.id, direction=call.direction.value
        ):
            await self._run()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        try:
            async with asyncio.timeout(None) as lingering, asyncio.TaskGroup() as tasks:
                self.feed(self.origin.first)
                self._tasks = tasks
                while self.call.state is not CallState.ENDED:
                    self._apply(await self._next())
                while not self._inputs.empty():  # what stood in line may still fill in what is not known
                    late = self._inputs.get_nowait()
                    if isinstance(late, CallInput):
                        self._apply(late)
                lingering.reschedule(loop.time() + LINGER_S)
        except TimeoutError:  # what a peer never answered is cut; the call has ended
            log.error("call_lingered", seconds=LINGER_S)
            safely(self._owe_end)
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            log.exception("call_broken")
            await self._abandon()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._finish(self.call.outcome or Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL))

    async def _next(self) -> CallInput:
        """Wait for the next input, or for the deadline; what came before the deadline counts first."""
        self._wind_up()
        while True:
            received = await self._inputs.get()
            if not isinstance(received, float):
                return received
            if received == self.call.deadline_at:  # else it was put off while it stood in line
                self._timer_at = None
                return CallInput(kind=InputKind.DEADLINE)

    def _wind_up(self) -> None:
        """Have the one timer run for the deadline of now."""
        deadline_at = self.call.deadline_at
        if deadline_at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline_at
        if deadline_at is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_at, self._inputs.put_nowait, deadline_at)

    def _apply(self, received: CallInput) -> None:
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
        self._moved(before, received)
        for effect in effects:
            self._perform(effect)

    def _moved(self, before: Call, received: CallInput) -> None:
        """Note, store and show what a step changed."""
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

    def _perform(self, effect: Effect) -> None:
        """Do what needs no waiting at once, the rest in a task of its own."""
        phones, tasks = self._context.phones, self._tasks
        match effect:
            case fx.Ring():
                phones.ring(self.call.call_id, self.view())
            case fx.StopRinging(reason=reason, but=but, detail=detail):
                phones.stop_ringing(self.call.call_id, reason, but=but, detail=detail)
            case fx.Finish(outcome=outcome):
                self._note(self._given_up_fact())
                self._finish(outcome)
            case fx.MakeOffer():
                self._kept = tasks.create_task(self._keep())
                tasks.create_task(self._performer.perform(effect))
            case fx.Join():
                self._note(self._picked_up_fact())
                tasks.create_task(self._performer.perform(effect))
            case _:
                tasks.create_task(self._performer.perform(effect))

    # --- the end -----------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        """Give back the slot, close the record, count. Once; a bug in one of these does not keep the others."""
        if self._finished:
            return
        self._finished = True
        context = self._context
        if self._lease is not None:
            safely(self._lease.release)
        safely(lambda: context.registry.remove(self))
        operator = self.call.claimed_by
        if operator is not None:  # also one who picked up a moment too late
            safely(lambda: context.phones.release(operator, self.call.call_id))
        if self.is_business_initiated:
            safely(lambda: self._settle_dial(outcome))
        safely(lambda: self._report(outcome))

    def never_began(self) -> None:
        """Give back what was taken for a call that could not be started."""
        self._finish(Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL))

    def _settle_dial(self, outcome: Outcome) -> None:
        if not self._may_have_been_placed(outcome):
            self.origin.number.placed.take_back(self.call.created_at)
        elif self.call.meta_call_id is None:
            self._context.owed_hangups.expect(self.origin.number.id, self.call.call_id, self.known())
        if outcome.reason is EndReason.GRAPH_ERROR:
            contact = self._context.contacts.peek(self.origin.number.id, self.origin.user)
            if contact is not None:  # Meta's refusal may have changed the gate's answer
                self._context.contact_listener.contact_changed(self.origin.number, contact)

    def _report(self, outcome: Outcome) -> None:
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
        """Tell whether Meta counts this call as one that the number placed (see also `placed_calls` of the store)."""
        return self.call.meta_call_id is not None or outcome.result is Result.INDETERMINATE

    async def _abandon(self) -> None:
        """After a bug: leave nothing behind that Meta or the media worker might keep alive."""
        context = self._context
        call = self.call = broken(self.call, at=context.clock.now())
        safely(self._owe_end)
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

    def _owe_end(self) -> None:
        call = self.call
        if call.meta_call_id is not None and call.meta_end is None:
            self._context.owed_hangups.keep_trying(self.origin.number.id, call.meta_call_id, call.call_id)

    async def _keep(self) -> StoreError | None:
        """Make the record durable; while the offer is made, so that it costs no time."""
        try:
            await self._context.store.write(self.record())
        except StoreError as error:
            return error
        return None

    # --- facts for the gate ------------------------------------------------------------------------

    def _picked_up_fact(self) -> Fact | None:
        """Return that we picked up. What Meta tells by webhook, with its own instant, becomes a fact in `inbox`."""
        call = self.call
        if self.is_business_initiated or call.meta_call_id is None:
            return None
        return webhook_facts.connected(call.meta_call_id, call.direction, at=self._context.clock.now())

    def _given_up_fact(self) -> Fact | None:
        """Return that a call of ours was not answered, where no `terminate` says so."""
        call = self.call
        if not self.is_business_initiated or call.meta_call_id is None or self.was_accepted or call.meta_end:
            return None
        if call.outcome is None or call.outcome.result is Result.META or call.outcome.reason is EndReason.DECLINED:
            return None
        return webhook_facts.unanswered(call.meta_call_id, at=call.ended_at or self._context.clock.now())

    def _note(self, fact: Fact | None) -> None:
        """Apply a fact now if the contact is in memory, so that the next decision counts it; else in a task."""
        if fact is None:
            return
        contact = self._context.contacts.peek(self.origin.number.id, self.origin.user)
        if contact is not None:
            self._write_fact(contact, fact)
        else:
            self._tasks.create_task(self._load_and_note(fact))

    async def _load_and_note(self, fact: Fact) -> None:
        origin = self.origin
        try:
            contact = await self._context.contacts.get(origin.number, origin.user, origin.user_name)
            self._write_fact(contact, fact)
        except GatewayError as error:  # a store that is away must not end the call
            log.warning("fact_not_kept", fact=type(fact).__name__, detail=error.public)

    def _write_fact(self, contact: Contact, fact: Fact) -> None:
        context = self._context
        context.store.write_soon(*context.contacts.apply(contact, fact, seen_at=context.clock.now()))
