"""The gate as a whole: order of rules, the first instant of a yes, and agreement with a naive model."""

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import gate
from policy.contact import EMPTY, SLACK, apply, fold
from policy.decision import Allow, Decision, Refusal
from policy.facts import (
    Action,
    CallRejected,
    CallUnanswered,
    Direction,
    Fact,
    LimitReported,
    PermissionDeclined,
    PermissionRequested,
    PermissionRevoked,
    RequestForm,
    WindowClosed,
)
from policy.gate import RULES, evaluate, slot_refusal, source_of
from policy.hours import CallHours, Opening
from policy.number import CallingStatus, NumberState, Restriction, RestrictionType
from policy.pack import Pack
from policy.reasons import Reason, Remedy
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request
from policy.rules import Block, Rule
from tests.policy import naive
from tests.policy.make import (
    DAY,
    GOOD,
    GUIDE,
    HOUR,
    PACKS,
    T0,
    TICK,
    WEEK,
    answered,
    contact,
    declined,
    granted,
    hours,
    message,
    requested,
    unanswered,
)
from tests.policy.strategies import STEP, histories, instants


def reason(decision: Decision) -> Reason | None:
    return decision.reason if isinstance(decision, Refusal) else None


# Order


def test_the_first_rule_that_refuses_is_the_answer() -> None:
    """Take away one obstacle after the other; each time the next rule in the table speaks."""
    hopeless = NumberState(
        coexistence=True,
        sip_enabled=True,
        calling=CallingStatus.DISABLED,
        messaging_limit=0,
        country="US",
        payment_ok=False,
        restrictions=(Restriction(type=RestrictionType.BUSINESS_INITIATED),),
        hours=CallHours(timezone="America/Sao_Paulo", weekly=()),
        hours_enforced=frozenset(Direction),
    )
    later = T0 + timedelta(seconds=9)
    steps = [
        (hopeless, PlaceCall(draining=True, store_up=False)),
        (hopeless, PlaceCall(store_up=False)),
        (hopeless, PlaceCall(token_refused_until=later, meta_away_until=later)),
        (hopeless, PlaceCall(meta_away_until=later)),
        (hopeless, PlaceCall()),
        (number := replace(hopeless, coexistence=False), PlaceCall()),
        (number := replace(number, sip_enabled=False), PlaceCall()),
        (number := replace(number, calling=CallingStatus.ENABLED), PlaceCall()),
        (number := replace(number, messaging_limit=2_000), PlaceCall()),
        (number := replace(number, country="BR"), PlaceCall()),
        (number := replace(number, payment_ok=True), PlaceCall()),
        (number := replace(number, restrictions=()), PlaceCall()),
        (replace(number, hours=None), PlaceCall(placed_today=10_000)),
        (replace(number, hours=None), PlaceCall()),
    ]
    heard = [evaluate(GUIDE, number, EMPTY, request, now=T0) for number, request in steps]
    assert [refusal.rule for refusal in heard if isinstance(refusal, Refusal)] == [
        rule.name for rule in RULES[: len(steps)]
    ]


def test_now_must_have_a_time_zone() -> None:
    with pytest.raises(ValueError, match="aware"):
        evaluate(GUIDE, GOOD, EMPTY, PlaceCall(), now=T0.replace(tzinfo=None))


def test_now_may_be_in_any_time_zone() -> None:
    state = contact(granted(), *(answered(hours(hour)) for hour in range(5)))
    there = hours(6).astimezone(ZoneInfo("America/Sao_Paulo"))
    assert evaluate(GUIDE, GOOD, state, PlaceCall(), now=there) == evaluate(
        GUIDE, GOOD, state, PlaceCall(), now=hours(6)
    )


# The first instant of a yes


def test_waiting_for_one_rule_ends_where_the_last_one_lets_go() -> None:
    week = tuple(Opening(weekday=day, opens=time(9), closes=time(18)) for day in range(5))
    office = NumberState(
        country="BR",
        calling=CallingStatus.ENABLED,
        messaging_limit=2_000,
        hours=CallHours(timezone="America/Sao_Paulo", weekly=week),
        hours_enforced=frozenset({Direction.BUSINESS_INITIATED}),
        restrictions=(Restriction(type=RestrictionType.BUSINESS_INITIATED, expires_at=hours(1)),),
    )
    # The fifth call frees on Monday 22:00 UTC, which is 19:00 there: Tuesday 9:00 is the first yes.
    state = contact(granted(permanent=True), *(answered(hours(10) + n * TICK) for n in range(5)))
    decision = evaluate(GUIDE, office, state, PlaceCall(), now=T0)
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.NUMBER_RESTRICTED
    assert decision.retry_at == datetime.fromisoformat("2026-11-24T12:00:00+00:00")
    assert decision.remedy is Remedy.WAIT


def test_a_permission_that_ends_while_one_waits_makes_waiting_useless() -> None:
    state = contact(granted(expires_at=hours(20)), *(answered(hours(hour)) for hour in range(5)))
    decision = evaluate(GUIDE, GOOD, state, PlaceCall(), now=hours(6))
    assert isinstance(decision, Refusal)
    assert (decision.reason, decision.observed) == (Reason.CONNECTED_LIMIT, 5)
    assert (decision.retry_at, decision.remedy) == (None, Remedy.ASK_FREE_FORM)


