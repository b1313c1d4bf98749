"""The phones of all logged-in operators: their warm legs, their status, and the calls that ring at them.

The hub passes what operators do on to calls, and shows operators how calls change.

No step that is taken for every call loops over all phones or all calls: which phones are free, which calls may ring at
one more phone, and which calls ring at a phone are updated as they change.
"""

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import structlog

from gateway.callflow.call import CallInput, InputKind
from gateway.callflow.effects import StopReason
from gateway.calls.registry import Registry
from gateway.common.background import Start
from gateway.common.errors import CannotDial
from gateway.common.ids import CallId, OperatorId
from gateway.common.metrics import Metrics
from gateway.operators import ring_policy
from gateway.operators.broadcast import Broadcast
from gateway.operators.phone import Line, Phone, Ringing
from gateway.wire import messages as msg
from media.engine import LegId, MediaEngine, WorkerId
from media.errors import MediaError

log = structlog.get_logger()

#: A phone that comes back within this time keeps its call.
RESUME_S: Final = 15.0
#: A page that announced that it leaves comes back within this time (a reload), or was closed.
LEAVING_S: Final = 5.0


class Hub:
    """All phones of this gateway. Implements `calls.context.Phones` and `slot_feed.Audience`."""

    def __init__(
        self,
        *,
        media: MediaEngine,
        registry: Registry,
        metrics: Metrics,
        start: Start,
    ) -> None:
        self._media = media
        self._registry = registry
        self._metrics = metrics
        self._start = start
        self._phones: dict[OperatorId, Phone] = {}
        self._by_leg: dict[LegId, tuple[Phone, WorkerId]] = {}
        self._broadcast = Broadcast()
        self._connected = 0
        self._free: dict[OperatorId, Phone] = {}  #: phones that can ring; the longest without ring or call comes first
        self._ringing: dict[CallId, Ringing] = {}
        self._roomy: dict[CallId, Ringing] = {}  #: the calls that also ring at the next phone that becomes free
        self.resume_s = RESUME_S
        self.leaving_s = LEAVING_S
        self.widen_s = ring_policy.WIDEN_S

    # --- logging in and out ------------------------------------------------------------------------

    def login(self, operator: OperatorId, line: Line) -> Phone:
        """Open a new phone. An older one of the same operator is logged out, which ends its call."""
        old = self._phones.get(operator)
        if old is not None:
            if old.line is not None:
                old.line.hang_up(msg.CLOSE_REPLACED)
            self.logout(old)
        phone = Phone(operator=operator)
        self._phones[operator] = phone
        self._set_line(phone, line)
        log.info("softphone_login", operator=operator)
        return phone

    def resume(self, token: str, line: Line) -> Phone | None:
        """Give the phone with this resume token a new WebSocket; return None if there is no such phone any more."""
        for phone in self._phones.values():
            if secrets.compare_digest(phone.resume.encode(), token.encode()):
                if phone.line is not None:
                    phone.line.hang_up(msg.CLOSE_REPLACED)
                if phone.lost is not None:
                    phone.lost.cancel()
                    phone.lost = None
                self._set_line(phone, line)
                log.info("softphone_resumed", operator=phone.operator)
                return phone
        return None

    def page_left(self, phone: Phone) -> None:
        """Keep the phone for `leaving_s`: its page announced that it leaves, and after a reload it comes back soon."""
        if phone.line is not None:
            self._keep_without_line(phone, self.leaving_s)

    def line_lost(self, phone: Phone, line: Line) -> None:
        """Keep the phone for `resume_s` after its WebSocket closed; it does not ring meanwhile."""
        if phone.line is line:
            self._keep_without_line(phone, self.resume_s)

    def _keep_without_line(self, phone: Phone, seconds: float) -> None:
        """Take the WebSocket from the phone, and log it out unless it resumes in time."""
        self._set_line(phone, None)
        phone.lost = asyncio.get_running_loop().call_later(seconds, self.logout, phone)
        log.info("softphone_lost", operator=phone.operator, call_id=phone.call, kept_s=seconds)

    def logout(self, phone: Phone) -> None:
        """Remove the phone and end its call. Idempotent."""
        if self._phones.get(phone.operator) is not phone:
            return
        del self._phones[phone.operator]
        self._set_line(phone, None)
        if phone.lost is not None:
            phone.lost.cancel()
        call = self._registry.get(phone.call) if phone.call else None
        if call is not None:
            call.feed(CallInput(kind=InputKind.OPERATOR_GONE, operator=phone.operator))
        self._drop_legs(phone, tuple(phone.legs))
        log.info("softphone_logout", operator=phone.operator)

    def close(self) -> None:
        """Log every phone out and stop all timers."""
        for ringing in self._ringing.values():
            ringing.widen()  # first: otherwise each phone that leaves would make the next one ring
        for phone in self:
            self.logout(phone)

    def _set_line(self, phone: Phone, line: Line | None) -> None:
        self._connected += (line is not None) - (phone.line is not None)
        self._metrics.softphones_connected.set(self._connected)
        phone.line = line
        self._note_free(phone)
        if line is None:
            for call_id in tuple(phone.rings):
                self._stop_ringing_at(phone, call_id)

    def is_current(self, phone: Phone, line: Line) -> bool:
        """Tell whether this is still the phone's WebSocket, not replaced by another."""
        return self._phones.get(phone.operator) is phone and phone.line is line

    @property
    def connected(self) -> int:
        """Return the number of phones that have a WebSocket."""
        return self._connected

    def phone(self, operator: OperatorId) -> Phone | None:
        return self._phones.get(operator)

    def ready_phone(self, operator: OperatorId, *, best: WorkerId | None) -> tuple[Phone, WorkerId]:
        """Return the phone that would dial and the media worker of its leg, if possible the `best` one.

        Raises: CannotDial.
        """
        phone = self.phone(operator)
        if phone is None or phone.line is None:
            raise CannotDial("gone", "This operator is not logged in at a softphone.")
        if phone.call is not None:
            raise CannotDial("busy", "This operator is already in a call.")
        # A leg that is still connecting is good enough: the user's phone has to ring first.
        workers = [worker for worker, leg in phone.legs.items() if leg in phone.connected] or list(phone.legs)
        if not workers:
            raise CannotDial("no_leg", "The softphone has no audio connection yet: check the microphone permission.")
        return phone, best if best in workers else workers[0]

    def __iter__(self) -> Iterator[Phone]:
        return iter(tuple(self._phones.values()))

    # --- legs --------------------------------------------------------------------------------------

    async def make_leg(self, phone: Phone, worker: WorkerId, offer_sdp: str) -> str:
        """Make a new warm leg of this phone, close the older one, and return the SDP answer. Raises: MediaError."""
        self._drop_legs(phone, [worker])
        leg = LegId(f"{phone.operator}/{worker}/{secrets.token_hex(4)}")
        phone.legs[worker] = leg
        self._by_leg[leg] = (phone, worker)
        try:
            return await self._media.answer_browser(leg, worker, offer_sdp)
        except MediaError:
            if phone.legs.get(worker) == leg:  # a newer one may have taken its place
                self._drop_legs(phone, [worker])
            raise

    def leg_connected(self, leg: LegId) -> None:
        phone, _ = self._by_leg.get(leg, (None, None))
        if phone is None:
            return
        phone.connected.add(leg)
        self._leg_changed(phone)

    def leg_failed(self, leg: LegId, reason: str) -> None:
        """Drop a browser's leg that failed; its page makes a new one, which the call then uses."""
        phone, worker = self._by_leg.get(leg, (None, None))
        if phone is None or worker is None:
            return
        self._drop_legs(phone, [worker])
        phone.push(msg.LegLost(worker=worker, reason=reason))
        self._leg_changed(phone)

    def _leg_changed(self, phone: Phone) -> None:
        call = self._registry.get(phone.call) if phone.call else None
        if call is not None:
            call.operator_leg_changed()

    def leg_of(self, operator: OperatorId, worker: WorkerId) -> LegId | None:
        phone = self._phones.get(operator)
        leg = phone.legs.get(worker) if phone else None
        return leg if phone and leg in phone.connected else None

    def _drop_legs(self, phone: Phone, workers: Iterable[WorkerId]) -> None:
        gone = [leg for worker in workers if (leg := phone.legs.pop(worker, None)) is not None]
        for leg in gone:
            self._by_leg.pop(leg, None)
            phone.connected.discard(leg)
        if gone:
            self._start(self._close_legs(gone))

    async def _close_legs(self, legs: Iterable[LegId]) -> None:
        for leg in legs:
            try:
                await self._media.close(leg)
            except MediaError as error:  # the worker has died, and the leg with it
                log.debug("leg_gone", detail=error.reason)

    def workers_changed(self) -> None:
        self.tell_all(msg.WorkersChanged(workers=list(self._media.workers)))

    # --- ringing -----------------------------------------------------------------------------------

    def ring(self, call_id: CallId, view: msg.CallView) -> None:
        """Ring at the first few free phones, and after `widen_s` at all free phones (see `ring_policy`)."""
        if call_id in self._ringing:
            return
        ringing = Ringing(view=view, frame=msg.encode(msg.Incoming(call=view)))
        ringing.widens = asyncio.get_running_loop().call_later(self.widen_s, self._widen, call_id)
        self._ringing[call_id] = ringing
        self._ring_more(call_id, ringing)
        log.info("phones_rung", call_id=call_id, phones=len(ringing.at))

    def _widen(self, call_id: CallId) -> None:
        """Ring at every phone that is free now or becomes free later."""
        ringing = self._ringing[call_id]
        before = len(ringing.at)
        ringing.widen()
        self._ring_more(call_id, ringing)
        if len(ringing.at) > before:
            log.info("phones_rung", call_id=call_id, phones=len(ringing.at))

    def _ring_more(self, call_id: CallId, ringing: Ringing) -> None:
        """Ring at the phones that `ring_policy` chooses now."""
        chosen = ring_policy.who_rings(
            self._free.values(), at=ringing.at, declined=ringing.declined, widened=ringing.widens is None
        )
        for phone in chosen:
            self._ring_at(phone, call_id, ringing)
        self._note_room(call_id, ringing)
        if chosen:
            log.debug("operators_rung", call_id=call_id, operators=[phone.operator for phone in chosen])

    def _ring_at(self, phone: Phone, call_id: CallId, ringing: Ringing) -> None:
        ringing.at[phone.operator] = phone
        phone.rings[call_id] = ringing
        self._free.pop(phone.operator, None)
        if phone.can_ring:
            self._free[phone.operator] = phone  # moved to the end: the next call rings at other phones first
        phone.send(ringing.frame)

    def _note_room(self, call_id: CallId, ringing: Ringing) -> None:
        """Update whether this call rings at the next phone that becomes free."""
        if call_id in self._ringing and ringing.has_room:
            self._roomy[call_id] = ringing
        else:
            self._roomy.pop(call_id, None)

    def _note_free(self, phone: Phone) -> None:
        """Update whether this phone is free; if it is, it rings for the calls that have room."""
        if not phone.can_ring:
            self._free.pop(phone.operator, None)
            return
        self._free.setdefault(phone.operator, phone)
        here = (pair for pair in self._roomy.items() if phone.may_ring_for(pair[1]))
        for call_id, ringing in list(islice(here, ring_policy.MOST_CALLS - len(phone.rings))):
            self._ring_at(phone, call_id, ringing)
            self._note_room(call_id, ringing)

    def stop_ringing(
        self, call_id: CallId, reason: StopReason, *, but: OperatorId | None = None, detail: str | None = None
    ) -> None:
        ringing = self._ringing.pop(call_id, None)
        if ringing is None:
            return
        ringing.widen()
        self._note_room(call_id, ringing)
        gone = msg.encode(msg.Gone(call_id=call_id, reason=reason.value, detail=detail))
        for phone in ringing.at.values():
            if phone.operator != but:
                phone.send(gone)
            self._remove_ring(phone, call_id)

    def _stop_ringing_at(self, phone: Phone, call_id: CallId) -> None:
        """Stop a call ringing at this phone; the next free phone rings instead."""
        ringing = phone.rings[call_id]
        del ringing.at[phone.operator]
        self._remove_ring(phone, call_id)
        if ringing.widens is not None:  # otherwise all free phones ring already
            self._ring_more(call_id, ringing)

    def _remove_ring(self, phone: Phone, call_id: CallId) -> None:
        """Remove a call from the phone's rings; a call that waited for a place at this phone rings now."""
        was_full = len(phone.rings) >= ring_policy.MOST_CALLS
        del phone.rings[call_id]
        if was_full:
            self._note_free(phone)

    def decline(self, phone: Phone, call_id: CallId) -> bool:
        """Decline a call for this operator; return False if it does not ring here.

        If no other operator can still answer it, the call ends.
        """
        ringing = phone.rings.get(call_id)
        if ringing is None or phone.call == call_id:
            return False
        del ringing.at[phone.operator]
        ringing.declined.add(phone.operator)
        phone.push(msg.Gone(call_id=call_id, reason=StopReason.DECLINED.value))
        self._remove_ring(phone, call_id)
        if not ringing.at:
            self._widen(call_id)
        call = self._registry.get(call_id)
        if call is not None and not ringing.at and not any(map(ringing.waits_for, self._phones.values())):
            call.feed(CallInput(kind=InputKind.ALL_DECLINED))
        return True

    def ringing_views(self, phone: Phone) -> list[msg.CallView]:
        return [ringing.view for ringing in phone.rings.values()]

    # --- calls of a phone --------------------------------------------------------------------------

    def take(self, phone: Phone, call_id: CallId) -> None:
        """Give the phone this call; all others stop ringing at it."""
        phone.call = call_id
        self._note_free(phone)
        for other_id in tuple(phone.rings):
            if other_id != call_id:
                self._stop_ringing_at(phone, other_id)
                phone.push(msg.Gone(call_id=other_id, reason=StopReason.ANSWERED_ELSEWHERE.value))

    def release(self, operator: OperatorId, call_id: CallId) -> None:
        phone = self._phones.get(operator)
        if phone is not None and phone.call == call_id:
            phone.call = None
            self._note_free(phone)

    def set_available(self, phone: Phone, available: bool) -> None:
        phone.available = available
        self._note_free(phone)

    def show(self, operator: OperatorId, view: msg.CallView) -> None:
        phone = self._phones.get(operator)
        if phone is not None:
            phone.push(msg.CallChanged(call=view))

    def digit(self, call_id: CallId, digit: str) -> None:
        call = self._registry.get(call_id)
        phone = self._phones.get(call.call.operator) if call is not None and call.call.operator else None
        if phone is not None and phone.call == call_id:
            phone.push(msg.Digit(call_id=call_id, digit=digit))

    def tell_all(self, notice: msg.Push) -> None:
        """Push a message to every phone."""
        self._broadcast.send(msg.encode(notice), self._phones.values())
