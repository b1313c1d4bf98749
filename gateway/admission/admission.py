"""Who gets in: every call and every permission request passes here, through the gate and a slot, before it begins.

Responsible for asking the policy gate with what the process knows, for keeping each decision, for taking the slot and
for starting the call's driver. Not responsible for the rules (see `policy.gate`) nor for the call after that.
"""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from gateway.admission.decision_log import keep_decision
from gateway.admission.overload import Overload, Work
from gateway.admission.permission_requests import Asked, Asking
from gateway.callflow.call import Call, CallInput, InputKind, new_call
from gateway.callflow.outcome import EndReason
from gateway.calls.context import Origin, Services
from gateway.calls.driver import CallDriver
from gateway.calls.overflow import NO_ROOM, TurnedAway
from gateway.calls.registry import contact_keys
from gateway.common.errors import GraphRefused
from gateway.common.ids import CallId, MetaCallId, OperatorId, UserRef
from gateway.contacts.directory import Contact
from gateway.contacts.drift import Drift
from gateway.contacts.reconciler import Reconciler
from gateway.meta.events import CallOffered, CallTerminated
from gateway.numbers.number import Number, Numbers
from gateway.numbers.slots import Lease, Slots
from gateway.operators.hub import Hub
from gateway.operators.phone import Phone
from gateway.store.records import CallRecord
from gateway.wire import messages as msg
from gateway.wire import views
from media.engine import WorkerId
from media.errors import NoWorker
from policy.contact import EMPTY, ContactState
from policy.decision import Decision, Refusal
from policy.facts import Direction
from policy.gate import choose_form, evaluate
from policy.overview import Overview, overview
from policy.reasons import Reason, Remedy
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request

log = structlog.get_logger()

#: A `connect` older than this is acknowledged and never rung. Source: Meta, Calling API FAQ, read 2026-11-22.
STALE_AFTER: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the gate says about one contact at one instant."""

    contact_id: str
    user: UserRef
    name: str | None
    state: ContactState
    overview: Overview


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What the gate says of a contact after Meta was asked, and in what Meta had contradicted us."""

    checked: Checked
    drifts: tuple[Drift, ...]