def test_the_remedy_is_what_can_be_done_now_and_not_when_waiting_has_failed() -> None:
    facts = [declined(hours(-10)), granted(hours(-9), expires_at=hours(20))]
    state = contact(*facts, *(answered(hours(hour)) for hour in range(5)))
    decision = evaluate(GUIDE, GOOD, state, PlaceCall(), now=hours(6))
    assert isinstance(decision, Refusal)
    assert (decision.retry_at, decision.remedy) == (None, Remedy.ASK_LATER)


def test_a_window_that_closes_while_one_waits_wants_a_template() -> None:
    state = contact(message(T0), requested(hours(1)))
    free = evaluate(GUIDE, GOOD, state, AskPermission(form=RequestForm.FREE_FORM), now=hours(2))
    assert isinstance(free, Refusal)
    assert (free.reason, free.retry_at, free.remedy) == (Reason.REQUEST_LIMIT, None, Remedy.ASK_TEMPLATE)
    either = evaluate(GUIDE, GOOD, state, AskPermission(), now=hours(2))
    assert isinstance(either, Refusal)
    assert (either.retry_at, either.remedy) == (hours(25), Remedy.WAIT)


def test_a_permission_that_expires_while_the_phone_rings_was_judged_once() -> None:
    state = contact(granted(expires_at=hours(2)))
    assert evaluate(GUIDE, GOOD, state, PlaceCall(), now=hours(2) - TICK) == Allow(permission_expires_at=hours(2))
    # Picked up after the end: counts as a connected call like any other.
    later = apply(apply(state, answered(hours(2) + TICK)), granted(hours(3)))
    assert evaluate(GUIDE, GOOD, later, PlaceCall(in_flight=4), now=hours(4)) != Allow()


def test_a_clock_that_jumps_an_hour_back_forgets_nothing() -> None:
    state = contact(granted(), *(answered(hours(hour)) for hour in range(5)))
    for now in (hours(5), hours(4), hours(5)):
        assert reason(evaluate(GUIDE, GOOD, state, PlaceCall(), now=now)) is Reason.CONNECTED_LIMIT


def test_a_broken_rule_is_found_out_and_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Block(reason=Reason.NUMBER_RATE, remedy=Remedy.WAIT, until=T0)
    broken = Rule(name="test/late", source="ours", on=(PlaceCall,), check=lambda _: late)
    monkeypatch.setattr(gate, "_RULES_ON", {PlaceCall: (broken,)})
    with pytest.raises(AssertionError, match="number_rate"):
        evaluate(GUIDE, GOOD, EMPTY, PlaceCall(), now=T0)


# Slots (R14)


@pytest.mark.parametrize(
    ("direction", "rule"),
    [
        (Direction.USER_INITIATED, "number/slots_user_initiated"),
        (Direction.BUSINESS_INITIATED, "number/slots_business_initiated"),
    ],
)
def test_no_free_slot(direction: Direction, rule: str) -> None:
    assert slot_refusal(direction, in_use=1000, limit=GUIDE.slots_user_initiated) == Refusal(
        reason=Reason.NUMBER_BUSY, rule=rule, observed=1000, limit=1000, remedy=Remedy.FREE_SLOT
    )


def test_every_rule_of_somebody_elses_names_its_source() -> None:
    slots = {slot_refusal(direction, in_use=1, limit=1).rule for direction in Direction}
    known = {rule.name: source_of(rule.name) for rule in RULES}
    assert {rule for rule, source in known.items() if source is None} == {
        rule.name for rule in RULES if rule.name.startswith("gateway/")
    }
    assert known["contact/connected_per_24h"] == "guide R8"
    assert {source_of(rule) for rule in slots} == {"guide R14"}
    assert source_of("number/known") is None


# Properties

packs = st.sampled_from(PACKS)
requests = st.one_of(
    st.builds(PlaceCall, in_flight=st.integers(0, 2)),
    st.builds(AskPermission, in_flight=st.integers(0, 1), form=st.none() | st.sampled_from(RequestForm)),
)
nows = instants(-2, 40).map(lambda at: at + STEP / 2) | instants(-2, 40)
office = st.builds(
    NumberState,
    country=st.just("BR"),
    calling=st.just(CallingStatus.ENABLED),
    messaging_limit=st.just(2_000),
    restrictions=st.lists(
        st.builds(Restriction, type=st.sampled_from(RestrictionType), expires_at=instants(-2, 30)), max_size=2
    ).map(tuple),
    hours=st.just(
        CallHours(
            timezone="Europe/Berlin",
            weekly=tuple(Opening(weekday=day, opens=time(9), closes=time(17)) for day in (0, 1, 3)),
        )
    ),
    hours_enforced=st.sampled_from([frozenset(), frozenset({Direction.BUSINESS_INITIATED})]),
)


def _ahead_of_no_fact(facts: list[Fact], now: datetime) -> datetime:
    """Answers are exact from SLACK before the newest fact on."""
    return max([now, *(fact.at - SLACK for fact in facts)])


