"""Every rule: one instant before, at and after each edge, with figures, remedy and the instant of a yes."""

from datetime import date, datetime, time
from typing import Any

import pytest

from policy.contact import EMPTY
from policy.decision import Allow, Refusal, Warning, WarningCode
from policy.facts import Action, Direction, Fact, RequestForm
from policy.gate import evaluate
from policy.hours import CallHours, Holiday, Opening
from policy.number import CallingStatus, NumberState, Restriction, RestrictionType
from policy.pack import BUILT_IN, Pack, load_pack
from policy.reasons import Reason, Remedy
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request
from policy.rules import RULES, choose_form, window_open_until
from tests.policy.make import (
    DAY,
    GOOD,
    HOUR,
    SECOND,
    T0,
    TICK,
    WEEK,
    answered,
    contact,
    declined,
    granted,
    hours,
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

GUIDE, META, SANDBOX = (load_pack(name) for name in BUILT_IN)
PLACE, RECEIVE, ASK = PlaceCall(), ReceiveCall(), AskPermission()
ASK_FREE = AskPermission(form=RequestForm.FREE_FORM)
ASK_TEMPLATE = AskPermission(form=RequestForm.TEMPLATE)
OUT: list[Request] = [PLACE, ASK]
ALL: list[Request] = [PLACE, RECEIVE, ASK]


def number(**changes: Any) -> NumberState:
    known: dict[str, Any] = {"country": "BR", "calling": CallingStatus.ENABLED, "messaging_limit": 10_000}
    return NumberState(**{**known, **changes})


def judge(
    request: Request,
    *facts: Fact,
    now: datetime = T0,
    pack: Pack = GUIDE,
    number: NumberState = GOOD,
) -> Allow | Refusal:
    return evaluate(pack, number, contact(*facts), request, now=now)


def refused(decision: Allow | Refusal) -> Refusal:
    assert isinstance(decision, Refusal), decision
    return decision


def allowed(decision: Allow | Refusal) -> Allow:
    assert isinstance(decision, Allow), decision
    return decision


#: A contact with permission for as long as it matters.
FRIEND = granted(T0 - 10 * DAY, permanent=True)


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


# R2, R6, R10, R11: permission to call


def test_without_permission_the_remedy_says_how_to_ask() -> None:
    assert judge(PLACE) == Refusal(reason=Reason.NO_PERMISSION, rule="contact/permission", remedy=Remedy.ASK_TEMPLATE)
    assert refused(judge(PLACE, message(hours(-1)))).remedy is Remedy.ASK_FREE_FORM


def test_a_request_on_its_way_is_waited_for() -> None:
    assert refused(judge(PLACE, requested(hours(-1)))).remedy is Remedy.WAIT_FOR_REPLY


def test_what_may_not_be_asked_yet_is_asked_later() -> None:
    facts = [requested(hours(-3)), declined(hours(-2))]
    refusal = refused(judge(PLACE, *facts))
    assert (refusal.reason, refusal.remedy, refusal.retry_at) == (
        Reason.NO_PERMISSION,
        Remedy.ASK_LATER,
        None,
    )


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (T0 + 168 * HOUR - TICK, None),
        (T0 + 168 * HOUR, Reason.PERMISSION_EXPIRED),
        (T0 + 168 * HOUR + TICK, Reason.PERMISSION_EXPIRED),
    ],
)
def test_a_permission_is_good_for_168_hours(now: datetime, reason: Reason | None) -> None:
    decision = judge(PLACE, granted(T0), now=now)
    if reason is None:
        assert allowed(decision).permission_expires_at == T0 + WEEK
    else:
        refusal = refused(decision)
        assert (refusal.reason, refusal.observed, refusal.limit) == (reason, 604_800, 604_800)
        assert (refusal.retry_at, refusal.remedy) == (None, Remedy.ASK_TEMPLATE)


def test_a_permission_for_good_has_no_end() -> None:
    assert allowed(judge(PLACE, FRIEND)).permission_expires_at is None


@pytest.mark.parametrize("pack", [GUIDE, META])
def test_a_users_call_grants_no_permission(pack: Pack) -> None:
    refusal = refused(judge(PLACE, message(hours(-1.01)), user_call(hours(-1)), pack=pack))
    assert (refusal.reason, refusal.remedy) == (Reason.NO_PERMISSION, Remedy.ASK_FREE_FORM)


def test_a_permission_that_the_contact_took_back() -> None:
    refusal = refused(judge(PLACE, granted(hours(-2)), revoked(hours(-1))))
    assert (refusal.reason, refusal.observed, refusal.limit) == (Reason.PERMISSION_REVOKED, None, None)


