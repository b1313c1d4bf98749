"""The contacts of each number with their folded policy state, in memory and in the store.

`Contacts` finds a contact by number or BSUID, applies facts, and returns the changes that the caller must write.
"""

import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol
from weakref import WeakValueDictionary

import structlog
from msgspec.structs import replace

from gateway.common.ids import PhoneNumberId, UserRef
from gateway.numbers.number import Number
from gateway.store.records import Change, ContactRecord, ContactsMerged, FactRecord
from gateway.store.store import Store
from policy.contact import EMPTY, ContactState, apply, latest, merge, state_from_dict, state_to_dict
from policy.facts import Fact, FactError, check_time, fact_from_dict, fact_to_dict

log = structlog.get_logger()

CACHE_SIZE: Final = 50_000


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Contact:
    """One WhatsApp user as known to one number; only `Contacts` changes it."""

    contact_id: str
    number_id: PhoneNumberId
    user: UserRef
    name: str | None
    state: ContactState = EMPTY
    seen_at: datetime | None = None  #: None: never written
    former_ids: tuple[str, ...] = ()  #: ids of contacts that were merged into this one
    absorbed_by: "Contact | None" = None  #: the contact that this one was merged into
    owed: dict[str, FactRecord] = field(default_factory=dict)  #: facts that are folded, but may not be in the store

    @property
    def current(self) -> "Contact":
        """The contact that this one was merged into, or itself. Code that awaited something may hold an old one."""
        return self if self.absorbed_by is None else self.absorbed_by.current

    @property
    def ids(self) -> tuple[str, ...]:
        """The contact's id and those of the contacts merged into it."""
        return (self.contact_id, *self.former_ids)


class ContactListener(Protocol):
    """Listens for changes of the gate's decision about a contact, so that operators see them."""

    def contact_changed(self, number: Number, contact: Contact) -> None: ...


