"""The parts of Meta's webhooks that the gateway reads, as structs, and helpers for all readers. [P]

First the base class of events and helpers for JSON of any shape, then the structs. A field is optional if Meta's pages
call it optional or one of their samples leaves it out. `events` and `number_events` give the parts their meaning.
Source: as for `events`.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from gateway.common.ids import PhoneNumberId

NOT_BEFORE: Final = datetime(2020, 1, 1, tzinfo=UTC)
NUMBER_ID: Final = re.compile(r"[0-9]{1,32}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvent:
    """The fields of every event."""

    number_id: PhoneNumberId  #: "" if the change names no number
    at: datetime | None
    kind: str  #: a metric label, from a closed set
    dedupe_key: str
    body: bytes  #: the JSON of this one item, as stored in the journal


def hashed(body: bytes) -> str:
    """Return the dedupe key for a body that has no id of its own."""
    return "hash/" + hashlib.sha256(body).hexdigest()


def get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def each(value: object) -> list[Any]:
    """Return a list's elements; a single value counts as a list of one, None as an empty list."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def instant(seconds: int) -> datetime:
    """Convert Unix seconds. Raises: ValueError."""
    at = datetime.fromtimestamp(seconds, UTC)
    if at < NOT_BEFORE:
        raise ValueError("a time before the Calling API existed")
    return at


def number_id(found: object) -> PhoneNumberId:
    """Return Meta's id of a business number; "" if `found` is not one."""
    return PhoneNumberId(found if isinstance(found, str) and NUMBER_ID.match(found) else "")


Instant = Annotated[int, msgspec.Meta(ge=0, le=4_102_444_800)]  #: Unix seconds up to the year 2100; Meta sends strings
#: Printable ASCII without spaces: other characters may be invalid in PostgreSQL or in a log line.
Id = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,512}\Z")]
WaId = Annotated[str, msgspec.Meta(pattern=r"^\+?[0-9]{5,20}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=2_147_483_647)]


class Session(msgspec.Struct):
    sdp_type: str
    sdp: str


class MetaError(msgspec.Struct):
    code: int
    title: str = ""
    message: str = ""
    error_data: Any = None


class WebhookCall(msgspec.Struct):
    id: Id
    event: str
    timestamp: Instant
    from_: WaId | None = msgspec.field(default=None, name="from")
    to: WaId | None = None
    from_user_id: Id | None = None
    to_user_id: Id | None = None
    direction: str | None = None
    session: Session | None = None
    status: str | list[str] | None = None
    start_time: Instant | None = None
    end_time: Instant | None = None
    duration: Seconds | None = None
    biz_opaque_callback_data: str | None = None
    errors: Any = None  #: not validated: an unreadable error must not lose a `terminate`


class WebhookStatus(msgspec.Struct):
    id: Id
    status: str
    timestamp: Instant
    type: str | None = None
    recipient_id: Any = None  #: not validated: an unreadable recipient must not lose an ACCEPTED
    recipient_user_id: Any = None
    biz_opaque_callback_data: str | None = None


class WebhookReply(msgspec.Struct):
    response: str
    is_permanent: bool = False
    expiration_timestamp: Instant | None = None
    response_source: str = "user_action"


class Interactive(msgspec.Struct):
    type: str = ""
    call_permission_reply: WebhookReply | None = None


class Context(msgspec.Struct):
    id: Id | None = None


class WebhookMessage(msgspec.Struct):
    id: Id
    timestamp: Instant
    from_: WaId | None = msgspec.field(default=None, name="from")
    from_user_id: Id | None = None
    interactive: Interactive | None = None
    context: Context | None = None


class Profile(msgspec.Struct):
    name: Text | None = None


class Contact(msgspec.Struct):
    wa_id: WaId | None = None
    user_id: Id | None = None
    profile: Profile | None = None
