"""Ask the policy gate with what this process knows, and show operators the answer.

Only the running gateway can tell the rules which calls and requests are in flight, how many calls were placed today,
whether Meta and the store are available, and whether it is draining. The rules are in `policy.gate`.
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
    """Deliveries that were acknowledged and are not counted yet. Implemented by `intake.spool.Spool`."""

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
    """Asks `policy.gate`; one instance for all numbers. Implements `contacts.directory.ContactListener`."""

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
        """`meta_pauses`: how long requests to Meta are paused (see `meta.health`); `tell`: push to operators."""
        self._engagements = engagements
        self._store = store
        self._spool = spool
        self._meta_pauses = meta_pauses
        self._clock = clock
        self._tell = tell
        #: Set once, when the gateway drains before it stops: it takes no new calls.
        self.draining = False

    @property
    def can_count(self) -> bool:
        """Tell whether a new action can be counted and all earlier ones have been."""
        return self._store.up and self._spool.is_empty

    # --- requests ----------------------------------------------------------------------------------

    def receive_request(self) -> ReceiveCall:
        """Return the question: may this user's call be taken?"""
        return ReceiveCall(draining=self.draining)

    def place_request(self, number: Number, contact: Contact) -> PlaceCall:
        """Return the question: may an operator call this contact?"""
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
        """Return the question: may this contact be asked for permission?"""
        return AskPermission(
            in_flight=self._engagements.requests_to(contact),
            **self._meta_pauses("request_template", contact.number_id),
            store_up=self.can_count,
            draining=self.draining,
        )

    # --- answers -----------------------------------------------------------------------------------

    def answer(self, number: Number, contact: Contact | None, request: Request, *, now: datetime) -> Decision:
        """Return the gate's answer; `contact` is None if nothing is known about it."""
        return evaluate(number.pack, number.state, contact.state if contact else EMPTY, request, now=now)

    def overview(self, number: Number, contact: Contact) -> Checked:
        """Return what the gate would answer to every request about a contact now."""
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
        """Push what the gate now says about a contact to every operator."""
        contact = contact.current
        checked = self.overview(number, contact)
        self._tell(
            msg.ContactChanged(
                number_id=number.id,
                user=views.user_view(contact.user, contact.name),
                decision=views.decision_view(checked.overview),
            )
        )
