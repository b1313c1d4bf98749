"""The rules about calls to a contact: permission, streak, counts; one instant before, at and after each edge."""

from datetime import datetime

import pytest

from policy.decision import Refusal, Warning, WarningCode
from policy.facts import Fact
from policy.pack import Pack
from policy.reasons import Reason, Remedy
from policy.request import PlaceCall
from tests.policy.make import (
    DAY,
    FRIEND,
    GUIDE,
    HOUR,
    META,
    PLACE,
    SECOND,
    T0,
    TICK,
    WEEK,
    allowed,
    answered,
    declined,
    granted,
    hours,
    judge,
    limit,
    message,
    misses,
    refused,
    rejected,
    requested,
    revoked,
    usage,
    user_call,
)

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
