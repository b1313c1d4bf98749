"""Whether a contact may be called: the life cycle of a permission, and the streak of unanswered calls that ends it.

Theory of operation
-------------------
TRANSITIONS is the life cycle. `permission_at` puts the newest fact of each kind and the three events that need no fact
(a permission expires, a request lapses, Meta revokes after a streak) in order of time and walks the table. The newest
of each kind is enough, because a grant, a decline and a revocation lead to the same status from every status.

The streak counts unanswered business-initiated calls since the last answered one and since the grant in force; it
revokes for as long as it stands. A call of ours that is answered later ends it like any other streak: Meta would not
have let that call through if it had revoked. Every grant resets the streak to 0. Guide R10 says so for the grant after
a revocation; if a renewal did not, one more unanswered call (the fourth, which revokes) could turn a no into a yes.
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
    """Status of a permission in its life cycle."""

    NONE = "none"
    REQUESTED = "requested"
    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    DECLINED = "declined"
    EXPIRED = "expired"
    REVOKED = "revoked"


class PermissionEvent(StrEnum):
    """Events that change the status. Of two at one instant, the one further down in this list is applied last."""

    REQUESTED = "requested"
    GRANTED_TEMPORARY = "granted_temporary"
    GRANTED_PERMANENT = "granted_permanent"
    EXPIRED = "expired"
    LAPSED = "lapsed"
    UNANSWERED = "unanswered"  #: too many in a row: Meta revokes
    DECLINED = "declined"
    REVOKED = "revoked"


S = PermissionStatus
E = PermissionEvent

LIVE: Final = frozenset({S.TEMPORARY, S.PERMANENT})

TRANSITIONS: Final[Mapping[tuple[PermissionStatus, PermissionEvent], PermissionStatus]] = MappingProxyType(
    {
        # A decision by the contact or by Meta applies in every status.
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
        # Expiry of a permission that something else has already ended or replaced.
        *((status, E.EXPIRED) for status in S if status is not S.TEMPORARY),
        *((status, E.UNANSWERED) for status in S if status not in LIVE),
        # Lapse of a request that has been answered.
        *((status, E.LAPSED) for status in S if status is not S.REQUESTED),
    }
)
_RANK: Final = {event: rank for rank, event in enumerate(E)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A contact's permission at one instant."""

    status: PermissionStatus
    granted_at: datetime | None  #: of the newest accepted grant, even if it has ended
    expires_at: datetime | None  #: of that grant; None: never, or there is no grant
    streak: int  #: consecutive unanswered calls that count against the grant
    notice_sent: bool  #: Meta has asked the contact to reconsider (guide R9)
    pending: PermissionRequested | None  #: requested, not answered, not lapsed

    @property
    def live(self) -> bool:
        """Whether the permission allows a call."""
        return self.status in LIVE


def permission_at(pack: Pack, state: ContactState, *, now: datetime) -> Permission:
    """Return the permission at `now`."""
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
    """List the calls in the current streak, sorted (guide R9, R10).

    A call from the contact does not answer ours and leaves the streak unchanged; so does a rejected call, under a pack
    that does not count rejected calls.
    """
    grant = _newest_grant(pack, state)
    since = latest(last_answered_at(state), grant.at if grant else None)
    calls = missed_calls(state, rejected=pack.streak_counts_rejected)
    return [at for at in calls if since is None or at >= since]


def _newest_grant(pack: Pack, state: ContactState) -> PermissionGranted | None:
    """Return the newest grant that the pack accepts: it replaces everything before it."""
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
    if grant:  # without a grant there is nothing to revoke, whatever Meta's records say
        granted = E.GRANTED_TEMPORARY if expires_at else E.GRANTED_PERMANENT
        moments += [(grant.at, granted), (expires_at or FOREVER, E.EXPIRED)]
        if state.revoked:
            moments.append((state.revoked.at, E.REVOKED))
        if len(streak) >= pack.streak_revoke:
            moments.append((streak[pack.streak_revoke - 1], E.UNANSWERED))
    return moments


def _walk(moments: list[Moment], now: datetime) -> PermissionStatus:
    """Walk the table. A fact counts as soon as it is known; a timed event counts once its instant has come."""
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
    """Return whether the contact has replied since, or to this very request: Meta's clock may be behind ours."""
    replies = [reply for reply in (state.granted, state.declined) if reply is not None]
    named = request.request_id is not None and request.request_id in [reply.request_id for reply in replies]
    return named or any(reply.at >= request.at for reply in replies)