@settings(max_examples=200)
@given(histories(), requests, nows, packs)
def test_the_naive_model_agrees(facts: list[Fact], request: Request, now: datetime, pack: Pack) -> None:
    now = _ahead_of_no_fact(facts, now)
    decision = evaluate(pack, GOOD, fold(facts), request, now=now)
    if isinstance(request, PlaceCall):
        expected = naive.may_call(pack, naive.unique(facts), now, request.in_flight)
    else:
        assert isinstance(request, AskPermission)
        expected = naive.may_ask(pack, naive.unique(facts), now, request.in_flight, request.form)
    assert isinstance(decision, Allow) is expected, decision


@settings(max_examples=150)
@given(histories(), requests, nows, packs, office)
def test_the_instant_to_try_again_is_really_the_first_yes(
    facts: list[Fact], request: Request, now: datetime, pack: Pack, number: NumberState
) -> None:
    state = fold(facts)
    decision = evaluate(pack, number, state, request, now=now)
    if isinstance(decision, Allow):
        return
    until = decision.retry_at or now + 3 * WEEK
    edges = sorted({now, until, *_edges(facts, number, now, until)})
    for left, right in pairwise(edges):
        for instant in {left, left + (right - left) / 2, right - TICK}:
            assert isinstance(evaluate(pack, number, state, request, now=instant), Refusal), instant
    if decision.retry_at:
        assert decision.retry_at > now
        assert isinstance(evaluate(pack, number, state, request, now=decision.retry_at), Allow)


def _edges(facts: list[Fact], number: NumberState, now: datetime, until: datetime) -> list[datetime]:
    """List instants at which anything may change, and some more."""
    ends = [fact.until for fact in facts if isinstance(fact, LimitReported)]
    ends += [fact.at + span for fact in facts for span in (timedelta(), DAY, WEEK)]
    ends += [restriction.expires_at for restriction in number.restrictions if restriction.expires_at]
    opening = datetime.fromisoformat("2026-11-01T08:00:00+00:00")
    ends += [opening + n * DAY for n in range(60)]
    return [end for end in ends if now < end < until]


@st.composite
def _bad_news(draw: st.DrawFn) -> Fact:
    at = draw(instants())
    request = PermissionRequested(at=at, key="bad", form=RequestForm.TEMPLATE)
    limit = LimitReported(at=at, key="bad", action=draw(st.sampled_from(Action)), until=at + DAY)
    bare = (CallUnanswered, CallRejected, PermissionRevoked, PermissionDeclined, WindowClosed)
    return draw(st.sampled_from([request, limit, *(kind(at=at, key="bad") for kind in bare)]))


def _or_never(instant: datetime | None) -> datetime:
    return instant or datetime.max.replace(tzinfo=UTC)


@settings(max_examples=200)
@given(histories(), _bad_news(), requests, nows, packs)
def test_bad_news_never_turns_a_no_into_a_yes(
    facts: list[Fact], bad: Fact, request: Request, now: datetime, pack: Pack
) -> None:
    now = _ahead_of_no_fact([*facts, bad], now)
    before = evaluate(pack, GOOD, fold(facts), request, now=now)
    after = evaluate(pack, GOOD, fold([*facts, bad]), request, now=now)
    # The end of a permanent permission is the one thing that makes asking possible.
    if isinstance(before, Refusal) and before.reason is not Reason.PERMISSION_EXISTS:
        assert isinstance(after, Refusal)
        assert _or_never(after.retry_at) >= _or_never(before.retry_at)  # nor does it make a yes come sooner


@given(histories(), requests, nows, packs, st.integers(1, 3))
def test_more_in_flight_never_turns_a_no_into_a_yes(
    facts: list[Fact], request: Request, now: datetime, pack: Pack, more: int
) -> None:
    assert not isinstance(request, ReceiveCall)
    state = fold(facts)
    if isinstance(evaluate(pack, GOOD, state, request, now=now), Refusal):
        busier = replace(request, in_flight=request.in_flight + more)
        assert isinstance(evaluate(pack, GOOD, state, busier, now=now), Refusal)


@given(histories(), requests, nows, packs)
def test_an_answer_is_the_same_every_time(facts: list[Fact], request: Request, now: datetime, pack: Pack) -> None:
    state = fold(facts)
    assert evaluate(pack, GOOD, state, request, now=now) == evaluate(pack, GOOD, state, request, now=now)


def test_a_refusal_explains_itself() -> None:
    state = contact(granted(hours(-10)), *(unanswered(hours(-9 + hour)) for hour in range(4)), declined(hours(-1)))
    place = evaluate(GUIDE, GOOD, state, PlaceCall(), now=T0)
    ask = evaluate(GUIDE, GOOD, state, AskPermission(), now=T0)
    assert isinstance(place, Refusal)
    assert place.remedy is Remedy.ASK_LATER
    assert ask == Refusal(
        reason=Reason.AFTER_DECLINE,
        rule="request/after_decline",
        observed=HOUR // timedelta(seconds=1),
        limit=86_400,
        retry_at=hours(23),
        remedy=Remedy.WAIT,
    )
