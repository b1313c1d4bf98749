"""Perform the effects of a call at Meta and in the media engine, and feed the results back as inputs.

Every failure becomes an input, too. `callflow.step` decides which effects there are, `driver` when they are performed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec
import structlog

from gateway.callflow import effects as fx
from gateway.callflow.call import Call, CallInput, InputKind
from gateway.callflow.effects import Effect
from gateway.callflow.outcome import EndReason
from gateway.calls.context import CallContext, Origin
from gateway.common.errors import GraphError, GraphRefused, GraphUnreachable, StoreError
from gateway.common.ids import MetaCallId, PhoneNumberId
from gateway.common.shielding import was_cancelled
from gateway.meta.error_codes import already_ended
from gateway.wire import views
from media.engine import LegId, Tone
from media.errors import MediaError, SdpRefused, WorkerGone
from policy.request import PlaceCall

log = structlog.get_logger()

#: The pause before Meta is asked again to end a call. The request that failed had its own retries.
END_AGAIN_S: Final = 2.0


class Subject(Protocol):
    """The call whose effects are performed. Implemented by `driver.CallDriver`."""

    @property
    def call(self) -> Call: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def meta_leg(self) -> LegId: ...
    def feed(self, received: CallInput) -> None: ...
    async def until_kept(self) -> None: ...


class Performer:
    """Performs the effects of one call."""

    def __init__(self, call: Subject, context: CallContext) -> None:
        self._call = call
        self._context = context
        self._number_id = call.origin.number.id
        self._media_order = asyncio.Lock()  # media requests of a call run one after the other, in order

    async def perform(self, effect: Effect) -> None:
        """Perform one effect. Never raises: a peer's error, or a bug of ours, becomes an input of the call."""
        try:
            await self._perform_effect(effect)
        except GraphError as error:
            if isinstance(effect, fx.SendConnect):
                self._call.origin.number.meta_refused(error, now=self._context.clock.now())
                await self._learn_from_refusal(error)
            self._call.feed(_graph_failed(error))
        except MediaError as error:
            self._call.feed(_media_failed(error))
        except StoreError as error:
            self._call.feed(CallInput(kind=InputKind.MEDIA_FAILED, reason=EndReason.STORE_DOWN, detail=error.public))
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            log.exception("effect_broken")
            if isinstance(effect, fx.SendReject | fx.SendTerminate):  # even so the call must not go on at Meta
                self._owe_hangup(effect.meta_call_id)
            self._call.feed(CallInput(kind=InputKind.BROKEN))

    async def _learn_from_refusal(self, error: GraphError) -> None:
        """Take over what Meta's refusal of a call that the gate allowed says about the contact, for the next dial."""
        origin = self._call.origin
        try:
            contact = await self._context.contacts.get(origin.number, origin.user)
        except StoreError as unread:
            log.warning("refusal_not_kept", code=error.code, detail=unread.public)
            return
        self._context.refusals.take_over(origin.number, contact, error, PlaceCall())

    def _perform_effect(self, effect: Effect) -> Awaitable[None]:
        match effect:
            case fx.SendPreAccept() | fx.SendAccept() | fx.SendConnect():
                return self._ask_meta(effect)
            case fx.SendReject(meta_call_id=meta_call_id):
                return self._end_at_meta(self._context.graph.reject, meta_call_id)
            case fx.SendTerminate(meta_call_id=meta_call_id):
                return self._end_at_meta(self._context.graph.terminate, meta_call_id)
            case _:
                return self._perform_media(effect)

    async def _ask_meta(self, effect: fx.SendPreAccept | fx.SendAccept | fx.SendConnect) -> None:
        graph, number_id = self._context.graph, self._number_id
        match effect:
            case fx.SendPreAccept(meta_call_id=meta_call_id, sdp=sdp):
                await graph.pre_accept(number_id, meta_call_id, sdp)
                self._call.feed(CallInput(kind=InputKind.PRE_ACCEPTED))
            case fx.SendAccept(meta_call_id=meta_call_id, sdp=sdp):
                await graph.accept(number_id, meta_call_id, sdp, self._call.call.call_id)
                self._call.feed(CallInput(kind=InputKind.ACCEPTED))
            case fx.SendConnect(sdp=sdp):
                meta_call_id = await graph.connect(number_id, self._call.origin.user, sdp, self._call.call.call_id)
                self._call.origin.number.meta_took()
                self._call.feed(CallInput(kind=InputKind.CONNECTED, meta_call_id=meta_call_id))

    async def _end_at_meta(
        self, ask: Callable[[PhoneNumberId, MetaCallId], Awaitable[None]], meta_call_id: MetaCallId
    ) -> None:
        """Ask Meta to end the call; Meta's `terminate` webhook then closes it.

        If Meta cannot be reached or refuses, the request is repeated until Meta confirms, even after the call's end.
        """
        try:
            await ask(self._number_id, meta_call_id)
        except GraphError as error:
            log.warning("call_end_not_delivered", code=error.code, detail=error.public)
            self._owe_hangup(meta_call_id)

    def _owe_hangup(self, meta_call_id: MetaCallId) -> None:
        call_id = self._call.call.call_id
        self._context.owed_hangups.keep_trying(self._number_id, meta_call_id, call_id, after_s=END_AGAIN_S)

    async def _perform_media(self, effect: Effect) -> None:
        async with self._media_order:
            media, worker = self._context.media, self._call.origin.worker
            match effect:
                case fx.MakeAnswer(offer=offer) if worker is not None:
                    sdp = await media.answer_meta(self._call.meta_leg, worker, offer)
                    self._call.feed(CallInput(kind=InputKind.MEDIA_READY, sdp=sdp))
                case fx.MakeOffer() if worker is not None:
                    sdp = await media.offer_meta(self._call.meta_leg, worker)
                    await self._call.until_kept()
                    self._call.feed(CallInput(kind=InputKind.MEDIA_READY, sdp=sdp))
                case fx.ApplyAnswer(sdp=sdp):
                    await media.accept_meta_answer(self._call.meta_leg, sdp)
                case fx.PlayRingback():
                    await self._play_to_operator(Tone.RINGBACK)
                case fx.Join():
                    await self._join_legs()
                case fx.Hold(on=True):
                    await media.part(self._call.meta_leg)
                    await media.play(self._call.meta_leg, Tone.HOLD)
                case fx.Hold(on=False):
                    await self._join_legs()
                case fx.CloseMedia():
                    await self.close_media()
                case _:
                    raise WorkerGone("no media worker was free")

    async def _join_legs(self) -> None:
        """Join the legs; while the operator's leg is missing (page reload), the user hears hold audio."""
        media, leg = self._context.media, self._operator_leg()
        if leg is None:
            await media.play(self._call.meta_leg, Tone.HOLD)
            return
        await media.play(self._call.meta_leg, None)
        await media.play(leg, None)
        await media.join(self._call.meta_leg, leg)

    async def _play_to_operator(self, tone: Tone | None) -> None:
        leg = self._operator_leg()
        if leg is not None:
            await self._context.media.play(leg, tone)

    def _operator_leg(self) -> LegId | None:
        if self._call.call.operator is None or self._call.origin.worker is None:
            return None
        return self._context.phones.leg_of(self._call.call.operator, self._call.origin.worker)

    async def close_media(self) -> None:
        """Close the Meta leg, keep its statistics, and stop the ringback, if any."""
        try:
            stats = await self._context.media.close(self._call.meta_leg)
            if stats is not None:
                self._call.feed(CallInput(kind=InputKind.MEDIA_CLOSED, leg_stats=msgspec.to_builtins(stats)))
            await self._play_to_operator(None)
        except MediaError as error:  # the worker is gone, and the leg with it
            log.info("leg_gone", detail=error.reason)


def _graph_failed(error: GraphError) -> CallInput:
    if isinstance(error, GraphUnreachable) and error.op == "connect" and error.maybe_sent:
        return CallInput(kind=InputKind.CONNECT_UNKNOWN, detail=error.public)
    if isinstance(error, GraphRefused) and error.op != "connect" and already_ended(error):
        return CallInput(kind=InputKind.META_CLOSING, detail=error.public)
    refusal = error.refusal if isinstance(error, GraphRefused) else None
    detail = f"{error.public} {views.TITLES[refusal.reason]}" if refusal is not None else error.public
    return CallInput(kind=InputKind.GRAPH_FAILED, detail=detail)


def _media_failed(error: MediaError) -> CallInput:
    if isinstance(error, SdpRefused):
        return CallInput(kind=InputKind.MEDIA_FAILED, reason=EndReason.SDP_REFUSED, detail=str(error))
    reason = EndReason.WORKER_DIED if isinstance(error, WorkerGone) else EndReason.MEDIA_FAILED
    return CallInput(kind=InputKind.MEDIA_FAILED, reason=reason, detail=error.reason)
