"""Everything that the gateway stores, as frozen values. [P]

`callflow` and `policy` define what the values mean.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from gateway.callflow.outcome import EndReason, Result
from gateway.common.ids import CallId, MetaCallId, OperatorId, PhoneNumberId, UserRef
from policy.facts import Direction

Json = Mapping[str, Any]  #: a JSON object, stored without looking inside


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a webhook delivery, unchanged. Writing the same key twice stores one."""

    phone_number_id: str  #: "" if the event names no number
    dedupe_key: str
    kind: str
    received_at: datetime
    body: bytes  #: the JSON of this change


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call, saved again at each step; the highest `version` wins."""

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
    duration_s: int | None = None  #: Meta's, from `terminate`; None: never accepted
    leg_stats: Json = msgspec.field(default_factory=dict)


class TerminateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A `terminate` that came after the call had ended here: it fills only the Meta columns of the record."""

    meta_call_id: MetaCallId
    meta_status: str | None
    meta_start_at: datetime | None
    meta_end_at: datetime | None
    duration_s: int | None


class CallDeclined(msgspec.Struct, frozen=True, kw_only=True):
    """The user declined a business-initiated call; after `terminate`, this turns "not answered" into "declined"."""

    meta_call_id: MetaCallId


class EndOwed(msgspec.Struct, frozen=True, kw_only=True):
    """Whether we still owe Meta a hang-up for a call; also stores Meta's call id if it was not known."""

    call_id: CallId
    owed: bool
    meta_call_id: MetaCallId | None = None


class ContactRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A WhatsApp user as known to one business number, with the folded policy state."""

    contact_id: str  #: ours, 32 hex digits
    phone_number_id: PhoneNumberId
    user: UserRef
    name: str | None
    state: Json  #: policy.contact.state_to_dict
    seen_at: datetime


class FactRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One policy fact of one contact; (contact_id, key) is unique, and the later instant wins.

    `policy.contact` folds facts by the same rule, so they lead to the stored snapshot in whatever order they came.
    """

    contact_id: str
    key: str
    at: datetime
    fact: Json  #: policy.facts.fact_to_dict


class ContactsMerged(msgspec.Struct, frozen=True, kw_only=True):
    """Two contacts turned out to be one person: move the facts of `absorbed` to `kept` and delete `absorbed`."""

    kept: str
    absorbed: str


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the gate: who asked, about whom, and the figures of a refusal."""

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
    """The known facts of a business number; the last save wins."""

    phone_number_id: PhoneNumberId
    state: Json  #: gateway.numbers.facts.facts_to_json
    updated_at: datetime


#: One change to write; a group of them is one transaction.
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