class Admission:
    """The one door to calls and permission requests."""

    def __init__(
        self,
        services: Services,
        numbers: Numbers,
        hub: Hub,
        reconciler: Reconciler,
        *,
        turned_away: TurnedAway,
        overload: Overload | None = None,
        ring_timeout_s: float,
        start: Callable[[CallDriver], None],
    ) -> None:
        self._services = services
        self._numbers = numbers
        self._hub = hub
        self._reconciler = reconciler
        self._turned_away = turned_away
        self._overload = overload or Overload()
        self._ring_timeout_s = ring_timeout_s
        self._start = start
        self._asking = Asking(services)
        reconciler.is_busy = self._is_busy
        reconciler.on_changed = self.show
        self.draining = False

    # --- user-initiated ----------------------------------------------------------------------------

    async def incoming(self, event: CallOffered, ended: CallTerminated | None) -> None:
        """Take or refuse a user's call; `ended` is its `terminate`, if that came first.

        Never suspends, and nothing waits between the webhook and this: no `connect` grows old on its way here. One that
        was kept on disk over a crash has its age in its timestamp.
        """
        number, now = self._numbers.get(event.number_id), self._services.clock.now()
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
            first = CallInput(kind=InputKind.META_TERMINATE)
        left_s = max(0.0, self._ring_timeout_s - max(0.0, (now - event.at).total_seconds()))
        call = _new_call(Direction.USER_INITIATED, left_s, meta_call_id=event.meta_call_id)
        origin = self._origin(number, event.user, event.user_name, self._free_worker(), first)
        driver = CallDriver(call, origin, self._services, lease=lease)
        if ended is not None:
            driver.close_with(ended)
        # In line before the event that it came with: whatever was acknowledged has a record. One that we place is made
        # durable before it leaves.
        self._begin(driver, record=driver.record())

    async def _admit_incoming(
        self, number: Number, event: CallOffered, now: datetime
    ) -> tuple[CallInput, Lease | None] | None:
        """Return how the call begins; None: it was turned away."""
        contact = self._services.contacts.peek(number.id, event.user)
        request = ReceiveCall(draining=self.draining)
        decision = evaluate(number.pack, number.state, contact.state if contact else EMPTY, request, now=now)
        slot = decision if isinstance(decision, Refusal) else await self._room(number.incoming, Work.INCOMING)
        answer = slot if isinstance(slot, Refusal) else decision
        self._keep(number, event.user, request, answer, asked_by="meta", now=now)
        if not isinstance(slot, Refusal):
            return CallInput(kind=InputKind.START, sdp=event.sdp), slot
        if slot.reason in NO_ROOM:
            self._turned_away.turn_away(number, event, slot)
            return None
        return _refused(slot, EndReason.POLICY), None

    def _free_worker(self) -> WorkerId | None:
        try:
            return self._services.media.pick_worker()
        except NoWorker:
            return None

    # --- business-initiated ------------------------------------------------------------------------

    async def check(self, number_id: str, to: str) -> Checked | Refusal:
        """Say what the gate would answer, without keeping a decision. Raises: StoreDown."""
        found = self._find(number_id, to, Work.LOOK_UP)
        if isinstance(found, Refusal):
            return found
        number, user = found
        contact = await self._services.contacts.get(number, user)
        return self.overview(number, await self._known_better(number, contact))

    async def look_up(self, number_id: str, to: str) -> Contact | Refusal:
        """Find a contact and ask nobody about it. Raises: StoreDown."""
        found = self._find(number_id, to, Work.LOOK_UP)
        return found if isinstance(found, Refusal) else await self._services.contacts.get(*found)

    async def reconcile(self, number_id: str, to: str) -> Reconciled | Refusal:
        """Ask Meta about a contact and take over what differs. Raises: TooOften, StoreDown, GraphError."""
        found = self._find(number_id, to, Work.LOOK_UP)
        if isinstance(found, Refusal):
            return found
        number, user = found
        drifts = await self._reconciler.reconcile(number, await self._services.contacts.get(number, user))
        checked = self.overview(number, await self._services.contacts.get(number, user))
        return Reconciled(checked=checked, drifts=drifts)

    def overview(self, number: Number, contact: Contact) -> Checked:
        found = overview(
            number.pack,
            number.state,
            contact.state,
            now=self._services.clock.now(),
            place=self._place_request(number, contact),
            ask=self._ask_request(contact),
        )
        return Checked(
            contact_id=contact.contact_id,
            user=contact.user,
            name=contact.name,
            state=contact.state,
            overview=found,
        )

    def show(self, number: Number, contact: Contact) -> None:
        """Tell every operator what the gate says about a contact now."""
        checked = self.overview(number, contact)
        self._hub.tell(
            None,
            msg.ContactChanged(
                number_id=number.id,
                user=views.user_view(contact.user, contact.name),
                decision=views.decision_view(checked.overview),
            ),
        )

    async def place(self, number_id: str, to: str, *, operator: OperatorId) -> CallDriver | Refusal:
        """Start a call to a contact for an operator who is logged in, or say why not.

        Raises: CannotDial, StoreDown.
        """
        found = self._find(number_id, to)
        if isinstance(found, Refusal):
            return found
        number, user = found
        overloaded = self.overloaded(Work.OUTGOING)
        if overloaded is not None:  # said before anybody is asked, and said again below once there is a slot
            now = self._services.clock.now()
            self._keep(number, user, PlaceCall(), overloaded, asked_by=operator, now=now)
            return overloaded
        contact = await self._load(number, user)
        if isinstance(contact, Refusal):
            return contact
        contact = await self._known_better(number, contact)
        # From here on nothing suspends until the call is registered: two dials at once cannot both pass.
        phone, worker = self._hub.ready_phone(operator, best=self._free_worker())
        now = self._services.clock.now()
        request = self._place_request(number, contact)
        decision = self._evaluate(number, contact, request, now)
        slot = decision if isinstance(decision, Refusal) else await self._room(number.outgoing, Work.OUTGOING)
        answer = slot if isinstance(slot, Refusal) else decision
        self._keep(number, contact.user, request, answer, asked_by=operator, now=now)
        if isinstance(slot, Refusal):
            return slot
        return self._dial(number, contact, phone, worker, slot)

    def _dial(self, number: Number, contact: Contact, phone: Phone, worker: WorkerId, lease: Lease) -> CallDriver:
        call = _new_call(Direction.BUSINESS_INITIATED, self._services.timeouts.prepare_s, operator=phone.operator)
        origin = self._origin(number, contact.user, contact.name, worker, CallInput(kind=InputKind.START))
        driver = CallDriver(call, origin, self._services, lease=lease)
        number.placed.add(driver.created_at)
        self._begin(driver)
        driver.shown_by(lambda: self._hub.take(phone, call.call_id))
        return driver

    # --- permission requests -----------------------------------------------------------------------

    async def ask_permission(self, number_id: str, to: str, *, asked_by: str) -> Asked | Refusal:
        """Send a call permission request in the form that the window allows.

        Raises: StoreDown, GraphError.
        """
        found = self._find(number_id, to, Work.LOOK_UP)
        if isinstance(found, Refusal):
            return found
        number, user = found
        contact = await self._load(number, user)
        if isinstance(contact, Refusal):
            return contact
        sent = self._asking.on_its_way(contact, asked_by=asked_by)
        if sent is not None:
            return await sent
        now = self._services.clock.now()
        request = self._ask_request(contact)
        decision = self._evaluate(number, contact, request, now)
        self._keep(number, contact.user, request, decision, asked_by=asked_by, now=now)
        if isinstance(decision, Refusal):
            return decision
        form = choose_form(number.pack, contact.state, now=now)
        try:
            return await self._asking.send(number, contact, form, asked_by=asked_by)
        except GraphRefused:
            self.show(number, contact.current)
            raise

    # --- room --------------------------------------------------------------------------------------

    def overloaded(self, work: Work) -> Refusal | None:
        """Say whether there is too much to do for such work now."""
        refused = self._overload.refusal(work, now=asyncio.get_running_loop().time())
        return None if refused is None else refused.refusal(now=self._services.clock.now())

    async def _room(self, slots: Slots, work: Work) -> Lease | Refusal:
        """Take a slot of the number and a set-up of the gateway's, or say which there is none of. Never suspends."""
        if slots.in_use < slots.limit:
            refused = self._overload.take(work, now=asyncio.get_running_loop().time())
            if refused is not None:
                return refused.refusal(now=self._services.clock.now())
        return await slots.try_acquire()

    # --- shared ------------------------------------------------------------------------------------

    def _origin(
        self, number: Number, user: UserRef, user_name: str | None, worker: WorkerId | None, first: CallInput
    ) -> Origin:
        return Origin(
            number=number,
            user=user,
            user_name=user_name,
            contact_keys=self._contact_keys(number, user),
            worker=worker,
            first=first,
        )

    def _begin(self, driver: CallDriver, *, record: CallRecord | None = None) -> None:
        """Register the call before anything else can happen, then let it run."""
        try:
            self._services.registry.add(driver)
            if record is not None:
                self._services.store.write_soon(record)
            self._start(driver)
        except BaseException:
            driver.never_began()
            raise

    def _find(self, number_id: str, to: str, work: Work | None = None) -> tuple[Number, UserRef] | Refusal:
        number = self._numbers.get(number_id)
        if number is None:
            return Refusal(reason=Reason.UNKNOWN_NUMBER, rule="number/known", remedy=Remedy.FIX_INPUT)
        user = number.read_user(to)
        if user is None:
            return Refusal(reason=Reason.INVALID_USER, rule="contact/known", remedy=Remedy.FIX_INPUT)
        overloaded = self.overloaded(work) if work is not None else None
        return overloaded or (number, user)

    async def _load(self, number: Number, user: UserRef) -> Contact | Refusal:
        """Load the contact; no new outbound action without a store that can count it."""
        if not self._can_count():
            return Refusal(reason=Reason.STORE_DOWN, rule="gateway/store", remedy=Remedy.TRY_AGAIN_SOON)
        return await self._services.contacts.get(number, user)

    def _can_count(self) -> bool:
        """Tell whether what is done now can be counted, and all that was done before is."""
        return self._services.store.up and self._services.all_counted()

    async def _known_better(self, number: Number, contact: Contact) -> Contact:
        """Before a stranger is refused for want of permission: Meta may know better. Never raises but StoreDown."""
        now = self._services.clock.now()
        decision = self._evaluate(number, contact, self._place_request(number, contact), now)
        if not isinstance(decision, Refusal) or decision.reason is not Reason.NO_PERMISSION:
            return contact
        await self._reconciler.learn(number, contact)
        return await self._services.contacts.get(number, contact.user)

    def _is_busy(self, number: Number, contact: Contact) -> bool:
        keys = self._contact_keys(number, contact.user)
        return self._services.registry.is_busy(keys) or self._asking.in_flight(contact) > 0

    def _place_request(self, number: Number, contact: Contact) -> PlaceCall:
        registry, keys = self._services.registry, self._contact_keys(number, contact.user)
        now = self._services.clock.now()
        return PlaceCall(
            in_flight=registry.in_flight(keys),
            user_busy=registry.is_busy(keys),
            placed_today=number.placed.count(now=now),
            placed_frees_at=number.placed.frees_at(now=now),
            **self._services.meta_pauses("connect", number.id),
            store_up=self._can_count(),
            draining=self.draining,
        )

    def _ask_request(self, contact: Contact) -> AskPermission:
        return AskPermission(
            in_flight=self._asking.in_flight(contact),
            **self._services.meta_pauses("request_template", contact.number_id),
            store_up=self._can_count(),
            draining=self.draining,
        )

    @staticmethod
    def _evaluate(number: Number, contact: Contact, request: Request, now: datetime) -> Decision:
        return evaluate(number.pack, number.state, contact.state, request, now=now)

    def _contact_keys(self, number: Number, user: UserRef) -> frozenset[str]:
        """Name the contact by all that we know, whether the event or the operator named a number, a BSUID or both."""
        known = self._services.contacts.peek(number.id, user)
        return contact_keys(number.id, user, *((known.user,) if known else ()))

    def _keep(
        self, number: Number, user: UserRef, request: Request, decision: Decision, *, asked_by: str, now: datetime
    ) -> None:
        keep_decision(self._services, number, user, request, decision, asked_by=asked_by, now=now)


def _new_call(
    direction: Direction,
    time_left_s: float,
    *,
    meta_call_id: MetaCallId | None = None,
    operator: OperatorId | None = None,
) -> Call:
    return new_call(
        CallId(uuid.uuid4().hex),
        direction,
        deadline_at=asyncio.get_running_loop().time() + time_left_s,
        meta_call_id=meta_call_id,
        operator=operator,
    )


def _refused(refusal: Refusal, reason: EndReason) -> CallInput:
    return CallInput(kind=InputKind.REFUSED, reason=reason, detail=views.TITLES[refusal.reason])
