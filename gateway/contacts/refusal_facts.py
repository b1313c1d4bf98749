"""Read Meta's refusal of a call or of a permission request as a fact about the contact. [P]

Errors about the business number are in `numbers.facts`. Meta is the authority: if it refuses what the gate allowed, the
gate is wrong, and the fact makes the gate decide as Meta does.

`drift` creates facts of the same kinds from Meta's records, which say more than an error: expiries of permissions,
counts, limits that were lifted. An error is one refusal at one instant. So the two modules share only the choice of the
fact's instant (`instant_after`).

Source: Meta, "Calling API troubleshooting" (138xxx) and "Error codes" (131047), read 2026-11-22.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from gateway.common.errors import GraphError
from policy.contact import ContactState, instant_after, limited_until
from policy.facts import (
    LONGEST_LIMIT,
    Action,
    Fact,
    LimitReported,
    PermissionGranted,
    PermissionRevoked,
    ReplySource,
    WindowClosed,
)
from policy.pack import Pack
from policy.permission import PermissionStatus, permission_at
from policy.rules import window_open_until
from policy.windows import DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One refusal by Meta, and our state when it came."""

    pack: Pack
    state: ContactState
    at: datetime  #: after everything in `state`, so that Meta's answer overrides it
    key: str
    retry_at: datetime | None  #: aware UTC; None: Meta did not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A fact from Meta's refusal, and the rule of the gate that should have refused."""

    rule: str
    fact: Fact


def told_by(error: GraphError, pack: Pack, state: ContactState, *, now: datetime) -> Told | None:
    """Return the new fact in a refusal; None if it says nothing about the contact, or nothing new."""
    rule_and_make = _RULE_AND_FACT.get(error.code or 0)
    if rule_and_make is None:
        return None
    rule, make = rule_and_make
    at = instant_after(state, now=now)
    refused = Refused(
        pack=pack,
        state=state,
        at=at,
        key=f"meta_refused/{error.code}/{at.isoformat()}",
        retry_at=getattr(error, "retry_at", None),
    )
    fact = make(refused)
    return Told(rule=rule, fact=fact) if fact is not None else None


def _no_permission(refused: Refused) -> Fact | None:
    if not permission_at(refused.pack, refused.state, now=refused.at).live:
        return None
    return PermissionRevoked(at=refused.at, key=refused.key, source=ReplySource.META_RECORD)


def _permission_exists(refused: Refused) -> Fact | None:
    if permission_at(refused.pack, refused.state, now=refused.at).status is PermissionStatus.PERMANENT:
        return None
    return PermissionGranted(at=refused.at, key=refused.key, permanent=True, source=ReplySource.META_RECORD)


def _window_closed(refused: Refused) -> Fact | None:
    if window_open_until(refused.pack, refused.state, now=refused.at) is None:
        return None
    return WindowClosed(at=refused.at, key=refused.key)


def _calls(refused: Refused) -> Fact | None:
    return _limit(refused, Action.START_CALL)


def _requests(refused: Refused) -> Fact | None:
    return _limit(refused, Action.SEND_REQUEST)


def _limit(refused: Refused, action: Action) -> Fact | None:
    """Return a limit until the instant that Meta gave, or else for Meta's shortest window; None if it is known."""
    until = refused.retry_at
    if until is None or until <= refused.at:
        until = refused.at + DAY
    until = min(until, refused.at + LONGEST_LIMIT)
    known = limited_until(refused.state, action)
    if known is not None and known >= until:
        return None
    return LimitReported(at=refused.at, key=refused.key, action=action, until=until)


_RULE_AND_FACT: Final[Mapping[int, tuple[str, Callable[[Refused], Fact | None]]]] = MappingProxyType(
    {
        138006: ("contact/permission", _no_permission),
        138012: ("contact/connected_per_24h", _calls),
        138009: ("request/per_24h", _requests),
        138017: ("request/permission_exists", _permission_exists),
        131047: ("request/window", _window_closed),
    }
)
