"""Find where Meta's records of a contact differ from ours, and the facts that correct ours. [P]

Meta is the authority: after the facts are applied, nothing differs any more. A deviation that the policy pack makes on
purpose is not a difference: a pack may treat a permanent permission as one for a week, or ignore an automatic one.
`reconciler` asks Meta.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.meta.answers import ActionLimit, Permissions, ReportedAction, ReportedPermission
from policy.contact import KEPT, ContactState, calls_counted, instant_after, limited_until, requests_counted
from policy.facts import (
    LONGEST_LIMIT,
    Action,
    Fact,
    LimitReported,
    PermissionGranted,
    PermissionRevoked,
    ReplySource,
    UsageReported,
)
from policy.pack import Pack
from policy.permission import Permission, PermissionStatus, permission_at
from policy.windows import DAY, WEEK, count_in

#: Instants closer together than this count as equal: Meta sends whole seconds, and its clock differs from ours.
SAME: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference; `rule` names the rule of the gate that would have decided wrongly."""

    rule: str
    ours: str
    metas: str
    facts: tuple[Fact, ...]


def drifts(
    pack: Pack, state: ContactState, metas: Permissions, *, asked_at: datetime, counts: bool = True
) -> tuple[Drift, ...]:
    """Compare our state with Meta's record.

    Pass `counts=False` while a call or request is under way: Meta may have counted it before us. The facts get the
    instant at which Meta was asked, so that later events override them; but if what they correct is later than that
    (Meta's clock is ahead of ours), they get the instant just after it.
    """
    at = instant_after(state, now=asked_at)
    found = _permission(pack, state, metas, at)
    if counts:
        found += _calls(pack, state, metas.start_call, at)
        found += _requests(pack, state, metas.send_request, at)
    return tuple(found)


def _key(what: str, at: datetime) -> str:
    return f"meta_record/{what}/{at.isoformat()}"


# --- permission ----------------------------------------------------------------------------------


def _permission(pack: Pack, state: ContactState, metas: Permissions, at: datetime) -> list[Drift]:
    ours = permission_at(pack, state, now=at)
    if _agree(pack, state, ours, metas, at):
        return []
    key = _key("permission", at)
    fact: Fact = PermissionRevoked(at=at, key=key, source=ReplySource.META_RECORD)
    if metas.status is not ReportedPermission.NO_PERMISSION:
        permanent = metas.status is ReportedPermission.PERMANENT
        fact = PermissionGranted(
            at=at,
            key=key,
            permanent=permanent,
            expires_at=None if permanent else metas.expires_at,
            source=ReplySource.META_RECORD,
        )
    return [
        Drift(
            rule="contact/permission",
            ours=_said(ours.status.value, ours.expires_at if ours.live else None),
            metas=_said(metas.status.value, metas.expires_at),
            facts=(fact,),
        )
    ]


def _agree(pack: Pack, state: ContactState, ours: Permission, metas: Permissions, at: datetime) -> bool:
    match metas.status:
        case ReportedPermission.UNKNOWN:
            return True
        case ReportedPermission.NO_PERMISSION:
            return not ours.live
        case ReportedPermission.PERMANENT:
            if ours.status is PermissionStatus.PERMANENT:
                return True
            # A permission that ended for another reason than its time is one that Meta still has and we do not.
            lasted = ours.status in (PermissionStatus.TEMPORARY, PermissionStatus.EXPIRED)
            kept = lasted and state.granted is not None and state.granted.permanent and not pack.permanent_permissions
            return kept or _is_left_out(pack, state, metas)
        case ReportedPermission.TEMPORARY:
            ends = metas.expires_at
            if ends is not None and ends <= at:  # it expired meanwhile
                return True
            if ours.status is PermissionStatus.TEMPORARY and _same(ends, ours.expires_at):
                return True
            return _is_left_out(pack, state, metas)


def _is_left_out(pack: Pack, state: ContactState, metas: Permissions) -> bool:
    """Tell whether this is an automatic permission that we know and that the pack ignores (guide R11)."""
    grant = state.granted_automatically
    if grant is None or pack.automatic_permissions or grant.permanent != (metas.status is ReportedPermission.PERMANENT):
        return False
    return _same(metas.expires_at, grant.expires_at or grant.at + pack.permission_lifetime)


