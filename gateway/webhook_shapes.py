"""The parts of Meta's webhooks that the gateway reads, as structs. [P]

Everything optional that Meta's pages call optional, or that one of their samples leaves out. Not responsible for what
the parts mean (see `events`). Source: as for `events`.
"""

from typing import Annotated, Any

import msgspec

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
