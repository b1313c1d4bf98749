"""Webhook JSON into frozen events. [P]

Responsible for reading what Meta sends: each `entry[].changes[]` becomes events, each with a semantic dedupe key.
What is not known, or not readable, becomes an `UnknownEvent` and never an exception. Not responsible for the
signature (see `webhook`) nor for what an event means to a call (see `inbox`).

Source for all shapes: Meta, WhatsApp Business Calling API (user-initiated, business-initiated, user call permissions)
and "Webhooks", read 2026-11-22.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import orjson

from gateway.ids import MetaCallId, PhoneNumberId, UserRef
from policy.facts import Direction

Instant = Annotated[int, msgspec.Meta(ge=0, le=4_102_444_800)]  #: UNIX seconds up to the year 2100; Meta writes strings
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
WaId = Annotated[str, msgspec.Meta(pattern=r"^\+?[0-9]{5,20}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]

NOT_BEFORE: Final = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    number_id: PhoneNumberId  #: "" where the change names none
    at: datetime | None
    kind: str  #: a metric label: from a closed set
    dedupe_key: str
    body: bytes  #: the JSON of this one item, as kept in the journal


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOffered(_Event):
    """A user calls: `connect` with an SDP offer."""

    at: datetime
    meta_call_id: MetaCallId
    user: UserRef
    user_name: str | None
    sdp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswered(_Event):
    """The media path of our own call: `connect` with an SDP answer. Not the pick-up."""

    at: datetime
    meta_call_id: MetaCallId
    sdp: str
    opaque: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStatus(_Event):
    """RINGING, ACCEPTED or REJECTED of our own call."""

    at: datetime
    meta_call_id: MetaCallId
    status: str
    opaque: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTerminated(_Event):
    """The end of any call. People talked if and only if `start_at` is there."""

    at: datetime
    meta_call_id: MetaCallId
    direction: Direction | None
    user: UserRef | None
    status: str | None
    start_at: datetime | None
    end_at: datetime | None
    duration_s: int | None
    error: str | None  #: Meta's code and details, safe to show
    opaque: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionReply(_Event):
    """The user (or Meta, `automatic`) granted or took away the permission to be called."""

    at: datetime
    user: UserRef
    user_name: str | None
    accepted: bool
    permanent: bool
    expires_at: datetime | None
    automatic: bool
    request_id: str | None  #: the `wamid.…` of our request, or the `wacid.…` of the user's call


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMessage(_Event):
    """Any other message of a user: opens the 24-hour customer service window."""

    at: datetime
    user: UserRef
    user_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent(_Event):
    """Kept and acknowledged, otherwise left alone."""


Event = CallOffered | CallAnswered | CallStatus | CallTerminated | PermissionReply | UserMessage | UnknownEvent


# --- the wire ----------------------------------------------------------------------------------------


class _Session(msgspec.Struct):
    sdp_type: str
    sdp: str


class _MetaError(msgspec.Struct):
    code: int = 0
    title: str = ""
    message: str = ""
    error_data: dict[str, Any] | None = None


class _Call(msgspec.Struct):
    id: Id
    event: str
    timestamp: Instant
    from_: WaId | None = msgspec.field(default=None, name="from")
    to: WaId | None = None
    from_user_id: Id | None = None
    to_user_id: Id | None = None
    direction: str | None = None
    session: _Session | None = None
    status: str | list[str] | None = None
    start_time: Instant | None = None
    end_time: Instant | None = None
    duration: Annotated[int, msgspec.Meta(ge=0)] | None = None
    biz_opaque_callback_data: str | None = None
    errors: list[_MetaError] = msgspec.field(default_factory=list)


class _Status(msgspec.Struct):
    id: Id
    status: str
    timestamp: Instant
    type: str | None = None
    biz_opaque_callback_data: str | None = None


class _Reply(msgspec.Struct):
    response: str
    is_permanent: bool = False
    expiration_timestamp: Instant | None = None
    response_source: str = "user_action"


class _Interactive(msgspec.Struct):
    type: str = ""
    call_permission_reply: _Reply | None = None


class _Context(msgspec.Struct):
    id: str | None = None


class _Message(msgspec.Struct):
    id: Id
    timestamp: Instant
    from_: WaId | None = msgspec.field(default=None, name="from")
    from_user_id: Id | None = None
    interactive: _Interactive | None = None
    context: _Context | None = None


class _Profile(msgspec.Struct):
    name: Text | None = None


class _Contact(msgspec.Struct):
    wa_id: WaId | None = None
    user_id: Id | None = None
    profile: _Profile | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    """One element of a change, with what stands around it."""

    number_id: PhoneNumberId
    field: str
    raw: dict[str, Any]
    contacts: tuple[_Contact, ...]
    errors: tuple[Any, ...]

    def body(self) -> bytes:
        return orjson.dumps(self.raw)


# --- reading -----------------------------------------------------------------------------------------


def read_delivery(body: bytes) -> list[Event]:
    """Return the events of one signed delivery, in its order. Never raises."""
    try:
        delivery = orjson.loads(body)
    except orjson.JSONDecodeError:
        return [_kept_as_is("malformed", body)]
    events: list[Event] = []
    # Two of Meta's samples are wrapped in an array.
    for part in delivery if isinstance(delivery, list) else [delivery]:
        for change in _changes(part):
            events.extend(_read_change(change))
    return events or [_kept_as_is("malformed", body)]


def _changes(delivery: object) -> Iterator[dict[str, Any]]:
    for entry in _list(_get(delivery, "entry")):
        for change in _list(_get(entry, "changes")):
            if isinstance(change, dict):
                yield change


def _read_change(change: dict[str, Any]) -> Iterator[Event]:
    field, value = change.get("field"), change.get("value")
    items = list(_items(str(field), value)) if field in ("calls", "messages") else []
    if not items:
        number_id = _get(_get(value, "metadata"), "phone_number_id")
        yield _unknown(
            f"field.{field}" if field in _KNOWN_FIELDS else "field.other",
            PhoneNumberId(str(number_id or "")),
            orjson.dumps(change),
        )
    for item in items:
        try:
            yield _read_item(item)
        except (msgspec.ValidationError, ValueError, OverflowError):
            yield _unknown(f"{item.field}.unreadable", item.number_id, item.body())


_KNOWN_FIELDS: Final = frozenset({"calls", "messages", "account_update", "account_settings_update", "account_alerts"})


def _items(field: str, value: object) -> Iterator[_Item]:
    number_id = PhoneNumberId(str(_get(_get(value, "metadata"), "phone_number_id") or ""))
    contacts = tuple(_contact(c) for c in _list(_get(value, "contacts")))
    errors = tuple(_list(_get(value, "errors")))
    for key in ("calls", "statuses", "messages"):
        for raw in _list(_get(value, key)):
            if isinstance(raw, dict):
                yield _Item(number_id, key, raw, contacts, errors)


def _read_item(item: _Item) -> Event:
    if item.field == "calls":
        return _read_call(item, msgspec.convert(item.raw, _Call, strict=False))
    if item.field == "statuses":
        return _read_status(item, msgspec.convert(item.raw, _Status, strict=False))
    return _read_message(item, msgspec.convert(item.raw, _Message, strict=False))


def _read_call(item: _Item, call: _Call) -> Event:
    common: dict[str, Any] = {
        "number_id": item.number_id,
        "at": _instant(call.timestamp),
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


def _direction(call: _Call) -> Direction | None:
    """Read the direction; one of Meta's samples leaves it out, then the SDP's type tells."""
    if call.direction in tuple(Direction):
        return Direction(call.direction)
    if call.session is None:
        return None
    offer = call.session.sdp_type.lower() == "offer"
    return Direction.USER_INITIATED if offer else Direction.BUSINESS_INITIATED


def _read_terminate(item: _Item, call: _Call, common: dict[str, Any]) -> CallTerminated:
    direction = _direction(call)
    ours = direction is Direction.BUSINESS_INITIATED
    status = call.status[0] if isinstance(call.status, list) and call.status else call.status
    user: UserRef | None
    try:
        user, _ = _who(call.to if ours else call.from_, call.to_user_id if ours else call.from_user_id, item.contacts)
    except ValueError:
        user = None
    return CallTerminated(
        kind="call.terminated",
        direction=direction,
        user=user,
        status=status.upper() if isinstance(status, str) else None,
        start_at=_instant(call.start_time) if call.start_time is not None else None,
        end_at=_instant(call.end_time) if call.end_time is not None else None,
        duration_s=call.duration,
        error=_error(call.errors, item.errors),
        opaque=call.biz_opaque_callback_data,
        **common,
    )


def _read_status(item: _Item, status: _Status) -> Event:
    if status.type != "call" or status.status not in ("RINGING", "ACCEPTED", "REJECTED"):
        return _unknown("statuses.other", item.number_id, item.body())
    return CallStatus(
        number_id=item.number_id,
        at=_instant(status.timestamp),
        kind=f"call.{status.status.lower()}",
        dedupe_key=f"statuses/{status.id}/{status.status}",
        body=item.body(),
        meta_call_id=MetaCallId(status.id),
        status=status.status,
        opaque=status.biz_opaque_callback_data,
    )


def _read_message(item: _Item, message: _Message) -> Event:
    user, name = _who(message.from_, message.from_user_id, item.contacts)
    common: dict[str, Any] = {
        "number_id": item.number_id,
        "at": _instant(message.timestamp),
        "dedupe_key": f"messages/{message.id}",
        "body": item.body(),
        "user": user,
        "user_name": name,
    }
    reply = message.interactive.call_permission_reply if message.interactive else None
    if reply is None:
        return UserMessage(kind="message", **common)
    return PermissionReply(
        kind="permission.reply",
        accepted=reply.response == "accept",
        permanent=reply.is_permanent,
        expires_at=_instant(reply.expiration_timestamp) if reply.expiration_timestamp is not None else None,
        automatic=reply.response_source == "automatic",
        request_id=message.context.id if message.context else None,
        **common,
    )


# --- small pieces ------------------------------------------------------------------------------------


def _unknown(kind: str, number_id: PhoneNumberId, body: bytes) -> UnknownEvent:
    return UnknownEvent(number_id=number_id, at=None, kind=kind, dedupe_key=_hash(body), body=body)


def _kept_as_is(kind: str, body: bytes) -> UnknownEvent:
    """Keep bytes that are no event at all; as a JSON string, so that the journal can hold them."""
    text = orjson.dumps(body.decode("utf-8", "backslashreplace").replace("\x00", "\\x00"))
    return UnknownEvent(number_id=PhoneNumberId(""), at=None, kind=kind, dedupe_key=_hash(body), body=text)


def _hash(body: bytes) -> str:
    return "hash/" + hashlib.sha256(body).hexdigest()


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _instant(seconds: int) -> datetime:
    at = datetime.fromtimestamp(seconds, UTC)
    if at < NOT_BEFORE:
        raise ValueError("a time before the Calling API")
    return at


def _contact(raw: object) -> _Contact:
    try:
        return msgspec.convert(raw, _Contact, strict=False)
    except msgspec.ValidationError:
        return _Contact()


def _who(wa_id: str | None, user_id: str | None, contacts: tuple[_Contact, ...]) -> tuple[UserRef, str | None]:
    """Name the user and their display name.

    What the item itself leaves out is taken from its entry in `contacts`; with one contact, that is the entry.
    Raises: ValueError if nothing names the user.
    """
    digits = wa_id.removeprefix("+") if wa_id else None
    if len(contacts) == 1:
        contact = contacts[0]
    else:
        named = (c for c in contacts if (digits and c.wa_id == digits) or (user_id and c.user_id == user_id))
        contact = next(named, _Contact())
    user = UserRef(wa_id=digits or contact.wa_id, user_id=user_id or contact.user_id)
    return user, contact.profile.name if contact.profile else None


def _error(*groups: list[_MetaError] | tuple[Any, ...]) -> str | None:
    """Return the first error; a failed call carries the same ones inside the call and beside it."""
    for group in groups:
        for raw in group:
            error = raw if isinstance(raw, _MetaError) else _meta_error(raw)
            if error.code:
                details = (error.error_data or {}).get("details") or error.message or error.title
                return f"({error.code}) {details}"[:500]
    return None


def _meta_error(raw: object) -> _MetaError:
    try:
        return msgspec.convert(raw, _MetaError, strict=False)
    except msgspec.ValidationError:
        return _MetaError()
