"""One contact of one business number: facts in, one small state out.

Theory of operation
-------------------
A `ContactState` is the set of facts that can still matter. `merge` joins two states: for a kind of fact where only the
newest matters it keeps the newest, for a kind that is counted it keeps the union, and then it drops what can no longer
matter. `apply` merges one fact. The join is commutative, associative and idempotent, so facts may arrive late, twice
and in any order, and `merge` also joins the histories of one person known by two names (number and BSUID): a fact in
both counts once.

Dropping facts never changes an answer:

* Of a counted kind with a window, facts older than the window plus SLACK are dropped, measured from the newest fact of
  that kind. At any instant up to SLACK before that newest fact they are outside the window anyway. `check_time` in
  `facts.py` keeps facts from lying further in the future than that.
* Unanswered and rejected calls before the last answered one, and before the contact's last grant, are dropped: they
  are not part of the streak under any pack, and both of these instants only ever move forward.
* Of each kind only the newest KEPT facts are kept. No pack may have a higher limit.

No value of a pack is needed here; one state serves every pack. `permission.py` and `rules.py` interpret it. When
instants are equal the stricter reading wins: a request in the very second of a connected call still counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Final, TypeVar, assert_never

from policy.facts import (
    Action,
    CallConnected,
    CallRejected,
    CallUnanswered,
    Direction,
    Fact,
    FactError,
    LimitReported,
    PermissionDeclined,
    PermissionGranted,
    PermissionRequested,
    PermissionRevoked,
    ReplySource,
    UsageReported,
    WindowClosed,
    WindowOpened,
    fact_from_dict,
    fact_to_dict,
)
from policy.pack import MAX_LIMIT
from policy.windows import DAY, WEEK

#: Number of facts kept of each counted kind.
KEPT: Final = MAX_LIMIT
#: How far before the newest fact answers are still exact.
SLACK: Final = timedelta(days=1)
_TICK: Final = timedelta(microseconds=1)
#: Format of `state_to_dict`.
SNAPSHOT_VERSION: Final = 2

F = TypeVar("F", bound=Fact)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactState:
    """The facts about a contact that can still matter; tuples are sorted by instant, then by key."""

    requests: tuple[PermissionRequested, ...] = ()
    granted: PermissionGranted | None = None  #: by the contact, or found in Meta's records
    granted_automatically: PermissionGranted | None = None
    declined: PermissionDeclined | None = None
    revoked: PermissionRevoked | None = None
    connected: tuple[CallConnected, ...] = ()  #: business-initiated
    user_connected: CallConnected | None = None
    unanswered: tuple[CallUnanswered, ...] = ()
    rejected: tuple[CallRejected, ...] = ()
    window_opened: WindowOpened | None = None
    window_closed: WindowClosed | None = None
    limits: tuple[LimitReported, ...] = ()
    request_usage: UsageReported | None = None
    call_usage: UsageReported | None = None


EMPTY: Final = ContactState()
_FIELDS: Final = tuple(field.name for field in fields(ContactState))


def apply(state: ContactState, fact: Fact) -> ContactState:
    """Add one fact."""
    return merge(state, _singleton(fact))


def merge(left: ContactState, right: ContactState) -> ContactState:
    """Join two states of the same contact."""
    joined = ContactState(
        requests=_union(left.requests, right.requests, window=WEEK),
        granted=_newest(left.granted, right.granted),
        granted_automatically=_newest(left.granted_automatically, right.granted_automatically),
        declined=_newest(left.declined, right.declined),
        revoked=_newest(left.revoked, right.revoked),
        connected=_union(left.connected, right.connected, window=DAY),
        user_connected=_newest(left.user_connected, right.user_connected),
        unanswered=_union(left.unanswered, right.unanswered),
        rejected=_union(left.rejected, right.rejected),
        window_opened=_newest(left.window_opened, right.window_opened),
        window_closed=_newest(left.window_closed, right.window_closed),
        limits=_union(left.limits, right.limits, window=WEEK),
        request_usage=_newest(left.request_usage, right.request_usage),
        call_usage=_newest(left.call_usage, right.call_usage),
    )
    return _without_ended_streaks(joined)


def facts_of(state: ContactState) -> tuple[Fact, ...]:
    """List the facts of a state; folding them gives the same state."""
    kept: list[Fact] = []
    for name in _FIELDS:
        value: tuple[Fact, ...] | Fact | None = getattr(state, name)
        if isinstance(value, tuple):
            kept.extend(value)
        elif value is not None:
            kept.append(value)
    return tuple(kept)


def instant_after(state: ContactState, *, now: datetime) -> datetime:
    """Return the first instant from `now` on that is later than every fact of a state.

    A fact at that instant outweighs all others, whatever Meta's clock or ours has said before. Used for what Meta
    reports when it is asked.
    """
    newest = max((fact.at for fact in facts_of(state)), default=None)
    return now if newest is None or newest < now else newest + _TICK


def state_to_dict(state: ContactState) -> dict[str, object]:
    """Convert a state to plain values, for a snapshot."""
    return {"version": SNAPSHOT_VERSION, "facts": [fact_to_dict(fact) for fact in facts_of(state)]}


def state_from_dict(data: Mapping[str, object]) -> ContactState:
    """Read the output of `state_to_dict`.

    Raises:
        FactError: not a snapshot, or one of another version; fold the facts again instead.
    """
    listed = data.get("facts")
    if data.get("version") != SNAPSHOT_VERSION or not isinstance(listed, list):
        raise FactError("not a snapshot of this version")
    if not all(isinstance(plain, Mapping) for plain in listed):
        raise FactError("a snapshot must contain only facts")
    return fold(fact_from_dict(plain) for plain in listed)


def fold(facts: Iterable[Fact]) -> ContactState:
    """Return the state that results from facts, in whatever order they come."""
    state = EMPTY
    for fact in facts:
        state = apply(state, fact)
    return state


def last_answered_at(state: ContactState) -> datetime | None:
    """Return when the contact last answered a call of ours; None: never."""
    return state.connected[-1].at if state.connected else None


def last_connected_at(state: ContactState) -> datetime | None:
    """Return when business and contact last spoke, whoever called (guide R5); None: never."""
    return latest(last_answered_at(state), state.user_connected.at if state.user_connected else None)


def window_opened_at(state: ContactState) -> datetime | None:
    """Return when the customer service window was last opened; None: never, or Meta has reported it closed since.

    Our own call opens it when it is answered. The contact's call opens it when it is placed, answered or not; this is a
    WindowOpened fact of its own, and answering the call does not open the window again.
    Source: Meta, "Calling API pricing", read 2026-11-22.
    """
    opened = latest(state.window_opened.at if state.window_opened else None, last_answered_at(state))
    closed = state.window_closed
    return None if opened is None or (closed is not None and closed.at >= opened) else opened


def calls_counted(state: ContactState) -> list[datetime]:
    """List the connected business-initiated calls, sorted (guide R8): Meta's report plus the calls after it."""
    usage = state.call_usage
    if usage is None:
        return [call.at for call in state.connected]
    return [usage.at] * min(usage.used_24h, KEPT) + [call.at for call in state.connected if call.at >= usage.at]