def _same(metas: datetime | None, ours: datetime | None) -> bool:
    """Compare two expiries; if Meta does not give one, any matches."""
    return metas is None or (ours is not None and abs(metas - ours) < SAME)


def _said(status: str, until: datetime | None) -> str:
    return f"{status} until {until.isoformat()}" if until else status


# --- counts --------------------------------------------------------------------------------------


def _calls(pack: Pack, state: ContactState, metas: ReportedAction, at: datetime) -> list[Drift]:
    ours = count_in(calls_counted(state), window=DAY, now=at)
    told = _usage(metas, DAY)
    usage = UsageReported(
        at=at, key=_key("calls", at), action=Action.START_CALL, used_24h=ours if told is None else told
    )
    found: list[Drift] = []
    if usage.used_24h != ours:
        found.append(_counted("contact/connected_per_24h", ours, usage.used_24h, usage))
    refuses = usage.used_24h >= pack.connected_per_24h
    return found + _limit("contact/connected_by_meta", state, metas, usage, refuses=refuses, corrected=bool(found))


def _requests(pack: Pack, state: ContactState, metas: ReportedAction, at: datetime) -> list[Drift]:
    day, week = (count_in(requests_counted(state, window=window), window=window, now=at) for window in (DAY, WEEK))
    told_day, told_week = _usage(metas, DAY), _usage(metas, WEEK)
    usage = UsageReported(
        at=at,
        key=_key("requests", at),
        action=Action.SEND_REQUEST,
        used_24h=day if told_day is None else told_day,
        used_7d=week if told_week is None else told_week,
    )
    found: list[Drift] = []
    if usage.used_24h != day:
        found.append(_counted("request/per_24h", day, usage.used_24h, usage))
    if usage.used_7d != week:
        found.append(_counted("request/per_7d", week, usage.used_7d, usage))
    refuses = usage.used_24h >= pack.requests_per_24h or usage.used_7d >= pack.requests_per_7d
    return found + _limit("request/by_meta", state, metas, usage, refuses=refuses, corrected=bool(found))


def _usage(metas: ReportedAction, window: timedelta) -> int | None:
    """Return Meta's count in a window; None if it does not say."""
    told = [each.current_usage for each in metas.limits if _lasts(each, window) and each.current_usage is not None]
    return min(max(told), KEPT) if told else None


def _lasts(limit: ActionLimit, window: timedelta) -> bool:
    return limit.period_s is not None and timedelta(seconds=limit.period_s) == window


def _limit(
    rule: str, state: ContactState, metas: ReportedAction, usage: UsageReported, *, refuses: bool, corrected: bool
) -> list[Drift]:
    """Compare what Meta refuses or allows with our state: Meta's limits may differ from the pack's."""
    at = usage.at
    known = None if corrected else limited_until(state, usage.action)  # a usage fact clears an earlier limit
    if known is not None and known <= at:
        known = None
    until = None if metas.allowed is True else _reached_until(metas, at)
    facts: tuple[Fact, ...] = ()
    if until is None:
        facts = (usage,) if known is not None and metas.allowed is True else ()
    elif not refuses and (known is None or abs(known - until) >= SAME):
        limit = LimitReported(at=at, key=_key(usage.action.value, at), action=usage.action, until=until)
        facts = (usage, limit) if known is not None and known > until else (limit,)
    if not facts:
        return []
    return [Drift(rule=rule, ours=_until_said(known), metas=_until_said(until), facts=facts)]


def _reached_until(metas: ReportedAction, at: datetime) -> datetime | None:
    """Return until when a limit is reached at Meta; None if none is."""
    ends = [
        min(each.expires_at, at + LONGEST_LIMIT)
        for each in metas.limits
        if each.expires_at is not None
        and each.expires_at > at
        and each.max_allowed is not None
        and (each.current_usage or 0) >= each.max_allowed
    ]
    return max(ends, default=None)


def _counted(rule: str, ours: int, metas: int, usage: UsageReported) -> Drift:
    return Drift(rule=rule, ours=str(ours), metas=str(metas), facts=(usage,))


def _until_said(until: datetime | None) -> str:
    return _said("limited", until) if until else "free"
