"""`NumberFacts` to JSON and back, as the store keeps them. [P]

Payment trouble is not kept: nothing but a success ends it, and while it lasts there is none, so a start tries anew.
"""

from datetime import datetime
from typing import Final

import msgspec

from gateway.number_facts import Announced, NumberFacts, Warned
from gateway.records import Json
from policy.hours import CallHours, Holiday, HoursError, Opening
from policy.number import CallingStatus, Restriction

VERSION: Final = 1


class FactsError(ValueError):
    """These are no facts of this version."""


class _Hours(msgspec.Struct, frozen=True, kw_only=True):
    timezone: str
    weekly: tuple[Opening, ...]
    holidays: tuple[Holiday, ...]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `NumberFacts` that outlive a restart."""

    version: int
    calling: CallingStatus
    sip_enabled: bool
    hours: _Hours | None
    coexistence: bool | None
    messaging_limit: int | None
    eligibility_refused: bool
    country_refused: bool
    listed: tuple[Restriction, ...]
    announced: tuple[Announced, ...]
    restriction_met: bool
    warned: tuple[Warned, ...]
    settings_at: datetime | None
    read_at: datetime | None


_SAME: Final = tuple(name for name in _Kept.__struct_fields__ if name not in ("version", "hours"))


def facts_to_json(facts: NumberFacts) -> Json:
    """Return what is kept of the facts."""
    hours = facts.hours
    kept = _Kept(
        version=VERSION,
        hours=_Hours(timezone=hours.timezone, weekly=hours.weekly, holidays=hours.holidays) if hours else None,
        **{name: getattr(facts, name) for name in _SAME},
    )
    plain: Json = msgspec.to_builtins(kept)
    return plain


def facts_from_json(data: Json) -> NumberFacts:
    """Read them again. Raises: FactsError."""
    try:
        kept = msgspec.convert(data, _Kept)
        if kept.version != VERSION:
            raise FactsError(f"version {kept.version}")
        hours = kept.hours
        return NumberFacts(
            hours=CallHours(timezone=hours.timezone, weekly=hours.weekly, holidays=hours.holidays) if hours else None,
            **{name: getattr(kept, name) for name in _SAME},
        )
    except (msgspec.ValidationError, HoursError) as error:
        raise FactsError(str(error)) from error
