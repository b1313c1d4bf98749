"""The rules about the gateway and the business number: each edge, with figures, remedy and the instant of a yes.

Those about a contact are in `test_call_rules.py` and `test_request_rules.py`.
"""

from datetime import date, datetime, time
from typing import Any

import pytest

from policy.contact import EMPTY
from policy.decision import Allow, Refusal, Warning, WarningCode
from policy.facts import Direction
from policy.gate import evaluate
from policy.hours import CallHours, Holiday, Opening
from policy.number import CallingStatus, NumberState, Restriction, RestrictionType
from policy.pack import Pack
from policy.reasons import Reason, Remedy
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request
from policy.rules import RULES
from tests.policy.make import (
    ASK,
    ASK_TEMPLATE,
    FRIEND,
    GOOD,
    GUIDE,
    META,
    PLACE,
    RECEIVE,
    SANDBOX,
    SECOND,
    T0,
    TICK,
    allowed,
    declined,
    granted,
    hours,
    judge,
    misses,
    refused,
    revoked,
)

OUT: list[Request] = [PLACE, ASK]
ALL: list[Request] = [PLACE, RECEIVE, ASK]


def number(**changes: Any) -> NumberState:
    known: dict[str, Any] = {"country": "BR", "calling": CallingStatus.ENABLED, "messaging_limit": 10_000}
    return NumberState(**{**known, **changes})


# The table


def test_rules_have_names_of_their_own_and_sources() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.source == "ours" or rule.source.startswith(("guide R", "Meta, "))
        assert rule.on


# The gateway itself


@pytest.mark.parametrize(
    "request_", [PlaceCall(draining=True), ReceiveCall(draining=True), AskPermission(draining=True)]
)
def test_a_gateway_that_drains_takes_nothing_new(request_: Request) -> None:
    assert judge(request_, FRIEND) == Refusal(
        reason=Reason.DRAINING, rule="gateway/draining", remedy=Remedy.TRY_AGAIN_SOON
    )


@pytest.mark.parametrize("request_", [PlaceCall(store_up=False), AskPermission(store_up=False)])
def test_without_a_store_nothing_goes_out(request_: Request) -> None:
    assert refused(judge(request_, FRIEND)).reason is Reason.STORE_DOWN


@pytest.mark.parametrize("kind", [PlaceCall, AskPermission])
@pytest.mark.parametrize(
    ("field", "reason", "rule", "remedy"),
    [
        ("meta_away_until", Reason.META_AWAY, "gateway/meta", Remedy.WAIT),
        ("token_refused_until", Reason.TOKEN_REFUSED, "gateway/token", Remedy.FIX_TOKEN),
    ],
)
def test_while_meta_is_not_asked_nothing_goes_out(
    kind: type[PlaceCall] | type[AskPermission], field: str, reason: Reason, rule: str, remedy: Remedy
) -> None:
    until = T0 + 9 * SECOND
    not_before: dict[str, Any] = {field: until}
    told = judge(kind(**not_before), FRIEND)
    allowed = judge(kind(), FRIEND)
    again = until if not isinstance(allowed, Refusal) else allowed.retry_at
    assert (refused(told).reason, refused(told).rule, refused(told).retry_at) == (reason, rule, again)
    assert isinstance(allowed, Refusal) or refused(told).remedy is remedy
    not_before[field] = T0
    assert judge(kind(**not_before), FRIEND) == allowed  # its time has come


# The business number


@pytest.mark.parametrize("request_", ALL)
@pytest.mark.parametrize(
    ("changes", "reason", "remedy"),
    [
        ({"coexistence": True}, Reason.COEXISTENCE, Remedy.USE_ANOTHER_NUMBER),
        ({"sip_enabled": True}, Reason.SIP_MODE, Remedy.FIX_SETTINGS),
        ({"calling": CallingStatus.DISABLED}, Reason.CALLING_OFF, Remedy.FIX_SETTINGS),
        ({"calling": CallingStatus.NOT_SET}, Reason.CALLING_OFF, Remedy.FIX_SETTINGS),
    ],
)
def test_what_forbids_both_directions(
    request_: Request, changes: dict[str, Any], reason: Reason, remedy: Remedy
) -> None:
    refusal = refused(judge(request_, FRIEND, number=number(**changes)))
    assert (refusal.reason, refusal.remedy, refusal.retry_at) == (reason, remedy, None)


def test_calling_that_was_not_read_yet_is_left_to_meta() -> None:
    for request in ALL[:2]:
        decision = allowed(judge(request, FRIEND, number=number(calling=CallingStatus.UNKNOWN)))
        assert decision.warnings == (Warning(code=WarningCode.CALLING_UNKNOWN),)


