"""What is known about a business number, folded from Meta's settings, webhooks and errors. [P]

Theory of operation. `NumberFacts` separates the sources. The restrictions that Graph lists are complete at that moment
and replace those that it listed before. A restriction that only a webhook announced stays until it expires, even if
Graph does not list it. Nothing has to remove expired restrictions: the gate compares instants (see `policy.rules`).
`state_of` overrides the facts with the gateway's own settings (`ByHand`), where these are set.

Source: Meta, "Configure call settings" and "Calling API troubleshooting", read 2026-11-22.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

import msgspec

from gateway.meta.answers import NumberCallingSettings, NumberInfo, read_settings
from gateway.meta.number_events import NumberEvent, NumberRestricted, NumberSettingsChanged, NumberWarned
from gateway.store.records import Json
from policy.facts import Direction
from policy.hours import CallHours, Holiday, HoursError, Opening
from policy.number import CallingStatus, NumberState, Restriction, RestrictionType

#: How long Meta restricts a number; used if a restriction of calls came without its expiry.
RESTRICTED_FOR: Final = timedelta(days=7)
#: How long a warning is shown.
WARNED_FOR: Final = timedelta(days=7)

#: How long an expired restriction is kept: a clock may be set back.
KEPT_FOR: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A restriction that a webhook announced."""

    restriction: Restriction
    at: datetime  #: when it was announced


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A warning by Meta; nothing is restricted yet."""

    violation: str
    at: datetime
    remediation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFacts:
    """Everything that Meta has said about a number."""

    calling: CallingStatus = CallingStatus.UNKNOWN
    sip_enabled: bool = False
    hours: CallHours | None = None
    coexistence: bool | None = None  #: None: not known
    messaging_limit: int | None = None
    eligibility_refused: bool = False
    country_refused: bool = False
    payment_ok: bool = True
    listed: tuple[Restriction, ...] = ()  #: by Graph
    announced: tuple[Announced, ...] = ()  #: by webhooks
    restriction_met: bool = False  #: Meta refused with 138014 since Graph was last read: the expiry is not known
    warned: tuple[Warned, ...] = ()
    settings_at: datetime | None = None  #: the instant of the newest information about settings
    read_at: datetime | None = None  #: when Graph was last read


@dataclass(frozen=True, slots=True, kw_only=True)
class ByHand:
    """What the gateway's own settings say about a number; None: they say nothing."""

    country: str | None = None  #: from the settings, else from the numbering plan; None: neither knows it
    calling: CallingStatus | None = None
    sip_enabled: bool | None = None
    coexistence: bool | None = None
    messaging_limit: int | None = None
    hours: CallHours | None = None
    hours_enforced: frozenset[Direction] = frozenset()


def state_of(facts: NumberFacts, hand: ByHand) -> NumberState:
    """Return the state of a number for the rules of the gate."""
    met = (Restriction(type=RestrictionType.BUSINESS_INITIATED),) if facts.restriction_met else ()
    announced = tuple(each.restriction for each in facts.announced)
    return NumberState(
        country=hand.country,
        country_refused=facts.country_refused,
        eligibility_refused=facts.eligibility_refused,
        calling=_first(hand.calling, facts.calling),
        coexistence=_first(hand.coexistence, bool(facts.coexistence)),
        sip_enabled=_first(hand.sip_enabled, facts.sip_enabled),
        messaging_limit=_first(hand.messaging_limit, facts.messaging_limit),
        restrictions=tuple(dict.fromkeys((*facts.listed, *announced, *met))),
        payment_ok=facts.payment_ok,
        hours=_first(hand.hours, facts.hours),
        hours_enforced=hand.hours_enforced,
    )


def live_restrictions(state: NumberState, *, now: datetime) -> tuple[Restriction, ...]:
    """Return the restrictions in force, one of each type: the one that ends last."""
    found: dict[RestrictionType, Restriction] = {}
    for restriction in state.restrictions:
        known, until = found.get(restriction.type), restriction.expires_at
        if until is not None and until <= now:
            continue
        if known is None or (known.expires_at is not None and (until is None or until > known.expires_at)):
            found[restriction.type] = restriction
    return tuple(found[kind] for kind in RestrictionType if kind in found)


