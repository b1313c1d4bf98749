"""Runs one call: feeds it one input at a time, performs what it asks for, keeps its one timer.

Responsible for the order of a call's inputs and for its resources: the Meta leg, the slot, its tasks. Not responsible
for any decision (see `call`, `step`). All tasks of a call live in its TaskGroup; a bug in one ends this call, gives
its slot back and touches no other.
"""

import asyncio
from dataclasses import replace
from datetime import datetime

import msgspec
import structlog

from gateway import effects as fx
from gateway import event_facts, views
from gateway.call import Call, CallInput, CallState, InputKind
from gateway.contacts import Contact
from gateway.effects import Effect, StopReason
from gateway.errors import GatewayError, GraphError
from gateway.event_facts import KnownCall
from gateway.events import CallTerminated
from gateway.ids import OperatorId
from gateway.messages import CallView
from gateway.outcome import EndReason, Outcome, Result
from gateway.performer import Performer
from gateway.records import CallRecord
from gateway.services import Origin, Services
from gateway.slots import Lease
from gateway.step import step
from media.engine import LegId, LegStats, WorkerId
from policy.facts import Direction, Fact

log = structlog.get_logger()


class CallDriver:
    """One live call."""

    def __init__(self, call: Call, origin: Origin, services: Services, *, lease: Lease | None) -> None:
        self.call = call
        self.origin = origin
        self.meta_leg = LegId(f"{call.call_id}/meta")
        self._services = services
        self._lease = lease
        self._inputs: asyncio.Queue[CallInput] = asyncio.Queue()
        self._claimed_by: OperatorId | None = call.operator
        self._terminated: CallTerminated | None = None
        self._leg_stats: dict[str, object] = {}
        self._created_at = services.clock.now()
        self._ringing_at: datetime | None = None
        self._accepted_at: datetime | None = None
        self._ended_at: datetime | None = None
        self._begun = 0.0
        self._finished = False
        self._performer = Performer(self, services)

    # --- what others ask ---------------------------------------------------------------------------

    @property
    def contact_keys(self) -> frozenset[str]:
        return self.origin.contact_keys

    @property
    def created_at(self) -> datetime:
        return self._created_at

    @property
    def is_business_initiated(self) -> bool:
        return self.call.direction is Direction.BUSINESS_INITIATED

    @property
    def is_over(self) -> bool:
        return self._finished

    @property
    def was_accepted(self) -> bool:
        return self._accepted_at is not None

    @property
    def may_connect(self) -> bool:
        """Tell whether this call may still become a connected business-initiated one."""
        return self.is_business_initiated and self._accepted_at is None

    @property
    def worker(self) -> WorkerId | None:
        return self.origin.worker

    def known(self) -> KnownCall:
        """Return what an event about this call may leave open."""
        return KnownCall(user=self.origin.user, direction=self.call.direction)

    def feed(self, received: CallInput) -> None:
        """Hand the call an input; it is applied after those that came before."""
        self._inputs.put_nowait(received)

    def close_with(self, event: CallTerminated) -> None:
        """Begin as a call that Meta has already ended: only its record is made."""
        self._terminated = event

    def feed_terminate(self, event: CallTerminated) -> None:
        """Hand over Meta's `terminate`, whose facts also close the record."""
        self._terminated = self._terminated or event
        self.feed(
            CallInput(
                kind=InputKind.META_TERMINATE,
                meta_call_id=event.meta_call_id,
                answered=event.start_at is not None,
                failed=event.status == "FAILED",
                detail=event.error,
            )
        )

    def claim(self, operator: OperatorId) -> bool:
        """Give the call to the first operator who answers; False for everybody after."""
        if self._claimed_by is not None or self.call.state not in (CallState.PRE_ACCEPTING, CallState.RINGING):
            return False
        self._claimed_by = operator
        self.feed(CallInput(kind=InputKind.OPERATOR_ACCEPT, operator=operator))
        return True

    def operator_leg_changed(self) -> None:
        """The operator's browser lost its leg, or made a new one: the user hears hold audio, or the operator."""
        if self.call.state is CallState.ACTIVE and not self.call.held:
            self.feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=False))

    def keep_stats(self, stats: LegStats) -> None:
        """Add what the Meta leg counted to the record."""
        self._leg_stats = {"meta_leg": msgspec.to_builtins(stats)}
        self._services.store.write_soon(self.record())

    def view(self) -> CallView:
        return views.call_view(self.record(), worker=self.worker)

    def record(self) -> CallRecord:
        call, ended, origin = self.call, self._terminated, self.origin
        return CallRecord(
            call_id=call.call_id,
            version=call.version + (1 if self._leg_stats else 0),
            phone_number_id=origin.number.id,
            direction=call.direction,
            state="held" if call.held and call.state is CallState.ACTIVE else call.state.value,
            user=origin.user,
            user_name=origin.user_name,
            created_at=self._created_at,
            meta_call_id=call.meta_call_id,
            operator=call.operator,
            ringing_at=self._ringing_at,
            accepted_at=self._accepted_at,
            ended_at=self._ended_at,
            result=call.outcome.result if call.outcome else None,
            reason=call.outcome.reason if call.outcome else None,
            detail=call.outcome.detail if call.outcome else None,
            meta_status=ended.status if ended else None,
            meta_start_at=ended.start_at if ended else None,
            meta_end_at=ended.end_at if ended else None,
            duration_s=ended.duration_s if ended else None,
            leg_stats=self._leg_stats,
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
        self._begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as tasks:
                self.feed(self.origin.first)
                while self.call.state is not CallState.ENDED:
                    self._take(await self._next(), tasks)
        except* Exception:
            log.exception("call_broken")
            await self._abandon()
        finally:
            self._finish(self.call.outcome or Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL))

    async def _next(self) -> CallInput:
        """Wait for the next input, or for the deadline."""
        try:
            async with asyncio.timeout_at(self.call.deadline_at):
                return await self._inputs.get()
        except TimeoutError:
            return CallInput(kind=InputKind.DEADLINE)

    def _take(self, received: CallInput, tasks: asyncio.TaskGroup) -> None:
        loop_time = asyncio.get_running_loop().time()
        # A timer that fires early must not step back in time.
        now = max(loop_time, self.call.deadline_at or 0.0) if received.kind is InputKind.DEADLINE else loop_time
        before = self.call
        self.call, effects = step(before, received, now=now, timeouts=self._services.timeouts)
        if self.call is before:
            log.debug("input_ignored", state=before.state.value, input=received.kind.value)
            return
        self._moved(before, received)
        for effect in effects:
            self._perform(effect, tasks)

    def _moved(self, before: Call, received: CallInput) -> None:
        """Note, store and show what a step changed."""
        call, services = self.call, self._services
        if call.meta_call_id is not None and before.meta_call_id is None:
            services.registry.learn_meta_id(self, call.meta_call_id)
        if call.state is not before.state:
            self._stamp(call.state)
            log.info("call_state", state=call.state.value, cause=received.kind.value, detail=received.detail)
        services.store.write_soon(self.record())
        if call.operator is not None:
            services.phones.show(call.operator, self.view())

    def _stamp(self, state: CallState) -> None:
        now = self._services.clock.now()
        if state is CallState.RINGING:
            self._ringing_at = now
        elif state is CallState.ACTIVE:
            self._accepted_at = now
            seconds = asyncio.get_running_loop().time() - self._begun
            self._services.metrics.call_setup_seconds.labels(direction=self.call.direction.value).observe(seconds)
        elif state is CallState.ENDED:
            self._ended_at = now

    # --- effects -----------------------------------------------------------------------------------

    def _perform(self, effect: Effect, tasks: asyncio.TaskGroup) -> None:
        """Do what needs no waiting at once, the rest in a task of its own."""
        phones = self._services.phones
        match effect:
            case fx.Ring():
                phones.ring(self.call.call_id, self.view())
            case fx.StopRinging(reason=reason, but=but, detail=detail):
                phones.stop_ringing(self.call.call_id, reason, but=but, detail=detail)
            case fx.Finish(outcome=outcome):
                self._note(self._given_up_fact(), tasks)
                self._finish(outcome)
            case fx.Join():
                self._note(self._picked_up_fact(), tasks)
                tasks.create_task(self._performer.perform(effect))
            case _:
                tasks.create_task(self._performer.perform(effect))

    # --- the end -----------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        """Give back the slot, close the record, count. Once."""
        if self._finished:
            return
        self._finished = True
        services, call = self._services, self.call
        if self._lease is not None:
            self._lease.release()
        services.registry.remove(self)
        if self.is_business_initiated and not self._may_have_been_placed(outcome):
            self.origin.number.placed.take_back(self._created_at)
        if outcome.reason is EndReason.GRAPH_ERROR and self.is_business_initiated:
            self._show_contact()  # Meta's refusal may have changed the gate's answer
        if self._claimed_by is not None:  # also one who picked up a moment too late
            services.phones.release(self._claimed_by, call.call_id)
        services.metrics.calls_ended_total.labels(
            direction=call.direction.value, result=outcome.result.value, reason=outcome.reason.value
        ).inc()
        ended = self._terminated
        log.info(
            "call_finished",
            result=outcome.result.value,
            reason=outcome.reason.value,
            detail=outcome.detail,
            duration_s=ended.duration_s if ended else None,
            confirmed=ended is not None,
        )

    def _show_contact(self) -> None:
        contact = self._services.contacts.peek(self.origin.number.id, self.origin.user)
        if contact is not None:
            self._services.contact_changed(self.origin.number, contact)

    def _may_have_been_placed(self, outcome: Outcome) -> bool:
        """Tell whether Meta counts this call as one that the number placed (see also `placed_calls` of the store)."""
        return self.call.meta_call_id is not None or outcome.result is Result.INDETERMINATE

    async def _abandon(self) -> None:
        """After a bug: leave nothing behind that Meta or the media worker might keep alive."""
        self.call = replace(
            self.call,
            state=CallState.ENDED,
            deadline_at=None,
            version=self.call.version + 1,
            outcome=self.call.outcome or Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL),
        )
        self._ended_at = self._services.clock.now()
        self._services.phones.stop_ringing(self.call.call_id, StopReason.FAILED)
        self._services.store.write_soon(self.record())
        if self.call.operator is not None:
            self._services.phones.show(self.call.operator, self.view())
        await self._performer.close_media()
        if self.call.meta_call_id is not None:
            try:
                await self._services.graph.terminate(self.origin.number.id, self.call.meta_call_id)
            except GraphError as error:
                log.warning("call_end_not_delivered", detail=error.public)

    # --- facts for the gate ------------------------------------------------------------------------

    def _picked_up_fact(self) -> Fact | None:
        """Return that we picked up. What Meta tells by webhook, with its own instant, becomes a fact in `inbox`."""
        call = self.call
        if self.is_business_initiated or call.meta_call_id is None:
            return None
        return event_facts.connected(call.meta_call_id, call.direction, at=self._services.clock.now())

    def _given_up_fact(self) -> Fact | None:
        """Return that a call of ours was not answered, where no `terminate` says so."""
        call = self.call
        if not self.is_business_initiated or call.meta_call_id is None or self.was_accepted or self._terminated:
            return None
        if call.outcome is None or call.outcome.result is Result.META or call.outcome.reason is EndReason.DECLINED:
            return None
        return event_facts.unanswered(call.meta_call_id, at=self._ended_at or self._services.clock.now())

    def _note(self, fact: Fact | None, tasks: asyncio.TaskGroup) -> None:
        """Apply a fact now if the contact is in memory, so that the next decision already counts it."""
        if fact is None:
            return
        origin = self.origin
        contact = self._services.contacts.peek(origin.number.id, origin.user)
        if contact is not None:
            self._write(contact, fact)
        else:
            tasks.create_task(self._load_and_note(fact))

    async def _load_and_note(self, fact: Fact) -> None:
        origin = self.origin
        try:
            self._write(await self._services.contacts.get(origin.number, origin.user, origin.user_name), fact)
        except GatewayError as error:  # a store that is away must not end the call
            log.warning("fact_not_kept", fact=type(fact).__name__, detail=error.public)

    def _write(self, contact: Contact, fact: Fact) -> None:
        services = self._services
        now = services.clock.now()
        services.store.write_soon(*services.contacts.apply(contact, fact, seen_at=now))