def missed_calls(state: ContactState, *, rejected: bool) -> list[datetime]:
    """List the unanswered business-initiated calls, sorted, with or without those that were rejected.

    A call has one outcome, however many facts describe it; facts of one call share the part of their key after the "/".
    A call that was answered after all is not missed, and a rejected call counts only as rejected.
    """
    if not state.unanswered and not state.rejected:
        return []
    answered, declined = _names(state.connected), _names(state.rejected)
    missed = [call.at for call in state.unanswered if _name(call) not in answered | declined]
    if rejected:
        missed += [call.at for call in state.rejected if _name(call) not in answered]
    return sorted(missed)


def requests_counted(state: ContactState, *, window: timedelta) -> list[datetime]:
    """List the requests since the last connected call, sorted (guide R4, R5), including those in Meta's report.

    Meta reports one count for each of its two windows; `window` selects which (DAY or WEEK).
    """
    since = last_connected_at(state)
    counted = [request.at for request in state.requests if since is None or request.at >= since]
    usage = state.request_usage
    if usage is None or (since is not None and usage.at < since):
        return counted
    used = usage.used_24h if window == DAY else usage.used_7d
    return [usage.at] * min(used, KEPT) + [at for at in counted if at >= usage.at]


def limited_until(state: ContactState, action: Action) -> datetime | None:
    """Return until when Meta has refused an action; None: it has not, or something since has lifted the limit."""
    usage, since = state.call_usage, None
    if action is Action.SEND_REQUEST:
        usage, since = state.request_usage, last_connected_at(state)
    lifted = latest(usage.at if usage else None, since)
    return max(
        (limit.until for limit in state.limits if limit.action is action and (lifted is None or limit.at >= lifted)),
        default=None,
    )


