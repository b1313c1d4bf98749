"""Sends call permission requests: one at a time to a contact, and never the same one twice.

Responsible for the two forms, for who asks while a request is on its way, and for a request of which nobody knows
whether it arrived: that one counts. Not responsible for whether it may be sent (see `admission`) nor for
Idempotency-Keys (see `http.idempotency`).
"""

import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial

import structlog

from gateway.calls.refusals import MetaRefusals
from gateway.common.background import Start
from gateway.common.clock import Clock
from gateway.common.errors import GraphError
from gateway.common.single_flight import SingleFlight
from gateway.contacts.directory import Contact, Contacts
from gateway.contacts.engagements import Engagements
from gateway.meta.graph import Graph
from gateway.numbers.number import Number
from gateway.store.store import Store
from policy.facts import PermissionRequested, RequestForm
from policy.request import AskPermission

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A permission request that Meta took."""

    form: RequestForm
    message_id: str


class PermissionRequests:
    """Every permission request of this gateway leaves through here."""

    def __init__(
        self,
        *,
        graph: Graph,
        store: Store,
        contacts: Contacts,
        engagements: Engagements,
        refusals: MetaRefusals,
        clock: Clock,
        start: Start,
    ) -> None:
        self._graph = graph
        self._store = store
        self._contacts = contacts
        self._engagements = engagements
        self._refusals = refusals
        self._clock = clock
        self._under_way: SingleFlight[str, Asked] = SingleFlight(start)  # by contact_id
        self._asked_by: dict[str, str] = {}  # the same

    def on_its_way(self, contact: Contact, *, asked_by: str) -> Awaitable[Asked] | None:
        """Return the answer to come if the same person has just asked: somebody clicked twice."""
        ids = contact.current.ids  # also of two contacts that have become one meanwhile
        return self._under_way.join(*(each for each in ids if self._asked_by.get(each) == asked_by))

    async def send(self, number: Number, contact: Contact, form: RequestForm, *, asked_by: str) -> Asked:
        """Ask, or wait for the answer to the request that is on its way already. Raises: GraphError."""
        answer = self._under_way.join(*contact.current.ids)
        if answer is None:
            self._engagements.request_begins(contact.contact_id)  # before anything suspends: the gate counts it
            self._asked_by[contact.contact_id] = asked_by
            answer = self._under_way.begin(contact.contact_id, partial(self._send_counted, number, contact, form))
        return await answer

    async def _send_counted(self, number: Number, contact: Contact, form: RequestForm) -> Asked:
        try:
            return await self._send(number, contact, form)
        finally:
            del self._asked_by[contact.contact_id]
            self._engagements.request_ended(contact.contact_id)

    async def _send(self, number: Number, contact: Contact, form: RequestForm) -> Asked:
        graph, settings = self._graph, number.settings
        try:
            if form is RequestForm.FREE_FORM:
                message_id = await graph.request_permission_free_form(number.id, contact.user, settings.permission_text)
            else:
                template = settings.permission_template
                message_id = await graph.request_permission_template(
                    number.id, contact.user, template.name, template.language, template.parameters
                )
        except GraphError as error:
            number.meta_refused(error, now=self._clock.now())
            if error.maybe_sent:
                self._record(number, contact, form, None)
            self._refusals.take_over(number, contact, error, AskPermission(form=form))
            raise
        number.meta_took()
        self._record(number, contact, form, message_id)
        return Asked(form=form, message_id=message_id)

    def _record(self, number: Number, contact: Contact, form: RequestForm, message_id: str | None) -> None:
        """Count a request; without an id of Meta's it has perhaps been sent, and the limits must hold either way."""
        now = self._clock.now()
        key = message_id or f"request/{uuid.uuid4().hex}"
        fact = PermissionRequested(at=now, key=key, form=form, request_id=message_id)
        self._store.write_soon(*self._contacts.apply(contact, fact, seen_at=now))
        log.info(
            "permission_requested",
            number_id=number.id,
            user=contact.user.key,
            form=form.value,
            confirmed=message_id is not None,
        )
