"""Admit or refuse every call and every permission request.

The order is: gate, slot, decision log; then the call or the request begins. `gate` collects what the rules need to
know; the rules are in `policy.gate`.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from gateway.admission.decision_log import DecisionLog
from gateway.admission.gate import Checked, Gate
from gateway.admission.overload import Overload, Work
from gateway.admission.permission_requests import Asked, PermissionRequests
from gateway.callflow.call import CallInput, InputKind
from gateway.callflow.outcome import EndReason
from gateway.calls.driver import CallDriver, terminated
from gateway.calls.overflow import NO_ROOM, Overflow
from gateway.calls.starter import CallStarter
from gateway.common.clock import Clock
from gateway.common.errors import GraphRefused
from gateway.common.ids import OperatorId, UserRef
from gateway.contacts.directory import Contact, Contacts
from gateway.contacts.drift import Drift
from gateway.contacts.reconciler import Reconciler
from gateway.meta.events import CallOffered, CallTerminated
from gateway.numbers.number import Number, Numbers
from gateway.numbers.slots import Lease, Slots
from gateway.operators.hub import Hub
from gateway.wire import views
from media.engine import MediaEngine, WorkerId
from media.errors import NoWorker
from policy.decision import Decision, Refusal
from policy.gate import choose_form
from policy.reasons import Reason, Remedy
from policy.request import PlaceCall, Request

log = structlog.get_logger()

#: A `connect` older than this is acknowledged but never rings. Source: Meta, Calling API FAQ, read 2026-11-22.
STALE_AFTER: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What the gate says about a contact after Meta was asked, and where Meta's records differed from ours."""

    checked: Checked
    drifts: tuple[Drift, ...]


