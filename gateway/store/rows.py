"""Convert records to rows and back: the only module that knows both the columns and the records.

Rows are sent to PostgreSQL as one JSON text, with all instants in UTC.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from gateway.callflow.outcome import EndReason, Result
from gateway.common.errors import StoreError
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
from policy.facts import Direction

Row = Mapping[str, Any]

#: Matches the JSON escape for U+0000, unless its backslash is itself escaped.
_NUL_ESCAPE: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def json_bytes(value: object) -> bytes:
    """Encode for jsonb; U+0000, which jsonb refuses, becomes U+FFFD."""
    data = orjson.dumps(value, default=_plain)
    return _NUL_ESCAPE.sub(rb"\1\\ufffd", data) if rb"\u0000" in data else data


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded as JSON")


def _text(value: str | None) -> str | None:
    """Replace U+0000 in free text: PostgreSQL's text cannot hold it."""
    return value.replace("\0", "\ufffd") if value is not None else None


def _utc(value: datetime | None) -> datetime | None:
    """Convert to UTC. Raises: StoreError if the instant has no time zone."""
    if value is None:
        return None
    if value.utcoffset() is None:
        raise StoreError("an instant without a time zone")
    return value.astimezone(UTC)


def _json(value: Json | None) -> orjson.Fragment | None:
    """Encode one jsonb column on its own: U+0000 is replaced only here; in an identifier it is an error."""
    return orjson.Fragment(json_bytes(value)) if value is not None else None


# --- records to rows -------------------------------------------------------------------------------


def _event(record: EventRecord) -> Row:
    return {
        "phone_number_id": record.phone_number_id,
        "dedupe_key": record.dedupe_key,
        "kind": record.kind,
        "received_at": _utc(record.received_at),
        "body": f"\\x{record.body.hex()}",  # the text form of bytea
    }


def _call(record: CallRecord) -> Row:
    return {
        "call_id": record.call_id,
        "version": record.version,
        "phone_number_id": record.phone_number_id,
        "direction": record.direction,
        "state": record.state,
        "wa_id": record.user.wa_id,
        "user_id": record.user.user_id,
        "user_name": _text(record.user_name),
        "created_at": _utc(record.created_at),
        "meta_call_id": record.meta_call_id,
        "operator": record.operator,
        "ringing_at": _utc(record.ringing_at),
        "accepted_at": _utc(record.accepted_at),
        "ended_at": _utc(record.ended_at),
        "result": record.result,
        "reason": record.reason,
        "detail": _text(record.detail),
        "meta_status": _text(record.meta_status),
        "meta_start_at": _utc(record.meta_start_at),
        "meta_end_at": _utc(record.meta_end_at),
        "duration_s": record.duration_s,
        "leg_stats": _json(record.leg_stats),
    }


def _owed(ending: EndOwed) -> Row:
    return {"call_id": ending.call_id, "owed": ending.owed, "meta_call_id": ending.meta_call_id}


def _terminate(facts: TerminateFacts) -> Row:
    return {
        "meta_call_id": facts.meta_call_id,
        "meta_status": _text(facts.meta_status),
        "meta_start_at": _utc(facts.meta_start_at),
        "meta_end_at": _utc(facts.meta_end_at),
        "duration_s": facts.duration_s,
    }


def _declined(declined: CallDeclined) -> Row:
    return {"meta_call_id": declined.meta_call_id}


def _contact(record: ContactRecord) -> Row:
    return {
        "contact_id": record.contact_id,
        "phone_number_id": record.phone_number_id,
        "wa_id": record.user.wa_id,
        "user_id": record.user.user_id,
        "name": _text(record.name),
        "state": _json(record.state),
        "seen_at": _utc(record.seen_at),
    }


def _fact(record: FactRecord) -> Row:
    return {
        "contact_id": record.contact_id,
        "key": record.key,
        "at": _utc(record.at),
        "fact": _json(record.fact),
    }


def _merged(merged: ContactsMerged) -> Row:
    return {"kept": merged.kept, "absorbed": merged.absorbed}


def _decision(record: DecisionRecord) -> Row:
    return {
        "decision_id": record.decision_id,
        "phone_number_id": record.phone_number_id,
        "user_key": record.user_key,
        "asked_by": record.asked_by,
        "request": record.request,
        "at": _utc(record.at),
        "allowed": record.allowed,
        "pack": record.pack,
        "refusal": _json(record.refusal),
    }


def _number(record: NumberSaved) -> Row:
    return {
        "phone_number_id": record.phone_number_id,
        "state": _json(record.state),
        "updated_at": _utc(record.updated_at),
    }


#: For each kind of record, its name in the argument of `save_changes` and the function that makes its row.
_WRITES: Final[Mapping[type[Any], tuple[str, Callable[[Any], Row]]]] = {
    EventRecord: ("events", _event),
    ContactRecord: ("contacts", _contact),
    FactRecord: ("facts", _fact),
    ContactsMerged: ("merges", _merged),
    CallRecord: ("calls", _call),
    EndOwed: ("endings", _owed),
    TerminateFacts: ("terminates", _terminate),
    CallDeclined: ("declines", _declined),
    DecisionRecord: ("decisions", _decision),
    NumberSaved: ("numbers", _number),
}


def argument(changes: Iterable[Change]) -> str:
    """Return the argument of `save_changes` that writes `changes`; it keeps their order within each kind."""
    by_kind: dict[str, list[Row]] = {}
    for change in _without_superseded(changes):
        kind, row = _WRITES[type(change)]
        by_kind.setdefault(kind, []).append(row(change))
    return orjson.dumps(by_kind).decode()


def _without_superseded(changes: Iterable[Change]) -> Iterator[Change]:
    """Leave out a call's record if the next one of the same call contains all of it: only the newest is stored."""
    newest: dict[CallId, CallRecord] = {}
    for change in changes:
        if not isinstance(change, CallRecord):
            yield change
            continue
        former = newest.get(change.call_id)
        if former is not None and not _supersedes(change, former):
            yield former
        newest[change.call_id] = change
    yield from newest.values()


#: A newer version may fill these columns, but never clears them.
_SAID_BY_META: Final = ("meta_call_id", "meta_status", "meta_start_at", "meta_end_at", "duration_s")


def _supersedes(new: CallRecord, old: CallRecord) -> bool:
    return (
        new.version > old.version
        and old.reason in (None, new.reason)
        and all(getattr(old, name) is None or getattr(new, name) is not None for name in _SAID_BY_META)
    )


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
