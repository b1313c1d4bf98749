"""What the gateway keeps: the rows of the store as frozen values. [P]

Not responsible for SQL (see `store`) nor for what the values mean (see `call`, `policy`).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from gateway.callflow.outcome import EndReason, Result
from gateway.common.ids import CallId, MetaCallId, OperatorId, PhoneNumberId, UserRef
from policy.facts import Direction

Json = Mapping[str, Any]  #: a JSON object, only ever handed through


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a webhook delivery, kept as it came. Appending the same key twice keeps one."""

    phone_number_id: str  #: "" where the event names none
    dedupe_key: str
    kind: str
    received_at: datetime
    body: bytes  #: the JSON of this change


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call; saved again at each step, the highest `version` wins."""

    call_id: CallId
    version: int
    phone_number_id: PhoneNumberId
    direction: Direction
    state: str
    user: UserRef
    user_name: str | None
    created_at: datetime
    meta_call_id: MetaCallId | None = None
    operator: OperatorId | None = None
    ringing_at: datetime | None = None
    accepted_at: datetime | None = None
    ended_at: datetime | None = None
    result: Result | None = None
    reason: EndReason | None = None
    detail: str | None = None
    meta_status: str | None = None  #: COMPLETED or FAILED, from `terminate`
    meta_start_at: datetime | None = None
    meta_end_at: datetime | None = None
    duration_s: int | None = None  #: Meta's, from `terminate`; None: never picked up
    leg_stats: Json = msgspec.field(default_factory=dict)


class TerminateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A `terminate` that came when the call had already ended here: fills the record's Meta columns only."""

    meta_call_id: MetaCallId
    meta_status: str | None
    meta_start_at: datetime | None
    meta_end_at: datetime | None
    duration_s: int | None


class CallDeclined(msgspec.Struct, frozen=True, kw_only=True):
    """The user declined a call of ours; when Meta says so after its `terminate`, "not answered" becomes "declined"."""

    meta_call_id: MetaCallId


class EndOwed(msgspec.Struct, frozen=True, kw_only=True):
    """Whether Meta still has to be told that a call is over; may also tell Meta's id, where that was not known."""

    call_id: CallId
    owed: bool
    meta_call_id: MetaCallId | None = None


class ContactRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A WhatsApp user as one business number knows them, with the folded policy state."""

    contact_id: str  #: ours, 32 hex digits
    phone_number_id: PhoneNumberId
    user: UserRef
    name: str | None
    state: Json  #: policy.contact.state_to_dict
    seen_at: datetime


class FactRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One policy fact of one contact; (contact_id, key) is unique, and of two with one key the later instant stays.

    That is how `policy.contact` folds them, so that the facts lead to the snapshot whatever came first.
    """

    contact_id: str
    key: str
    at: datetime
    fact: Json  #: policy.facts.fact_to_dict


class ContactsMerged(msgspec.Struct, frozen=True, kw_only=True):
    """Two contacts turned out to be one person: the facts of the absorbed one become the kept one's, and it is gone."""

    kept: str
    absorbed: str


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate answered, to whom, and with which figures."""

    decision_id: str
    phone_number_id: PhoneNumberId
    user_key: str
    asked_by: str  #: an operator, "meta" or "api"
    request: str  #: place, receive or ask_permission
    at: datetime
    allowed: bool
    pack: str  #: name and version, "guide/2026-11-22"
    refusal: Json | None  #: reason, rule, observed, limit, retry_at, remedy


class NumberSaved(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a business number; the last one saved is kept."""

    phone_number_id: PhoneNumberId
    state: Json  #: gateway.numbers.facts.facts_to_json
    updated_at: datetime


#: One row to write; a group of them is one transaction.
Change = (
    EventRecord
    | CallRecord
    | EndOwed
    | TerminateFacts
    | CallDeclined
    | ContactRecord
    | FactRecord
    | ContactsMerged
    | DecisionRecord
    | NumberSaved
)
