"""The state of Meta as its answers show it: whether it answers, whether it accepts our tokens, and what time it is.

This module decides which requests are not worth sending now, explains it to people, and feeds Meta's clock.

Theory of operation. Each number has a circuit breaker: other numbers may work while one is in maintenance at Meta. For
each token we record what it was refused for: everything, or one area of the API (a permission that it lacks). A refused
token is tried again once per `TOKEN_PAUSE_S`, by the next request that comes; any success clears the record. Requests
that end a call are never held back, because a call that is not ended costs money. Answers to a ringing call ignore the
breaker, because they are useless a few seconds later, but they report their result to it.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from math import ceil
from typing import Final, TypedDict

import structlog

from gateway.common.clock import WARN_OFFSET, Clock, MetaClock
from gateway.common.errors import GraphError, GraphPaused, GraphRefused
from gateway.common.ids import PhoneNumberId
from gateway.common.metrics import Metrics
from gateway.meta import error_codes
from gateway.meta.circuit_breaker import Breaker
from policy.decision import Refusal
from policy.reasons import Reason, Remedy

log = structlog.get_logger()

#: A refused token is tried again after this time, by the next request.
TOKEN_PAUSE_S: Final = 30.0
#: `ENDING` requests are always sent; `ANSWERING` requests are sent even if Meta seems to be away.
ENDING: Final = frozenset({"terminate", "reject"})
ANSWERING: Final = frozenset({"pre_accept", "accept"})


class Area(StrEnum):
    """The areas of the API for which a token can lack the permission."""

    CALLS = "calls"
    MESSAGES = "messages"
    CALL_PERMISSIONS = "call permissions"
    SETTINGS = "the number's settings"
    NUMBER = "the number itself"


#: Not an error: an administrator may choose a token for calls and messages only.
_MAY_LACK: Final = frozenset({Area.SETTINGS, Area.NUMBER})

_AREA: Final = {
    "request_free_form": Area.MESSAGES,
    "request_template": Area.MESSAGES,
    "call_permissions": Area.CALL_PERMISSIONS,
    "settings": Area.SETTINGS,
    "number_info": Area.NUMBER,
}


@dataclass(slots=True, kw_only=True)
class _Refused:
    """A refusal of a token, for one area or for everything."""

    code: int
    since: datetime
    again_at: float  #: loop time


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """The permit to send one request; give it back to `MetaHealth` with the result."""

    number: PhoneNumberId
    token: str
    area: Area
    probe: bool


class Pauses(TypedDict):
    """Until when requests are not sent; None: they are sent. The keys are fields of the gate's requests."""

    meta_away_until: datetime | None
    token_refused_until: datetime | None


