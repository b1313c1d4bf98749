"""One contact of one business number: facts in, one small state out.

Theory of operation
-------------------
A `ContactState` is the set of those facts that can still matter. `merge` joins two states: of a kind where only the
newest fact matters it keeps the newest, of a kind that is counted it keeps the union, and then drops what cannot
matter any more. `apply` merges one fact. The join is commutative, associative and idempotent, so facts may come late,
twice and in any order, and the histories of one person known by two names (number and BSUID) are joined by `merge`
itself: what both hold counts once.

What is dropped never changes an answer:

* Of a counted kind with a window, facts older than the window plus SLACK, measured from the newest fact of that kind.
  Whoever asks at an instant not more than SLACK before that newest fact finds them outside the window. `check_time`
  in `facts.py` keeps facts from lying further ahead than that.
* Unanswered and rejected calls before the last answered one, and before the contact's last grant: neither belongs to
  the streak, under any pack, and both of these marks only ever move forward.
* All but the newest KEPT facts of a kind. No pack may have a higher limit.

No figure of a pack is needed here; a state serves every pack. What a state means is in `permission.py` and `rules.py`.
At a tie of instants the stricter reading wins: a request in the very second of a connected call still counts.
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

#: How many facts of a counted kind are kept.
KEPT: Final = MAX_LIMIT
#: How far back before the newest fact answers are still exact.
SLACK: Final = timedelta(days=1)
_TICK: Final = timedelta(microseconds=1)
#: Format of `state_to_dict`.
SNAPSHOT_VERSION: Final = 2

F = TypeVar("F", bound=Fact)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactState:
    """The facts about a contact that can still matter; tuples are sorted by instant, then key."""

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
    """Join what two states know of the same contact."""
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
    """List the facts that make up a state; folded, they give it again."""
    kept: list[Fact] = []
    for name in _FIELDS:
        value: tuple[Fact, ...] | Fact | None = getattr(state, name)
        if isinstance(value, tuple):
            kept.extend(value)
        elif value is not None:
            kept.append(value)
    return tuple(kept)


def instant_after(state: ContactState, *, now: datetime) -> datetime:
    """Give the first instant from `now` on that lies after every fact of a state: a fact of then outweighs them all.

    For what Meta says when it is asked: whatever its clock, or ours, had said before.
    """
    newest = max((fact.at for fact in facts_of(state)), default=None)
    return now if newest is None or newest < now else newest + _TICK


def state_to_dict(state: ContactState) -> dict[str, object]:
    """Write a state as plain values, for a snapshot."""
    return {"version": SNAPSHOT_VERSION, "facts": [fact_to_dict(fact) for fact in facts_of(state)]}


def state_from_dict(data: Mapping[str, object]) -> ContactState:
    """Read what `state_to_dict` wrote.

    Raises:
        FactError: not a snapshot, or one of another version: fold the facts again instead.
    """
    listed = data.get("facts")
    if data.get("version") != SNAPSHOT_VERSION or not isinstance(listed, list):
        raise FactError("not a snapshot of this version")
    if not all(isinstance(plain, Mapping) for plain in listed):
        raise FactError("a snapshot holds facts only")
    return fold(fact_from_dict(plain) for plain in listed)


def fold(facts: Iterable[Fact]) -> ContactState:
    """Make the state that facts lead to, in whatever order they come."""
    state = EMPTY
    for fact in facts:
        state = apply(state, fact)
    return state


def last_answered_at(state: ContactState) -> datetime | None:
    """Say when the contact last picked up a call of ours."""
    return state.connected[-1].at if state.connected else None


def last_connected_at(state: ContactState) -> datetime | None:
    """Say when business and contact last spoke, whoever called (guide R5)."""
    return latest(last_answered_at(state), state.user_connected.at if state.user_connected else None)


def window_opened_at(state: ContactState) -> datetime | None:
    """Say when the customer service window was last opened; None: never, or closed by Meta's word since.

    A call of ours that is picked up opens it. A call of the contact's does so when it is placed, taken or not, which is
    a WindowOpened of its own: to take it opens nothing anew.
    Source: Meta, "Calling API pricing", read 2026-11-22.
    """
    opened = latest(state.window_opened.at if state.window_opened else None, last_answered_at(state))
    closed = state.window_closed
    return None if opened is None or (closed is not None and closed.at >= opened) else opened


def calls_counted(state: ContactState) -> list[datetime]:
    """List, sorted, the connected business-initiated calls (guide R8): Meta's report, then what came after it."""
    usage = state.call_usage
    if usage is None:
        return [call.at for call in state.connected]
    return [usage.at] * min(usage.used_24h, KEPT) + [call.at for call in state.connected if call.at >= usage.at]


def missed_calls(state: ContactState, *, rejected: bool) -> list[datetime]:
    """List, sorted, the business-initiated calls that nobody picked up, with those that were declined or without.

    One call ends in one way, however many facts tell of it: theirs share what follows the "/" of their keys. A call
    that was picked up after all is not missed, and one that was declined is that and nothing else.
    """
    if not state.unanswered and not state.rejected:
        return []
    answered, declined = _names(state.connected), _names(state.rejected)
    missed = [call.at for call in state.unanswered if _name(call) not in answered | declined]
    if rejected:
        missed += [call.at for call in state.rejected if _name(call) not in answered]
    return sorted(missed)


def requests_counted(state: ContactState, *, window: timedelta) -> list[datetime]:
    """List, sorted, the requests since the last connected call (guide R4, R5), Meta's report among them.

    Meta reports a figure for each of its two windows, so `window` says which (DAY or WEEK).
    """
    since = last_connected_at(state)
    counted = [request.at for request in state.requests if since is None or request.at >= since]
    usage = state.request_usage
    if usage is None or (since is not None and usage.at < since):
        return counted
    used = usage.used_24h if window == DAY else usage.used_7d
    return [usage.at] * min(used, KEPT) + [at for at in counted if at >= usage.at]


def limited_until(state: ContactState, action: Action) -> datetime | None:
    """Say until when Meta has refused an action; None: it has not, or something since has lifted that."""
    usage, since = state.call_usage, None
    if action is Action.SEND_REQUEST:
        usage, since = state.request_usage, last_connected_at(state)
    lifted = latest(usage.at if usage else None, since)
    return max(
        (limit.until for limit in state.limits if limit.action is action and (lifted is None or limit.at >= lifted)),
        default=None,
    )


def latest(left: datetime | None, right: datetime | None) -> datetime | None:
    """Give the later of two instants, either of which may be missing."""
    if left is None or right is None:
        return left or right
    return max(left, right)


def _name(fact: Fact) -> str:
    """Name the call behind a fact: "unanswered/X" and "connected/X" are of one call."""
    return fact.key.partition("/")[2]


def _names(facts: Iterable[Fact]) -> set[str]:
    return {name for fact in facts if (name := _name(fact))}


def _singleton(fact: Fact) -> ContactState:  # one arm a kind
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
    """Order by instant. Of two grants at one instant the temporary one is the stricter, hence the later."""
    temporary = isinstance(fact, PermissionGranted) and not fact.permanent
    return fact.at, temporary, fact.key


def _later(left: F, right: F) -> F:
    """Choose between two facts; by their whole text where instant and key agree, so that order never matters."""
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