def misses(count: int, kind: Any = unanswered) -> list[Fact]:
    return [kind(hours(-20 + number)) for number in range(count)]


@pytest.mark.parametrize(("count", "warned"), [(1, False), (2, True), (3, True)])
def test_the_operator_is_warned_after_metas_notice(count: int, warned: bool) -> None:
    decision = allowed(judge(PLACE, FRIEND, *misses(count)))
    warning = Warning(code=WarningCode.STREAK_NOTICE_SENT, observed=count, limit=4)
    assert decision.warnings == ((warning,) if warned else ())


def test_four_unanswered_calls_end_the_permission_at_once() -> None:
    refusal = refused(judge(PLACE, FRIEND, *misses(4), now=hours(-17)))
    assert (refusal.reason, refusal.observed, refusal.limit) == (Reason.PERMISSION_REVOKED, 4, 4)
    assert (refusal.retry_at, refusal.remedy) == (None, Remedy.ASK_TEMPLATE)


def test_rejected_calls_count_for_meta_and_not_for_the_guide() -> None:
    allowed(judge(PLACE, FRIEND, *misses(4, rejected)))
    assert refused(judge(PLACE, FRIEND, *misses(4, rejected), pack=META)).reason is Reason.PERMISSION_REVOKED


# R8: connected calls


def calls(*at: datetime) -> list[Fact]:
    return [answered(instant) for instant in at]


FIVE = [hours(-23), hours(-10), hours(-9), hours(-8), hours(-7)]


@pytest.mark.parametrize(("now", "hit"), [(hours(1) - TICK, True), (hours(1), False), (hours(1) + TICK, False)])
def test_five_connected_calls_in_24_hours(now: datetime, hit: bool) -> None:
    decision = judge(PLACE, FRIEND, *calls(*FIVE), now=now)
    if not hit:
        allowed(decision)
    else:
        assert decision == Refusal(
            reason=Reason.CONNECTED_LIMIT,
            rule="contact/connected_per_24h",
            observed=5,
            limit=5,
            retry_at=hours(1),  # the first of the five is 24 h old
            remedy=Remedy.WAIT,
        )


def test_metas_limit_is_a_hundred() -> None:
    hundred = calls(*(T0 - number * SECOND for number in range(100)))
    allowed(judge(PLACE, FRIEND, *hundred[1:], pack=META))
    refusal = refused(judge(PLACE, FRIEND, *hundred, pack=META))
    assert (refusal.observed, refusal.limit, refusal.retry_at) == (100, 100, T0 + DAY - 99 * SECOND)


def test_users_calls_do_not_count() -> None:
    allowed(judge(PLACE, FRIEND, *(user_call(hours(-hour)) for hour in range(1, 9))))


def test_with_four_of_five_used_and_one_in_flight_no_more_passes() -> None:
    four = calls(*FIVE[1:])
    allowed(judge(PlaceCall(in_flight=0), FRIEND, *four))
    refusal = refused(judge(PlaceCall(in_flight=1), FRIEND, *four))
    assert (refusal.observed, refusal.retry_at, refusal.remedy) == (5, hours(-10) + DAY, Remedy.WAIT)


def test_five_in_flight_must_end_first() -> None:
    refusal = refused(judge(PlaceCall(in_flight=5), FRIEND))
    assert (refusal.observed, refusal.retry_at, refusal.remedy) == (5, None, Remedy.WAIT_FOR_CALL_END)


def test_metas_count_goes_before_ours() -> None:
    used_up = [FRIEND, usage(hours(-1), 5)]
    refusal = refused(judge(PLACE, *used_up))
    assert (refusal.observed, refusal.retry_at) == (5, hours(23))
    allowed(judge(PLACE, FRIEND, *calls(*FIVE), usage(hours(-1), 2)))


@pytest.mark.parametrize(("now", "hit"), [(hours(3) - TICK, True), (hours(3), False)])
def test_metas_own_refusal_of_calls_holds_as_long_as_it_said(now: datetime, hit: bool) -> None:
    decision = judge(PLACE, FRIEND, limit(T0, hours(3)), now=now)
    assert isinstance(decision, Refusal) is hit
    if isinstance(decision, Refusal):
        assert (decision.reason, decision.rule) == (Reason.CONNECTED_LIMIT, "contact/connected_by_meta")
        assert decision.retry_at == hours(3)


def test_one_call_at_a_time_with_one_contact() -> None:
    assert judge(PlaceCall(user_busy=True), FRIEND) == Refusal(
        reason=Reason.USER_BUSY, rule="contact/busy", remedy=Remedy.WAIT_FOR_CALL_END
    )


