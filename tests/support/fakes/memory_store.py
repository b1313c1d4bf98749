"""`Store` in memory, for tests of everything that stands on it. It passes the contract suite of the real one."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from msgspec.structs import replace

from gateway.callflow.outcome import EndReason, Result
from gateway.common.errors import StoreDown, StoreError
from gateway.common.ids import CallId, MetaCallId, OperatorId, PhoneNumberId, UserRef
from gateway.store.records import (
    CallDeclined,
    CallRecord,
    Change,
    ContactRecord,
    ContactsMerged,
    DecisionRecord,
    EndOwed,
    EventRecord,
    FactRecord,
    Json,
    NumberSaved,
    TerminateFacts,
)
from gateway.store.rows import json_bytes
from gateway.store.store import IDEMPOTENCY_TTL, Replay, ReplayState
from policy.facts import Direction

_META_FIELDS = ("meta_status", "meta_start_at", "meta_end_at", "duration_s")
_TYPED_BY_PEOPLE = {"user_name", "name", "detail", "meta_status"}
_C = TypeVar("_C", bound=Change)


@dataclass(slots=True)
class _Tables:
    events: dict[tuple[str, str], EventRecord] = field(default_factory=dict)
    calls: dict[CallId, CallRecord] = field(default_factory=dict)
    owed: dict[CallId, EndOwed] = field(default_factory=dict)
    contacts: dict[str, ContactRecord] = field(default_factory=dict)
    facts: dict[tuple[str, str], FactRecord] = field(default_factory=dict)
    decisions: dict[str, DecisionRecord] = field(default_factory=dict)
    numbers: dict[PhoneNumberId, NumberSaved] = field(default_factory=dict)


class MemoryStore:
    """See `gateway.store.store.Store`. `fail_with` takes the database away, `heal` brings it back."""

    def __init__(self) -> None:
        self.written: list[tuple[Change, ...]] = []  #: groups in the order in which they became durable
        self.waiting: list[tuple[Change, ...]] = []  #: `write_soon` while the database is away
        self._tables = _Tables()
        self._replays: dict[str, tuple[str, Json | None, datetime]] = {}
        self._error: Exception | None = StoreDown("not started")

    # --- switches for tests ---------------------------------------------------------------------

    def fail_with(self, error: Exception | None = None) -> None:
        """From now on everything raises `error`, by default StoreDown."""
        self._error = error or StoreDown("taken away by the test")

    def heal(self) -> None:
        """Answer again; what `write_soon` left in line is written first."""
        self._error = None
        waiting, self.waiting = self.waiting, []
        for group in waiting:
            self.write_soon(*group)

    def forget_the_past(self) -> None:
        """Drop what only records the past: each write copies the tables, and a long test has many."""
        self.written.clear()
        for table in (self._tables.events, self._tables.calls, self._tables.decisions):
            table.clear()

    def is_owed(self, call: CallRecord) -> bool:
        """Tell whether Meta has not confirmed the end of a call."""
        ending = self._tables.owed.get(call.call_id)
        return ending is not None and ending.owed

    @property
    def events(self) -> list[EventRecord]:
        return list(self._tables.events.values())

    # --- Store ----------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        return self._error is None

    async def start(self) -> None:
        self.heal()

    async def aclose(self) -> None:
        self.fail_with(StoreDown("closed"))

    async def write(self, *changes: Change) -> None:
        self._check()
        self._apply(changes)

    def write_soon(self, *changes: Change) -> None:
        if not self.up:
            self.waiting.append(changes)
            return
        try:
            self._apply(changes)
        except StoreError:
            return  # logged and counted by the real one

    async def contact(self, phone_number_id: PhoneNumberId, user: UserRef) -> ContactRecord | None:
        self._check()
        found = [
            contact
            for contact in self._tables.contacts.values()
            if contact.phone_number_id == phone_number_id and _same_user(contact.user, user)
        ]
        found.sort(key=lambda contact: contact.seen_at, reverse=True)
        found.sort(key=lambda contact: user.user_id is None or contact.user.user_id != user.user_id)
        return found[0] if found else None

    async def contacts_named(self, phone_number_id: PhoneNumberId, user: UserRef) -> list[ContactRecord]:
        self._check()
        found = [
            contact
            for contact in self._tables.contacts.values()
            if contact.phone_number_id == phone_number_id
            and (contact.user.user_id == user.user_id or contact.user.wa_id == user.wa_id)
        ]
        found.sort(key=lambda contact: contact.contact_id)
        found.sort(key=lambda contact: contact.seen_at, reverse=True)
        return sorted(found, key=lambda contact: (contact.user.user_id != user.user_id, bool(contact.user.user_id)))

    async def facts(self, contact_id: str) -> list[FactRecord]:
        self._check()
        found = [fact for fact in self._tables.facts.values() if fact.contact_id == contact_id]
        return sorted(found, key=lambda fact: fact.at)

    async def call(self, call_id: CallId) -> CallRecord | None:
        self._check()
        return self._tables.calls.get(call_id)

    async def call_by_meta_id(self, meta_call_id: MetaCallId) -> CallRecord | None:
        self._check()
        found = [call for call in self._tables.calls.values() if call.meta_call_id == meta_call_id]
        return max(found, key=lambda call: call.created_at) if found else None

    async def recent_calls(
        self, *, phone_number_ids: Sequence[PhoneNumberId], limit: int, operator: OperatorId | None = None
    ) -> list[CallRecord]:
        self._check()
        found = [
            call
            for call in sorted(self._tables.calls.values(), key=lambda call: call.call_id)
            if call.phone_number_id in phone_number_ids and operator in (None, call.operator)
        ]
        return sorted(found, key=lambda call: call.created_at, reverse=True)[:limit]

    async def unfinished_calls(self) -> list[CallRecord]:
        self._check()
        found = [call for call in self._tables.calls.values() if call.state != "ended" or self.is_owed(call)]
        return sorted(found, key=lambda call: (call.created_at, call.call_id))

    async def decisions(
        self, phone_number_id: PhoneNumberId, *, user_key: str | None = None, limit: int = 50
    ) -> list[DecisionRecord]:
        self._check()
        found = [
            decision
            for decision in sorted(self._tables.decisions.values(), key=lambda decision: decision.decision_id)
            if decision.phone_number_id == phone_number_id and user_key in (None, decision.user_key)
        ]
        return sorted(found, key=lambda decision: decision.at, reverse=True)[:limit]

    async def numbers(self) -> list[NumberSaved]:
        self._check()
        return list(self._tables.numbers.values())

    async def placed_calls(
        self, phone_number_ids: Sequence[PhoneNumberId], since: datetime
    ) -> dict[PhoneNumberId, list[datetime]]:
        self._check()
        return {
            number_id: sorted(
                call.created_at
                for call in self._tables.calls.values()
                if call.phone_number_id == number_id and call.created_at > since and _counts_as_placed(call)
            )
            for number_id in phone_number_ids
        }

    async def recent_event_keys(self, since: datetime) -> set[str]:
        self._check()
        return {event.dedupe_key for event in self._tables.events.values() if event.received_at >= since}

    async def known_events(self, phone_number_id: str, keys: Sequence[str]) -> set[str]:
        self._check()
        return {key for key in keys if (phone_number_id, key) in self._tables.events}

    async def forget(self, *, events_before: datetime, keys_before: datetime, limit: int) -> int:
        self._check()
        events = [key for key, event in self._tables.events.items() if event.received_at < events_before][:limit]
        replays = [key for key, (_, _, at) in self._replays.items() if at < keys_before][:limit]
        for event_key in events:
            del self._tables.events[event_key]
        for replay_key in replays:
            del self._replays[replay_key]
        return len(events) + len(replays)

    async def idempotent(self, key: str, fingerprint: str, now: datetime) -> Replay | None:
        self._check()
        old = self._replays.get(key)
        if old is None or old[2] <= now - IDEMPOTENCY_TTL:
            self._replays[key] = (fingerprint, None, now)
            return None
        if old[0] != fingerprint:
            return Replay(state=ReplayState.CONFLICT)
        if old[1] is None:
            return Replay(state=ReplayState.IN_PROGRESS)
        return Replay(state=ReplayState.DONE, response=old[1])

    async def save_idempotent(self, key: str, fingerprint: str, response: Json) -> None:
        self._check()
        old = self._replays.get(key)
        if old is not None and old[0] == fingerprint:
            self._replays[key] = (fingerprint, _plain(response), old[2])

    async def healthy(self, timeout_s: float = 1.0) -> bool:
        return self.up

    # --- one transaction ------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _apply(self, changes: tuple[Change, ...]) -> None:
        """All or nothing, `terminate` last as in the real one."""
        before = copy.copy(self._tables)
        for table in fields(_Tables):
            setattr(before, table.name, dict(getattr(self._tables, table.name)))
        try:
            for change in sorted(changes, key=_rank):
                self._put(_stored(change))
        except StoreError:
            self._tables = before
            raise
        if changes:
            self.written.append(changes)

    def _put(self, change: Change) -> None:
        match change:
            case EventRecord():
                self._tables.events.setdefault((change.phone_number_id, change.dedupe_key), change)
            case ContactRecord():
                self._put_contact(change)
            case FactRecord():
                if change.contact_id not in self._tables.contacts:
                    raise StoreError("a fact of nobody")
                self._put_fact(change)
            case ContactsMerged():
                self._merge(change)
            case CallRecord():
                self._put_call(change)
            case EndOwed():
                call_owed = self._tables.calls.get(change.call_id)
                if call_owed is not None:
                    self._tables.owed[change.call_id] = change
                    meta_call_id = call_owed.meta_call_id or change.meta_call_id
                    self._tables.calls[change.call_id] = replace(call_owed, meta_call_id=meta_call_id)
            case TerminateFacts():
                for call in list(self._tables.calls.values()):
                    if call.meta_call_id == change.meta_call_id:
                        self._tables.calls[call.call_id] = _filled(call, change)
            case CallDeclined():
                for call in list(self._tables.calls.values()):
                    if call.meta_call_id == change.meta_call_id and _went_unanswered(call):
                        self._tables.calls[call.call_id] = replace(call, reason=EndReason.DECLINED)
            case DecisionRecord():
                if change.allowed != (change.refusal is None):
                    raise StoreError("a refusal without a reason, or a reason without a refusal")
                if change.request not in ("place", "receive", "ask_permission"):
                    raise StoreError("an unknown request")
                self._tables.decisions.setdefault(change.decision_id, change)
            case NumberSaved():
                self._tables.numbers[change.phone_number_id] = change

    def _put_contact(self, new: ContactRecord) -> None:
        for other in self._tables.contacts.values():
            same = (other.phone_number_id, other.user.user_id) == (new.phone_number_id, new.user.user_id)
            if same and new.user.user_id is not None and other.contact_id != new.contact_id:
                raise StoreError("two contacts with one BSUID")
        old = self._tables.contacts.get(new.contact_id)
        if old is not None:
            user = UserRef(wa_id=new.user.wa_id, user_id=new.user.user_id or old.user.user_id)
            seen_at = max(new.seen_at, old.seen_at)
            name = old.name if new.name is None else new.name
            new = replace(old, user=user, name=name, state=new.state, seen_at=seen_at)
        self._tables.contacts[new.contact_id] = new

    def _put_fact(self, new: FactRecord) -> None:
        old = self._tables.facts.get((new.contact_id, new.key))
        if old is None or old.at < new.at:
            self._tables.facts[(new.contact_id, new.key)] = new

    def _merge(self, merged: ContactsMerged) -> None:
        moved = [fact for fact in self._tables.facts.values() if fact.contact_id == merged.absorbed]
        if moved and merged.kept not in self._tables.contacts:
            raise StoreError("facts for nobody")
        for fact in moved:
            del self._tables.facts[(fact.contact_id, fact.key)]
            self._put_fact(replace(fact, contact_id=merged.kept))
        self._tables.contacts.pop(merged.absorbed, None)

    def _put_call(self, new: CallRecord) -> None:
        for other in self._tables.calls.values():
            same = (other.meta_call_id, other.phone_number_id) == (new.meta_call_id, new.phone_number_id)
            if same and new.meta_call_id is not None and other.call_id != new.call_id:
                raise StoreError("two calls with one id of Meta's")
        old = self._tables.calls.get(new.call_id)
        if old is None:
            self._tables.calls[new.call_id] = new
        elif old.version < new.version:
            new = replace(new, meta_call_id=new.meta_call_id or old.meta_call_id)
            if old.reason is EndReason.DECLINED and new.reason is EndReason.NOT_ANSWERED:
                new = replace(new, reason=old.reason)
            self._tables.calls[new.call_id] = _filled(new, old)


def _counts_as_placed(call: CallRecord) -> bool:
    maybe = call.meta_call_id is not None or call.result in (None, Result.INDETERMINATE)
    return maybe and call.direction is Direction.BUSINESS_INITIATED


def _went_unanswered(call: CallRecord) -> bool:
    ours = call.direction is Direction.BUSINESS_INITIATED
    return ours and call.result is Result.USER and call.reason is EndReason.NOT_ANSWERED


def _rank(change: Change) -> int:
    order = (
        EventRecord,
        ContactRecord,
        FactRecord,
        ContactsMerged,
        CallRecord,
        EndOwed,
        TerminateFacts,
        CallDeclined,
        DecisionRecord,
        NumberSaved,
    )
    return order.index(type(change))


def _filled(call: CallRecord, source: CallRecord | TerminateFacts) -> CallRecord:
    """Fill what Meta has not said yet."""
    missing = {name: getattr(source, name) for name in _META_FIELDS if getattr(call, name) is None}
    return replace(call, **missing)


def _same_user(known: UserRef, asked: UserRef) -> bool:
    if asked.user_id is not None and known.user_id is not None:
        return known.user_id == asked.user_id
    return known.wa_id is not None and known.wa_id == asked.wa_id


def _plain(value: Json) -> Json:
    """What comes back after a way through JSON."""
    try:
        plain: Json = orjson.loads(json_bytes(value))
    except TypeError as error:
        raise StoreError("no JSON") from error
    return plain


def _stored(change: _C) -> _C:
    """Return `change` as a database gives it back."""
    new: dict[str, Any] = {}
    for column in change.__struct_fields__:
        value = getattr(change, column)
        if isinstance(value, datetime):
            if value.utcoffset() is None:
                raise StoreError("an instant without a time zone")
            new[column] = value.astimezone(UTC)
        if isinstance(value, str) and column in _TYPED_BY_PEOPLE:
            new[column] = value.replace("\0", "\ufffd")
        elif isinstance(value, str) and "\0" in value:
            raise StoreError("U+0000 in an identifier")
        elif column in ("leg_stats", "state", "fact", "refusal") and not isinstance(value, str | None):
            new[column] = _plain(value)
    return replace(change, **new)
