"""The answers of the Graph API, as typed values. [P]

Tolerant on purpose: Meta's pages contradict one another in names and types, and fields come and go. A part that cannot
be read never raises; its value is "not known". Error answers are read in `error_codes`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import StrEnum
from typing import Any, Final, TypeVar

from policy.hours import CallHours, Holiday, HoursError, Opening
from policy.number import CallingStatus, Restriction, RestrictionType

Json = Mapping[str, Any]
T = TypeVar("T")

#: The value for "no limit".
UNLIMITED: Final = 1_000_000_000

_DAYS: Final = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
_MAX_ENTRIES: Final = 200


class ReportedPermission(StrEnum):
    """Meta's `permission.status`."""

    NO_PERMISSION = "no_permission"
    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    UNKNOWN = "unknown"  #: not Meta's: any other word


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionLimit:
    """How often an action is allowed in a period, and how often it was done."""

    period_s: int | None
    max_allowed: int | None
    current_usage: int | None
    expires_at: datetime | None  #: only when the limit is reached


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedAction:
    """Whether Meta would allow an action now. `allowed` is None if Meta did not say."""

    allowed: bool | None = None
    limits: tuple[ActionLimit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What Meta allows with one user: `GET /{number}/call_permissions`."""

    status: ReportedPermission
    expires_at: datetime | None = None
    start_call: ReportedAction = ReportedAction()
    send_request: ReportedAction = ReportedAction()


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberCallingSettings:
    """`calling` of `GET /{number}/settings`."""

    calling: CallingStatus = CallingStatus.UNKNOWN
    hours: CallHours | None = None  #: None: always open, or not readable (see `unread`)
    sip_enabled: bool = False
    icon_visibility: str | None = None
    restrictions: tuple[Restriction, ...] = ()
    unread: tuple[str, ...] = ()  #: names of parts that are present but not readable


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberInfo:
    """`GET /{number}`: Meta's record of the business number."""

    messaging_limit: int | None = None  #: conversations per 24 h, or `UNLIMITED`; None: not known
    coexistence: bool | None = None


# --- readers -------------------------------------------------------------------------------------


def read_call_id(body: Json) -> str | None:
    """Return the id of the call that `connect` placed; None if the answer has none."""
    return _first_id(body, "calls")


def read_message_id(body: Json) -> str | None:
    """Return the id of a sent message, which is the `context.id` of the reply; None if the answer has none."""
    return _first_id(body, "messages")


def read_permissions(body: Json) -> Permissions:
    """Read `GET call_permissions`."""
    permission = _object(body, "permission")
    word = _text(permission, "status")
    actions = {_text(each, "action_name"): each for each in _objects(body, "actions")}
    return Permissions(
        status=ReportedPermission(word) if word in set(ReportedPermission) else ReportedPermission.UNKNOWN,
        # The sample says `expiration_time`, the table `expiration`.
        expires_at=_instant(permission, "expiration_time", "expiration"),
        start_call=_action(actions.get("start_call", {})),
        send_request=_action(actions.get("send_call_permission_request", {})),
    )


def read_settings(body: Json) -> NumberCallingSettings:
    """Read `GET settings`, or `phone_number_settings` of the webhook `account_settings_update`."""
    calling = _object(body, "calling")
    status = (_text(calling, "status") or "").upper()
    hours, unread = _hours(_object(calling, "call_hours"))
    return NumberCallingSettings(
        calling=CallingStatus(status) if status in set(CallingStatus) else CallingStatus.UNKNOWN,
        hours=hours,
        sip_enabled=_is_enabled(_object(calling, "sip")),
        icon_visibility=_text(calling, "call_icon_visibility"),
        restrictions=tuple(_restrictions(_object(calling, "restrictions"))),
        unread=unread,
    )


def read_number_info(body: Json) -> NumberInfo:
    """Read `GET /{number}`."""
    tier = _text(body, "whatsapp_business_manager_messaging_limit") or _text(body, "messaging_limit_tier")
    on_app = body.get("is_on_biz_app")
    return NumberInfo(
        messaging_limit=read_tier(tier),
        coexistence=on_app if isinstance(on_app, bool) else None,
    )


def read_tier(word: str | None) -> int | None:
    """Return the messaging limit of a tier such as `TIER_250`, `TIER_2K` or `TIER_UNLIMITED`."""
    if word is None:
        return None
    if word.upper() == "TIER_UNLIMITED":
        return UNLIMITED
    found = re.fullmatch(r"TIER_(\d{1,6})(K?)", word.upper())
    return int(found[1]) * (1_000 if found[2] else 1) if found else None


def read_period(text: str | None) -> int | None:
    """Return the seconds of an ISO 8601 duration of days, hours, minutes and seconds, such as `P7D` or `PT24H`."""
    if text is None or text in {"P", "PT"}:
        return None
    found = re.fullmatch(r"P(?:(\d{1,4})D)?(?:T(?:(\d{1,5})H)?(?:(\d{1,6})M)?(?:(\d{1,9})S)?)?", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# --- parts ---------------------------------------------------------------------------------------


def _action(data: Json) -> ReportedAction:
    allowed = data.get("can_perform_action")
    limits = tuple(
        ActionLimit(
            period_s=read_period(_text(each, "time_period")),
            max_allowed=_number(each, "max_allowed"),
            current_usage=_number(each, "current_usage"),
            expires_at=_instant(each, "limit_expiration_time"),
        )
        for each in _objects(data, "limits")
    )
    return ReportedAction(allowed=allowed if isinstance(allowed, bool) else None, limits=limits)


def _hours(data: Json) -> tuple[CallHours | None, tuple[str, ...]]:
    """Return the hours if they are enabled, and the names of the parts that could not be read."""
    if not _is_enabled(data):
        return None, ()
    unread: list[str] = []
    weekly = tuple(_readable(_objects(data, "weekly_operating_hours"), _opening, unread, "weekly_operating_hours"))
    holidays = tuple(_readable(_objects(data, "holiday_schedule"), _holiday, unread, "holiday_schedule"))
    try:
        hours = CallHours(timezone=_text(data, "timezone_id") or "", weekly=weekly, holidays=holidays)
    except HoursError:
        return None, (*unread, "timezone_id")
    # With a day missing from the week, we would refuse calls that Meta allows.
    return (None if "weekly_operating_hours" in unread else hours), tuple(unread)


def _readable(entries: Iterator[Json], read: Callable[[Json], T], unread: list[str], name: str) -> Iterator[T]:
    for entry in entries:
        try:
            yield read(entry)
        except ValueError:
            if name not in unread:
                unread.append(name)


def _opening(data: Json) -> Opening:
    day = (_text(data, "day_of_week") or "").upper()
    return Opening(
        weekday=_DAYS.index(day) if day in _DAYS else -1,
        opens=_clock_time(data, "open_time"),
        closes=_clock_time(data, "close_time"),
    )


def _holiday(data: Json) -> Holiday:
    # The sample says `start_time` and `end_time`, the table `open_time` and `close_time`.
    return Holiday(
        day=date.fromisoformat(_text(data, "date") or ""),
        opens=_clock_time(data, "start_time", "open_time"),
        closes=_clock_time(data, "end_time", "close_time"),
    )


def _clock_time(data: Json, *names: str) -> time:
    text = next((text for name in names if (text := _text(data, name))), "")
    found = re.fullmatch(r"(\d{2}):?(\d{2})", text)
    if not found:
        raise ValueError("not a time of day")
    return time(int(found[1]), int(found[2]))


def _restrictions(data: Json) -> Iterator[Restriction]:
    # The sample says `restrictions_list`, the table `restriction_list`.
    for name in ("restrictions_list", "restriction_list"):
        for each in _objects(data, name):
            kind = (_text(each, "type") or "").upper()
            if kind in set(RestrictionType):
                yield Restriction(type=RestrictionType(kind), expires_at=_instant(each, "expiration"))


# --- single values -------------------------------------------------------------------------------


def _object(data: Json, name: str) -> Json:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _objects(data: Json, name: str) -> Iterator[Json]:
    value = data.get(name)
    if isinstance(value, list):
        yield from (each for each in value[:_MAX_ENTRIES] if isinstance(each, dict))


def _first_id(body: Json, name: str) -> str | None:
    return next((text for each in _objects(body, name) if (text := _text(each, "id"))), None)


def _text(data: Json, name: str) -> str | None:
    value = data.get(name)
    return value if isinstance(value, str) and value else None


def _number(data: Json, name: str) -> int | None:
    value = data.get(name)
    if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_enabled(data: Json) -> bool:
    return (_text(data, "status") or "").upper() == "ENABLED"


def _instant(data: Json, *names: str) -> datetime | None:
    """Return the first readable instant: Unix seconds as int or string, or ISO 8601 with an offset."""
    for name in names:
        if (seconds := _number(data, name)) is not None and 0 < seconds < 10**11:
            return datetime.fromtimestamp(seconds, UTC)
        try:
            at = datetime.fromisoformat(_text(data, name) or "")
        except ValueError:
            continue
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    return None
