"""Sends call permission requests: one at a time to a contact, and never the same one twice.

Responsible for the two forms, for who asks while a request is on its way, and for a request of which nobody knows
whether it arrived: that one counts. Not responsible for whether it may be sent (see `admission`) nor for
Idempotency-Keys (see `once`).
"""

import asyncio
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass

import structlog

from gateway.calls.refusals import MetaRefusals
from gateway.common.clock import Clock
from gateway.common.errors import GraphError
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnItsWay:
    asked_by: str
    answer: asyncio.Future[Asked]


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
    ) -> None:
        self._graph = graph
        self._store = store
        self._contacts = contacts
        self._engagements = engagements
        self._refusals = refusals
        self._clock = clock
        self._on_its_way: dict[str, _OnItsWay] = {}  # by contact_id

    def on_its_way(self, contact: Contact, *, asked_by: str) -> Awaitable[Asked] | None:
        """Return the answer to come if the same person has just asked: somebody clicked twice."""
        sent = self._sent_to(contact)
        return asyncio.shield(sent.answer) if sent is not None and sent.asked_by == asked_by else None

    def _sent_to(self, contact: Contact) -> _OnItsWay | None:
        """Find a request on its way, also one to either of two contacts that have become one meanwhile."""
        sent = (self._on_its_way.get(contact_id) for contact_id in contact.current.ids)
        return next((each for each in sent if each is not None), None)

    async def send(self, number: Number, contact: Contact, form: RequestForm, *, asked_by: str) -> Asked:
        """Ask, or wait for the answer to the request that is on its way already. Raises: GraphError."""
        sent = self._sent_to(contact)
        if sent is not None:
            return await asyncio.shield(sent.answer)
        answer: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
        self._on_its_way[contact.contact_id] = _OnItsWay(asked_by=asked_by, answer=answer)
        try:
            with self._engagements.requesting(contact):
                asked = await self._send(number, contact, form)
            answer.set_result(asked)
            return asked
        except GraphError as error:
            answer.set_exception(error)
            answer.exception()  # somebody may be waiting for it; nobody has to
            raise
        finally:
            answer.cancel()  # where neither answer nor error came
            del self._on_its_way[contact.contact_id]

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
