"""Read webhook changes about a business number itself as frozen events. [P]

The fields are `account_update` and `account_settings_update`; any other change becomes an `UnknownEvent` of `events`.
`numbers.facts` says what the events mean for the number.

Source: Meta, "Configure call settings" (quality, restrictions, settings webhooks), read 2026-11-22.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import orjson

from gateway.common.ids import PhoneNumberId
from gateway.meta import shapes
from gateway.meta.shapes import BaseEvent, Id, Instant, Text, WaId
from policy.number import Restriction, RestrictionType

#: Any violation type, also those that we do not know: it is shown as it is.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]{1,64}\Z")]

_RESTRICTIONS: Final = frozenset(RestrictionType)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberWarned(BaseEvent):
    """Meta warns about a number's calls: a restriction may follow."""

    display_number: str  #: digits
    violation: str
    remediation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberRestricted(BaseEvent):
    """Meta has restricted a number."""

    display_number: str
    restrictions: tuple[Restriction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberSettingsChanged(BaseEvent):
    """The calling settings were changed, here or in Meta's console. May hold only what changed."""

    at: datetime
    calling: Mapping[str, Any]


NumberEvent = NumberWarned | NumberRestricted | NumberSettingsChanged


class _Violation(msgspec.Struct):
    violation_type: Name
    remediation: Text | None = None


class _Restricted(msgspec.Struct):
    restriction_type: str
    expiration: Any = None


class _AccountUpdate(msgspec.Struct):
    event: str
    phone_number: WaId
    violation_info: _Violation | None = None
    restriction_info: Any = None


class _NumberSettings(msgspec.Struct):
    phone_number_id: Id
    calling: dict[str, Any] | None = None


class _SettingsUpdate(msgspec.Struct):
    type: str
    timestamp: Instant
    phone_number_settings: _NumberSettings


def read_number_change(change: object, *, sent_at: object) -> NumberEvent | None:
    """Read a change about a number; None if we do not know its kind. `sent_at` is the entry's time.

    Raises: ValueError (msgspec.ValidationError is one).
    """
    field, value = shapes.get(change, "field"), shapes.get(change, "value")
    if field not in ("account_update", "account_settings_update"):
        return None
    # The same warning months later is a new one, so the entry's time is part of the dedupe key.
    key = shapes.hashed(orjson.dumps([change, sent_at]))
    common: dict[str, Any] = {"dedupe_key": key, "body": orjson.dumps(change)}
    if field == "account_update":
        update = msgspec.convert(value, _AccountUpdate, strict=False)
        return _read_account(update, common | {"at": _time(sent_at), "number_id": PhoneNumberId("")})
    return _read_settings(msgspec.convert(value, _SettingsUpdate, strict=False), common)


def _read_account(update: _AccountUpdate, common: dict[str, Any]) -> NumberEvent | None:
    common = common | {"display_number": update.phone_number.removeprefix("+")}
    if update.event == "ACCOUNT_VIOLATION" and update.violation_info is not None:
        violation = update.violation_info
        return NumberWarned(
            kind="number.warned", violation=violation.violation_type, remediation=violation.remediation, **common
        )
    restrictions = tuple(
        restriction
        for raw in shapes.each(update.restriction_info)
        if (restriction := _read_restriction(raw)) is not None
    )
    if update.event == "ACCOUNT_RESTRICTION" and restrictions:
        return NumberRestricted(kind="number.restricted", restrictions=restrictions, **common)
    return None


def _read_restriction(raw: object) -> Restriction | None:
    """Read one restriction; None if it is not about calling or not readable. An unreadable expiry becomes None."""
    try:
        info = msgspec.convert(raw, _Restricted, strict=False)
    except msgspec.ValidationError:
        return None
    kind = info.restriction_type.upper()
    return Restriction(type=RestrictionType(kind), expires_at=_time(info.expiration)) if kind in _RESTRICTIONS else None


def _read_settings(update: _SettingsUpdate, common: dict[str, Any]) -> NumberEvent | None:
    # Meta's sample has the type in lower case, its table in capitals. `calling` is null if something else changed.
    found, number_id = update.phone_number_settings, shapes.number_id(update.phone_number_settings.phone_number_id)
    if update.type.lower() != "phone_number_settings" or not number_id:
        return None
    return NumberSettingsChanged(
        kind="number.settings",
        number_id=number_id,
        at=shapes.instant(update.timestamp),
        calling=found.calling or {},
        **common,
    )


def _time(seconds: object) -> datetime | None:
    try:
        return shapes.instant(msgspec.convert(seconds, Instant, strict=False))
    except ValueError:
        return None