class Admission:
    """The single entrance for calls and permission requests."""

    def __init__(
        self,
        *,
        gate: Gate,
        decisions: DecisionLog,
        overload: Overload,
        numbers: Numbers,
        contacts: Contacts,
        reconciler: Reconciler,
        requests: PermissionRequests,
        calls: CallStarter,
        overflow: Overflow,
        hub: Hub,
        media: MediaEngine,
        clock: Clock,
        ring_timeout_s: float,
    ) -> None:
        self._gate = gate
        self._decisions = decisions
        self._overload = overload
        self._numbers = numbers
        self._contacts = contacts
        self._reconciler = reconciler
        self._requests = requests
        self._calls = calls
        self._overflow = overflow
        self._hub = hub
        self._media = media
        self._clock = clock
        self._ring_timeout_s = ring_timeout_s

    # --- user-initiated ----------------------------------------------------------------------------

    async def incoming(self, event: CallOffered, ended: CallTerminated | None) -> None:
        """Accept or refuse a user's call; `ended` is its `terminate`, if that came first.

        Never suspends, and there is no queue between the webhook and this method, so a `connect` does not get stale on
        its way here. One that was spooled to disk over a crash is stale by its own timestamp.
        """
        number, now = self._numbers.get(event.number_id), self._clock.now()
        if number is None or now - event.at > STALE_AFTER:
            log.warning("call_not_rung", cause="stale" if number else "unknown_number", number_id=event.number_id)
            return
        lease: Lease | None = None
        if ended is None:
            admitted = await self._admit_incoming(number, event, now)
            if admitted is None:
                return
            first, lease = admitted
        else:
            first = terminated(ended)
        left_s = max(0.0, self._ring_timeout_s - max(0.0, (now - event.at).total_seconds()))
        self._calls.user_initiated(number, event, first, left_s=left_s, worker=self._free_worker(), lease=lease)

    async def _admit_incoming(
        self, number: Number, event: CallOffered, now: datetime
    ) -> tuple[CallInput, Lease | None] | None:
        """Return the call's first input and its slot; None if the call was turned away."""
        contact, request = self._contacts.peek(number.id, event.user), self._gate.receive_request()
        decision = self._gate.answer(number, contact, request, now=now)
        slot = decision if isinstance(decision, Refusal) else await self._take_room(number.incoming, Work.INCOMING)
        answer = slot if isinstance(slot, Refusal) else decision
        self._log_decision(number, event.user, request, answer, asked_by="meta", now=now)
        if not isinstance(slot, Refusal):
            return CallInput(kind=InputKind.START, sdp=event.sdp), slot
        if slot.reason in NO_ROOM:
            self._overflow.turn_away(number, event, slot)
            return None
        detail = views.TITLES[slot.reason]
        return CallInput(kind=InputKind.REFUSED, reason=EndReason.POLICY, detail=detail), None

    def _free_worker(self) -> WorkerId | None:
        try:
            return self._media.pick_worker()
        except NoWorker:
            return None

    # --- business-initiated ------------------------------------------------------------------------

    async def check(self, number_id: str, to: str) -> Checked | Refusal:
        """Return what the gate would answer, without logging a decision. Raises: StoreDown."""
        found = self._number_and_user(number_id, to, Work.LOOK_UP)
        if isinstance(found, Refusal):
            return found
        number, user = found
        contact = await self._contacts.get(number, user)
        return self._gate.overview(number, await self._ask_meta_if_unpermitted(number, contact))

    async def look_up(self, number_id: str, to: str) -> Contact | Refusal:
        """Find a contact without asking Meta about it. Raises: StoreDown."""
        found = self._number_and_user(number_id, to, Work.LOOK_UP)
        return found if isinstance(found, Refusal) else await self._contacts.get(*found)

    async def reconcile(self, number_id: str, to: str) -> Reconciled | Refusal:
        """Ask Meta about a contact and take over differences. Raises: TooOften, StoreDown, GraphError."""
        found = self._number_and_user(number_id, to, Work.LOOK_UP)
        if isinstance(found, Refusal):
            return found
        number, user = found
        drifts = await self._reconciler.reconcile(number, await self._contacts.get(number, user))
        checked = self._gate.overview(number, await self._contacts.get(number, user))
        return Reconciled(checked=checked, drifts=drifts)

    async def place(self, number_id: str, to: str, *, operator: OperatorId) -> CallDriver | Refusal:
        """Start a call to a contact for an operator who is logged in, or return why not.

        Raises: CannotDial, StoreDown.
        """
        found = self._number_and_user(number_id, to)
        if isinstance(found, Refusal):
            return found
        number, user = found
        overloaded = self.overloaded(Work.OUTGOING)
        if overloaded is not None:  # checked before Meta is asked, and again below when a slot is taken
            self._log_decision(number, user, PlaceCall(), overloaded, asked_by=operator, now=self._clock.now())
            return overloaded
        contact = await self._load_contact(number, user)
        if isinstance(contact, Refusal):
            return contact
        contact = await self._ask_meta_if_unpermitted(number, contact)
        # From here on nothing suspends until the call is registered, so two concurrent dials cannot both pass.
        phone, worker = self._hub.ready_phone(operator, best=self._free_worker())
        request, now = self._gate.place_request(number, contact), self._clock.now()
        decision = self._gate.answer(number, contact, request, now=now)
        slot = decision if isinstance(decision, Refusal) else await self._take_room(number.outgoing, Work.OUTGOING)
        answer = slot if isinstance(slot, Refusal) else decision
        self._log_decision(number, contact.user, request, answer, asked_by=operator, now=now)
        if isinstance(slot, Refusal):
            return slot
        return self._calls.business_initiated(
            number, contact, operator, worker=worker, lease=slot, show=lambda call_id: self._hub.take(phone, call_id)
        )

    # --- permission requests -----------------------------------------------------------------------

    async def ask_permission(self, number_id: str, to: str, *, asked_by: str) -> Asked | Refusal:
        """Send a call permission request in the form that the window allows.

        Raises: StoreDown, GraphError.
        """
        found = self._number_and_user(number_id, to, Work.LOOK_UP)
        if isinstance(found, Refusal):
            return found
        number, user = found
        contact = await self._load_contact(number, user)
        if isinstance(contact, Refusal):
            return contact
        sent = self._requests.on_its_way(contact, asked_by=asked_by)
        if sent is not None:
            return await sent
        request, now = self._gate.permission_request(contact), self._clock.now()
        decision = self._gate.answer(number, contact, request, now=now)
        self._log_decision(number, contact.user, request, decision, asked_by=asked_by, now=now)
        if isinstance(decision, Refusal):
            return decision
        form = choose_form(number.pack, contact.state, now=now)
        try:
            return await self._requests.send(number, contact, form, asked_by=asked_by)
        except GraphRefused:
            self._gate.contact_changed(number, contact)
            raise

    # --- room --------------------------------------------------------------------------------------

    def overloaded(self, work: Work) -> Refusal | None:
        """Return a refusal if the gateway is too busy for this kind of work now."""
        refused = self._overload.refusal(work, now=asyncio.get_running_loop().time())
        return None if refused is None else refused.refusal(now=self._clock.now())

    async def _take_room(self, slots: Slots, work: Work) -> Lease | Refusal:
        """Take a slot of the number and a call set-up of the gateway, or return the refusal. Never suspends."""
        if slots.in_use < slots.limit:
            refused = self._overload.take(work, now=asyncio.get_running_loop().time())
            if refused is not None:
                return refused.refusal(now=self._clock.now())
        return await slots.try_acquire()

    # --- shared ------------------------------------------------------------------------------------

    def _number_and_user(self, number_id: str, to: str, work: Work | None = None) -> tuple[Number, UserRef] | Refusal:
        number = self._numbers.get(number_id)
        if number is None:
            return Refusal(reason=Reason.UNKNOWN_NUMBER, rule="number/known", remedy=Remedy.FIX_INPUT)
        user = number.read_user(to)
        if user is None:
            return Refusal(reason=Reason.INVALID_USER, rule="contact/known", remedy=Remedy.FIX_INPUT)
        overloaded = self.overloaded(work) if work is not None else None
        return overloaded or (number, user)

    async def _load_contact(self, number: Number, user: UserRef) -> Contact | Refusal:
        """Load the contact; refuse if the store cannot count a new outbound action."""
        if not self._gate.can_count:
            return Refusal(reason=Reason.STORE_DOWN, rule="gateway/store", remedy=Remedy.TRY_AGAIN_SOON)
        return await self._contacts.get(number, user)

    async def _ask_meta_if_unpermitted(self, number: Number, contact: Contact) -> Contact:
        """Ask Meta about the contact if the gate knows no permission: Meta may know one. Raises only StoreDown."""
        request = self._gate.place_request(number, contact)
        decision = self._gate.answer(number, contact, request, now=self._clock.now())
        if not isinstance(decision, Refusal) or decision.reason is not Reason.NO_PERMISSION:
            return contact
        await self._reconciler.learn(number, contact)
        return await self._contacts.get(number, contact.user)

    def _log_decision(
        self, number: Number, user: UserRef, request: Request, decision: Decision, *, asked_by: str, now: datetime
    ) -> None:
        self._decisions.keep(number, user, request, decision, asked_by=asked_by, now=now)