# R3: the window and the form


@pytest.mark.parametrize(
    ("now", "is_open"), [(T0, True), (T0 + DAY - TICK, True), (T0 + DAY, False), (T0 + DAY + TICK, False)]
)
def test_the_window_is_open_for_24_hours(now: datetime, is_open: bool) -> None:
    state = contact(message(T0))
    assert window_open_until(GUIDE, state, now=now) == (T0 + DAY if is_open else None)
    form = choose_form(GUIDE, state, now=now)
    assert form is (RequestForm.FREE_FORM if is_open else RequestForm.TEMPLATE)
    decision = evaluate(GUIDE, GOOD, state, ASK_FREE, now=now)
    assert isinstance(decision, Allow) is is_open
    if isinstance(decision, Refusal):
        assert (decision.reason, decision.remedy) == (Reason.WINDOW_CLOSED, Remedy.ASK_TEMPLATE)
        assert (decision.observed, decision.limit, decision.retry_at) == (86_400, 86_400, None)


@pytest.mark.parametrize("opens", [message, answered])
def test_messages_and_calls_of_ours_open_the_window(opens: Any) -> None:
    allowed(judge(ASK_FREE, opens(hours(-1))))


def test_a_users_call_opens_the_window_when_it_is_placed_and_not_when_it_is_taken() -> None:
    placed, taken = message(hours(-1)), user_call(hours(-0.5))
    assert refused(judge(ASK_FREE, taken)).reason is Reason.WINDOW_CLOSED
    allowed(judge(ASK_FREE, placed, taken, now=hours(23) - TICK))
    assert refused(judge(ASK_FREE, placed, taken, now=hours(23))).reason is Reason.WINDOW_CLOSED


def test_a_window_that_never_opened() -> None:
    assert refused(judge(ASK_FREE)).observed is None


def test_metas_word_closes_the_window() -> None:
    refusal = refused(judge(ASK_FREE, message(hours(-2)), window_closed(hours(-1))))
    assert refusal.reason is Reason.WINDOW_CLOSED


def test_a_template_may_always_be_used_and_the_right_form_is_found() -> None:
    allowed(judge(ASK_TEMPLATE, message(hours(-1))))
    allowed(judge(ASK_TEMPLATE))
    allowed(judge(ASK))
    allowed(judge(ASK, message(hours(-1))))


# R4, R5: how often to ask


@pytest.mark.parametrize(("now", "hit"), [(T0 + DAY - TICK, True), (T0 + DAY, False), (T0 + DAY + TICK, False)])
def test_one_request_in_24_hours(now: datetime, hit: bool) -> None:
    decision = judge(ASK, requested(T0), now=now)
    assert isinstance(decision, Refusal) is hit
    if isinstance(decision, Refusal):
        assert decision == Refusal(
            reason=Reason.REQUEST_LIMIT,
            rule="request/per_24h",
            observed=1,
            limit=1,
            retry_at=T0 + DAY,
            remedy=Remedy.WAIT,
        )


@pytest.mark.parametrize(("now", "hit"), [(T0 + WEEK - TICK, True), (T0 + WEEK, False), (T0 + WEEK + TICK, False)])
def test_two_requests_in_7_days(now: datetime, hit: bool) -> None:
    two = [requested(T0), requested(T0 + 25 * HOUR)]
    decision = judge(ASK, *two, now=now)
    assert isinstance(decision, Refusal) is hit
    if isinstance(decision, Refusal):
        assert (decision.rule, decision.observed, decision.limit) == ("request/per_7d", 2, 2)
        assert decision.retry_at == T0 + WEEK


def test_a_third_request_after_the_first_and_before_the_second_turns_seven_days_old() -> None:
    two = [requested(T0), requested(T0 + 25 * HOUR)]
    third = requested(T0 + WEEK)
    refusal = refused(judge(ASK, *two, third, now=T0 + WEEK + SECOND))
    # A day after the third, and not before the second is seven days old.
    assert (refusal.rule, refusal.retry_at) == ("request/per_24h", T0 + WEEK + 25 * HOUR)


def test_both_forms_count_together() -> None:
    for form in RequestForm:
        assert isinstance(judge(ASK_TEMPLATE, requested(hours(-1), form=form)), Refusal)


