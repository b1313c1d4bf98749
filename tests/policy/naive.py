"""The rules about a contact once more: deliberately naive, with lists and loops over all facts, for comparison.

Shares the fact types and the pack with the real thing, and nothing else. It knows no state, no horizon, no table, and
finds the first instant of a yes by trying every instant at which anything could change, one after the other.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from policy.facts import (
    Action,
    CallConnected,
    CallRejected,
    CallUnanswered,
    Direction,
    Fact,
    LimitReported,
    PermissionDeclined,
    PermissionGranted,
    PermissionRequested,
    PermissionRevoked,
    ReplySource,
    RequestForm,
    UsageReported,
    WindowClosed,
    WindowOpened,
)
from policy.pack import Pack

HOURS_24 = timedelta(hours=24)
DAYS_7 = timedelta(days=7)


def unique(facts: Iterable[Fact]) -> list[Fact]:
    """Drop repetitions: one kind and key is one fact, of two tales the later instant."""
    seen: list[Fact] = []
    for fact in facts:
        twins = [other for other in seen if type(other) is type(fact) and other.key == fact.key]
        if all(twin.at < fact.at for twin in twins):
            seen = [other for other in seen if other not in twins] + [fact]
    return sorted(seen, key=lambda fact: fact.at)


def permission(pack: Pack, facts: list[Fact], now: datetime) -> tuple[str, int]:
    """Live the contact's life day by day: how the permission stands, and the streak."""

    def weight(fact: Fact) -> tuple[int, bool, bool, str]:
        """At one instant: what is kind to the contact's caller first, what is not has the last word."""
        order = (CallConnected, PermissionGranted, CallUnanswered, CallRejected, PermissionDeclined)
        place = order.index(type(fact)) if type(fact) in order else len(order)
        automatic = isinstance(fact, PermissionGranted) and fact.source is ReplySource.AUTOMATIC
        permanent = isinstance(fact, PermissionGranted) and fact.permanent
        return place, not automatic, not permanent, fact.key

    grant: PermissionGranted | None = None
    lost: PermissionGranted | None = None  # to the streak
    ever, how, streak = False, "", 0
    for fact in sorted(facts, key=lambda fact: (fact.at, *weight(fact))):
        if isinstance(fact, PermissionGranted):
            if fact.source is ReplySource.AUTOMATIC and not pack.automatic_permissions:
                continue
            grant, lost, ever, how, streak = fact, None, True, "", 0
        elif isinstance(fact, PermissionDeclined):
            grant, lost, how = None, None, "declined"
        elif isinstance(fact, PermissionRevoked) and ever:
            grant, lost, how = None, None, "revoked"
        elif isinstance(fact, CallConnected) and fact.direction is Direction.BUSINESS_INITIATED:
            grant, lost, streak = grant or lost, None, 0  # picked up: so Meta had not revoked
        elif isinstance(fact, CallUnanswered) or (isinstance(fact, CallRejected) and pack.streak_counts_rejected):
            streak += 1
            if streak == pack.streak_revoke and grant is not None and min(fact.at, now) < _end(pack, grant):
                grant, lost, how = None, grant, "revoked"
    if grant is None:
        return how or "none", streak
    if grant.permanent and pack.permanent_permissions:
        return "permanent", streak
    return ("temporary" if now < _end(pack, grant) else "expired"), streak


def _end(pack: Pack, grant: PermissionGranted) -> datetime:
    if grant.permanent and pack.permanent_permissions:
        return datetime.max.replace(tzinfo=UTC)
    return grant.expires_at or grant.at + timedelta(seconds=pack.permission_lifetime_s)


def window_open(pack: Pack, facts: list[Fact], now: datetime) -> bool:
    """Tell whether free-form messages may be sent."""
    openings = [fact.at for fact in facts if isinstance(fact, WindowOpened)]
    calls = [fact for fact in facts if isinstance(fact, CallConnected)]
    openings += [call.at for call in calls if call.direction is Direction.BUSINESS_INITIATED]  # theirs: when placed
    closings = [fact.at for fact in facts if isinstance(fact, WindowClosed)]
    for opened in openings:
        fresh = now < opened + timedelta(seconds=pack.service_window_s)
        if fresh and not any(closed >= opened for closed in closings):
            return True
    return False


