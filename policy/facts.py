"""What can happen between a business number and a contact, as far as the rules care.

A fact never changes and is never withdrawn; a later one may outweigh it. `key` identifies it: two facts of one kind
with the same key are one fact (webhooks repeat; a call id or message id makes a good key). The store keeps facts as
flat dictionaries. The gateway derives them from webhooks, from its own actions and from Meta's answers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

Plain = str | int | bool | None

#: How far after `now` a fact may lie (`check_time`): more than any clock error, less than any window.
MAX_AHEAD: Final = timedelta(hours=2)
#: No fact is older than WhatsApp.
EARLIEST: Final = datetime(2009, 1, 1, tzinfo=UTC)
#: No limit of Meta's lasts longer than its longest window.
LONGEST_LIMIT: Final = timedelta(days=7)


class FactError(ValueError):
    """An impossible fact: naive or absurd time, missing or unknown field, wrong type."""


class RequestForm(StrEnum):
    """The two forms of a permission request (guide R3)."""

    FREE_FORM = "free_form"
    TEMPLATE = "template"


class Direction(StrEnum):
    """Who calls whom; Meta's own values."""

    USER_INITIATED = "USER_INITIATED"
    BUSINESS_INITIATED = "BUSINESS_INITIATED"


class ReplySource(StrEnum):
    """Who changed a permission."""

    USER_ACTION = "user_action"
    #: Meta by itself: a callback permission, or the revocation after unanswered calls.
    AUTOMATIC = "automatic"
    #: Not a change: what Meta's records said when we asked or were refused (`call_permissions`, 138006, 138017).
    META_RECORD = "meta_record"


class WindowSource(StrEnum):
    """What opened the customer service window. Our own calls open it by connecting (`contact.py`)."""

    MESSAGE = "message"
    USER_CALL = "user_call"  #: whether or not it was answered
    META_RECORD = "meta_record"


