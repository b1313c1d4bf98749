"""The parts of Meta's webhooks that the gateway reads, and what all readers of them share. [P]

First ways to look into JSON that may be anything, and the base of events; then the parts as structs. A field is
optional if Meta's pages call it optional or one of their samples leaves it out. What the parts mean is in `events` and
`number_events`. Source: as for `events`.
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
    """What every event has."""

    number_id: PhoneNumberId  #: "" where the change names none
    at: datetime | None
    kind: str  #: a metric label: from a closed set
    dedupe_key: str
    body: bytes  #: the JSON of this one item, as kept in the journal


def hashed(body: bytes) -> str:
    """Return the dedupe key of what has no id of its own."""
    return "hash/" + hashlib.sha256(body).hexdigest()


def get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def each(value: object) -> list[Any]:
    """Return a list's elements; one that stands without its list is taken for a list of one."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def instant(seconds: int) -> datetime:
    """Read UNIX seconds. Raises: ValueError."""
    at = datetime.fromtimestamp(seconds, UTC)
    if at < NOT_BEFORE:
        raise ValueError("a time before the Calling API")
    return at


def number_id(found: object) -> PhoneNumberId:
    """Return Meta's id of a number, "" for what is none."""
    return PhoneNumberId(found if isinstance(found, str) and NUMBER_ID.match(found) else "")


Instant = Annotated[int, msgspec.Meta(ge=0, le=4_102_444_800)]  #: UNIX seconds up to the year 2100; Meta writes strings
#: Printable ASCII without spaces: what is not, PostgreSQL or a log line might not take.
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


class Call(msgspec.Struct):
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
    errors: Any = None  #: never worth losing a `terminate` for


class Status(msgspec.Struct):
    id: Id
    status: str
    timestamp: Instant
    type: str | None = None
    recipient_id: Any = None  #: never worth losing an ACCEPTED for
    recipient_user_id: Any = None
    biz_opaque_callback_data: str | None = None


class Reply(msgspec.Struct):
    response: str
    is_permanent: bool = False
    expiration_timestamp: Instant | None = None
    response_source: str = "user_action"


class Interactive(msgspec.Struct):
    type: str = ""
    call_permission_reply: Reply | None = None


class Context(msgspec.Struct):
    id: Id | None = None


class Message(msgspec.Struct):
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
