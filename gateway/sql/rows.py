"""Records to rows and back: the only place that knows both the columns and the dataclasses.

Not responsible for connections (see `gateway.sql.link`). JSON goes as `jsonb`, instants as aware UTC.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from gateway.errors import StoreError
from gateway.ids import CallId, MetaCallId, OperatorId, PhoneNumberId, UserRef
from gateway.outcome import EndReason, Result
from gateway.records import (
    CallDeclined,
    CallRecord,
    Change,
    ContactRecord,
    ContactsMerged,
    DecisionRecord,
    EndOwed,
    EventRecord,
    FactRecord,
    NumberSaved,
    TerminateFacts,
)
from gateway.sql import QUERIES
from policy.facts import Direction

Row = Mapping[str, Any]
Values = tuple[object, ...]

#: A JSON escape for U+0000 that is not itself escaped.
_NUL_ESCAPE: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def json_bytes(value: object) -> bytes:
    """Encode for jsonb, which refuses U+0000: it becomes U+FFFD."""
    data = orjson.dumps(value, default=_plain)
    return _NUL_ESCAPE.sub(rb"\1\\ufffd", data) if rb"\u0000" in data else data


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _text(value: str | None) -> str | None:
    """Keep what people typed storable: PostgreSQL's text holds no U+0000."""
    return value.replace("\0", "\ufffd") if value is not None else None


def _utc(value: datetime | None) -> datetime | None:
    """Refuse a naive instant; the driver would take it for local time."""
    if value is not None and value.utcoffset() is None:
        raise StoreError("an instant without a time zone")
    return value


# --- records to rows -------------------------------------------------------------------------------


def _event(record: EventRecord) -> Values:
    return record.phone_number_id, record.dedupe_key, record.kind, _utc(record.received_at), record.body


def _call(record: CallRecord) -> Values:
    return (
        record.call_id,
        record.version,
        record.phone_number_id,
        record.direction,
        record.state,
        record.user.wa_id,
        record.user.user_id,
        _text(record.user_name),
        _utc(record.created_at),
        record.meta_call_id,
        record.operator,
        _utc(record.ringing_at),
        _utc(record.accepted_at),
        _utc(record.ended_at),
        record.result,
        record.reason,
        _text(record.detail),
        _text(record.meta_status),
        _utc(record.meta_start_at),
        _utc(record.meta_end_at),
        record.duration_s,
        record.leg_stats,
    )


def _owed(ending: EndOwed) -> Values:
    return ending.call_id, ending.owed, ending.meta_call_id


def _terminate(facts: TerminateFacts) -> Values:
    return (
        facts.meta_call_id,
        _text(facts.meta_status),
        _utc(facts.meta_start_at),
        _utc(facts.meta_end_at),
        facts.duration_s,
    )


def _contact(record: ContactRecord) -> Values:
    return (
        record.contact_id,
        record.phone_number_id,
        record.user.wa_id,
        record.user.user_id,
        _text(record.name),
        record.state,
        _utc(record.seen_at),
    )


def _fact(record: FactRecord) -> Values:
    return record.contact_id, record.key, _utc(record.at), record.fact


def _merged(merged: ContactsMerged) -> Values:
    return merged.kept, merged.absorbed


def _decision(record: DecisionRecord) -> Values:
    return (
        record.decision_id,
        record.phone_number_id,
        record.user_key,
        record.asked_by,
        record.request,
        _utc(record.at),
        record.allowed,
        record.pack,
        record.refusal,
    )


def _number(record: NumberSaved) -> Values:
    return record.phone_number_id, record.state, _utc(record.updated_at)


