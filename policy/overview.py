"""Everything an operator wants to know about a contact: permission, window, counts, and what is possible when.

It asks the gate and decides nothing itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from policy.contact import ContactState, calls_counted, requests_counted
from policy.decision import Decision
from policy.facts import (
    Fact,
    PermissionDeclined,
    PermissionGranted,
    PermissionRequested,
    ReplySource,
    RequestForm,
)
from policy.gate import evaluate
from policy.number import NumberState
from policy.pack import Pack
from policy.permission import Permission, permission_at
from policy.request import AskPermission, PlaceCall
from policy.rules import choose_form, window_open_until
from policy.windows import DAY, WEEK, count_in, is_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """How much of a limit is used, without requests or calls in flight."""

    used: int
    limit: int
    next_frees_at: datetime | None  #: when the oldest counted one leaves its window


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A contact at one instant."""

    at: datetime
    permission: Permission
    streak_limit: int  #: number of unanswered calls in a row at which the permission ends
    asked_at: datetime | None  #: when a permission request was last sent
    declined_at: datetime | None  #: when the contact last declined one
    window_open_until: datetime | None  #: None: closed
    connected_24h: Counter
    requests_24h: Counter
    requests_7d: Counter
    form: RequestForm  #: the form to use now
    place: Decision
    ask_free_form: Decision
    ask_template: Decision


def overview(
    pack: Pack,
    number: NumberState,
    contact: ContactState,
    *,
    now: datetime,
    place: PlaceCall | None = None,
    ask: AskPermission | None = None,
) -> Overview:
    """Evaluate a call and both forms of request; `place` and `ask` carry what is in flight."""
    ask = ask or AskPermission()
    calls = calls_counted(contact)
    day, week = (requests_counted(contact, window=window) for window in (DAY, WEEK))
    free_form = replace(ask, form=RequestForm.FREE_FORM)
    template = replace(ask, form=RequestForm.TEMPLATE)
    return Overview(
        at=now,
        streak_limit=pack.streak_revoke,
        asked_at=contact.requests[-1].at if contact.requests else None,
        declined_at=contact.declined.at if contact.declined else None,
        permission=permission_at(pack, contact, now=now),
        window_open_until=window_open_until(pack, contact, now=now),
        connected_24h=_counter(calls, pack.connected_per_24h, DAY, now),
        requests_24h=_counter(day, pack.requests_per_24h, DAY, now),
        requests_7d=_counter(week, pack.requests_per_7d, WEEK, now),
        form=choose_form(pack, contact, now=now),
        place=evaluate(pack, number, contact, place or PlaceCall(), now=now),
        ask_free_form=evaluate(pack, number, contact, free_form, now=now),
        ask_template=evaluate(pack, number, contact, template, now=now),
    )


Reply = PermissionGranted | PermissionDeclined

#: A request is recorded when Meta answers or fails to answer; a reply may already have arrived by then.
SETTLING: Final = timedelta(minutes=1)


class RequestOutcome(StrEnum):
    """The outcome of a permission request."""

    PENDING = "pending"
    GRANTED = "granted"
    DECLINED = "declined"
    LAPSED = "lapsed"
    #: The contact answered a newer request instead.
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """A request and its outcome."""

    request: PermissionRequested
    outcome: RequestOutcome
    answered_at: datetime | None = None  #: of the reply that counts


def request_views(pack: Pack, facts: Iterable[Fact], *, now: datetime) -> tuple[RequestView, ...]:
    """Match requests with replies, oldest first. If one request has several replies, the newest counts.

    A request without an id from Meta may or may not have been sent; a reply to an unknown request proves that it was.
    This takes facts from the store and not a state, because a state keeps only what the rules need.
    """
    known = {(type(fact), fact.key): fact for fact in facts}.values()
    requests = sorted(
        (fact for fact in known if isinstance(fact, PermissionRequested)), key=lambda fact: (fact.at, fact.key)
    )
    replies: dict[str, Reply] = {}
    for fact in sorted(known, key=lambda fact: fact.at):
        if isinstance(fact, Reply) and (asked := _answered(requests, fact)) is not None:
            replies[asked.key] = fact
    views: list[RequestView] = []
    newer_answered = False
    for request in reversed(requests):
        reply = replies.get(request.key)
        outcome = _outcome(pack, request, reply, newer_answered, now)
        views.append(RequestView(request=request, outcome=outcome, answered_at=reply.at if reply else None))
        newer_answered = newer_answered or reply is not None
    return tuple(reversed(views))


def _answered(requests: Sequence[PermissionRequested], reply: Reply) -> PermissionRequested | None:
    """Return the request that a reply answers: by its id, else the newest one before it that has no id."""
    if reply.request_id is None or reply.source is not ReplySource.USER_ACTION:
        return None
    named = (request for request in requests if request.request_id == reply.request_id)
    latest = reply.at + SETTLING
    nameless = (request for request in reversed(requests) if request.request_id is None and request.at <= latest)
    return next(named, None) or next(nameless, None)


def _outcome(
    pack: Pack,
    request: PermissionRequested,
    reply: Reply | None,
    newer_answered: bool,
    now: datetime,
) -> RequestOutcome:
    # Source: Meta, "User call permissions" (expiry of requests), read 2026-11-22.
    if reply is not None:
        granted = isinstance(reply, PermissionGranted)
        return RequestOutcome.GRANTED if granted else RequestOutcome.DECLINED
    if newer_answered:
        return RequestOutcome.SUPERSEDED
    live = is_within(request.at, window=pack.request_lifetime, now=now)
    return RequestOutcome.PENDING if live else RequestOutcome.LAPSED


def _counter(instants: Sequence[datetime], limit: int, window: timedelta, now: datetime) -> Counter:
    used = count_in(instants, window=window, now=now)
    return Counter(used=used, limit=limit, next_frees_at=instants[-used] + window if used else None)
