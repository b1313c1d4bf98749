"""Builders of stored records with invented values; name only what the test is about."""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from msgspec.structs import replace

from gateway.common.ids import CallId, MetaCallId, PhoneNumberId, UserRef
from gateway.store.records import CallRecord, ContactRecord, DecisionRecord, EventRecord, FactRecord, TerminateFacts
from policy.facts import Direction

NUMBER = PhoneNumberId("100000000000001")
OTHER_NUMBER = PhoneNumberId("100000000000002")
USER = UserRef(wa_id="5511900000001", user_id="BR.10000000000000000001")
T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

_ids = count(1)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def new_id() -> str:
    return f"{next(_ids):032x}"


def event(dedupe_key: str | None = None, **changes: Any) -> EventRecord:
    base = EventRecord(
        phone_number_id=NUMBER,
        dedupe_key=dedupe_key or f"connect/{new_id()}",
        kind="connect",
        received_at=T0,
        body=b'{"event": "connect"}',
    )
    return replace(base, **changes)


def call(**changes: Any) -> CallRecord:
    call_id = new_id()
    base = CallRecord(
        call_id=CallId(call_id),
        version=1,
        phone_number_id=NUMBER,
        direction=Direction.USER_INITIATED,
        state="ringing",
        user=USER,
        user_name="Ana",
        created_at=T0,
        meta_call_id=MetaCallId(f"wacid.{call_id}"),
    )
    return replace(base, **changes)


def terminate(meta_call_id: str | None, **changes: Any) -> TerminateFacts:
    base = TerminateFacts(
        meta_call_id=MetaCallId(meta_call_id or "wacid.none"),
        meta_status="COMPLETED",
        meta_start_at=at(10),
        meta_end_at=at(70),
        duration_s=60,
    )
    return replace(base, **changes)


def contact(**changes: Any) -> ContactRecord:
    base = ContactRecord(
        contact_id=new_id(), phone_number_id=NUMBER, user=USER, name="Ana", state={"connected": 0}, seen_at=T0
    )
    return replace(base, **changes)


def fact(contact_id: str, key: str | None = None, **changes: Any) -> FactRecord:
    base = FactRecord(contact_id=contact_id, key=key or new_id(), at=T0, fact={"kind": "call_connected"})
    return replace(base, **changes)


def decision(**changes: Any) -> DecisionRecord:
    base = DecisionRecord(
        decision_id=new_id(),
        phone_number_id=NUMBER,
        user_key=USER.key,
        asked_by="maria",
        request="place",
        at=T0,
        allowed=True,
        pack="guide/2026-11-22",
        refusal=None,
    )
    return replace(base, **changes)
