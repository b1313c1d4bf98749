"""Read webhook JSON as frozen events. [P]

Each `entry[].changes[]` becomes one or more events, each with a semantic dedupe key. What is unknown or not readable
becomes an `UnknownEvent`, never an exception. `intake.webhook` checks the signature; `intake.inbox` handles the events.

Source for all shapes: Meta, WhatsApp Business Calling API (user-initiated, business-initiated, user call permissions)
and "Webhooks", read 2026-11-22.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
import orjson

from gateway.common.ids import MetaCallId, PhoneNumberId, UserRef
from gateway.meta import shapes
from gateway.meta.number_events import NumberEvent, read_number_change
from gateway.meta.shapes import BaseEvent
from policy.facts import Direction

#: Matches each JSON escape; a surrogate pair is one match.
_ESCAPES: Final = re.compile(rb"\\(u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOffered(BaseEvent):
    """A user-initiated call: `connect` with an SDP offer."""

    at: datetime
    meta_call_id: MetaCallId
    user: UserRef
    user_name: str | None
    sdp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswered(BaseEvent):
    """The media path of a business-initiated call: `connect` with an SDP answer. The user has not accepted yet."""

    at: datetime
    meta_call_id: MetaCallId
    sdp: str
    opaque: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStatus(BaseEvent):
    """RINGING, ACCEPTED or REJECTED of a business-initiated call."""

    at: datetime
    meta_call_id: MetaCallId
    user: UserRef | None
    status: str
    opaque: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTerminated(BaseEvent):
    """The end of a call. The call was connected if and only if `start_at` is set."""

    at: datetime
    meta_call_id: MetaCallId
    direction: Direction | None
    user: UserRef | None
    status: str | None
    start_at: datetime | None
    end_at: datetime | None
    duration_s: int | None
    error: str | None  #: Meta's code and details, safe to show
    error_code: int | None
    opaque: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionReply(BaseEvent):
    """The user (or Meta, if `automatic`) granted or revoked the permission to be called."""

    at: datetime
    user: UserRef
    user_name: str | None
    accepted: bool
    permanent: bool
    expires_at: datetime | None
    automatic: bool
    request_id: str | None  #: the `wamid.…` of our request, or the `wacid.…` of the user's call


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMessage(BaseEvent):
    """Any other message from a user: it opens the 24-hour customer service window."""

    at: datetime
    user: UserRef
    user_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent(BaseEvent):
    """Stored and acknowledged, otherwise ignored."""


CallOrUserEvent = CallOffered | CallAnswered | CallStatus | CallTerminated | PermissionReply | UserMessage
#: The events of a call that exists already.
CallEvent = CallAnswered | CallStatus | CallTerminated
Event = CallOrUserEvent | NumberEvent | UnknownEvent


# --- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Item:
    """One element of a change, with the parts of the change that belong to it."""

    number_id: PhoneNumberId
    field: str
    raw: Any
    contacts: tuple[shapes.Contact, ...]
    errors: Sequence[Any]

    def body(self) -> bytes:
        return orjson.dumps(self.raw)


def read_delivery(body: bytes) -> list[Event]:
    """Return the events of one signed delivery, in order: at least one, and every part is in one. Never raises."""
    try:
        delivery = _load(body)
        # Two of Meta's samples are wrapped in an array.
        wrapped = delivery if isinstance(delivery, list) else [delivery]
        events = [
            event for part in wrapped for change, sent_at in _changes(part) for event in _read_change(change, sent_at)
        ]
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # the latter: nested too deeply to be serialised
        events = []
    return events or [_malformed(body)]


def _load(body: bytes) -> Any:
    """Parse JSON, and replace lone surrogates (a name cut inside an emoji) instead of losing the call.

    Raises: JSONDecodeError.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return orjson.loads(_ESCAPES.sub(lambda found: rb"\ufffd" if found[2] else found[0], body))


def _changes(delivery: object) -> Iterator[tuple[object, object]]:
    """Yield every change with its entry's time; an entry without changes is yielded itself, so nothing is lost."""
    for entry in shapes.each(shapes.get(delivery, "entry")) or [delivery]:
        for change in shapes.each(shapes.get(entry, "changes")) or [entry]:
            yield change, shapes.get(entry, "time")