def live_warnings(facts: NumberFacts, *, now: datetime) -> tuple[Warned, ...]:
    """Return the warnings that are recent enough to be shown."""
    return tuple(warned for warned in facts.warned if now - warned.at < WARNED_FOR)


# --- what Graph says ---------------------------------------------------------------------------------


def with_settings(facts: NumberFacts, said: NumberCallingSettings, *, asked_at: datetime) -> NumberFacts:
    """Replace all calling settings with those read from Graph at `asked_at`."""
    types = {restriction.type for restriction in said.restrictions}
    return replace(
        facts,
        calling=said.calling,
        sip_enabled=said.sip_enabled,
        hours=said.hours,
        listed=said.restrictions,
        # A restriction that Graph lists need not be kept from a webhook: Graph then tells its end.
        announced=_unexpired(
            (each for each in facts.announced if each.restriction.type not in types or each.at >= asked_at),
            now=asked_at,
        ),
        restriction_met=False,
        settings_at=_latest(facts.settings_at, asked_at),
        read_at=asked_at,
    )


def with_info(facts: NumberFacts, said: NumberInfo) -> NumberFacts:
    """Update the facts from Meta's record of the number; what it leaves out stays."""
    return replace(
        facts,
        coexistence=_first(said.coexistence, facts.coexistence),
        messaging_limit=_first(said.messaging_limit, facts.messaging_limit),
        eligibility_refused=facts.eligibility_refused and said.messaging_limit is None,
    )


def asked_by_hand(facts: NumberFacts) -> NumberFacts:
    """Clear what Graph does not report and an administrator may have fixed: payment, country, a hidden call button."""
    announced = tuple(each for each in facts.announced if each.restriction.expires_at is not None)
    return replace(facts, payment_ok=True, country_refused=False, eligibility_refused=False, announced=announced)


# --- what webhooks say -------------------------------------------------------------------------------


def with_event(facts: NumberFacts, event: NumberEvent, *, now: datetime) -> NumberFacts:
    """Fold a webhook into the facts. Idempotent."""
    match event:
        case NumberWarned(violation=violation, remediation=remediation):
            warned = Warned(violation=violation, at=event.at or now, remediation=remediation)
            others = [w for w in live_warnings(facts, now=now) if w.violation != violation or w.at > warned.at]
            if any(other.violation == violation for other in others):  # a newer one came before this
                return facts
            return replace(facts, warned=(*others, warned))
        case NumberRestricted(restrictions=restrictions):
            told = [_announced(restriction, at=event.at or now) for restriction in restrictions]
            known = [each for each in facts.announced if each not in told]
            return replace(facts, announced=_unexpired((*known, *told), now=now))
        case NumberSettingsChanged(calling=calling, at=at):
            return _with_changes(facts, calling, at=at)


def _announced(restriction: Restriction, *, at: datetime) -> Announced:
    """Give a restriction without an expiry the one in Meta's page; a hidden button stays until it is shown again."""
    if restriction.expires_at is None and restriction.type is not RestrictionType.CALL_BUTTON_HIDDEN:
        restriction = replace(restriction, expires_at=at + RESTRICTED_FOR)
    return Announced(restriction=restriction, at=at)


def _with_changes(facts: NumberFacts, calling: Mapping[str, Any], *, at: datetime) -> NumberFacts:
    """Update the settings that the webhook names: it may hold only what was changed.

    A webhook that is older than the newest information changes nothing.
    """
    if not calling or (facts.settings_at is not None and at < facts.settings_at):
        return facts
    said = read_settings({"calling": calling})
    changed: dict[str, Any] = {"settings_at": at}
    if "status" in calling:
        changed["calling"] = said.calling
    if "sip" in calling:
        changed["sip_enabled"] = said.sip_enabled
    if "call_hours" in calling:
        changed["hours"] = said.hours
    if "restrictions" in calling:
        changed["listed"] = said.restrictions
    if said.icon_visibility == "DEFAULT":
        hidden = RestrictionType.CALL_BUTTON_HIDDEN
        changed["announced"] = tuple(each for each in facts.announced if each.restriction.type is not hidden)
    return replace(facts, **changed)


