"""Whether a contact may be called: the life of a permission, and the streak of unanswered calls that ends it.

Theory of operation
-------------------
TRANSITIONS is the life cycle. `permission_at` lays the newest fact of each kind and the three things that happen by
themselves (a permission expires, a request lapses, Meta revokes after a streak) on a line in time and walks the table.
The newest of each kind is enough, because a grant, a decline and a revocation lead to the same status from everywhere.

The streak counts unanswered business-initiated calls since the last answered one and since the grant that they could
cost; it revokes for as long as it stands. A call of ours that is picked up later ends it like any other streak: Meta
would not have let that call through had it revoked. Every grant starts the streak at 0. It could not be otherwise: the
grant after a revocation does (guide R10), and were a renewal different, one more unanswered call (the fourth, which
revokes) could turn a no into a yes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from policy.contact import ContactState, last_answered_at, latest, missed_calls
from policy.facts import PermissionGranted, PermissionRequested
from policy.pack import Pack
from policy.windows import is_within

FOREVER: Final = datetime.max.replace(tzinfo=UTC)


class PermissionStatus(StrEnum):
    """Where a permission is in its life."""

    NONE = "none"
    REQUESTED = "requested"
    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    DECLINED = "declined"
    EXPIRED = "expired"
    REVOKED = "revoked"


class PermissionEvent(StrEnum):
    """What moves it. Of two at one instant, the one further down in this list has the last word."""

    REQUESTED = "requested"
    GRANTED_TEMPORARY = "granted_temporary"
    GRANTED_PERMANENT = "granted_permanent"
    EXPIRED = "expired"
    LAPSED = "lapsed"
    UNANSWERED = "unanswered"  #: too often in a row: Meta revokes
    DECLINED = "declined"
    REVOKED = "revoked"


S = PermissionStatus
E = PermissionEvent

LIVE: Final = frozenset({S.TEMPORARY, S.PERMANENT})

TRANSITIONS: Final[Mapping[tuple[PermissionStatus, PermissionEvent], PermissionStatus]] = MappingProxyType(
    {
        # The contact's and Meta's word counts wherever we were.
        **{(status, E.GRANTED_TEMPORARY): S.TEMPORARY for status in S},
        **{(status, E.GRANTED_PERMANENT): S.PERMANENT for status in S},
        **{(status, E.DECLINED): S.DECLINED for status in S},
        **{(status, E.REVOKED): S.REVOKED for status in S},
        (S.NONE, E.REQUESTED): S.REQUESTED,
        (S.DECLINED, E.REQUESTED): S.REQUESTED,
        (S.EXPIRED, E.REQUESTED): S.REQUESTED,
        (S.REVOKED, E.REQUESTED): S.REQUESTED,
        (S.TEMPORARY, E.EXPIRED): S.EXPIRED,
        (S.TEMPORARY, E.UNANSWERED): S.REVOKED,
        (S.PERMANENT, E.UNANSWERED): S.REVOKED,
        (S.REQUESTED, E.LAPSED): S.NONE,
    }
)
IGNORED: Final[frozenset[tuple[PermissionStatus, PermissionEvent]]] = frozenset(
    {
        (S.REQUESTED, E.REQUESTED),
        (S.TEMPORARY, E.REQUESTED),  # asking again takes nothing away
        (S.PERMANENT, E.REQUESTED),
        # The end of a permission that something else has ended or replaced.
        *((status, E.EXPIRED) for status in S if status is not S.TEMPORARY),
        *((status, E.UNANSWERED) for status in S if status not in LIVE),
        # The end of a request that has been answered.
        *((status, E.LAPSED) for status in S if status is not S.REQUESTED),
    }
)
_RANK: Final = {event: rank for rank, event in enumerate(E)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A contact's permission at an instant."""

    status: PermissionStatus
    granted_at: datetime | None  #: of the newest grant that counts, also if it has ended
    expires_at: datetime | None  #: of that grant; None: never, or there is none
    streak: int  #: consecutive unanswered calls that count against the grant
    notice_sent: bool  #: Meta has asked the contact to reconsider (guide R9)
    pending: PermissionRequested | None  #: asked, not answered, not lapsed

    @property
    def live(self) -> bool:
        """Whether the contact may be called, as far as permission goes."""
        return self.status in LIVE