@pytest.mark.parametrize("request_", OUT)
@pytest.mark.parametrize(
    ("pack", "known", "fits"),
    [
        (GUIDE, 1_999, False),
        (GUIDE, 2_000, True),
        (META, 1_000, False),
        (META, 2_000, True),
        (SANDBOX, 0, True),
    ],
)
def test_messaging_limit(request_: Request, pack: Pack, known: int, fits: bool) -> None:
    decision = judge(request_, granted(), pack=pack, number=number(messaging_limit=known))
    if fits:
        allowed(decision)
    else:
        assert decision == Refusal(
            reason=Reason.NOT_ELIGIBLE,
            rule="number/messaging_limit",
            observed=known,
            limit=2_000,
            remedy=Remedy.RAISE_MESSAGING_LIMIT,
        )


@pytest.mark.parametrize("known", [None, 10_000])
def test_meta_that_refused_for_eligibility_goes_before_what_is_known(known: int | None) -> None:
    decision = judge(PLACE, granted(), number=number(messaging_limit=known, eligibility_refused=True))
    assert isinstance(decision, Refusal)
    assert (decision.reason, decision.observed, decision.limit) == (Reason.NOT_ELIGIBLE, known, 2_000)
    allowed(judge(RECEIVE, number=number(messaging_limit=known, eligibility_refused=True)))


def test_an_unknown_messaging_limit_is_allowed_with_a_warning() -> None:
    unknown = number(messaging_limit=None)
    warning = Warning(code=WarningCode.ELIGIBILITY_UNKNOWN, limit=2_000)
    assert allowed(judge(PLACE, FRIEND, number=unknown)).warnings == (warning,)
    assert allowed(judge(ASK, number=unknown)).warnings == (warning,)
    assert allowed(judge(RECEIVE, number=unknown)).warnings == ()
    assert allowed(judge(PLACE, FRIEND, number=unknown, pack=SANDBOX)).warnings == ()


def test_a_small_number_takes_calls() -> None:
    allowed(judge(RECEIVE, number=number(messaging_limit=250)))


@pytest.mark.parametrize("pack", [GUIDE, META, SANDBOX])
@pytest.mark.parametrize("country", ["US", "CA", "EG", "VN", "NG"])
def test_numbers_of_five_countries_place_no_calls_and_take_them(pack: Pack, country: str) -> None:
    for request in OUT:
        refusal = refused(judge(request, FRIEND, pack=pack, number=number(country=country)))
        assert (refusal.reason, refusal.rule) == (Reason.COUNTRY_EXCLUDED, "number/country")
    allowed(judge(RECEIVE, pack=pack, number=number(country=country)))


@pytest.mark.parametrize("country", ["JM", "BR", "TR", "PR"])
def test_other_countries_place_calls(country: str) -> None:
    allowed(judge(PLACE, FRIEND, number=number(country=country)))


def test_an_unknown_country_is_left_to_meta() -> None:
    warning = Warning(code=WarningCode.COUNTRY_UNKNOWN)
    assert allowed(judge(PLACE, FRIEND, number=number(country=None))).warnings == (warning,)
    assert allowed(judge(RECEIVE, number=number(country=None))).warnings == ()


def test_meta_is_the_authority_on_countries() -> None:
    refusal = refused(judge(PLACE, FRIEND, number=number(country_refused=True)))
    assert refusal.reason is Reason.COUNTRY_EXCLUDED


def test_without_a_payment_method_nothing_goes_out() -> None:
    for request in OUT:
        refusal = refused(judge(request, FRIEND, number=number(payment_ok=False)))
        assert (refusal.reason, refusal.remedy) == (Reason.NO_PAYMENT, Remedy.FIX_PAYMENT)
    allowed(judge(RECEIVE, number=number(payment_ok=False)))


B, U, HIDDEN = RestrictionType


@pytest.mark.parametrize(
    ("kind", "request_", "hit"),
    [
        (B, PLACE, True),
        (B, ASK_TEMPLATE, True),  # no requests either while calls are restricted
        (B, RECEIVE, False),
        (U, RECEIVE, True),
        (U, PLACE, False),
        (HIDDEN, RECEIVE, False),
        (HIDDEN, PLACE, False),
    ],
)
def test_a_restriction_hits_its_direction(kind: RestrictionType, request_: Request, hit: bool) -> None:
    restricted = number(restrictions=(Restriction(type=kind, expires_at=hours(5)),))
    decision = judge(request_, granted(), number=restricted)
    assert isinstance(decision, Refusal) is hit
    if isinstance(decision, Refusal):
        assert decision.reason is Reason.NUMBER_RESTRICTED
        assert (decision.remedy, decision.retry_at) == (Remedy.WAIT, hours(5))