def _read_change(change: object, sent_at: object) -> Iterator[Event]:
    field, value = shapes.get(change, "field"), shapes.get(change, "value")
    items = list(_items(value)) if field in ("calls", "messages") else []
    about_number = _number_event(change, sent_at)
    if about_number is not None:
        yield about_number
    elif not items:
        kind = field if isinstance(field, str) and field in _KNOWN_FIELDS else "other"
        yield _unknown(f"field.{kind}", _number_id(value), orjson.dumps(change))
    for item in items:
        try:
            yield _read_item(item)
        except ValueError:  # msgspec.ValidationError is one
            yield _unknown(f"{item.field}.unreadable", item.number_id, item.body())


def _number_event(change: object, sent_at: object) -> NumberEvent | None:
    try:
        return read_number_change(change, sent_at=sent_at)
    except ValueError:
        return None


_KNOWN_FIELDS: Final = frozenset({"calls", "messages", "account_update", "account_settings_update", "account_alerts"})


def _items(value: object) -> Iterator[_Item]:
    number_id = _number_id(value)
    contacts = tuple(_contact(raw) for raw in shapes.each(shapes.get(value, "contacts")))
    errors = shapes.each(shapes.get(value, "errors"))
    for field in ("calls", "statuses", "messages"):
        for raw in shapes.each(shapes.get(value, field)):
            yield _Item(number_id, field, raw, contacts, errors)


def _number_id(value: object) -> PhoneNumberId:
    return shapes.number_id(shapes.get(shapes.get(value, "metadata"), "phone_number_id"))


def _read_item(item: _Item) -> Event:
    if item.field == "calls":
        return _read_call(item, msgspec.convert(item.raw, shapes.WebhookCall, strict=False))
    if item.field == "statuses":
        return _read_status(item, msgspec.convert(item.raw, shapes.WebhookStatus, strict=False))
    return _read_message(item, msgspec.convert(item.raw, shapes.WebhookMessage, strict=False))


def _read_call(item: _Item, call: shapes.WebhookCall) -> Event:
    common: dict[str, Any] = {
        "number_id": item.number_id,
        "at": shapes.instant(call.timestamp),
        "dedupe_key": f"calls/{call.id}/{call.event}",
        "body": item.body(),
        "meta_call_id": MetaCallId(call.id),
    }
    if call.event == "terminate":
        return _read_terminate(item, call, common)
    if call.event == "connect" and call.session is not None:
        if _direction(call) is Direction.USER_INITIATED:
            user, name = _who(call.from_, call.from_user_id, item.contacts)
            return CallOffered(kind="call.offered", user=user, user_name=name, sdp=call.session.sdp, **common)
        return CallAnswered(kind="call.answered", sdp=call.session.sdp, opaque=call.biz_opaque_callback_data, **common)
    return _unknown("calls.other", item.number_id, item.body())


def _direction(call: shapes.WebhookCall) -> Direction | None:
    """Return the direction; where it is missing (as in one of Meta's samples), the SDP type tells."""
    if call.direction in tuple(Direction):
        return Direction(call.direction)
    if call.session is None:
        return None
    offer = call.session.sdp_type.lower() == "offer"
    return Direction.USER_INITIATED if offer else Direction.BUSINESS_INITIATED


def _read_terminate(item: _Item, call: shapes.WebhookCall, common: dict[str, Any]) -> CallTerminated:
    direction = _direction(call)
    status = call.status[0] if isinstance(call.status, list) and call.status else call.status
    error = _first_error([*shapes.each(call.errors), *item.errors])
    return CallTerminated(
        kind="call.terminated",
        direction=direction,
        user=_other_side(call, direction, item.contacts),
        status=status.upper()[:32] if isinstance(status, str) else None,
        start_at=shapes.instant(call.start_time) if call.start_time is not None else None,
        end_at=shapes.instant(call.end_time) if call.end_time is not None else None,
        duration_s=call.duration,
        error=_text_of(error),
        error_code=error.code if error else None,
        opaque=call.biz_opaque_callback_data,
        **common,
    )


def _other_side(
    call: shapes.WebhookCall, direction: Direction | None, contacts: tuple[shapes.Contact, ...]
) -> UserRef | None:
    """Return the user of a call that ended; None if the event does not say."""
    ours = direction is Direction.BUSINESS_INITIATED
    try:
        user, _ = _who(call.to if ours else call.from_, call.to_user_id if ours else call.from_user_id, contacts)
    except ValueError:
        return None
    return user if direction is not None else None


