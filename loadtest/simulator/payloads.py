"""The JSON of Meta's webhooks, field by field. Pure: values in, dicts out.

Timestamps are strings of UNIX seconds, `duration` is an int, numbers have no `+`. If a user has a username, their phone
number is left out everywhere. Source: Meta's pages on user- and business-initiated calls, call permissions and call
settings, read 2026. The `errors` of a failed call appear twice, as in real traffic.
"""

import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from loadtest.simulator.config import NumberSpec, UserSpec
from loadtest.simulator.errors import webhook_error


class Direction(StrEnum):
    """Who placed the call."""

    USER_INITIATED = "USER_INITIATED"
    BUSINESS_INITIATED = "BUSINESS_INITIATED"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """The facts about a call that every webhook repeats."""

    id: str
    direction: Direction
    number: NumberSpec
    user: UserSpec
    deeplink_payload: str | None = None
    cta_payload: str | None = None
    biz_opaque_callback_data: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnd:
    """How a call ended."""

    failed: bool
    started_at: float | None
    ended_at: float
    error_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionReply:
    """A decision about calls, by the user or by Meta."""

    accept: bool
    automatic: bool
    permanent: bool = False
    expires_at: float | None = None
    #: The request's `wamid`, or the call's `wacid` for a callback permission.
    context_id: str | None = None


def signature(body: bytes, app_secret: str) -> str:
    """Return the X-Hub-Signature-256 header of these raw bytes."""
    return "sha256=" + hmac.digest(app_secret.encode(), body, "sha256").hex()


def signed_headers(body: bytes, app_secret: str) -> dict[str, str]:
    """Return the HTTP headers for delivering these raw bytes."""
    return {
        "Content-Type": "application/json",
        "X-Hub-Signature-256": signature(body, app_secret),
        "User-Agent": "facebookexternalua",
    }


def encoded(delivery: dict[str, Any]) -> bytes:
    """Return the bytes of a delivery.

    Non-ASCII characters are escaped, as Meta does: a receiver that signs the parsed text instead of the bytes fails.
    """
    body = orjson.dumps(delivery)
    return body if body.isascii() else json.dumps(delivery, separators=(",", ":")).encode()


def envelope(changes: Sequence[dict[str, Any]], waba_id: str) -> dict[str, Any]:
    """Wrap changes of one account in one delivery."""
    return {"object": "whatsapp_business_account", "entry": [{"id": waba_id, "changes": list(changes)}]}