@pytest.mark.parametrize(("now", "hit"), [(hours(5) - TICK, True), (hours(5), False), (hours(5) + TICK, False)])
def test_a_restriction_ends_when_it_says(now: datetime, hit: bool) -> None:
    restricted = number(restrictions=(Restriction(type=B, expires_at=hours(5)),))
    assert isinstance(judge(PLACE, FRIEND, now=now, number=restricted), Refusal) is hit


def test_of_several_restrictions_the_longest_counts() -> None:
    ends = (hours(5), hours(9), hours(-1), hours(7))
    several = number(restrictions=tuple(Restriction(type=B, expires_at=end) for end in ends))
    assert refused(judge(PLACE, FRIEND, number=several)).retry_at == hours(9)
    endless = number(restrictions=(*several.restrictions, Restriction(type=B)))
    refusal = refused(judge(PLACE, FRIEND, number=endless))
    assert (refusal.retry_at, refusal.remedy) == (None, Remedy.CONTACT_SUPPORT)


# T0 is a Sunday, 09:00 in Sao Paulo.
OFFICE = CallHours(
    timezone="America/Sao_Paulo",
    weekly=tuple(Opening(weekday=day, opens=time(9), closes=time(18)) for day in range(5)),
    holidays=(Holiday(day=date(2026, 11, 23)),),
)
TUESDAY_9 = datetime.fromisoformat("2026-11-24T12:00:00+00:00")


@pytest.mark.parametrize(
    ("direction", "request_", "hit"),
    [
        (Direction.USER_INITIATED, RECEIVE, True),
        (Direction.USER_INITIATED, PLACE, False),
        (Direction.BUSINESS_INITIATED, PLACE, True),
        (Direction.BUSINESS_INITIATED, RECEIVE, False),
        (Direction.BUSINESS_INITIATED, ASK, False),  # a message may be read later
    ],
)
def test_hours_hold_for_the_directions_that_the_number_names(
    direction: Direction, request_: Request, hit: bool
) -> None:
    closed = number(hours=OFFICE, hours_enforced=frozenset({direction}))
    decision = judge(request_, granted(), number=closed)
    assert isinstance(decision, Refusal) is hit
    if isinstance(decision, Refusal):
        assert (decision.reason, decision.remedy) == (Reason.OUTSIDE_HOURS, Remedy.WAIT)
        assert decision.retry_at == TUESDAY_9


def test_hours_that_are_not_enforced_are_metas_affair() -> None:
    allowed(judge(RECEIVE, number=number(hours=OFFICE)))


def test_inside_hours_nothing_is_refused() -> None:
    office = number(hours=OFFICE, hours_enforced=frozenset(Direction))
    assert isinstance(judge(RECEIVE, now=TUESDAY_9 - TICK, number=office), Refusal)
    allowed(judge(RECEIVE, now=TUESDAY_9, number=office))


def test_hours_that_never_open_want_a_change_of_settings() -> None:
    shut = CallHours(timezone="America/Sao_Paulo", weekly=())
    refusal = refused(judge(RECEIVE, number=number(hours=shut, hours_enforced=frozenset(Direction))))
    assert (refusal.retry_at, refusal.remedy) == (None, Remedy.FIX_SETTINGS)


@pytest.mark.parametrize(("placed", "hit"), [(9_999, False), (10_000, True), (10_001, True)])
def test_calls_of_the_number_in_24_hours(placed: int, hit: bool) -> None:
    decision = judge(PlaceCall(placed_today=placed, placed_frees_at=hours(2)), FRIEND)
    assert isinstance(decision, Refusal) is hit
    if isinstance(decision, Refusal):
        assert (decision.reason, decision.observed, decision.limit) == (Reason.NUMBER_RATE, placed, 10_000)
        assert (decision.retry_at, decision.remedy) == (hours(2), Remedy.WAIT)


def test_calls_of_the_number_with_room_at_an_unknown_time() -> None:
    refusal = refused(judge(PlaceCall(placed_today=10_000), FRIEND))
    assert (refusal.retry_at, refusal.remedy) == (None, Remedy.TRY_AGAIN_SOON)
    allowed(judge(PlaceCall(placed_today=10_000, placed_frees_at=T0), FRIEND))


# R12, R15 for calls that come in


def test_a_call_is_taken_from_anybody() -> None:
    assert evaluate(GUIDE, GOOD, EMPTY, RECEIVE, now=T0) == Allow()
    allowed(judge(RECEIVE, *misses(9), declined(hours(-1)), revoked(hours(-1))))
