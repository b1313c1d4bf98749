"""Meta's own accounting for one user: permission, requests, calls, service window. Pure.

There is one `Contact` for each (business number, user), changed only here. `now` is UNIX seconds. Windows roll: an
event exactly 24 hours old no longer counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loadtest.simulator.config import DAY_S, Limits
from loadtest.simulator.errors import GraphError


class PermissionKind(StrEnum):
    """How long a permission lasts."""

    TEMPORARY = "temporary"
    PERMANENT = "permanent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A user's permission to be called."""

    kind: PermissionKind
    #: None: until revoked.
    expires_at: float | None


class RequestState(StrEnum):
    """The state of a permission request."""

    WAITING = "waiting"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(slots=True, kw_only=True)
class PermissionRequest:
    """A request the user has received."""

    id: str
    sent_at: float
    expires_at: float
    text: str
    state: RequestState = RequestState.WAITING


class Streak(StrEnum):
    """The consequence of an unanswered call."""

    NOTHING = "nothing"
    NUDGE = "nudge"
    REVOKED = "revoked"


def recent(instants: Iterable[float], *, now: float, window_s: float) -> list[float]:
    """Return the instants less than `window_s` ago."""
    return [at for at in instants if now - at < window_s]


@dataclass(slots=True)
class Contact:
    """All counters of one business number and one user."""

    limits: Limits
    permission: Permission | None = None
    requests: list[PermissionRequest] = field(default_factory=list)
    #: Times of the requests that count for the limits; cleared by a connected call.
    request_times: list[float] = field(default_factory=list)
    connected: list[float] = field(default_factory=list)
    unanswered: int = 0
    window_until: float = 0.0
    declined_at: float | None = None

    def live_permission(self, *, now: float) -> Permission | None:
        """Return the permission if it is valid at `now`."""
        permission = self.permission
        if permission is None or (permission.expires_at is not None and permission.expires_at <= now):
            return None
        return permission

    def window_open(self, *, now: float) -> bool:
        """Return whether free-form messages are allowed."""
        return now < self.window_until

    def open_window(self, *, now: float) -> None:
        """Start or refresh the customer service window."""
        self.window_until = now + self.limits.window_s

    # Requests

    def check_request(self, *, now: float, free_form: bool) -> None:
        """Raise GraphError if a permission request may not be sent now."""
        live = self.live_permission(now=now)
        if live is not None and live.kind is PermissionKind.PERMANENT:
            raise GraphError(138017, "The user has already granted a permanent permission")
        if free_form and not self.window_open(now=now):
            raise GraphError(131047, "More than 24 hours have passed since the user last wrote or called")
        limits = self.limits
        if self.declined_at is not None and now - self.declined_at < limits.after_decline_s:
            raise GraphError(138009, "The user declined less than 24 hours ago")
        for window_s, allowed, name in self._request_windows():
            if len(recent(self.request_times, now=now, window_s=window_s)) >= allowed:
                raise GraphError(138009, f"At most {allowed} permission requests in {name}")

    def _request_windows(self) -> tuple[tuple[float, int, str], ...]:
        limits = self.limits
        return (DAY_S, limits.requests_per_24h, "PT24H"), (7 * DAY_S, limits.requests_per_7d, "P7D")

    def add_request(self, request_id: str, text: str, *, now: float) -> PermissionRequest:
        """Record a request that passed `check_request()`."""
        self.request_times = [*recent(self.request_times, now=now, window_s=7 * DAY_S), now]
        request = PermissionRequest(id=request_id, sent_at=now, expires_at=now + self.limits.request_ttl_s, text=text)
        self.requests = [*self.open_requests(now=now)[-9:], request]
        return request

    def open_requests(self, *, now: float) -> list[PermissionRequest]:
        """Return the requests that the user can still answer, or answer differently, oldest first."""
        return [request for request in self.requests if request.expires_at > now]

    def answer(self, request: PermissionRequest, *, accept: bool, permanent: bool, now: float) -> None:
        """Apply the user's answer; answering a request ends the older ones."""
        request.state = RequestState.ACCEPTED if accept else RequestState.REJECTED
        request.expires_at = now + self.limits.request_ttl_s
        self.requests = self.requests[self.requests.index(request) :]
        if accept:
            self.grant(permanent=permanent, now=now)
        else:
            self.permission = None
            self.declined_at = now

    def grant(self, *, permanent: bool, now: float) -> Permission:
        """Grant a permission and reset the streak of unanswered calls."""
        self.unanswered = 0
        if permanent and self.limits.permanent_permission:
            self.permission = Permission(kind=PermissionKind.PERMANENT, expires_at=None)
        else:
            expires_at = now + self.limits.temporary_ttl_s
            self.permission = Permission(kind=PermissionKind.TEMPORARY, expires_at=expires_at)
        return self.permission

    def revoke(self) -> None:
        """Revoke the permission."""
        self.permission = None

    # Calls

    def check_call(self, *, now: float) -> None:
        """Raise GraphError if the business may not call this user now."""
        if self.live_permission(now=now) is None:
            raise GraphError(138006, "No approved call permission from the recipient")
        connected = recent(self.connected, now=now, window_s=DAY_S)
        if len(connected) >= self.limits.connected_per_24h:
            again_at = int(sorted(connected)[-self.limits.connected_per_24h] + DAY_S)
            raise GraphError(
                138012,
                f"{self.limits.connected_per_24h} connected calls in 24 hours; next call allowed at {again_at}",
            )

    def call_connected(self, *, by_business: bool, now: float) -> None:
        """Count an answered call in either direction: it resets the request limits."""
        self.request_times = []
        if by_business:
            self.connected = [*recent(self.connected, now=now, window_s=DAY_S), now]
            self.unanswered = 0

    def call_unanswered(self) -> Streak:
        """Count a business-initiated call that was not answered."""
        self.unanswered += 1
        if self.unanswered >= self.limits.revoke_after:
            self.unanswered = 0
            self.permission = None
            return Streak.REVOKED
        return Streak.NUDGE if self.unanswered == self.limits.nudge_after else Streak.NOTHING

    # What GET call_permissions says

    def permissions_body(self, *, now: float, may_call: bool) -> dict[str, Any]:
        """Return the response body of `GET /<number>/call_permissions`."""
        live = self.live_permission(now=now) if may_call else None
        permission: dict[str, Any] = {"status": live.kind.value if live else "no_permission"}
        if live and live.expires_at is not None:
            permission["expiration_time"] = int(live.expires_at)
        request_limits = [
            _limit(name, allowed, self.request_times, now=now, window_s=window_s)
            for window_s, allowed, name in self._request_windows()
        ]
        call_limit = _limit("PT24H", self.limits.connected_per_24h, self.connected, now=now, window_s=DAY_S)
        asking = may_call and not (live and live.kind is PermissionKind.PERMANENT)
        actions = [
            ("send_call_permission_request", asking and _free(request_limits), request_limits),
            ("start_call", live is not None and _free([call_limit]), [call_limit]),
        ]
        return {
            "messaging_product": "whatsapp",
            "permission": permission,
            "actions": [
                {"action_name": name, "can_perform_action": can, "limits": limits} for name, can, limits in actions
            ],
        }


def _limit(name: str, allowed: int, instants: list[float], *, now: float, window_s: float) -> dict[str, Any]:
    used = sorted(recent(instants, now=now, window_s=window_s))
    body: dict[str, Any] = {"time_period": name, "max_allowed": allowed, "current_usage": len(used)}
    if len(used) >= allowed:
        body["limit_expiration_time"] = int(used[-allowed] + window_s)
    return body


def _free(limits: list[dict[str, Any]]) -> bool:
    return all(limit["current_usage"] < limit["max_allowed"] for limit in limits)