def _meta_says_no(facts: list[Fact], action: Action, now: datetime, cleared: list[datetime]) -> bool:
    reports = [fact.at for fact in facts if isinstance(fact, UsageReported) and fact.action is action]
    for fact in facts:
        if not isinstance(fact, LimitReported) or fact.action is not action or now >= fact.until:
            continue
        if not any(later > fact.at for later in reports + cleared):
            return True
    return False


def _last_report(facts: list[Fact], action: Action) -> UsageReported | None:
    reports = [fact for fact in facts if isinstance(fact, UsageReported) and fact.action is action]
    return max(reports, key=lambda fact: (fact.at, fact.key)) if reports else None


def may_call(pack: Pack, facts: list[Fact], now: datetime, in_flight: int) -> bool:
    """Tell whether a business-initiated call may be placed."""
    status, _ = permission(pack, facts, now)
    if status not in ("temporary", "permanent"):
        return False
    report = _last_report(facts, Action.START_CALL)
    count = in_flight
    if report is not None and now - report.at < HOURS_24:
        count += report.used_24h
    for fact in facts:
        if not isinstance(fact, CallConnected) or fact.direction is Direction.USER_INITIATED:
            continue
        if now - fact.at < HOURS_24 and (report is None or fact.at >= report.at):
            count += 1
    return count < pack.connected_per_24h and not _meta_says_no(facts, Action.START_CALL, now, [])


def may_ask(pack: Pack, facts: list[Fact], now: datetime, in_flight: int, form: RequestForm | None) -> bool:
    """Tell whether a permission request may be sent."""
    if permission(pack, facts, now)[0] == "permanent":
        return False
    wait = timedelta(seconds=pack.after_decline_s)
    if any(isinstance(fact, PermissionDeclined) and now - fact.at < wait for fact in facts):
        return False
    talks = [fact.at for fact in facts if isinstance(fact, CallConnected)]
    report = _last_report(facts, Action.SEND_REQUEST)
    if report is not None and any(talk > report.at for talk in talks):
        counted_from, report = None, None
    else:
        counted_from = report.at if report is not None else None
    day = week = in_flight
    if report is not None:
        day += report.used_24h if now - report.at < HOURS_24 else 0
        week += report.used_7d if now - report.at < DAYS_7 else 0
    for fact in facts:
        if not isinstance(fact, PermissionRequested) or any(talk > fact.at for talk in talks):
            continue
        if counted_from is not None and fact.at < counted_from:
            continue
        day += now - fact.at < HOURS_24
        week += now - fact.at < DAYS_7
    if day >= pack.requests_per_24h or week >= pack.requests_per_7d:
        return False
    if _meta_says_no(facts, Action.SEND_REQUEST, now, talks):
        return False
    return form is not RequestForm.FREE_FORM or window_open(pack, facts, now)


def first_yes(
    pack: Pack, facts: list[Fact], now: datetime, says: Callable[[datetime], bool], others: Iterable[datetime] = ()
) -> datetime | None:
    """Wait: try every instant after `now` at which anything could change; None if none of them is a yes.

    `others` are further instants, of what `says` looks at besides the facts.
    """
    spans = {HOURS_24, DAYS_7}
    for seconds in (pack.after_decline_s, pack.service_window_s, pack.permission_lifetime_s):
        spans.add(timedelta(seconds=seconds))
    instants = {fact.at + span for fact in facts for span in spans} | set(others)
    for fact in facts:
        if isinstance(fact, LimitReported):
            instants.add(fact.until)
        elif isinstance(fact, PermissionGranted) and fact.expires_at is not None:
            instants.add(fact.expires_at)
    return next((at for at in sorted(instants) if at > now and says(at)), None)