def _read_status(item: _Item, status: shapes.WebhookStatus) -> Event:
    if status.type != "call" or status.status not in ("RINGING", "ACCEPTED", "REJECTED"):
        return _unknown("statuses.other", item.number_id, item.body())
    return CallStatus(
        number_id=item.number_id,
        at=shapes.instant(status.timestamp),
        kind=f"call.{status.status.lower()}",
        dedupe_key=f"statuses/{status.id}/{status.status}",
        body=item.body(),
        meta_call_id=MetaCallId(status.id),
        user=_recipient(item, status),
        status=status.status,
        opaque=status.biz_opaque_callback_data,
    )


def _recipient(item: _Item, status: shapes.WebhookStatus) -> UserRef | None:
    """Return the user whom we called; None if the status does not say."""
    named = {"wa_id": status.recipient_id, "user_id": status.recipient_user_id}
    try:
        recipient = msgspec.convert(named, shapes.Contact)
        user, _ = _who(recipient.wa_id, recipient.user_id, item.contacts)
    except ValueError:  # msgspec.ValidationError is one
        return None
    return user


def _read_message(item: _Item, message: shapes.WebhookMessage) -> Event:
    user, name = _who(message.from_, message.from_user_id, item.contacts)
    common: dict[str, Any] = {
        "number_id": item.number_id,
        "at": shapes.instant(message.timestamp),
        "dedupe_key": f"messages/{message.id}",
        "body": item.body(),
        "user": user,
        "user_name": name,
    }
    reply = message.interactive.call_permission_reply if message.interactive else None
    if reply is None:
        return UserMessage(kind="message", **common)
    if reply.response not in ("accept", "reject"):
        return _unknown("messages.other", item.number_id, item.body())
    return PermissionReply(
        kind="permission.reply",
        accepted=reply.response == "accept",
        permanent=reply.is_permanent,
        expires_at=shapes.instant(reply.expiration_timestamp) if reply.expiration_timestamp is not None else None,
        automatic=reply.response_source == "automatic",
        request_id=message.context.id if message.context else None,
        **common,
    )


# --- small pieces ------------------------------------------------------------------------------------


def _unknown(kind: str, number_id: PhoneNumberId, body: bytes) -> UnknownEvent:
    return UnknownEvent(number_id=number_id, at=None, kind=kind, dedupe_key=shapes.hashed(body), body=body)


def _malformed(body: bytes) -> UnknownEvent:
    """Wrap a body that holds no event in a JSON string: the journal stores JSON only."""
    text = orjson.dumps(body.decode("utf-8", "backslashreplace"))
    return UnknownEvent(
        number_id=PhoneNumberId(""), at=None, kind="malformed", dedupe_key=shapes.hashed(body), body=text
    )


def _contact(raw: object) -> shapes.Contact:
    try:
        contact = msgspec.convert(raw, shapes.Contact, strict=False)
    except msgspec.ValidationError:
        return shapes.Contact()
    contact.wa_id = _digits(contact.wa_id)
    return contact


def _digits(wa_id: str | None) -> str | None:
    return wa_id.removeprefix("+") if wa_id else None


def _who(wa_id: str | None, user_id: str | None, contacts: tuple[shapes.Contact, ...]) -> tuple[UserRef, str | None]:
    """Return the user and their display name; what the item leaves out comes from its entry in `contacts`.

    That is the entry with the same number or BSUID, or the only entry unless it names another user: mixing up two users
    would give one the permission of the other.

    Raises: ValueError if nothing names the user.
    """
    digits = _digits(wa_id)
    same = [c for c in contacts if (digits and c.wa_id == digits) or (user_id and c.user_id == user_id)]
    candidates = same or (contacts if len(contacts) == 1 else ())
    contact = next((c for c in candidates if _fits(c, digits, user_id)), shapes.Contact())
    user = UserRef(wa_id=digits or contact.wa_id, user_id=user_id or contact.user_id)
    return user, contact.profile.name if contact.profile else None


def _fits(contact: shapes.Contact, digits: str | None, user_id: str | None) -> bool:
    return (not digits or contact.wa_id in (None, digits)) and (not user_id or contact.user_id in (None, user_id))


def _first_error(errors: Sequence[Any]) -> shapes.MetaError | None:
    """Return the first readable error; a failed call has the same errors inside the call and beside it."""
    for raw in errors:
        try:
            return msgspec.convert(raw, shapes.MetaError, strict=False)
        except msgspec.ValidationError:
            continue
    return None


def _text_of(error: shapes.MetaError | None) -> str | None:
    if error is None:
        return None
    details = shapes.get(error.error_data, "details") or error.message or error.title
    return f"({error.code}) {details}"[:500]
