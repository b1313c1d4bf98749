"""Asks the policy gate with what this process knows, and shows operators what it answers.

Responsible for what only the running gateway can tell the rules: calls and requests in flight, calls placed today,
whether Meta and the store are there, whether we drain. The rules are in `policy.gate`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.common.clock import Clock
from gateway.common.ids import PhoneNumberId, UserRef
from gateway.contacts.directory import Contact
from gateway.contacts.engagements import Engagements, contact_keys
from gateway.meta.health import Pauses
from gateway.numbers.number import Number
from gateway.store.store import Store
from gateway.wire import messages as msg
from gateway.wire import views
from policy.contact import EMPTY, ContactState
from policy.decision import Decision
from policy.gate import evaluate
from policy.overview import Overview, overview
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request


class Spooled(Protocol):
    """Deliveries that were acknowledged and are not counted yet. `intake.spool.Spool` is one."""

    @property
    def is_empty(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the gate says about one contact at one instant."""

    contact_id: str
    user: UserRef
    name: str | None
    state: ContactState
    overview: Overview


class Gate:
    """One for all numbers. A `ContactListener`."""

    def __init__(
        self,
        *,
        engagements: Engagements,
        store: Store,
        spool: Spooled,
        meta_pauses: Callable[[str, PhoneNumberId], Pauses],
        clock: Clock,
        tell: Callable[[msg.Push], None],
    ) -> None:
        """`meta_pauses`: until when Meta is not asked for something (see `meta.health`); `tell` reaches operators."""
        self._engagements = engagements
        self._store = store
        self._spool = spool
        self._meta_pauses = meta_pauses
        self._clock = clock
        self._tell = tell
        #: Set once: the gateway takes no new calls because it is about to end.
        self.draining = False

    @property
    def can_count(self) -> bool:
        """Whether what is done now can be counted, and all that was done before is."""
        return self._store.up and self._spool.is_empty

    # --- what is asked -----------------------------------------------------------------------------

    def receive_request(self) -> ReceiveCall:
        """A user calls."""
        return ReceiveCall(draining=self.draining)

    def place_request(self, number: Number, contact: Contact) -> PlaceCall:
        """An operator wants to call this contact."""
        keys, now = contact_keys(number.id, contact.user), self._clock.now()
        return PlaceCall(
            in_flight=self._engagements.calls_that_may_connect(keys),
            user_busy=self._engagements.has_call(keys),
            placed_today=number.placed.count(now=now),
            placed_frees_at=number.placed.frees_at(now=now),
            **self._meta_pauses("connect", number.id),
            store_up=self.can_count,
            draining=self.draining,
        )

    def permission_request(self, contact: Contact) -> AskPermission:
        """Somebody wants to ask this contact for permission."""
        return AskPermission(
            in_flight=self._engagements.requests_to(contact),
            **self._meta_pauses("request_template", contact.number_id),
            store_up=self.can_count,
            draining=self.draining,
        )

    # --- what is answered --------------------------------------------------------------------------

    def answer(self, number: Number, contact: Contact | None, request: Request, *, now: datetime) -> Decision:
        """Return the gate's answer; None is a contact that nothing is known of."""
        return evaluate(number.pack, number.state, contact.state if contact else EMPTY, request, now=now)

    def overview(self, number: Number, contact: Contact) -> Checked:
        """Say what would be answered to every request about a contact now."""
        found = overview(
            number.pack,
            number.state,
            contact.state,
            now=self._clock.now(),
            place=self.place_request(number, contact),
            ask=self.permission_request(contact),
        )
        return Checked(
            contact_id=contact.contact_id,
            user=contact.user,
            name=contact.name,
            state=contact.state,
            overview=found,
        )

    def contact_changed(self, number: Number, contact: Contact) -> None:
        """Tell every operator what the gate says about a contact now."""
        contact = contact.current
        checked = self.overview(number, contact)
        self._tell(
            msg.ContactChanged(
                number_id=number.id,
                user=views.user_view(contact.user, contact.name),
                decision=views.decision_view(checked.overview),
            )
        )
