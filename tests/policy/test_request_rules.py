"""The rules about permission requests: form, counts, waits; one instant before, at and after each edge."""

from datetime import datetime
from typing import Any

import pytest

from policy.decision import Allow, Refusal, Warning, WarningCode
from policy.facts import Action, RequestForm
from policy.gate import evaluate
from policy.reasons import Reason, Remedy
from policy.request import AskPermission
from policy.rules import choose_form, window_open_until
from tests.policy.make import (
    ASK,
    ASK_FREE,
    ASK_TEMPLATE,
    DAY,
    FRIEND,
    GOOD,
    GUIDE,
    HOUR,
    META,
    SANDBOX,
    SECOND,
    T0,
    TICK,
    WEEK,
    allowed,
    answered,
    contact,
    declined,
    granted,
    hours,
    judge,
    limit,
    message,
    refused,
    requested,
    usage,
    user_call,
    window_closed,
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