class Contacts:
    """A bounded cache of contacts; a contact that is not in it costs one indexed read.

    There is one `Contact` per person as long as a reference to it exists, even after the cache has dropped it. When an
    event links a number to a BSUID that was known without it, the two contacts become one: their states are merged (a
    fact that both have counts once), the store moves the facts in the same transaction, and the contact with the BSUID
    stays, whichever of the two was created first.

    A number belongs to one person at a time: the one that an event linked to it last. The previous owner keeps the
    BSUID and the history but loses the number, in memory and in the store: a permission must not ring another person.
    """

    def __init__(self, store: Store, *, cache_size: int = CACHE_SIZE) -> None:
        self._store = store
        self._cache_size = cache_size
        self._by_name: OrderedDict[tuple[PhoneNumberId, str], Contact] = OrderedDict()
        self._alive: WeakValueDictionary[str, Contact] = WeakValueDictionary()

    def __len__(self) -> int:
        """Return the number of names (BSUIDs and numbers) in memory; most contacts have two."""
        return len(self._by_name)

    def peek(self, number_id: PhoneNumberId, user: UserRef) -> Contact | None:
        """Return the contact if it is in memory."""
        for contact in self._in_memory(number_id, user):
            self._remember(contact)
            return contact
        return None

    async def get(self, number: Number, user: UserRef, name: str | None = None) -> Contact:
        """Return the contact from memory or from the store; create it if it is new. Raises: StoreDown."""
        found = self.peek(number.id, user)
        if found is None or _is_new_name(found.user, user):
            read = await self._read_store(number.id, user)
            # No await from here on: what was read is combined with what other tasks may have learned meanwhile.
            found = self._merge_or_create(self._candidates(number.id, user, read), number.id, user)
            self._assign_names(found, user, read)
        found.name = name or found.name
        self._remember(found)
        return found

    def apply(self, contact: Contact, *facts: Fact, seen_at: datetime) -> tuple[Change, ...]:
        """Fold facts into the contact; return the changes, which the caller must write at once in one transaction.

        A fact with an impossible time (too far off for a clock error) is logged and left out: it would override true
        ones.
        """
        contact = contact.current
        facts = tuple(fact for fact in facts if _is_plausible(fact, seen_at))
        for fact in facts:
            contact.state = apply(contact.state, fact)
        rows = {
            fact.key: FactRecord(contact_id=contact.contact_id, key=fact.key, at=fact.at, fact=fact_to_dict(fact))
            for fact in facts
        }
        owed, contact.owed = contact.owed, {}
        contact.seen_at = latest(contact.seen_at, seen_at)
        self._remember(contact)
        return (self._record(contact), *(row for key, row in owed.items() if key not in rows), *rows.values())

    def owe(self, changes: Iterable[Change]) -> None:
        """Remember folded facts that may not have been written; the next write of their contact includes them.

        Otherwise a snapshot would contain something that no fact explains.
        """
        for change in changes:
            contact = self._alive.get(change.contact_id) if isinstance(change, FactRecord) else None
            if contact is not None and isinstance(change, FactRecord):
                contact = contact.current
                contact.owed[change.key] = replace(change, contact_id=contact.contact_id)

    # --- finding -----------------------------------------------------------------------------------

    def _in_memory(self, number_id: PhoneNumberId, user: UserRef) -> Iterator[Contact]:
        """Yield the contacts in memory that have the BSUID or the number and may be this user; one with both twice."""
        for name in (user.user_id, user.wa_id):
            contact = self._by_name.get((number_id, name)) if name else None
            if contact is not None and _may_be(contact.user, user):
                yield contact

    async def _read_store(self, number_id: PhoneNumberId, user: UserRef) -> list[Contact]:
        if user.user_id and user.wa_id:
            records = await self._store.contacts_named(number_id, user)
        else:
            found = await self._store.contact(number_id, user)
            records = [found] if found else []
        return [await self._loaded(record) for record in records]

    async def _loaded(self, record: ContactRecord) -> Contact:
        try:
            state = state_from_dict(record.state)
        except FactError:
            log.info("snapshot_refolded", contact_id=record.contact_id)
            state = refold(await self._store.facts(record.contact_id))
        contact = self._alive.get(record.contact_id)
        if contact is None:
            contact = self._new_contact(record.contact_id, record.phone_number_id, record.user, record.name)
            contact.state, contact.seen_at = state, record.seen_at
        return contact

    def _candidates(self, number_id: PhoneNumberId, user: UserRef, read: Iterable[Contact]) -> list[Contact]:
        """List the contacts that may be this user, once each. For a single name, memory takes precedence."""
        known = list(self._in_memory(number_id, user))
        if not known or (user.user_id and user.wa_id):
            known += [contact.current for contact in read if _may_be(contact.current.user, user)]
        return list({contact.contact_id: contact for contact in known}.values())

    def _merge_or_create(self, candidates: list[Contact], number_id: PhoneNumberId, user: UserRef) -> Contact:
        """Merge all candidates into one contact and return it; without candidates, create a contact."""
        if not candidates:
            return self._new_contact(uuid.uuid4().hex, number_id, user, None)
        kept, *others = sorted(candidates, key=_rank)
        if others:
            self._forget(kept)
            kept.user = _joined(user, kept.user)
        for other in others:
            self._absorb(kept, other)
        return kept

    def _assign_names(self, contact: Contact, user: UserRef, read: Iterable[Contact]) -> None:
        """Give a contact the names in an event, and take the number from its previous owner."""
        if user.wa_id is not None:
            holder = self._by_name.get((contact.number_id, user.wa_id))
            others = (*read, *((holder,) if holder is not None else ()))
            for other in {each.contact_id: each for each in (other.current for other in others)}.values():
                if other is not contact and other.user.wa_id == user.wa_id and other.user.user_id is not None:
                    self._take_number(other)
        self._forget(contact)
        contact.user = _joined(user, contact.user)

    def _take_number(self, former: Contact) -> None:
        self._forget(former)
        former.user = UserRef(user_id=former.user.user_id)
        log.info("number_changed_hands", number_id=former.number_id, contact_id=former.contact_id)
        if former.seen_at is not None:
            self._store.write_soon(*self.apply(former, seen_at=former.seen_at))

    def _absorb(self, kept: Contact, other: Contact) -> None:
        """Merge `other` into `kept`: in memory at once, in the store after everything that was queued before."""
        self._forget(other)
        kept.state = other.state = merge(kept.state, other.state)
        kept.name = kept.name or other.name
        kept.former_ids += other.ids
        other.absorbed_by = kept
        kept.owed |= {key: replace(row, contact_id=kept.contact_id) for key, row in other.owed.items()}
        other.owed = {}
        log.info("contacts_merged", number_id=kept.number_id, kept=kept.contact_id, absorbed=other.contact_id)
        if other.seen_at is not None:
            merged = ContactsMerged(kept=kept.contact_id, absorbed=other.contact_id)
            self._store.write_soon(*self.apply(kept, seen_at=other.seen_at), merged)

    # --- small pieces ------------------------------------------------------------------------------

    def _new_contact(self, contact_id: str, number_id: PhoneNumberId, user: UserRef, name: str | None) -> Contact:
        contact = Contact(contact_id=contact_id, number_id=number_id, user=user, name=name)
        self._alive[contact_id] = contact
        return contact

    @staticmethod
    def _record(contact: Contact) -> ContactRecord:
        assert contact.seen_at is not None
        return ContactRecord(
            contact_id=contact.contact_id,
            phone_number_id=contact.number_id,
            user=contact.user,
            name=contact.name,
            state=state_to_dict(contact.state),
            seen_at=contact.seen_at,
        )

    def _remember(self, contact: Contact) -> None:
        """Cache a contact under its names, except a name that belongs to another contact by now."""
        for name in (contact.user.user_id, contact.user.wa_id):
            if not name:
                continue
            key = (contact.number_id, name)
            if self._by_name.get(key, contact) is contact:
                self._by_name[key] = contact
                self._by_name.move_to_end(key)
        while len(self._by_name) > self._cache_size:
            self._forget(next(iter(self._by_name.values())))

    def _forget(self, contact: Contact) -> None:
        """Drop all names of a contact from the cache: with only one dropped, a second copy could arise."""
        for name in (contact.user.user_id, contact.user.wa_id):
            if name and self._by_name.get((contact.number_id, name)) is contact:
                del self._by_name[(contact.number_id, name)]