def latest(left: datetime | None, right: datetime | None) -> datetime | None:
    """Return the later of two instants; either may be None."""
    if left is None or right is None:
        return left or right
    return max(left, right)


def _name(fact: Fact) -> str:
    """Return the name of the call behind a fact: "unanswered/X" and "connected/X" belong to one call."""
    return fact.key.partition("/")[2]


def _names(facts: Iterable[Fact]) -> set[str]:
    return {name for fact in facts if (name := _name(fact))}


def _singleton(fact: Fact) -> ContactState:  # one case for each kind
    match fact:
        case PermissionRequested():
            return ContactState(requests=(fact,))
        case PermissionGranted(source=ReplySource.AUTOMATIC):
            return ContactState(granted_automatically=fact)
        case PermissionGranted():
            return ContactState(granted=fact)
        case PermissionDeclined():
            return ContactState(declined=fact)
        case PermissionRevoked():
            return ContactState(revoked=fact)
        case CallConnected(direction=Direction.BUSINESS_INITIATED):
            return ContactState(connected=(fact,))
        case CallConnected():
            return ContactState(user_connected=fact)
        case CallUnanswered():
            return ContactState(unanswered=(fact,))
        case CallRejected():
            return ContactState(rejected=(fact,))
        case WindowOpened():
            return ContactState(window_opened=fact)
        case WindowClosed():
            return ContactState(window_closed=fact)
        case LimitReported():
            return ContactState(limits=(fact,))
        case UsageReported(action=Action.SEND_REQUEST):
            return ContactState(request_usage=fact)
        case UsageReported():
            return ContactState(call_usage=fact)
        case _ as never:
            assert_never(never)


def _order(fact: Fact) -> tuple[datetime, bool, str]:
    """Order by instant. Of two grants at one instant the temporary one is stricter and therefore sorts last."""
    temporary = isinstance(fact, PermissionGranted) and not fact.permanent
    return fact.at, temporary, fact.key


def _later(left: F, right: F) -> F:
    """Return the later of two facts; compare all fields if instant and key are equal, so that order never matters."""
    if _order(left) == _order(right):
        return max(left, right, key=repr)
    return max(left, right, key=_order)


def _newest(left: F | None, right: F | None) -> F | None:
    if left is None or right is None:
        return left or right
    return _later(left, right)


def _union(left: tuple[F, ...], right: tuple[F, ...], *, window: timedelta | None = None) -> tuple[F, ...]:
    if not left or not right:
        return left or right
    by_key = {fact.key: fact for fact in left}
    for fact in right:
        by_key[fact.key] = _later(by_key.get(fact.key, fact), fact)
    ordered = sorted(by_key.values(), key=_order)[-KEPT:]
    if window is None:
        return tuple(ordered)
    horizon = ordered[-1].at - window - SLACK
    return tuple(fact for fact in ordered if fact.at > horizon)


def _without_ended_streaks(state: ContactState) -> ContactState:
    since = latest(last_answered_at(state), state.granted.at if state.granted else None)
    calls = (*state.unanswered, *state.rejected)
    if since is None or all(call.at >= since for call in calls):
        return state
    return replace(
        state,
        unanswered=tuple(call for call in state.unanswered if call.at >= since),
        rejected=tuple(call for call in state.rejected if call.at >= since),
    )
