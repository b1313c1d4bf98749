"""The operators who are logged in: their warm legs, their status, and who rings for which call.

Responsible for what an operator has and sees. Not responsible for the WebSocket itself (see `softphone`), nor for
calls (see `driver`): it hands them what operators do and shows operators what calls become.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from gateway import messages as msg
from gateway import routing
from gateway.call import CallInput, InputKind
from gateway.effects import StopReason
from gateway.errors import CannotDial
from gateway.ids import CallId, OperatorId
from gateway.metrics import Metrics
from gateway.registry import Registry
from media.engine import LegId, MediaEngine, WorkerId
from media.errors import MediaError

log = structlog.get_logger()

#: A phone that comes back within this time keeps its call.
RESUME_S: Final = 15.0
#: A page that said it goes away is loaded again within this time, or was closed.
LEAVING_S: Final = 5.0


class Line(Protocol):
    """One open WebSocket, as far as the hub needs it."""

    def push(self, message: msg.Push) -> None: ...
    def hang_up(self, code: int) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Phone:
    """One operator's login; outlives its WebSocket by `RESUME_S`, or by `LEAVING_S` if the page went away."""

    operator: OperatorId
    resume: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    line: Line | None = None
    available: bool = True
    call: CallId | None = None
    legs: dict[WorkerId, LegId] = field(default_factory=dict)
    connected: set[LegId] = field(default_factory=set)
    lost: asyncio.TimerHandle | None = None

    def push(self, message: msg.Push) -> None:
        if self.line is not None:
            self.line.push(message)

    @property
    def can_ring(self) -> bool:
        return self.line is not None and self.available and self.call is None


@dataclass(slots=True, kw_only=True)
class _Ringing:
    view: msg.CallView
    at: set[OperatorId] = field(default_factory=set)
    declined: set[OperatorId] = field(default_factory=set)