class MetaHealth:
    """The health of Meta for all numbers. Call everything but `degraded` and `offset_s` inside the event loop."""

    def __init__(
        self,
        *,
        token_for: Callable[[PhoneNumberId], str],
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._token_for = token_for
        self._clock = clock
        self._rng = rng or random.Random()
        self._breakers: dict[PhoneNumberId, Breaker] = {}
        self._refused: dict[str, dict[Area | None, _Refused]] = {}  # by token; None: everything
        self._clock_warned = False

    # --- around each request -----------------------------------------------------------------------

    def begin(self, op: str, number: PhoneNumberId) -> Permit:
        """Permit a request. Raises: GraphPaused."""
        paused = self.paused(op, number)
        if paused is not None:
            wait_s = ceil((paused.retry_at - self._clock.now()).total_seconds()) if paused.retry_at else 0
            public = f"{self._words(paused, number)}; the next try is in {wait_s} s."
            raise GraphPaused(op=op, refusal=paused, wait_s=wait_s, public=public)
        now, token, area = asyncio.get_running_loop().time(), self._token_for(number), _area(op)
        if op not in ENDING:
            for refused in self._refusals(token, area):
                refused.again_at = now + TOKEN_PAUSE_S  # this request is the one try
        breaker = self._breaker(number)
        probe = breaker.wait_s(now=now) == 0 and breaker.begin()
        return Permit(number=number, token=token, area=area, probe=probe)

    def end(self, permit: Permit, error: GraphError | None) -> None:
        """Record the result of a request."""
        now, breaker = asyncio.get_running_loop().time(), self._breaker(permit.number)
        was_open = breaker.is_open
        breaker.end(ok=_answered(error), probe=permit.probe, now=now)
        if breaker.is_open and not was_open:
            log.error("meta_away", number_id=permit.number, failed=breaker.failed)
        elif was_open and not breaker.is_open:
            log.info("meta_back", number_id=permit.number)
        self._judge_token(permit, error, now=now)

    def cut(self, permit: Permit) -> None:
        """Record that a request was cancelled by its caller, which says nothing about Meta."""
        self._breaker(permit.number).end(ok=None, probe=permit.probe, now=asyncio.get_running_loop().time())

    def paused(self, op: str, number: PhoneNumberId) -> Refusal | None:
        """Return why a request would not be sent now and when the next try is; None if it would be sent."""
        if op in ENDING:
            return None
        now = asyncio.get_running_loop().time()
        token_wait_s = max(
            (refused.again_at - now for refused in self._refusals(self._token_for(number), _area(op))), default=0.0
        )
        if token_wait_s > 0:
            return self._refusal(Reason.TOKEN_REFUSED, "gateway/token", Remedy.FIX_TOKEN, token_wait_s)
        wait_s = 0.0 if op in ANSWERING else self._breaker(number).wait_s(now=now)
        return self._refusal(Reason.META_AWAY, "gateway/meta", Remedy.WAIT, wait_s) if wait_s > 0 else None

    def pauses(self, op: str, number: PhoneNumberId) -> Pauses:
        """Return the same as `paused`, as the fields that the gate needs."""
        paused = self.paused(op, number)
        until = {} if paused is None else {paused.reason: paused.retry_at}
        return Pauses(meta_away_until=until.get(Reason.META_AWAY), token_refused_until=until.get(Reason.TOKEN_REFUSED))

    def heard(self, date: str | None, *, asked_at: float) -> None:
        """Feed Meta's clock with the `Date` header of an answer; `asked_at` is what `steady` returned before."""
        if not isinstance(self._clock, MetaClock):
            return
        self._clock.heard(date, asked_at=asked_at)
        wrong = self._clock_is_wrong()
        if wrong and not self._clock_warned:
            log.warning("clock_wrong", offset_s=round(self.offset_s, 1))
        self._clock_warned = wrong

    def steady(self) -> float:
        """Return the `asked_at` for `heard` of a request that is sent now."""
        return self._clock.steady() if isinstance(self._clock, MetaClock) else 0.0

    # --- reports -----------------------------------------------------------------------------------

    def show_in(self, metrics: Metrics, numbers: Iterable[PhoneNumberId]) -> None:
        """Let the gauges read their values here on each scrape."""
        metrics.clock_offset_seconds.set_function(lambda: self.offset_s)
        for number in numbers:
            metrics.meta_away.labels(number=number).set_function(partial(self.is_away, number))
            metrics.token_refused.labels(number=number).set_function(partial(self.is_token_refused, number))

    @property
    def offset_s(self) -> float:
        """Meta's clock minus the machine's; 0 while Meta's is not known."""
        return self._clock.offset_s if isinstance(self._clock, MetaClock) else 0.0

    def is_away(self, number: PhoneNumberId) -> bool:
        """Tell whether Meta has not answered the last requests of this number."""
        return self._breaker(number).is_open

    def is_token_refused(self, number: PhoneNumberId) -> bool:
        """Tell whether calls or messages of a number fail because of its token."""
        return bool(self._refused.get(self._token_for(number), {}).keys() - _MAY_LACK)

    def in_trouble(self, number: PhoneNumberId) -> bool:
        """Tell whether Meta should be probed from time to time until it works again."""
        return self.is_away(number) or None in self._refused.get(self._token_for(number), ())

    def degraded(self, numbers: Iterable[PhoneNumberId]) -> list[str]:
        """Return sentences that say what does not work and what to do about it."""
        said = []
        for number in numbers:
            for area, refused in self._refused.get(self._token_for(number), {}).items():
                if area not in _MAY_LACK:
                    said.append(_token_words(number, area, refused))
            if self.is_away(number):
                failed = self._breaker(number).failed
                said.append(f"number {number}: Meta has not answered the last {failed} requests; retrying")
        if self._clock_is_wrong():
            side = "behind" if self.offset_s > 0 else "ahead of"
            said.append(
                f"this machine's clock is {abs(self.offset_s):.0f} s {side} Meta's; the gateway uses Meta's time. "
                "Set the clock (NTP)"
            )
        return said

    # --- helpers -----------------------------------------------------------------------------------

    def _breaker(self, number: PhoneNumberId) -> Breaker:
        if number not in self._breakers:
            self._breakers[number] = Breaker(self._rng)
        return self._breakers[number]

    def _refusals(self, token: str, area: Area) -> list[_Refused]:
        known = self._refused.get(token)
        if not known:
            return []
        return [known[which] for which in (None, area) if which in known]

    def _judge_token(self, permit: Permit, error: GraphError | None, *, now: float) -> None:
        known = self._refused.setdefault(permit.token, {})
        if error is None:
            gone = [known.pop(which, None) for which in (None, permit.area)]
            if any(gone):
                log.info("token_accepted", number_id=permit.number)
            return
        if not isinstance(error, GraphRefused):
            return
        refused = error_codes.refuses_token(error.code)
        if not refused and not error_codes.lacks_permission(error.code):
            return
        which = None if refused else permit.area
        if which not in known:
            log.error("token_refused", number_id=permit.number, code=error.code, area=which or "everything")
            # A repeated refusal does not postpone the next try: it was that try, or a request that ends a call.
            known[which] = _Refused(code=error.code, since=self._clock.now(), again_at=now + TOKEN_PAUSE_S)

    def _refusal(self, reason: Reason, rule: str, remedy: Remedy, wait_s: float) -> Refusal:
        again_at = self._clock.now() + timedelta(seconds=wait_s)
        return Refusal(reason=reason, rule=rule, retry_at=again_at, remedy=remedy)

    def _words(self, refusal: Refusal, number: PhoneNumberId) -> str:
        if refusal.reason is Reason.TOKEN_REFUSED:
            return "Meta refuses the number's access token"
        return f"Meta has not answered the last {self._breaker(number).failed} requests"

    def _clock_is_wrong(self) -> bool:
        return abs(self.offset_s) > WARN_OFFSET.total_seconds()


def _area(op: str) -> Area:
    return _AREA.get(op, Area.CALLS)


def _answered(error: GraphError | None) -> bool:
    """Tell whether Meta works. A refusal counts as an answer, unless it says that Meta itself is broken."""
    if isinstance(error, GraphRefused):
        return not (error.transient and error.http_status >= 500)
    return error is None


def _token_words(number: PhoneNumberId, area: Area | None, refused: _Refused) -> str:
    meaning = error_codes.lookup(refused.code, 400).meaning
    since = refused.since.strftime("%Y-%m-%d %H:%M:%S UTC")
    what = "a new token" if area is None else f"a token that has this permission ({area})"
    return (
        f"number {number}: Meta has refused the access token since {since}, code {refused.code}: {meaning}. "
        f"Set {what} in GATEWAY_ACCESS_TOKEN, or in the number's own settings, and restart"
    )