# --- what errors and successes say -------------------------------------------------------------------

#: Errors of `connect`, of permission requests and of `terminate` that concern the number, not the contact.
NO_PAYMENT: Final = 131044
ON_ERROR: Final[Mapping[int, Mapping[str, Any]]] = MappingProxyType(
    {
        138000: {"calling": CallingStatus.DISABLED},
        138013: {"country_refused": True},
        138014: {"restriction_met": True},
        138015: {"eligibility_refused": True},
        NO_PAYMENT: {"payment_ok": False},
        131055: {"sip_enabled": True},
    }
)
#: After these errors we read Meta's settings again: they say more than the error.
ASK_AGAIN: Final = frozenset({138000, 138014, 138015, 131055})


def with_error(facts: NumberFacts, code: int) -> NumberFacts:
    """Fold an error with which Meta refused a call or a permission request into the facts."""
    return replace(facts, **ON_ERROR.get(code, {}))


def with_success(facts: NumberFacts) -> NumberFacts:
    """Clear what earlier errors said about the number: Meta has accepted a call or a permission request."""
    return replace(facts, payment_ok=True, country_refused=False, eligibility_refused=False, restriction_met=False)


# --- small pieces ------------------------------------------------------------------------------------


def _first(told: Any, otherwise: Any) -> Any:
    return otherwise if told is None else told


def _latest(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else max(one, other)


def _unexpired(announced: Iterable[Announced], *, now: datetime) -> tuple[Announced, ...]:
    since = now - KEPT_FOR
    ends = ((each, each.restriction.expires_at) for each in announced)
    return tuple(each for each, end in ends if end is None or end > since)


# --- facts as JSON, for the store --------------------------------------------------------------------
# A payment problem is not stored: only a successful call clears it, and the gate refuses calls while it lasts. A
# restart lets one call try.

KEPT_VERSION: Final = 1


class FactsError(ValueError):
    """The stored facts are not readable by this version."""


class _KeptHours(msgspec.Struct, frozen=True, kw_only=True):
    timezone: str
    weekly: tuple[Opening, ...]
    holidays: tuple[Holiday, ...]


class _KeptFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `NumberFacts` that are stored."""

    version: int
    calling: CallingStatus
    sip_enabled: bool
    hours: _KeptHours | None
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


_KEPT_AS_THEY_ARE: Final = tuple(name for name in _KeptFacts.__struct_fields__ if name not in ("version", "hours"))


def facts_to_json(facts: NumberFacts) -> Json:
    """Return the facts in the form that is stored."""
    hours = facts.hours
    kept = _KeptFacts(
        version=KEPT_VERSION,
        hours=_KeptHours(timezone=hours.timezone, weekly=hours.weekly, holidays=hours.holidays) if hours else None,
        **{name: getattr(facts, name) for name in _KEPT_AS_THEY_ARE},
    )
    plain: Json = msgspec.to_builtins(kept)
    return plain


def facts_from_json(data: Json) -> NumberFacts:
    """Read stored facts. Raises: FactsError."""
    try:
        kept = msgspec.convert(data, _KeptFacts)
        if kept.version != KEPT_VERSION:
            raise FactsError(f"version {kept.version}")
        hours = kept.hours
        return NumberFacts(
            hours=CallHours(timezone=hours.timezone, weekly=hours.weekly, holidays=hours.holidays) if hours else None,
            **{name: getattr(kept, name) for name in _KEPT_AS_THEY_ARE},
        )
    except (msgspec.ValidationError, HoursError) as error:
        raise FactsError(str(error)) from error
