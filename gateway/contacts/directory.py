"""The contacts of each number with their folded policy state: in memory, behind it the store.

Responsible for finding a contact by number or BSUID, for applying facts and for saying what must be written then.
Not responsible for what facts mean (see `policy.contact`) nor for writing (see `store`).
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
    """One WhatsApp user as one number knows them; changed only by `Contacts`."""

    contact_id: str
    number_id: PhoneNumberId
    user: UserRef
    name: str | None
    state: ContactState = EMPTY
    seen_at: datetime | None = None  #: None: never written
    former_ids: tuple[str, ...] = ()  #: of contacts that turned out to be this one
    absorbed_by: "Contact | None" = None  #: this turned out to be that one
    owed: dict[str, FactRecord] = field(default_factory=dict)  #: folded, and perhaps not in the store

    @property
    def current(self) -> "Contact":
        """The contact that this one has become; whoever waited for something may hold an old one."""
        return self if self.absorbed_by is None else self.absorbed_by.current

    @property
    def ids(self) -> tuple[str, ...]:
        """Its id and those that it ever had."""
        return (self.contact_id, *self.former_ids)


class ContactListener(Protocol):
    """Told when the gate's answer about a contact may have changed, so that operators see it."""

    def contact_changed(self, number: Number, contact: Contact) -> None: ...


class Contacts:
    """A bounded cache; a contact that is not in it costs one indexed read.

    There is one `Contact` a person for as long as anybody holds it, also one that the cache has dropped. When an event
    ties a number to a BSUID that was known by itself, the two become one: states merge (what both hold counts once),
    the store moves the facts in the same transaction, and the contact known by BSUID is the one that stays, whichever
    of the two was heard of first.

    A number belongs to one person at a time: to whom an event tied it last. Whoever had it before keeps their BSUID and
    their history and loses the number, in memory and in the store: their permission must not ring somebody else.
    """

    def __init__(self, store: Store, *, cache_size: int = CACHE_SIZE) -> None:
        self._store = store
        self._cache_size = cache_size
        self._by_name: OrderedDict[tuple[PhoneNumberId, str], Contact] = OrderedDict()
        self._alive: WeakValueDictionary[str, Contact] = WeakValueDictionary()

    def __len__(self) -> int:
        """Count the names in memory; most contacts have two."""
        return len(self._by_name)

    def peek(self, number_id: PhoneNumberId, user: UserRef) -> Contact | None:
        """Return the contact if it is in memory."""
        for contact in self._named(number_id, user):
            self._remember(contact)
            return contact
        return None

    async def get(self, number: Number, user: UserRef, name: str | None = None) -> Contact:
        """Return the contact, from memory, from the store, or new. Raises: StoreDown."""
        found = self.peek(number.id, user)
        if found is None or _is_news(found.user, user):
            read = await self._read(number.id, user)
            # From here on nothing suspends: what was read joins what somebody else may have learned meanwhile.
            found = self._one_of(self._candidates(number.id, user, read), number.id, user)
            self._name(found, user, read)
        found.name = name or found.name
        self._remember(found)
        return found

    def apply(self, contact: Contact, *facts: Fact, seen_at: datetime) -> tuple[Change, ...]:
        """Fold facts into the contact at once; return what is to be written, at once and in one transaction.

        A fact whose time cannot be (no clock error explains it) is logged and left out: it would outweigh true ones.
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
        """These were perhaps not written though they are folded: they go along with whatever is written next.

        Else a snapshot would hold what no fact explains.
        """
        for change in changes:
            contact = self._alive.get(change.contact_id) if isinstance(change, FactRecord) else None
            if contact is not None and isinstance(change, FactRecord):
                contact = contact.current
                contact.owed[change.key] = replace(change, contact_id=contact.contact_id)

    # --- finding -----------------------------------------------------------------------------------

    def _named(self, number_id: PhoneNumberId, user: UserRef) -> Iterator[Contact]:
        """Yield who is in memory under either name and may be this user; one known by both comes twice."""
        for name in (user.user_id, user.wa_id):
            contact = self._by_name.get((number_id, name)) if name else None
            if contact is not None and _may_be(contact.user, user):
                yield contact

    async def _read(self, number_id: PhoneNumberId, user: UserRef) -> list[Contact]:
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
            contact = self._new(record.contact_id, record.phone_number_id, record.user, record.name)
            contact.state, contact.seen_at = state, record.seen_at
        return contact

    def _candidates(self, number_id: PhoneNumberId, user: UserRef, read: Iterable[Contact]) -> list[Contact]:
        """List, once each, who may be this user. A single name leads to one of them: memory knows better whom."""
        known = list(self._named(number_id, user))
        if not known or (user.user_id and user.wa_id):
            known += [contact.current for contact in read if _may_be(contact.current.user, user)]
        return list({contact.contact_id: contact for contact in known}.values())

    def _one_of(self, candidates: list[Contact], number_id: PhoneNumberId, user: UserRef) -> Contact:
        """Return the only one, or make one of them all; of nobody, make a stranger."""
        if not candidates:
            return self._new(uuid.uuid4().hex, number_id, user, None)
        kept, *others = sorted(candidates, key=_rank)
        if others:
            self._forget(kept)
            kept.user = _joined(user, kept.user)
        for other in others:
            self._absorb(kept, other)
        return kept

    def _name(self, contact: Contact, user: UserRef, read: Iterable[Contact]) -> None:
        """Name a contact as an event does, and take the number from whoever had it until now."""
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
        """Make one of two, in memory at once and in the store behind everything that was written before."""
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

    def _new(self, contact_id: str, number_id: PhoneNumberId, user: UserRef, name: str | None) -> Contact:
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
        """Keep a contact under its names, but for one that is another's by now."""
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
        """Drop all names of a contact at once: half of them would lead to a second copy of it."""
        for name in (contact.user.user_id, contact.user.wa_id):
            if name and self._by_name.get((contact.number_id, name)) is contact:
                del self._by_name[(contact.number_id, name)]


def refold(records: Iterable[FactRecord]) -> ContactState:
    """Make a state of stored facts. One that this version cannot read is logged and left out."""
    state = EMPTY
    for record in records:
        try:
            state = apply(state, fact_from_dict(record.fact))
        except FactError as error:
            log.error("fact_unreadable", contact_id=record.contact_id, key=record.key, detail=str(error))
    return state


def _rank(contact: Contact) -> tuple[bool, bool, str]:
    """Order contacts that are one person by which of them stays."""
    return contact.user.user_id is None, contact.seen_at is None, contact.contact_id


def _joined(user: UserRef, known: UserRef) -> UserRef:
    """Name a user as an event does, and where it does not, as before; a BSUID never changes."""
    return UserRef(wa_id=user.wa_id or known.wa_id, user_id=known.user_id or user.user_id)


def _is_news(known: UserRef, user: UserRef) -> bool:
    """Tell whether an event ties a name to a contact that was not known by it."""
    return user.wa_id not in (None, known.wa_id) or user.user_id not in (None, known.user_id)


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
