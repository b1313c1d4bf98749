"""Every edge of every rule under every pack: one instant (or one unit) before, at, and after. Made from the packs.

`test_rules.py` says in words what each rule answers; here nothing is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from typing import Any

import pytest

from policy.contact import EMPTY, fold
from policy.decision import Allow, Refusal, WarningCode
from policy.facts import Action, Direction, Fact
from policy.gate import evaluate, slot_refusal
from policy.hours import CallHours, Holiday, Opening
from policy.number import NumberState, Restriction, RestrictionType
from policy.pack import Pack
from policy.reasons import Reason, Remedy
from policy.request import AskPermission, PlaceCall, Request
from tests.policy.make import (
    ASK,
    ASK_FREE,
    ASK_TEMPLATE,
    DAY,
    FRIEND,
    GOOD,
    HOUR,
    PACKS,
    PLACE,
    RECEIVE,
    SECOND,
    T0,
    TICK,
    WEEK,
    answered,
    callback,
    declined,
    granted,
    limit,
    message,
    rejected,
    requested,
    revoked,
    unanswered,
    usage,
    user_call,
    window_closed,
)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """At `at` the answer turns; before it is `before` (None: yes), from then on `after`."""

    name: str
    pack: Pack
    request: Request
    facts: tuple[Fact, ...]
    at: datetime
    before: Reason | None
    after: Reason | None
    number: NumberState = GOOD

    def __str__(self) -> str:
        return f"{self.pack.name}-{self.name}"


def said(pack: Pack, request: Request, *facts: Fact, now: datetime = T0, number: NumberState = GOOD) -> Reason | None:
    decision = evaluate(pack, number, fold(facts), request, now=now)
    return decision.reason if isinstance(decision, Refusal) else None


def edges_of(pack: Pack) -> Iterator[Edge]:
    def edge(name: str, request: Request, facts: Sequence[Fact], at: datetime, **turns: Any) -> Edge:
        return Edge(name=name, pack=pack, request=request, facts=tuple(facts), at=at, **turns)

    frees: dict[str, Any] = {"after": None}
    # R3: the window
    for opens in (message, answered):
        facts = [opens(T0), user_call(T0 + HOUR)]
        until = T0 + pack.service_window
        yield edge(f"R3-{opens.__name__}", ASK_FREE, facts, until, before=None, after=Reason.WINDOW_CLOSED)
    # R4: so many requests, the oldest of which comes of age
    day = [requested(T0 + number * SECOND) for number in range(pack.requests_per_24h)]
    yield edge("R4-day", ASK, day, T0 + DAY, before=Reason.REQUEST_LIMIT, **frees)
    week = [requested(T0 + number * 25 * HOUR / pack.requests_per_24h) for number in range(pack.requests_per_7d)]
    yield edge("R4-week", ASK, week, T0 + WEEK, before=Reason.REQUEST_LIMIT, **frees)
    # R6: Meta's own instant goes before the pack's
    expired = Reason.PERMISSION_EXPIRED
    yield edge("R6-pack", PLACE, [granted(T0)], T0 + pack.permission_lifetime, before=None, after=expired)
    yield edge("R6-meta", PLACE, [granted(T0, expires_at=T0 + 3 * DAY)], T0 + 3 * DAY, before=None, after=expired)
    # R7
    if pack.after_decline_s:
        no = [declined(T0)]
        yield edge("R7", ASK, no, T0 + pack.after_decline, before=Reason.AFTER_DECLINE, **frees)
    # R8: the oldest of so many comes of age; Meta's count as well
    calls = [FRIEND, *(answered(T0 + number * SECOND) for number in range(pack.connected_per_24h))]
    yield edge("R8", PLACE, calls, T0 + DAY, before=Reason.CONNECTED_LIMIT, **frees)
    counted = [FRIEND, usage(T0, pack.connected_per_24h)]
    yield edge("R8-usage", PLACE, counted, T0 + DAY, before=Reason.CONNECTED_LIMIT, **frees)
    # What Meta itself named
    yield edge(
        "138012", PLACE, [FRIEND, limit(T0, T0 + 5 * HOUR)], T0 + 5 * HOUR, before=Reason.CONNECTED_LIMIT, **frees
    )
    asked = [limit(T0, T0 + 5 * HOUR, Action.SEND_REQUEST)]
    yield edge("138009", ASK, asked, T0 + 5 * HOUR, before=Reason.REQUEST_LIMIT, **frees)
    for days, span in ((pack.requests_per_24h, DAY), (0, WEEK)):
        counted = [usage(T0, days, pack.requests_per_7d if span == WEEK else days, Action.SEND_REQUEST)]
        yield edge(f"R4-usage-{span.days}", ASK, counted, T0 + span, before=Reason.REQUEST_LIMIT, **frees)
    # R11: what Meta's callback permission is worth
    if pack.automatic_permissions:
        yield edge("R11", PLACE, [callback(T0)], T0 + WEEK, before=None, after=expired)
    yield from number_edges(pack)


def number_edges(pack: Pack) -> Iterator[Edge]:
    kinds = ((PLACE, RestrictionType.BUSINESS_INITIATED), (ASK, RestrictionType.BUSINESS_INITIATED))
    for request, kind in (*kinds, (RECEIVE, RestrictionType.USER_INITIATED)):
        number = replace(GOOD, restrictions=(Restriction(type=kind, expires_at=T0 + DAY),))
        yield Edge(
            name=f"restriction-{type(request).__name__}",
            pack=pack,
            request=request,
            facts=(FRIEND,) if request is PLACE else (),
            at=T0 + DAY,
            before=Reason.NUMBER_RESTRICTED,
            after=None,
            number=number,
        )
    full = PlaceCall(placed_today=pack.calls_per_24h, placed_frees_at=T0)
    yield Edge(name="138005", pack=pack, request=full, facts=(FRIEND,), at=T0, before=Reason.NUMBER_RATE, after=None)
    yield from hours_edges(pack)


def hours_edges(pack: Pack) -> Iterator[Edge]:
    """T0 is a Sunday, noon in UTC, 9:00 in São Paulo; Monday is a holiday with hours of its own."""
    hours = CallHours(
        timezone="America/Sao_Paulo",
        weekly=tuple(Opening(weekday=day, opens=time(9), closes=time(18)) for day in (0, 1, 6)),
        holidays=(Holiday(day=(T0 + DAY).date(), opens=time(10), closes=time(12)),),
    )
    office = replace(GOOD, hours=hours, hours_enforced=frozenset(Direction))
    closed = Reason.OUTSIDE_HOURS
    for request in (PLACE, RECEIVE):
        for name, at, before, after in (
            ("opens", T0, closed, None),
            ("closes", T0 + 9 * HOUR, None, closed),
            ("holiday-opens", T0 + 25 * HOUR, closed, None),
            ("holiday-closes", T0 + 27 * HOUR, None, closed),
        ):
            yield Edge(
                name=f"hours-{name}-{type(request).__name__}",
                pack=pack,
                request=request,
                facts=(FRIEND,),
                at=at,
                before=before,
                after=after,
                number=office,
            )


@pytest.mark.parametrize("edge", [edge for pack in PACKS for edge in edges_of(pack)], ids=str)
def test_an_instant_before_at_and_after(edge: Edge) -> None:
    def at(now: datetime) -> Reason | None:
        return said(edge.pack, edge.request, *edge.facts, now=now, number=edge.number)

    assert [at(edge.at - TICK), at(edge.at), at(edge.at + TICK)] == [edge.before, edge.after, edge.after]
    if edge.before is not None and edge.after is None:
        decision = evaluate(edge.pack, edge.number, fold(edge.facts), edge.request, now=edge.at - TICK)
        assert isinstance(decision, Refusal)
        assert decision.retry_at == edge.at


# Counts: one less, exactly, one more

Count = tuple[str, int, Callable[[int], list[Fact]], Request, Reason]


def counts_of(pack: Pack) -> Iterator[Count]:
    """Give name, the lowest count that is too high, facts for a count, the request, the reason."""

    def spread(make: Callable[[datetime], Fact], gap: timedelta = SECOND) -> Callable[[int], list[Fact]]:
        return lambda count: [make(T0 - (number + 1) * gap) for number in range(count)]

    day, week = pack.requests_per_24h, pack.requests_per_7d
    yield "R4-day", day, spread(requested), ASK, Reason.REQUEST_LIMIT
    yield "R4-week", week, spread(requested, 25 * HOUR / day), ASK, Reason.REQUEST_LIMIT
    yield "R8", pack.connected_per_24h, lambda n: [FRIEND, *spread(answered)(n)], PLACE, Reason.CONNECTED_LIMIT
    revoke = pack.streak_revoke
    yield "R10", revoke, lambda n: [FRIEND, *spread(unanswered)(n)], PLACE, Reason.PERMISSION_REVOKED
    if pack.streak_counts_rejected:
        yield "R10-rejected", revoke, lambda n: [FRIEND, *spread(rejected)(n)], PLACE, Reason.PERMISSION_REVOKED


@pytest.mark.parametrize(
    ("pack", "count"),
    [pytest.param(pack, count, id=f"{pack.name}-{count[0]}") for pack in PACKS for count in counts_of(pack)],
)
def test_one_less_exactly_and_one_more(pack: Pack, count: Count) -> None:
    _, too_many, facts, request, reason = count
    answers = [said(pack, request, *facts(too_many + more)) for more in (-1, 0, 1)]
    assert answers == [None, reason, reason]


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_notice_of_r9(pack: Pack, more: int) -> None:
    facts = [FRIEND, *(unanswered(T0 - number * SECOND) for number in range(pack.streak_notice + more))]
    decision = evaluate(pack, GOOD, fold(facts), PLACE, now=T0)
    assert isinstance(decision, Allow)
    warned = [warning for warning in decision.warnings if warning.code is WarningCode.STREAK_NOTICE_SENT]
    assert [(one.observed, one.limit) for one in warned] == (
        [] if more < 0 else [(pack.streak_notice + more, pack.streak_revoke)]
    )


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_what_a_rejected_call_is_worth(pack: Pack) -> None:
    facts = [FRIEND, *(rejected(T0 - number * SECOND) for number in range(pack.streak_revoke))]
    gone = Reason.PERMISSION_REVOKED if pack.streak_counts_rejected else None
    assert said(pack, PLACE, *facts) is gone


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_messaging_limit_of_r1(pack: Pack) -> None:
    least = pack.messaging_limit_min
    for known, fits in ((max(least - 1, 0), not least), (least, True), (least + 1, True)):
        number = replace(GOOD, messaging_limit=known)
        for request, facts in ((PLACE, [FRIEND]), (ASK, [])):
            assert said(pack, request, *facts, number=number) is (None if fits else Reason.NOT_ELIGIBLE)
        assert said(pack, RECEIVE, number=number) is None


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
@pytest.mark.parametrize("country", ["US", "CA", "EG", "VN", "NG", "BR", "JM", "PR", "TR", None])
def test_country_of_r12(pack: Pack, country: str | None) -> None:
    number = replace(GOOD, country=country)
    out = Reason.COUNTRY_EXCLUDED if country in {"US", "CA", "EG", "VN", "NG"} else None
    assert [said(pack, PLACE, FRIEND, number=number), said(pack, ASK, number=number)] == [out, out]
    assert said(pack, RECEIVE, number=number) is None


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
@pytest.mark.parametrize("request_", [PLACE, RECEIVE, ASK, ASK_FREE, ASK_TEMPLATE])
def test_coexistence_of_r15(pack: Pack, request_: Request) -> None:
    facts = [FRIEND] if request_ is PLACE else [message(T0)]
    assert said(pack, request_, *facts) is None
    assert said(pack, request_, *facts, number=replace(GOOD, coexistence=True)) is Reason.COEXISTENCE


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_permission_of_r2_and_r11(pack: Pack) -> None:
    assert said(pack, PLACE) is Reason.NO_PERMISSION
    assert said(pack, PLACE, granted(T0)) is None
    assert said(pack, PLACE, user_call(T0)) is Reason.NO_PERMISSION
    assert said(pack, PLACE, callback(T0)) is (None if pack.automatic_permissions else Reason.NO_PERMISSION)
    assert said(pack, PLACE, granted(T0), revoked(T0 + TICK)) is Reason.PERMISSION_REVOKED
    assert said(pack, PLACE, granted(T0), declined(T0 + TICK)) is Reason.NO_PERMISSION
    assert said(pack, RECEIVE) is None


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
@pytest.mark.parametrize("talk", [answered, user_call])
@pytest.mark.parametrize(("off", "clears"), [(-TICK, False), (timedelta(), False), (TICK, True)])
def test_a_connected_call_of_r5(pack: Pack, talk: Callable[[datetime], Fact], off: timedelta, clears: bool) -> None:
    asked = [requested(T0 - HOUR) for _ in range(pack.requests_per_24h)]
    answer = said(pack, ASK, *asked, talk(T0 - HOUR + off), now=T0)
    assert answer is (None if clears else Reason.REQUEST_LIMIT)
    if pack.after_decline_s:  # these limits, and not the wait of R7
        waits = said(pack, ASK, *asked, declined(T0 - HOUR), talk(T0 - HOUR + off), now=T0)
        assert waits is Reason.AFTER_DECLINE


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
@pytest.mark.parametrize(("off", "ends"), [(-TICK, False), (timedelta(), False), (TICK, True)])
def test_what_ends_a_streak(pack: Pack, off: timedelta, ends: bool) -> None:
    last = T0 - HOUR
    misses = [unanswered(last - number * SECOND) for number in reversed(range(pack.streak_revoke - 1))]
    one_more = unanswered(T0)
    assert said(pack, PLACE, FRIEND, *misses, user_call(last + TICK), one_more) is Reason.PERMISSION_REVOKED
    for breaks in (answered(last + off), granted(last + off)):
        gone = said(pack, PLACE, FRIEND, *misses, breaks, one_more)
        # At the same instant, or before the last of them, that last one still counts with the one more.
        left = 1 if ends else 2
        assert (gone is Reason.PERMISSION_REVOKED) is (left >= pack.streak_revoke)


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_the_window_that_meta_calls_closed(pack: Pack) -> None:
    for off, is_open in ((-TICK, True), (timedelta(), False), (TICK, False)):
        answer = said(pack, ASK_FREE, message(T0 - HOUR), window_closed(T0 - HOUR + off))
        assert answer is (None if is_open else Reason.WINDOW_CLOSED)


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_how_long_a_request_is_waited_for(pack: Pack) -> None:
    """The answer is no all along; what helps turns at the edge."""
    end = T0 + pack.request_lifetime
    heard = []
    for now in (end - TICK, end, end + TICK):
        decision = evaluate(pack, GOOD, fold([requested(T0)]), PLACE, now=now)
        assert isinstance(decision, Refusal)
        heard.append(decision.remedy)
    assert heard == [Remedy.WAIT_FOR_REPLY, Remedy.ASK_TEMPLATE, Remedy.ASK_TEMPLATE]


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_calls_of_the_number_and_reservations(pack: Pack, more: int) -> None:
    placed = PlaceCall(placed_today=pack.calls_per_24h + more)
    assert said(pack, placed, FRIEND) is (None if more < 0 else Reason.NUMBER_RATE)
    flying = PlaceCall(in_flight=pack.connected_per_24h + more)
    assert said(pack, flying, FRIEND) is (None if more < 0 else Reason.CONNECTED_LIMIT)
    asking = AskPermission(in_flight=pack.requests_per_24h + more)
    assert said(pack, asking) is (None if more < 0 else Reason.REQUEST_LIMIT)


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_slots_of_r14_and_recordings_of_r13(pack: Pack) -> None:
    for direction, slots in (
        (Direction.USER_INITIATED, pack.slots_user_initiated),
        (Direction.BUSINESS_INITIATED, pack.slots_business_initiated),
    ):
        refusal = slot_refusal(direction, in_use=slots, limit=slots)
        assert (refusal.reason, refusal.observed, refusal.limit) == (Reason.NUMBER_BUSY, 1_000, 1_000)
    assert pack.meta_recording is (pack.name != "guide")
    assert evaluate(pack, GOOD, EMPTY, RECEIVE, now=T0) == Allow()
