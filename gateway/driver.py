"""Runs one call: feeds it one input at a time, performs what it asks for, keeps its one timer.

Responsible for the order of a call's inputs and for its resources: the Meta leg, the slot, its tasks. Not responsible
for any decision (see `call`, `step`). All tasks of a call live in its TaskGroup; a bug in one ends this call, gives
its slot back and touches no other.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

import msgspec
import structlog

from gateway import effects as fx
from gateway import views
from gateway.call import Call, CallInput, CallState, InputKind, Timeouts
from gateway.clock import Clock
from gateway.contacts import Contact, Contacts
from gateway.effects import Effect, StopReason
from gateway.errors import GatewayError, GraphError, GraphRefused, GraphUnreachable
from gateway.events import CallTerminated
from gateway.graph import Graph
from gateway.graph_codes import already_ended
from gateway.ids import CallId, OperatorId, UserRef
from gateway.messages import CallView
from gateway.metrics import Metrics
from gateway.numbers import Number
from gateway.outcome import EndReason, Outcome, Result
from gateway.records import CallRecord
from gateway.registry import Registry
from gateway.slots import Lease
from gateway.step import step
from gateway.store import Store
from media.engine import LegId, MediaEngine, Tone, WorkerId
from media.errors import MediaError, SdpRefused, WorkerGone
from policy.facts import CallConnected, CallRejected, CallUnanswered, Direction, Fact

log = structlog.get_logger()

#: Pause between two rounds of telling Meta to end a call; each round retries by itself.
END_AGAIN_S: Final = 2.0


class Phones(Protocol):
    """What a call needs of the softphones (see `hub`)."""

    def ring(self, call_id: CallId, view: CallView) -> None: ...
    def stop_ringing(self, call_id: CallId, reason: StopReason, *, but: OperatorId | None) -> None: ...
    def show(self, operator: OperatorId, view: CallView) -> None: ...
    def leg_of(self, operator: OperatorId, worker: WorkerId) -> LegId | None: ...
    def release(self, operator: OperatorId, call_id: CallId) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every call shares; constructed once in `app`."""

    graph: Graph
    media: MediaEngine
    phones: Phones
    store: Store
    contacts: Contacts
    registry: Registry
    metrics: Metrics
    clock: Clock
    timeouts: Timeouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is known of a call when it is born and never changes."""

    number: Number
    user: UserRef
    user_name: str | None
    contact_key: str  #: equal for all calls with the same user of the same number
    worker: WorkerId | None  #: None only where no media will be made
    first: CallInput  #: START or REFUSED


class CallDriver:
    """One live call."""

    def __init__(self, call: Call, origin: Origin, services: Services, *, lease: Lease | None) -> None:
        self.call = call
        self.origin = origin
        self.meta_leg = LegId(f"{call.call_id}/meta")
        self._services = services
        self._lease = lease
        self._inputs: asyncio.Queue[CallInput] = asyncio.Queue()
        self._media_order = asyncio.Lock()  # media requests of a call happen one after the other, in order
        self._claimed_by: OperatorId | None = call.operator
        self._terminated: CallTerminated | None = None
        self._leg_stats: dict[str, object] = {}
        self._created_at = services.clock.now()
        self._ringing_at: datetime | None = None
        self._accepted_at: datetime | None = None
        self._ended_at: datetime | None = None
        self._begun = 0.0
        self._finished = False
        self._log = log.bind(call_id=call.call_id, number_id=origin.number.id, direction=call.direction.value)

    # --- what others ask ---------------------------------------------------------------------------

    @property
    def contact_key(self) -> str:
        return self.origin.contact_key

    @property
    def is_business_initiated(self) -> bool:
        return self.call.direction is Direction.BUSINESS_INITIATED

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
        self._begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as tasks:
                self.feed(self.origin.first)
                while self.call.state is not CallState.ENDED:
                    self._take(await self._next(), tasks)
        except* Exception:
            self._log.exception("call_broken")
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
            self._log.debug("input_ignored", state=before.state.value, input=received.kind.value)
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
            self._log.info("call_" + call.state.value, cause=received.kind.value, detail=received.detail)
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
            case fx.StopRinging(reason=reason, but=but):
                phones.stop_ringing(self.call.call_id, reason, but=but)
            case fx.Finish(outcome=outcome):
                self._note(self._ended_fact(), tasks)
                self._finish(outcome)
            case fx.Join():
                self._note(self._connected_fact(), tasks)
                tasks.create_task(self._guarded(self._awaitable(effect)))
            case _:
                tasks.create_task(self._guarded(self._awaitable(effect)))

    def _awaitable(self, effect: Effect) -> Awaitable[None]:
        match effect:
            case fx.SendPreAccept() | fx.SendAccept() | fx.SendConnect():
                return self._ask_meta(effect)
            case fx.SendReject(meta_call_id=meta_call_id):
                return self._end_at_meta(lambda: self._services.graph.reject(self.origin.number.id, meta_call_id))
            case fx.SendTerminate(meta_call_id=meta_call_id):
                return self._end_at_meta(lambda: self._services.graph.terminate(self.origin.number.id, meta_call_id))
            case _:
                return self._media(effect)

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Turn what a peer did wrong into an input, and a bug of ours into the end of this call."""
        try:
            await work
        except GraphError as error:
            self.feed(_graph_failed(error))
        except MediaError as error:
            self.feed(_media_failed(error))
        except Exception:
            self._log.exception("effect_broken")
            self.feed(CallInput(kind=InputKind.BROKEN))

    async def _ask_meta(self, effect: fx.SendPreAccept | fx.SendAccept | fx.SendConnect) -> None:
        graph, number_id = self._services.graph, self.origin.number.id
        match effect:
            case fx.SendPreAccept(meta_call_id=meta_call_id, sdp=sdp):
                await graph.pre_accept(number_id, meta_call_id, sdp)
                self.feed(CallInput(kind=InputKind.PRE_ACCEPTED))
            case fx.SendAccept(meta_call_id=meta_call_id, sdp=sdp):
                await graph.accept(number_id, meta_call_id, sdp, self.call.call_id)
                self.feed(CallInput(kind=InputKind.ACCEPTED))
            case fx.SendConnect(sdp=sdp):
                meta_call_id = await graph.connect(number_id, self.origin.user, sdp, self.call.call_id)
                self.feed(CallInput(kind=InputKind.CONNECTED, meta_call_id=meta_call_id))

    async def _end_at_meta(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Tell Meta that the call is over until it has heard; the `terminate` webhook closes the call."""
        while not self._finished:
            try:
                await ask()
                return
            except GraphRefused as error:
                self._log.warning("call_end_refused", code=error.code, detail=error.public)
                return
            except GraphError as error:
                self._log.warning("call_end_not_delivered", detail=error.public)
                await asyncio.sleep(END_AGAIN_S)

    async def _media(self, effect: Effect) -> None:
        async with self._media_order:
            media, worker = self._services.media, self.worker
            match effect:
                case fx.MakeAnswer(offer=offer) if worker is not None:
                    sdp = await media.answer_meta(self.meta_leg, worker, offer)
                    self.feed(CallInput(kind=InputKind.MEDIA_READY, sdp=sdp))
                case fx.MakeOffer() if worker is not None:
                    sdp = await media.offer_meta(self.meta_leg, worker)
                    self.feed(CallInput(kind=InputKind.MEDIA_READY, sdp=sdp))
                case fx.ApplyAnswer(sdp=sdp):
                    await media.accept_meta_answer(self.meta_leg, sdp)
                case fx.PlayRingback():
                    await self._play_to_operator(Tone.RINGBACK)
                case fx.Join():
                    await self._join()
                case fx.Hold(on=True):
                    await media.part(self.meta_leg)
                    await media.play(self.meta_leg, Tone.HOLD)
                case fx.Hold(on=False):
                    await self._join()
                case fx.CloseMedia():
                    await self._close_media()
                case _:
                    raise WorkerGone("no media worker was free")

    async def _join(self) -> None:
        """Join the legs; while the operator's is missing (a reload), the user hears hold audio."""
        media, leg = self._services.media, self._operator_leg()
        if leg is None:
            await media.play(self.meta_leg, Tone.HOLD)
            return
        await media.play(self.meta_leg, None)
        await media.play(leg, None)
        await media.join(self.meta_leg, leg)

    async def _play_to_operator(self, tone: Tone | None) -> None:
        leg = self._operator_leg()
        if leg is not None:
            await self._services.media.play(leg, tone)

    def _operator_leg(self) -> LegId | None:
        if self.call.operator is None or self.worker is None:
            return None
        return self._services.phones.leg_of(self.call.operator, self.worker)

    async def _close_media(self) -> None:
        """Close the Meta leg and keep its statistics; a ringback stops with the call."""
        try:
            stats = await self._services.media.close(self.meta_leg)
            if stats is not None:
                self._leg_stats = {"meta_leg": msgspec.to_builtins(stats)}
            await self._play_to_operator(None)
        except MediaError as error:  # the worker is gone, and the leg with it
            self._log.info("leg_gone", detail=error.reason)
        if self._leg_stats:
            self._services.store.write_soon(self.record())

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
        if self._claimed_by is not None:  # also one who picked up a moment too late
            services.phones.release(self._claimed_by, call.call_id)
        services.metrics.calls_ended_total.labels(
            direction=call.direction.value, result=outcome.result.value, reason=outcome.reason.value
        ).inc()
        ended = self._terminated
        self._log.info(
            "call_finished",
            result=outcome.result.value,
            reason=outcome.reason.value,
            detail=outcome.detail,
            duration_s=ended.duration_s if ended else None,
            confirmed=ended is not None,
        )

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
        self._services.phones.stop_ringing(self.call.call_id, StopReason.FAILED, but=None)
        self._services.store.write_soon(self.record())
        if self.call.operator is not None:
            self._services.phones.show(self.call.operator, self.view())
        await self._close_media()
        if self.call.meta_call_id is not None:
            try:
                await self._services.graph.terminate(self.origin.number.id, self.call.meta_call_id)
            except GraphError as error:
                self._log.warning("call_end_not_delivered", detail=error.public)

    # --- facts for the gate ------------------------------------------------------------------------

    def _connected_fact(self) -> Fact:
        return CallConnected(
            at=self._services.clock.now(),
            key=f"connected/{self.call.meta_call_id}",
            direction=self.call.direction,
        )

    def _ended_fact(self) -> Fact | None:
        """Return what the end of a business-initiated call says about the contact, if it says anything."""
        call, meta_call_id = self.call, self.call.meta_call_id
        if not self.is_business_initiated or meta_call_id is None or self._accepted_at is not None:
            return None
        if call.outcome is None or call.outcome.result not in (Result.USER, Result.OPERATOR):
            return None
        at = self._ended_at or self._services.clock.now()
        if call.outcome.reason is EndReason.DECLINED:
            return CallRejected(at=at, key=f"unanswered/{meta_call_id}")
        return CallUnanswered(at=at, key=f"unanswered/{meta_call_id}")

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
            self._log.warning("fact_not_kept", fact=type(fact).__name__, detail=error.public)

    def _write(self, contact: Contact, fact: Fact) -> None:
        services = self._services
        now = services.clock.now()
        services.store.write_soon(*services.contacts.apply(contact, fact, seen_at=now))


def _graph_failed(error: GraphError) -> CallInput:
    if isinstance(error, GraphUnreachable) and error.op == "connect" and error.maybe_sent:
        return CallInput(kind=InputKind.CONNECT_UNKNOWN, detail=error.public)
    if isinstance(error, GraphRefused) and error.op != "connect" and already_ended(error):
        return CallInput(kind=InputKind.META_CLOSING, detail=error.public)
    return CallInput(kind=InputKind.GRAPH_FAILED, detail=error.public)


def _media_failed(error: MediaError) -> CallInput:
    if isinstance(error, SdpRefused):
        return CallInput(kind=InputKind.MEDIA_FAILED, reason=EndReason.SDP_REFUSED, detail=str(error))
    reason = EndReason.WORKER_DIED if isinstance(error, WorkerGone) else EndReason.MEDIA_FAILED
    return CallInput(kind=InputKind.MEDIA_FAILED, reason=reason, detail=error.reason)