@pytest.mark.parametrize("talk", [answered, user_call])
def test_a_connected_call_of_either_direction_resets_the_limits(talk: Any) -> None:
    two = [requested(hours(-30)), requested(hours(-3))]
    assert isinstance(judge(ASK, *two), Refusal)
    allowed(judge(ASK, *two, talk(hours(-2))))
    refused(judge(ASK, *two, talk(hours(-3))))  # the same instant: still counts
    refused(judge(ASK, *two, talk(hours(-2)), requested(hours(-1))))


def test_requests_that_were_not_recorded_yet_count() -> None:
    refusal = refused(judge(AskPermission(in_flight=1)))
    assert (refusal.observed, refusal.limit) == (1, 1)
    assert (refusal.retry_at, refusal.remedy) == (None, Remedy.WAIT_FOR_REPLY)


def test_the_sandbox_allows_25_a_day_and_100_a_week() -> None:
    day = [requested(T0 - number * SECOND) for number in range(25)]
    allowed(judge(ASK, *day[1:], pack=SANDBOX))
    assert refused(judge(ASK, *day, pack=SANDBOX)).observed == 25
    week = [requested(T0 - (2 + number % 4) * DAY - number * SECOND) for number in range(100)]
    allowed(judge(ASK, *week[1:], pack=SANDBOX))
    assert refused(judge(ASK, *week, pack=SANDBOX)).rule == "request/per_7d"


def test_metas_count_of_requests_goes_before_ours() -> None:
    refusal = refused(judge(ASK, usage(hours(-30), 1, 2, Action.SEND_REQUEST)))
    assert (refusal.rule, refusal.retry_at) == ("request/per_7d", hours(-30) + WEEK)
    allowed(judge(ASK, requested(hours(-2)), usage(hours(-1), 0, 0, Action.SEND_REQUEST)))


def test_metas_own_refusal_of_requests_holds_until_it_said_or_until_a_call_connects() -> None:
    no = limit(hours(-1), hours(3), Action.SEND_REQUEST)
    refusal = refused(judge(ASK, no))
    assert (refusal.reason, refusal.rule, refusal.retry_at) == (
        Reason.REQUEST_LIMIT,
        "request/by_meta",
        hours(3),
    )
    allowed(judge(ASK, no, now=hours(3)))
    allowed(judge(ASK, no, user_call(hours(-0.5))))


# R7: after a decline


@pytest.mark.parametrize(("now", "hit"), [(hours(26) - TICK, True), (hours(26), False), (hours(26) + TICK, False)])
def test_after_a_decline_24_hours_from_the_decline(now: datetime, hit: bool) -> None:
    facts = [requested(T0), declined(hours(2))]
    decision = judge(ASK, *facts, now=now)
    assert isinstance(decision, Refusal) is hit
    if isinstance(decision, Refusal):
        assert (decision.reason, decision.rule) == (Reason.AFTER_DECLINE, "request/after_decline")
        assert (decision.observed, decision.limit) == (86_399, 86_400)
        assert decision.retry_at == hours(26)


def test_a_connected_call_clears_the_counts_and_not_the_wait() -> None:
    facts = [requested(hours(-3)), declined(hours(-2)), user_call(hours(-1))]
    refusal = refused(judge(ASK, *facts))
    assert (refusal.reason, refusal.retry_at) == (Reason.AFTER_DECLINE, hours(22))


def test_a_decline_ahead_of_our_clock_is_no_seconds_ago() -> None:
    assert refused(judge(ASK, declined(hours(1)))).observed == 0


def test_meta_itself_knows_no_wait_after_a_decline() -> None:
    refusal = refused(judge(ASK, requested(T0), declined(hours(2)), now=hours(3), pack=META))
    assert (refusal.reason, refusal.retry_at) == (Reason.REQUEST_LIMIT, hours(24))
    allowed(judge(ASK, requested(T0), declined(hours(2)), now=hours(24), pack=META))


# A permission that is there


def test_nobody_who_allowed_calls_for_good_is_asked() -> None:
    assert judge(ASK, FRIEND) == Refusal(
        reason=Reason.PERMISSION_EXISTS, rule="request/permission_exists", remedy=Remedy.CALL_NOW
    )


def test_a_temporary_permission_may_be_renewed() -> None:
    decision = allowed(judge(ASK, granted(hours(-1))))
    assert decision.warnings == (Warning(code=WarningCode.PERMISSION_LIVE),)
    assert decision.permission_expires_at is None


# R12, R15 for calls that come in


def test_a_call_is_taken_from_anybody() -> None:
    assert evaluate(GUIDE, GOOD, EMPTY, RECEIVE, now=T0) == Allow()
    allowed(judge(RECEIVE, *misses(9), declined(hours(-1)), revoked(hours(-1))))