#: In this order each kind finds what it refers to: facts their contact, a merge both, an ending its call. A merge may
#: come after all saves of its transaction: whoever is absorbed has no BSUID, so that no two ever share one.
_WRITES: Final[tuple[tuple[type[Any], str, Callable[[Any], Values]], ...]] = (
    (EventRecord, QUERIES["insert_event"], _event),
    (ContactRecord, QUERIES["save_contact"], _contact),
    (FactRecord, QUERIES["insert_fact"], _fact),
    (ContactsMerged, QUERIES["drop_older_facts"], _merged),
    (ContactsMerged, QUERIES["move_facts"], _merged),
    (ContactsMerged, QUERIES["drop_contact"], lambda merged: (merged.absorbed,)),
    (CallRecord, QUERIES["save_call"], _call),
    (EndOwed, QUERIES["mark_end_owed"], _owed),
    (TerminateFacts, QUERIES["fill_terminate"], _terminate),
    (CallDeclined, QUERIES["mark_declined"], lambda declined: (declined.meta_call_id,)),
    (DecisionRecord, QUERIES["insert_decision"], _decision),
    (NumberSaved, QUERIES["save_number"], _number),
)


def statements(changes: Iterable[Change]) -> Iterator[tuple[str, Sequence[Values]]]:
    """Yield (statement, rows) for one transaction; the order of changes is kept within a kind."""
    by_kind: dict[type[Any], list[Change]] = {}
    for change in changes:
        by_kind.setdefault(type(change), []).append(change)
    if unknown := by_kind.keys() - {kind for kind, _, _ in _WRITES}:
        raise TypeError(f"no row for {next(iter(unknown)).__name__}")
    for kind, sql, values in _WRITES:
        if of_kind := by_kind.get(kind):
            yield sql, [values(change) for change in of_kind]


# --- rows to records; asyncpg reads timestamptz as aware UTC ------------------------------------------


def call(row: Row) -> CallRecord:
    return CallRecord(
        call_id=CallId(row["call_id"]),
        version=row["version"],
        phone_number_id=PhoneNumberId(row["phone_number_id"]),
        direction=Direction(row["direction"]),
        state=row["state"],
        user=UserRef(wa_id=row["wa_id"], user_id=row["user_id"]),
        user_name=row["user_name"],
        created_at=row["created_at"],
        meta_call_id=MetaCallId(row["meta_call_id"]) if row["meta_call_id"] is not None else None,
        operator=OperatorId(row["operator"]) if row["operator"] is not None else None,
        ringing_at=row["ringing_at"],
        accepted_at=row["accepted_at"],
        ended_at=row["ended_at"],
        result=Result(row["result"]) if row["result"] is not None else None,
        reason=EndReason(row["reason"]) if row["reason"] is not None else None,
        detail=row["detail"],
        meta_status=row["meta_status"],
        meta_start_at=row["meta_start_at"],
        meta_end_at=row["meta_end_at"],
        duration_s=row["duration_s"],
        leg_stats=row["leg_stats"],
    )


def contact(row: Row) -> ContactRecord:
    return ContactRecord(
        contact_id=row["contact_id"],
        phone_number_id=PhoneNumberId(row["phone_number_id"]),
        user=UserRef(wa_id=row["wa_id"], user_id=row["user_id"]),
        name=row["name"],
        state=row["state"],
        seen_at=row["seen_at"],
    )


def fact(row: Row) -> FactRecord:
    return FactRecord(contact_id=row["contact_id"], key=row["key"], at=row["at"], fact=row["fact"])


def decision(row: Row) -> DecisionRecord:
    return DecisionRecord(
        decision_id=row["decision_id"],
        phone_number_id=PhoneNumberId(row["phone_number_id"]),
        user_key=row["user_key"],
        asked_by=row["asked_by"],
        request=row["request"],
        at=row["at"],
        allowed=row["allowed"],
        pack=row["pack"],
        refusal=row["refusal"],
    )


def number(row: Row) -> NumberSaved:
    return NumberSaved(
        phone_number_id=PhoneNumberId(row["phone_number_id"]), state=row["state"], updated_at=row["updated_at"]
    )