class Action(StrEnum):
    """What Meta limits for each contact; Meta's own values."""

    SEND_REQUEST = "send_call_permission_request"
    START_CALL = "start_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fact:
    at: datetime  #: aware UTC; Meta's timestamp if there is one
    key: str

    def __post_init__(self) -> None:
        if not self.key:
            raise FactError("a fact needs a key")
        if self.at.utcoffset() != timedelta(0):
            raise FactError("at must be in UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRequested(_Fact):
    """We sent a request. `request_id` is the message id that a reply will name, if Meta has returned it yet."""

    form: RequestForm
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionGranted(_Fact):
    """The contact may be called; if Meta gives no expiry, for as long as the pack says."""

    permanent: bool = False
    expires_at: datetime | None = None
    source: ReplySource = ReplySource.USER_ACTION
    request_id: str | None = None  #: the request this answers; None: granted without a request

    def __post_init__(self) -> None:
        _Fact.__post_init__(self)
        if self.expires_at is not None and self.expires_at.utcoffset() != timedelta(0):
            raise FactError("expires_at must be in UTC")
        if self.permanent and self.expires_at is not None:
            raise FactError("a permanent permission has no expiry")


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionDeclined(_Fact):
    """The contact declined a request. A rejection with source `automatic` from Meta is a PermissionRevoked instead."""

    source: ReplySource = ReplySource.USER_ACTION
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRevoked(_Fact):
    """A permission has ended, or Meta says that there is none."""

    source: ReplySource = ReplySource.USER_ACTION


@dataclass(frozen=True, slots=True, kw_only=True)
class CallConnected(_Fact):
    """A call was answered; `at` is the instant of the answer."""

    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class CallUnanswered(_Fact):
    """A business-initiated call rang and was not answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRejected(_Fact):
    """A business-initiated call was declined on the phone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOpened(_Fact):
    """The customer service window was opened or refreshed."""

    source: WindowSource = WindowSource.MESSAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowClosed(_Fact):
    """Meta reported that the window is closed (131047)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReported(_Fact):
    """Meta refused an action because of its limit (138009, 138012).

    If Meta does not say until when, use 24 hours, its shortest window.
    """

    action: Action
    until: datetime

    def __post_init__(self) -> None:
        _Fact.__post_init__(self)
        if self.until.utcoffset() != timedelta(0):
            raise FactError("until must be in UTC")
        if self.until - self.at > LONGEST_LIMIT:
            raise FactError("a limit lasts at most seven days")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReported(_Fact):
    """Meta's own count at `at` (`call_permissions`); it replaces our earlier counts.

    Record it only when Meta contradicts us, not after every query: it loses the single instants, so the counts leave
    their windows later than Meta's do.
    """

    action: Action
    used_24h: int
    used_7d: int = 0

    def __post_init__(self) -> None:
        _Fact.__post_init__(self)
        if self.used_24h < 0 or self.used_7d < 0:
            raise FactError("usage must not be negative")


Fact = (
    PermissionRequested
    | PermissionGranted
    | PermissionDeclined
    | PermissionRevoked
    | CallConnected
    | CallUnanswered
    | CallRejected
    | WindowOpened
    | WindowClosed
    | LimitReported
    | UsageReported
)

#: Stored names; never renamed.
KINDS: Final[Mapping[str, type[Fact]]] = MappingProxyType(
    {
        "permission_requested": PermissionRequested,
        "permission_granted": PermissionGranted,
        "permission_declined": PermissionDeclined,
        "permission_revoked": PermissionRevoked,
        "call_connected": CallConnected,
        "call_unanswered": CallUnanswered,
        "call_rejected": CallRejected,
        "window_opened": WindowOpened,
        "window_closed": WindowClosed,
        "limit_reported": LimitReported,
        "usage_reported": UsageReported,
    }
)
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_FIELDS: Final = {kind: tuple(field.name for field in fields(kind)) for kind in KINDS.values()}


def check_time(fact: Fact, *, now: datetime) -> None:
    """Reject a fact that no clock error explains, before it is recorded.

    Raises:
        FactError: it lies before WhatsApp, or more than MAX_AHEAD after `now`.
    """
    if fact.at < EARLIEST:
        raise FactError(f"{fact.at.isoformat()} is too long ago")
    if fact.at - now > MAX_AHEAD:
        raise FactError(f"{fact.at.isoformat()} is in the future")


def fact_to_dict(fact: Fact) -> dict[str, Plain]:
    """Convert a fact to plain values; `kind` names its class, instants are ISO 8601."""
    kind = type(fact)
    return {"kind": _NAMES[kind]} | {name: _plain(getattr(fact, name)) for name in _FIELDS[kind]}


def _plain(value: datetime | StrEnum | Plain) -> Plain:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.value if isinstance(value, StrEnum) else value


def fact_from_dict(data: Mapping[str, object]) -> Fact:
    """Read the output of `fact_to_dict`.

    Raises:
        FactError: not a fact, or its kind or a field is unknown to this version.
    """
    kind = KINDS.get(str(data.get("kind")))
    if kind is None:
        raise FactError(f"unknown kind {data.get('kind')!r}")
    names = _FIELDS[kind]
    if unknown := data.keys() - {*names, "kind"}:
        raise FactError(f"unknown fields {sorted(unknown)}")
    values: dict[str, Any] = {name: _read(name, data[name], kind) for name in names if name in data}
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default is missing
        raise FactError(str(error)) from error


def _instant(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("not an instant")
    instant = datetime.fromisoformat(value)
    if instant.utcoffset() is None:
        raise ValueError("no time zone")
    return instant.astimezone(UTC)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("not a number")
    return value


_READERS: Final[Mapping[str, Callable[[Any], object]]] = MappingProxyType(
    {
        "at": _instant,
        "expires_at": _instant,
        "until": _instant,
        "key": _text,
        "request_id": _text,
        "permanent": _flag,
        "used_24h": _count,
        "used_7d": _count,
        "form": RequestForm,
        "direction": Direction,
        "action": Action,
    }
)
_OPTIONAL: Final = frozenset({"expires_at", "request_id"})


def _read(name: str, value: object, kind: type[Fact]) -> object:
    if value is None and name in _OPTIONAL:
        return None
    source: Callable[[Any], object] = WindowSource if kind is WindowOpened else ReplySource
    read = _READERS.get(name, source)
    try:
        return read(value)
    except (ValueError, OverflowError) as error:
        raise FactError(f"{name}: {error}") from error
