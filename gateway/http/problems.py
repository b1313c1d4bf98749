"""RFC 9457 problems: the form of every error of the HTTP API. [P]

Clients branch on `code`, which is stable. A refusal by the gate also carries its figures, in `refusal`.
"""

from collections.abc import Mapping
from datetime import datetime
from math import ceil
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.wire import views
from policy.decision import Refusal
from policy.reasons import Reason

_STATUS: Final[Mapping[Reason, int]] = {
    Reason.UNKNOWN_NUMBER: 404,
    Reason.INVALID_USER: 422,
    Reason.STORE_DOWN: 503,
    Reason.META_AWAY: 503,
    Reason.TOKEN_REFUSED: 503,
    Reason.DRAINING: 503,
    Reason.OVERLOADED: 503,
    Reason.NUMBER_BUSY: 429,
    Reason.NUMBER_RATE: 429,
    Reason.CONNECTED_LIMIT: 429,
    Reason.REQUEST_LIMIT: 429,
    Reason.AFTER_DECLINE: 429,
    Reason.USER_BUSY: 409,
    Reason.PERMISSION_EXISTS: 409,
}
#: When a client may ask again, if the exact instant is unknown.
_SOON_S: Final = 5


class Problem(Exception):
    """Ends a request with this problem as its answer."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        *,
        detail: str | None = None,
        retry_after_s: int | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.members = dict(members or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON members."""
        known = {"type": "about:blank", "title": self.title, "status": self.status, "code": self.code}
        detail = {"detail": self.detail} if self.detail else {}
        return {**known, **detail, **self.members}

    def response(self) -> web.Response:
        if self.retry_after_s is None and self.status in (429, 503):
            self.retry_after_s = _SOON_S
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 §15.5.2
        return web.Response(
            status=self.status,
            body=msgspec.json.encode(self.body()),
            content_type="application/problem+json",
            headers=headers,
        )


def refused(refusal: Refusal, *, now: datetime) -> Problem:
    """Return a refusal by the gate as a problem, with an exact `Retry-After` if the gate knows the instant."""
    view = views.refusal_view(refusal)
    seconds = max(0, ceil((refusal.retry_at - now).total_seconds())) if refusal.retry_at else None
    return Problem(
        _STATUS.get(refusal.reason, 403),
        refusal.reason.value,
        view.title,
        retry_after_s=seconds,
        members={"refusal": msgspec.to_builtins(view)},
    )
