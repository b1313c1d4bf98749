"""The page about one contact: figures, decisions, and what became of each request."""

from datetime import datetime

import pytest
from hypothesis import given

from policy.contact import EMPTY, fold
from policy.decision import Allow, Refusal
from policy.facts import Fact, RequestForm
from policy.gate import evaluate
from policy.overview import SETTLING, Counter, RequestOutcome, overview, request_views
from policy.permission import PermissionStatus
from policy.reasons import Reason
from policy.request import AskPermission, PlaceCall
from tests.policy.make import (
    DAY,
    GOOD,
    GUIDE,
    T0,
    TICK,
    WEEK,
    answered,
    callback,
    contact,
    declined,
    granted,
    hours,
    message,
    requested,
    unanswered,
)
from tests.policy.strategies import histories


def test_of_a_stranger() -> None:
    page = overview(GUIDE, GOOD, EMPTY, now=T0)
    assert page.permission.status is PermissionStatus.NONE
    assert page.window_open_until is None
    assert page.form is RequestForm.TEMPLATE
    assert page.connected_24h == Counter(used=0, limit=5, next_frees_at=None)
    assert page.requests_7d == Counter(used=0, limit=2, next_frees_at=None)
    assert isinstance(page.place, Refusal)
    assert isinstance(page.ask_free_form, Refusal)
    assert isinstance(page.ask_template, Allow)


def test_of_somebody_known() -> None:
    state = contact(
        requested(hours(-50)),
        granted(hours(-49)),
        answered(hours(-30)),
        answered(hours(-20)),
        answered(hours(-2)),
        requested(hours(-1)),
        message(hours(-1)),
    )
    page = overview(GUIDE, GOOD, state, now=T0)
    assert page.permission.status is PermissionStatus.TEMPORARY
    assert page.window_open_until == hours(23)
    assert page.form is RequestForm.FREE_FORM
    assert page.connected_24h == Counter(used=2, limit=5, next_frees_at=hours(4))
    assert page.requests_24h == Counter(used=1, limit=1, next_frees_at=hours(23))
    assert page.requests_7d == Counter(used=1, limit=2, next_frees_at=hours(-1) + WEEK)
    assert isinstance(page.place, Allow)
    assert isinstance(page.ask_template, Refusal)
    assert page.ask_template.retry_at == hours(23)


def test_what_words_need_to_explain_a_no() -> None:
    page = overview(GUIDE, GOOD, contact(requested(hours(-3)), declined(hours(-2)), unanswered(hours(-1))), now=T0)
    assert (page.asked_at, page.declined_at, page.permission.streak) == (hours(-3), hours(-2), 1)


def test_what_is_in_flight_is_judged_with() -> None:
    page = overview(
        GUIDE, GOOD, contact(granted()), now=T0, place=PlaceCall(in_flight=5), ask=AskPermission(in_flight=1)
    )
    assert isinstance(page.place, Refusal)
    assert page.place.reason is Reason.CONNECTED_LIMIT
    assert isinstance(page.ask_template, Refusal)
    assert page.connected_24h.used == 0


@given(histories())
def test_the_page_says_what_the_gate_says(facts: list[Fact]) -> None:
    state = fold(facts)
    page = overview(GUIDE, GOOD, state, now=T0)
    assert (page.at, page.streak_limit) == (T0, GUIDE.streak_revoke)
    assert page.place == evaluate(GUIDE, GOOD, state, PlaceCall(), now=T0)
    for form, decision in (
        (RequestForm.FREE_FORM, page.ask_free_form),
        (RequestForm.TEMPLATE, page.ask_template),
    ):
        assert decision == evaluate(GUIDE, GOOD, state, AskPermission(form=form), now=T0)


def outcomes(now: datetime, *facts: Fact) -> list[str]:
    return [view.outcome.value for view in request_views(GUIDE, facts, now=now)]


FIRST = requested(T0, request_id="wamid.A")
SECOND = requested(T0 + 2 * DAY, request_id="wamid.B")


@pytest.mark.parametrize(
    ("facts", "now", "expected"),
    [
        ([], T0, []),
        ([FIRST], hours(1), ["pending"]),
        ([FIRST], T0 + WEEK - TICK, ["pending"]),
        ([FIRST], T0 + WEEK, ["lapsed"]),
        ([FIRST, granted(hours(1), request_id="wamid.A")], hours(2), ["granted"]),
        ([FIRST, declined(hours(1), request_id="wamid.A")], T0 + 2 * WEEK, ["declined"]),
        ([FIRST, granted(hours(1))], hours(2), ["pending"]),  # granted unasked
        ([SECOND, FIRST], T0 + 3 * DAY, ["pending", "pending"]),
        ([FIRST, SECOND, declined(hours(60), request_id="wamid.B")], hours(61), ["superseded", "declined"]),
        ([FIRST, SECOND, declined(hours(60), request_id="wamid.A")], hours(61), ["declined", "pending"]),
        # Meta told no id of it; a reply to what nobody else asked proves that it was sent.
        ([requested(T0), granted(hours(1), request_id="wamid.A")], hours(2), ["granted"]),
        ([requested(hours(-1)), FIRST, declined(hours(1), request_id="wamid.A")], hours(2), ["superseded", "declined"]),
        ([requested(T0), declined(T0 - SETTLING, request_id="wamid.A")], hours(2), ["declined"]),
        ([requested(T0), declined(T0 - SETTLING - TICK, request_id="wamid.A")], hours(2), ["pending"]),
        ([requested(T0), callback(hours(1))], hours(2), ["pending"]),  # after a call of theirs
        ([requested(T0), granted(hours(1))], hours(2), ["pending"]),  # granted unasked
    ],
)
def test_what_became_of_each_request(facts: list[Fact], now: datetime, expected: list[str]) -> None:
    assert outcomes(now, *facts, *facts) == expected


def test_every_request_before_an_answered_one_is_superseded() -> None:
    third = requested(hours(72), request_id="wamid.C")
    yes = granted(hours(73), request_id="wamid.C")
    assert outcomes(hours(74), FIRST, SECOND, third, yes) == ["superseded", "superseded", "granted"]


def test_a_contact_may_change_the_answer() -> None:
    no, yes = declined(hours(1), request_id="wamid.A"), granted(hours(2), request_id="wamid.A")
    (view,) = request_views(GUIDE, [yes, FIRST, no], now=hours(3))
    assert (view.outcome, view.answered_at) == (RequestOutcome.GRANTED, hours(2))
    assert RequestOutcome("granted") is RequestOutcome.GRANTED
