"""What Meta's refusal of a call or of a permission request says about the contact, as a fact. [P]

Responsible for the errors that speak of a contact. Those that speak of the business number are in `number_facts`, what
Meta says when it is asked in `drift`. Meta is the authority: where it refuses what the gate let through, the gate is
wrong, and the fact makes it answer as Meta does.

`drift` makes facts of the same kinds of more than an error tells: ends of permissions, figures, limits that were
lifted. An error is one no, at one instant; so the two share when such a fact happened, and nothing else.

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
    """One refusal of Meta's, and what we knew when it came."""

    pack: Pack
    state: ContactState
    at: datetime  #: after everything that is known, so that Meta's word outweighs it
    key: str
    retry_at: datetime | None  #: aware UTC, if Meta said when


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A fact that Meta's refusal told, and the rule of the gate that would have known it."""

    rule: str
    fact: Fact


def told_by(error: GraphError, pack: Pack, state: ContactState, *, now: datetime) -> Told | None:
    """Return what a refusal says that we did not know; None: nothing about the contact, or nothing new."""
    rule_and_make = _TABLE.get(error.code or 0)
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
    """Take Meta's instant, or if it tells none, its shortest window."""
    until = refused.retry_at
    if until is None or until <= refused.at:
        until = refused.at + DAY
    until = min(until, refused.at + LONGEST_LIMIT)
    known = limited_until(refused.state, action)
    if known is not None and known >= until:
        return None
    return LimitReported(at=refused.at, key=refused.key, action=action, until=until)


_TABLE: Final[Mapping[int, tuple[str, Callable[[Refused], Fact | None]]]] = MappingProxyType(
    {
        138006: ("contact/permission", _no_permission),
        138012: ("contact/connected_per_24h", _calls),
        138009: ("request/per_24h", _requests),
        138017: ("request/permission_exists", _permission_exists),
        131047: ("request/window", _window_closed),
    }
)