def refold(records: Iterable[FactRecord]) -> ContactState:
    """Fold stored facts into a state. A fact that this version cannot read is logged and left out."""
    state = EMPTY
    for record in records:
        try:
            state = apply(state, fact_from_dict(record.fact))
        except FactError as error:
            log.error("fact_unreadable", contact_id=record.contact_id, key=record.key, detail=str(error))
    return state


def _rank(contact: Contact) -> tuple[bool, bool, str]:
    """Return a sort key for contacts that are one person: the first one stays."""
    return contact.user.user_id is None, contact.seen_at is None, contact.contact_id


def _joined(user: UserRef, known: UserRef) -> UserRef:
    """Combine the names in an event with the known ones; a known BSUID never changes."""
    return UserRef(wa_id=user.wa_id or known.wa_id, user_id=known.user_id or user.user_id)


def _is_new_name(known: UserRef, user: UserRef) -> bool:
    """Tell whether an event has a BSUID or a number that the contact did not have."""
    return user.wa_id not in (None, known.wa_id) or user.user_id not in (None, known.user_id)


def _may_be(known: UserRef, asked: UserRef) -> bool:
    """Tell whether both may be the same person: a number can get a new owner, a BSUID cannot."""
    return known.user_id is None or asked.user_id is None or known.user_id == asked.user_id


def _is_plausible(fact: Fact, now: datetime) -> bool:
    try:
        check_time(fact, now=now)
    except FactError as error:
        log.warning("fact_refused", fact=type(fact).__name__, detail=str(error))
        return False
    return True