class Hub:
    """All phones of this gateway. Implements `services.Phones`."""

    def __init__(
        self,
        *,
        media: MediaEngine,
        registry: Registry,
        metrics: Metrics,
        later: Callable[[Iterable[LegId]], None],
    ) -> None:
        """`later` closes media legs without anybody waiting for it."""
        self._media = media
        self._registry = registry
        self._metrics = metrics
        self._close_legs = later
        self._phones: dict[OperatorId, Phone] = {}
        self._by_leg: dict[LegId, tuple[Phone, WorkerId]] = {}
        self._ringing: dict[CallId, _Ringing] = {}
        self.resume_s = RESUME_S
        self.leaving_s = LEAVING_S

    # --- logging in and out ------------------------------------------------------------------------

    def login(self, operator: OperatorId, line: Line) -> Phone:
        """Open a new phone; an older one of the same operator is put away, its call with it ended."""
        old = self._phones.get(operator)
        if old is not None:
            if old.line is not None:
                old.line.hang_up(msg.CLOSE_REPLACED)
            self.logout(old)
        phone = Phone(operator=operator, line=line)
        self._phones[operator] = phone
        self._metrics.softphones_connected.set(self.connected)
        log.info("softphone_login", operator=operator)
        self._ring_newcomer(phone)
        return phone

    def resume(self, token: str, line: Line) -> Phone | None:
        """Give a phone its new WebSocket; None if there is no such phone any more."""
        for phone in self._phones.values():
            if secrets.compare_digest(phone.resume.encode(), token.encode()):
                if phone.line is not None:
                    phone.line.hang_up(msg.CLOSE_REPLACED)
                if phone.lost is not None:
                    phone.lost.cancel()
                    phone.lost = None
                phone.line = line
                self._metrics.softphones_connected.set(self.connected)
                log.info("softphone_resumed", operator=phone.operator)
                self._ring_newcomer(phone)
                return phone
        return None

    def page_left(self, phone: Phone) -> None:
        """The page says that it goes away: loaded anew it is back in a moment, closed it is not."""
        if phone.line is not None:
            self._keep(phone, self.leaving_s)

    def line_lost(self, phone: Phone, line: Line) -> None:
        """The WebSocket is gone: keep the phone for a while, ring it no more."""
        if phone.line is line:
            self._keep(phone, self.resume_s)

    def _keep(self, phone: Phone, seconds: float) -> None:
        phone.line = None
        self._metrics.softphones_connected.set(self.connected)
        self._stop_at(phone.operator)
        phone.lost = asyncio.get_running_loop().call_later(seconds, self.logout, phone)
        log.info("softphone_lost", operator=phone.operator, call_id=phone.call, kept_s=seconds)

    def logout(self, phone: Phone) -> None:
        """Forget the phone; its call ends. Idempotent."""
        if self._phones.get(phone.operator) is not phone:
            return
        del self._phones[phone.operator]
        phone.line = None
        if phone.lost is not None:
            phone.lost.cancel()
        self._metrics.softphones_connected.set(self.connected)
        self._stop_at(phone.operator)
        driver = self._registry.get(phone.call) if phone.call else None
        if driver is not None:
            driver.feed(CallInput(kind=InputKind.OPERATOR_GONE, operator=phone.operator))
        self._drop_legs(phone, tuple(phone.legs))
        log.info("softphone_logout", operator=phone.operator)

    def close(self) -> None:
        """Forget every phone; timers stop."""
        for phone in self:
            self.logout(phone)

    def is_current(self, phone: Phone, line: Line) -> bool:
        """Tell whether this WebSocket still speaks for the phone: no other has taken its place."""
        return self._phones.get(phone.operator) is phone and phone.line is line

    @property
    def connected(self) -> int:
        return sum(phone.line is not None for phone in self._phones.values())

    def phone(self, operator: OperatorId) -> Phone | None:
        return self._phones.get(operator)

    def ready_phone(self, operator: OperatorId, *, best: WorkerId | None) -> tuple[Phone, WorkerId]:
        """Return who would dial, and the worker that has the leg for it: the `best` one if it can be.

        Raises: CannotDial.
        """
        phone = self.phone(operator)
        if phone is None or phone.line is None:
            raise CannotDial("gone", "This operator is not logged in at a softphone.")
        if phone.call is not None:
            raise CannotDial("busy", "This operator is in a call already.")
        # A leg that is about to connect will do: the user's phone has to ring first.
        workers = [worker for worker, leg in phone.legs.items() if leg in phone.connected] or list(phone.legs)
        if not workers:
            raise CannotDial("no_leg", "The softphone has no audio path yet: check the microphone permission.")
        return phone, best if best in workers else workers[0]

    def __iter__(self) -> Iterator[Phone]:
        return iter(tuple(self._phones.values()))

    # --- legs --------------------------------------------------------------------------------------

    async def make_leg(self, phone: Phone, worker: WorkerId, offer_sdp: str) -> str:
        """Return the SDP answer for a new warm leg of this phone; an older one is closed. Raises: MediaError."""
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
        """A browser's leg died; its page makes a new one, and gets the call back with it."""
        phone, worker = self._by_leg.get(leg, (None, None))
        if phone is None or worker is None:
            return
        self._drop_legs(phone, [worker])
        phone.push(msg.LegLost(worker=worker, reason=reason))
        self._leg_changed(phone)

    def _leg_changed(self, phone: Phone) -> None:
        driver = self._registry.get(phone.call) if phone.call else None
        if driver is not None:
            driver.operator_leg_changed()

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
            self._close_legs(gone)

    def workers_changed(self) -> None:
        for phone in self._phones.values():
            phone.push(msg.WorkersChanged(workers=list(self._media.workers)))

    # --- ringing -----------------------------------------------------------------------------------

    def ring(self, call_id: CallId, view: msg.CallView) -> None:
        ringing = self._ringing.setdefault(call_id, _Ringing(view=view))
        for phone in routing.who_rings(self._phones.values(), declined=ringing.declined):
            self._ring_at(phone, call_id, ringing)

    def _ring_newcomer(self, phone: Phone) -> None:
        """Let calls that ring already ring here too."""
        for call_id, ringing in self._ringing.items():
            here = phone.operator in ringing.at
            if not here and routing.who_rings([phone], declined=ringing.declined):
                self._ring_at(phone, call_id, ringing)

    @staticmethod
    def _ring_at(phone: Phone, call_id: CallId, ringing: _Ringing) -> None:
        ringing.at.add(phone.operator)
        phone.push(msg.Incoming(call=ringing.view))
        log.info("operator_rung", call_id=call_id, operator=phone.operator)

    def stop_ringing(
        self, call_id: CallId, reason: StopReason, *, but: OperatorId | None = None, detail: str | None = None
    ) -> None:
        ringing = self._ringing.pop(call_id, None)
        for operator in ringing.at if ringing else ():
            phone = self._phones.get(operator)
            if phone is not None and operator != but:
                phone.push(msg.Gone(call_id=call_id, reason=reason.value, detail=detail))

    def _stop_at(self, operator: OperatorId) -> None:
        for ringing in self._ringing.values():
            ringing.at.discard(operator)

    def decline(self, phone: Phone, call_id: CallId) -> bool:
        """This operator does not want the call; when nobody is left who might, it ends. False: not ringing here."""
        ringing = self._ringing.get(call_id)
        if ringing is None or phone.operator not in ringing.at or phone.call == call_id:
            return False
        ringing.at.discard(phone.operator)
        ringing.declined.add(phone.operator)
        phone.push(msg.Gone(call_id=call_id, reason=StopReason.DECLINED.value))
        driver = self._registry.get(call_id)
        if driver is not None and not ringing.at:
            driver.feed(CallInput(kind=InputKind.ALL_DECLINED))
        return True

    def ringing_views(self, phone: Phone) -> list[msg.CallView]:
        return [ringing.view for ringing in self._ringing.values() if phone.operator in ringing.at]

    # --- calls of a phone --------------------------------------------------------------------------

    def take(self, phone: Phone, call_id: CallId) -> None:
        """The phone has this call now: nothing else rings here."""
        phone.call = call_id
        for other_id, ringing in self._ringing.items():
            if other_id != call_id and phone.operator in ringing.at:
                ringing.at.discard(phone.operator)
                phone.push(msg.Gone(call_id=other_id, reason=StopReason.ANSWERED_ELSEWHERE.value))

    def release(self, operator: OperatorId, call_id: CallId) -> None:
        phone = self._phones.get(operator)
        if phone is not None and phone.call == call_id:
            phone.call = None
            self._ring_newcomer(phone)

    def set_available(self, phone: Phone, available: bool) -> None:
        was_available, phone.available = phone.available, available
        if available and not was_available:
            self._ring_newcomer(phone)

    def show(self, operator: OperatorId, view: msg.CallView) -> None:
        phone = self._phones.get(operator)
        if phone is not None:
            phone.push(msg.CallChanged(call=view))

    def digit(self, call_id: CallId, digit: str) -> None:
        for phone in self._phones.values():
            if phone.call == call_id:
                phone.push(msg.Digit(call_id=call_id, digit=digit))

    def tell(self, operator: OperatorId | None, notice: msg.Push) -> None:
        """Push to one operator, or to all."""
        for phone in self._phones.values():
            if operator is None or phone.operator == operator:
                phone.push(notice)
