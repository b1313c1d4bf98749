"""The contacts of each number with their folded policy state: in memory, behind it the store.

Responsible for finding a contact by number or BSUID, for applying facts and for saying what must be written then.
Not responsible for what facts mean (see `policy.contact`) nor for writing (see `store`).
"""

import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from gateway.ids import PhoneNumberId, UserRef
from gateway.numbers import Number
from gateway.records import Change, ContactRecord, FactRecord
from gateway.store import Store
from policy.contact import EMPTY, ContactState, apply, state_from_dict, state_to_dict
from policy.facts import Fact, FactError, check_time, fact_to_dict

log = structlog.get_logger()

CACHE_SIZE: Final = 50_000


@dataclass(slots=True, kw_only=True)
class Contact:
    """One WhatsApp user as one number knows them. Lives in the cache; changed only by `Contacts`."""

    contact_id: str
    number_id: PhoneNumberId
    user: UserRef
    name: str | None
    state: ContactState = EMPTY


class Contacts:
    """A bounded cache; a contact that is not in it costs one indexed read."""

    def __init__(self, store: Store, *, cache_size: int = CACHE_SIZE) -> None:
        self._store = store
        self._cache_size = cache_size
        self._by_name: OrderedDict[tuple[PhoneNumberId, str], Contact] = OrderedDict()

    def peek(self, number_id: PhoneNumberId, user: UserRef) -> Contact | None:
        """Return the contact if it is in memory."""
        for name in (user.user_id, user.wa_id):
            contact = self._by_name.get((number_id, name)) if name else None
            if contact is not None and _may_be(contact.user, user):
                self._remember(contact)
                return contact
        return None

    async def get(self, number: Number, user: UserRef, name: str | None = None) -> Contact:
        """Return the contact, from memory, from the store, or new. Raises: StoreDown."""
        found = self.peek(number.id, user)
        if found is None:
            record = await self._store.contact(number.id, user)
            found = self.peek(number.id, user)  # somebody else may have loaded it meanwhile
            if found is None:
                found = self._load(record) if record else _stranger(number.id, user)
        # Whoever is found by BSUID may have a new number: the old one may be somebody else's by now.
        both = UserRef(wa_id=user.wa_id or found.user.wa_id, user_id=found.user.user_id or user.user_id)
        if both != found.user:
            self._forget(found)
            found.user = both
        found.name = name or found.name
        self._remember(found)
        return found

    def apply(self, contact: Contact, *facts: Fact, seen_at: datetime) -> tuple[Change, ...]:
        """Fold facts into the contact at once; return what is to be written, in one transaction.

        A fact whose time cannot be (no clock error explains it) is logged and left out: it would outweigh true ones.
        """
        facts = tuple(fact for fact in facts if _is_plausible(fact, seen_at))
        for fact in facts:
            contact.state = apply(contact.state, fact)
        rows = tuple(
            FactRecord(contact_id=contact.contact_id, key=fact.key, at=fact.at, fact=fact_to_dict(fact))
            for fact in facts
        )
        return (self._record(contact, seen_at), *rows)

    def _record(self, contact: Contact, seen_at: datetime) -> ContactRecord:
        return ContactRecord(
            contact_id=contact.contact_id,
            phone_number_id=contact.number_id,
            user=contact.user,
            name=contact.name,
            state=state_to_dict(contact.state),
            seen_at=seen_at,
        )

    @staticmethod
    def _load(record: ContactRecord) -> Contact:
        return Contact(
            contact_id=record.contact_id,
            number_id=record.phone_number_id,
            user=record.user,
            name=record.name,
            state=state_from_dict(record.state),
        )

    def _remember(self, contact: Contact) -> None:
        for name in (contact.user.user_id, contact.user.wa_id):
            if name:
                self._by_name[(contact.number_id, name)] = contact
                self._by_name.move_to_end((contact.number_id, name))
        while len(self._by_name) > self._cache_size:
            self._forget(next(iter(self._by_name.values())))

    def _forget(self, contact: Contact) -> None:
        """Drop all names of a contact at once: half of them would lead to a second copy of it."""
        for name in (contact.user.user_id, contact.user.wa_id):
            if name and self._by_name.get((contact.number_id, name)) is contact:
                del self._by_name[(contact.number_id, name)]


def _may_be(known: UserRef, asked: UserRef) -> bool:
    """Tell whether both may name one person: a number changes hands, a BSUID does not."""
    return known.user_id is None or asked.user_id is None or known.user_id == asked.user_id


def _is_plausible(fact: Fact, now: datetime) -> bool:
    try:
        check_time(fact, now=now)
    except FactError as error:
        log.warning("fact_refused", fact=type(fact).__name__, detail=str(error))
        return False
    return True


def _stranger(number_id: PhoneNumberId, user: UserRef) -> Contact:
    return Contact(contact_id=uuid.uuid4().hex, number_id=number_id, user=user, name=None)
