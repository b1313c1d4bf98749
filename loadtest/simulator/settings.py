"""`/<number>/settings`: which calling settings exist, which values they take, what a change does. Pure but for the
records it is given."""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

from loadtest.simulator.errors import GraphError
from loadtest.simulator.state import Number

_SWITCH: Final = ("ENABLED", "DISABLED")
_TIME: Final = re.compile(r"(?:[01][0-9]|2[0-3])[0-5][0-9]")
_DAYS: Final = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
#: Only changes of these are announced by a webhook.
_ANNOUNCED: Final = (
    "status",
    "call_icon_visibility",
    "callback_permission_status",
    "srtp_key_exchange_protocol",
)


def _bad(details: str) -> GraphError:
    return GraphError(100, details)


def _one_of(*allowed: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value not in allowed:
            raise _bad(f"calling.{name} must be one of {', '.join(allowed)}")

    return check


def _switched_object(name: str, value: Any) -> None:
    if not isinstance(value, dict) or value.get("status", "ENABLED") not in _SWITCH:
        raise _bad(f"calling.{name} must be an object with status ENABLED or DISABLED")


def _object(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _bad(f"calling.{name} must be an object")


def _call_hours(name: str, value: Any) -> None:
    _switched_object(name, value)
    hours = value.get("weekly_operating_hours", [])
    if not isinstance(hours, list) or (value.get("status") == "ENABLED" and not hours):
        raise _bad("calling.call_hours.weekly_operating_hours may not be empty")
    spans: dict[str, list[tuple[str, str]]] = {}
    for entry in hours:
        if not isinstance(entry, dict) or entry.get("day_of_week") not in _DAYS:
            raise _bad("calling.call_hours: day_of_week must be MONDAY to SUNDAY")
        opens, closes = str(entry.get("open_time")), str(entry.get("close_time"))
        if not _TIME.fullmatch(opens) or not _TIME.fullmatch(closes) or opens >= closes:
            raise _bad("calling.call_hours: open_time and close_time are HHMM, open before close")
        spans.setdefault(entry["day_of_week"], []).append((opens, closes))
    for day, times in spans.items():
        times.sort()
        if len(times) > 2 or any(a[1] > b[0] for a, b in pairwise(times)):
            raise _bad(f"calling.call_hours: at most two spans on {day}, not overlapping")
    holidays = value.get("holiday_schedule", [])
    if not isinstance(holidays, list) or len(holidays) > 20:
        raise _bad("calling.call_hours: at most 20 holidays")


_CHECKS: Final[Mapping[str, Callable[[str, Any], None]]] = {
    "status": _one_of(*_SWITCH),
    "call_icon_visibility": _one_of("DEFAULT", "DISABLE_ALL", "HIDE_IN_CHAT"),
    "callback_permission_status": _one_of(*_SWITCH),
    "srtp_key_exchange_protocol": _one_of("DTLS", "SDES"),
    "call_icons": _object,
    "call_hours": _call_hours,
    "sip": _switched_object,
    "audio": _object,
    "voicemail": _switched_object,
}


def apply_settings(number: Number, calling: Any, *, messaging_limit_minimum: int) -> dict[str, Any] | None:
    """Check and store a change; return what a webhook has to announce, None if nothing.

    Raises: GraphError, and then nothing is stored.
    """
    if not isinstance(calling, dict) or not calling:
        raise _bad("calling must be an object with at least one setting")
    for name, value in calling.items():
        check = _CHECKS.get(name)
        if check is None:
            raise _bad(f"Unexpected setting calling.{name}")
        check(name, value)
    limit = number.spec.messaging_limit
    if calling.get("status") == "ENABLED" and limit is not None and limit < messaging_limit_minimum:
        raise GraphError(138015, f"The messaging limit is below {messaging_limit_minimum}")
    before = {name: number.calling.get(name) for name in _ANNOUNCED}, number.sip_on
    number.calling = {**number.calling, **calling}
    after = {name: number.calling.get(name) for name in _ANNOUNCED}, number.sip_on
    return dict(number.calling) if before != after else None


def settings_body(number: Number, *, now: float) -> dict[str, Any]:
    """Return the answer of `GET /<number>/settings`."""
    calling = dict(number.calling)
    if number.restricted_until > now:
        entry = {
            "type": "RESTRICTED_BUSINESS_INITIATED_CALLING",
            "reason": "low quality",
            "expiration": int(number.restricted_until),
        }
        calling["restrictions"] = {"restrictions_list": [entry]}
    return {"calling": calling}