def permission_at(pack: Pack, state: ContactState, *, now: datetime) -> Permission:
    """Say what permission there is."""
    grant = _newest_grant(pack, state)
    expires_at = _expiry(pack, grant) if grant else None
    streak = streak_of(pack, state)
    return Permission(
        status=_walk(_timeline(pack, state, grant, expires_at, streak), now),
        granted_at=grant.at if grant else None,
        expires_at=expires_at,
        streak=len(streak),
        notice_sent=len(streak) >= pack.streak_notice,
        pending=_pending(pack, state, now),
    )


def streak_of(pack: Pack, state: ContactState) -> list[datetime]:
    """List, sorted, the calls in the current streak (guide R9, R10).

    A call from the contact is no answer to ours and leaves the streak alone; so does, under a pack that does not count
    them, a rejected call.
    """
    grant = _newest_grant(pack, state)
    since = latest(last_answered_at(state), grant.at if grant else None)
    calls = missed_calls(state, rejected=pack.streak_counts_rejected)
    return [at for at in calls if since is None or at >= since]


def _newest_grant(pack: Pack, state: ContactState) -> PermissionGranted | None:
    """Choose the newest grant that the pack accepts: whatever went before is replaced by it."""
    grants = (state.granted, state.granted_automatically if pack.automatic_permissions else None)
    return max((grant for grant in grants if grant is not None), key=lambda grant: grant.at, default=None)


def _expiry(pack: Pack, grant: PermissionGranted) -> datetime | None:
    if grant.permanent and pack.permanent_permissions:
        return None
    return grant.expires_at or grant.at + pack.permission_lifetime


Moment = tuple[datetime, PermissionEvent]


def _timeline(
    pack: Pack,
    state: ContactState,
    grant: PermissionGranted | None,
    expires_at: datetime | None,
    streak: list[datetime],
) -> list[Moment]:
    moments: list[Moment] = []
    if state.requests and not _is_answered(state, state.requests[-1]):
        asked_at = state.requests[-1].at
        moments += [(asked_at, E.REQUESTED), (asked_at + pack.request_lifetime, E.LAPSED)]
    if state.declined:
        moments.append((state.declined.at, E.DECLINED))
    if grant:  # what was never granted is not revoked, whatever Meta's records say
        granted = E.GRANTED_TEMPORARY if expires_at else E.GRANTED_PERMANENT
        moments += [(grant.at, granted), (expires_at or FOREVER, E.EXPIRED)]
        if state.revoked:
            moments.append((state.revoked.at, E.REVOKED))
        if len(streak) >= pack.streak_revoke:
            moments.append((streak[pack.streak_revoke - 1], E.UNANSWERED))
    return moments


def _walk(moments: list[Moment], now: datetime) -> PermissionStatus:
    """Go through the table. A fact counts when it is known; what happens by itself, when its time has come."""
    status = S.NONE
    for at, event in sorted(moments, key=lambda moment: (moment[0], _RANK[moment[1]])):
        if at <= now or event not in (E.EXPIRED, E.LAPSED):
            status = TRANSITIONS.get((status, event), status)
    return status


def _pending(pack: Pack, state: ContactState, now: datetime) -> PermissionRequested | None:
    if not state.requests:
        return None
    request = state.requests[-1]
    if _is_answered(state, request):
        return None
    return request if is_within(request.at, window=pack.request_lifetime, now=now) else None


def _is_answered(state: ContactState, request: PermissionRequested) -> bool:
    """Tell whether the contact has replied since, or to this very request: Meta's clock may be behind ours."""
    replies = [reply for reply in (state.granted, state.declined) if reply is not None]
    named = request.request_id is not None and request.request_id in [reply.request_id for reply in replies]
    return named or any(reply.at >= request.at for reply in replies)