def change(field: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return one entry of `changes`."""
    return {"field": field, "value": value}


def _value(number: NumberSpec, **more: Any) -> dict[str, Any]:
    metadata = {
        "display_phone_number": number.display_phone_number,
        "phone_number_id": number.phone_number_id,
    }
    return {"messaging_product": "whatsapp", "metadata": metadata, **more}


def contact(user: UserSpec) -> dict[str, Any]:
    """Return the user's entry of `contacts`."""
    entry: dict[str, Any] = {"profile": {"name": user.name}, "user_id": user.user_id}
    if user.hides_number:
        entry["profile"]["username"] = user.name.lower() + ".example"
    else:
        entry["wa_id"] = user.wa_id
    return entry


def _parties(facts: CallFacts) -> dict[str, Any]:
    user, business = facts.user, facts.number.display_phone_number
    number = {} if user.hides_number else {"": user.wa_id}
    if facts.direction is Direction.USER_INITIATED:
        mine = {f"from{key}": value for key, value in number.items()}
        return {**mine, "from_user_id": user.user_id, "to": business}
    mine = {f"to{key}": value for key, value in number.items()}
    return {"from": business, **mine, "to_user_id": user.user_id}


def _call(facts: CallFacts, event: str, at: float) -> dict[str, Any]:
    call = {
        "id": facts.id,
        **_parties(facts),
        "event": event,
        "timestamp": str(int(at)),
        "direction": facts.direction.value,
    }
    extras = {
        "deeplink_payload": facts.deeplink_payload,
        "cta_payload": facts.cta_payload,
        "biz_opaque_callback_data": facts.biz_opaque_callback_data,
    }
    return call | {name: value for name, value in extras.items() if value is not None}


def connect(facts: CallFacts, sdp: str, at: float) -> dict[str, Any]:
    """Return the `connect` event: Meta's offer (user-initiated) or answer (business-initiated)."""
    sdp_type = "offer" if facts.direction is Direction.USER_INITIATED else "answer"
    call = _call(facts, "connect", at) | {"session": {"sdp_type": sdp_type, "sdp": sdp}}
    return change("calls", _value(facts.number, contacts=[contact(facts.user)], calls=[call]))


def terminate(facts: CallFacts, end: CallEnd) -> dict[str, Any]:
    """Return the `terminate` event; times and duration only if the call was answered."""
    call = _call(facts, "terminate", end.ended_at) | {"status": "FAILED" if end.failed else "COMPLETED"}
    if end.started_at is not None:
        call["start_time"] = str(int(end.started_at))
        call["end_time"] = str(int(end.ended_at))
        call["duration"] = int(end.ended_at) - int(end.started_at)
    value = _value(facts.number, contacts=[contact(facts.user)], calls=[call])
    if end.error_code is not None:
        call["errors"] = [webhook_error(end.error_code)]
        value["errors"] = [webhook_error(end.error_code)]
    return change("calls", value)


def call_status(facts: CallFacts, status: str, at: float) -> dict[str, Any]:
    """Return RINGING, ACCEPTED or REJECTED of a business-initiated call."""
    entry = {
        "id": facts.id,
        "type": "call",
        "status": status,
        "timestamp": str(int(at)),
        "recipient_user_id": facts.user.user_id,
    }
    if not facts.user.hides_number:
        entry["recipient_id"] = facts.user.wa_id
    if facts.biz_opaque_callback_data is not None:
        entry["biz_opaque_callback_data"] = facts.biz_opaque_callback_data
    return change("calls", _value(facts.number, contacts=[contact(facts.user)], statuses=[entry]))


def _message(number: NumberSpec, user: UserSpec, message: dict[str, Any]) -> dict[str, Any]:
    sender = {} if user.hides_number else {"from": user.wa_id}
    whole = {**sender, "from_user_id": user.user_id, **message}
    return change("messages", _value(number, contacts=[contact(user)], messages=[whole]))


def text_message(number: NumberSpec, user: UserSpec, message_id: str, text: str, at: float) -> dict[str, Any]:
    """Return a message the user wrote."""
    body = {"id": message_id, "timestamp": str(int(at)), "type": "text", "text": {"body": text}}
    return _message(number, user, body)


def permission_reply(
    number: NumberSpec, user: UserSpec, message_id: str, reply: PermissionReply, at: float
) -> dict[str, Any]:
    """Return a `call_permission_reply`."""
    inner: dict[str, Any] = {
        "response": "accept" if reply.accept else "reject",
        "response_source": "automatic" if reply.automatic else "user_action",
    }
    if reply.accept:
        inner["is_permanent"] = reply.permanent
        if reply.expires_at is not None:
            inner["expiration_timestamp"] = str(int(reply.expires_at))
    body: dict[str, Any] = {"id": message_id, "timestamp": str(int(at)), "type": "interactive"}
    if reply.context_id is not None:
        body["context"] = {"from": number.display_phone_number, "id": reply.context_id}
    body["interactive"] = {"type": "call_permission_reply", "call_permission_reply": inner}
    return _message(number, user, body)


def message_status(number: NumberSpec, user: UserSpec, message_id: str, status: str, at: float) -> dict[str, Any]:
    """Return `sent`, `delivered` or `read` of a message of the business."""
    entry = {
        "id": message_id,
        "status": status,
        "timestamp": str(int(at)),
        "recipient_user_id": user.user_id,
    }
    if not user.hides_number:
        entry["recipient_id"] = user.wa_id
    return change("messages", _value(number, contacts=[contact(user)], statuses=[entry]))


def settings_update(number: NumberSpec, calling: dict[str, Any], at: float) -> dict[str, Any]:
    """Return `account_settings_update` after a change of the calling settings."""
    return change(
        "account_settings_update",
        {
            "messaging_product": "whatsapp",
            "timestamp": str(int(at)),
            "type": "phone_number_settings",
            "phone_number_settings": {"phone_number_id": number.phone_number_id, "calling": calling},
        },
    )


def restriction(number: NumberSpec, kind: str, expires_at: float) -> dict[str, Any]:
    """Return the `account_update` that announces a restriction of calling."""
    info = {"restriction_type": kind, "expiration": int(expires_at)}
    return change(
        "account_update",
        {
            "phone_number": number.display_phone_number,
            "event": "ACCOUNT_RESTRICTION",
            "restriction_info": [info],
        },
    )
