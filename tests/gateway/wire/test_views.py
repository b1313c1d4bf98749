"""What softphones and API users see: every state and every no in words, and nothing that they should not see."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from gateway.callflow.call import CallState
from gateway.callflow.outcome import EndReason, Result
from gateway.common.ids import UserRef
from gateway.numbers.slots import Lease, Slots
from gateway.numbers.views import number_view, slots_view
from gateway.wire import views
from gateway.wire.messages import SlotsView
from policy.contact import EMPTY
from policy.decision import Allow, Refusal, Warning, WarningCode
from policy.facts import Direction, RequestForm
from policy.number import NumberState
from policy.overview import Counter, Overview, overview
from policy.pack import load_pack
from policy.reasons import Reason, Remedy
from tests.support.generators import records as make
from tests.support.harness.world import a_world

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NO = Refusal(reason=Reason.CONNECTED_LIMIT, rule="contact/x", observed=5, limit=5, retry_at=AT, remedy=Remedy.WAIT)


def an_overview() -> Overview:
    """All that is said of a stranger, with both forms of request allowed."""
    said = overview(load_pack("guide"), NumberState(), EMPTY, now=AT)
    return replace(said, ask_free_form=Allow(), ask_template=Allow())


@pytest.mark.parametrize(
    ("user", "number"),
    [(UserRef(wa_id="5511900000001"), "+5511900000001"), (UserRef(user_id="BR.1"), None)],
)
def test_a_user_is_shown_by_what_is_known(user: UserRef, number: str | None) -> None:
    view = views.user_view(user, "Ana")
    assert (view.number, view.user_id, view.name) == (number, user.user_id, "Ana")


@pytest.mark.parametrize("state", [*CallState, "held"])
def test_every_state_is_shown_in_one_of_six_words(state: str) -> None:
    view = views.call_view(make.call(state=str(state)))
    assert view.state in {"connecting", "ringing", "active", "held", "ending", "ended"}


@pytest.mark.parametrize(
    ("state", "shown"),
    [("offered", "connecting"), ("requested", "connecting"), ("cancelling", "ending"), ("held", "held")],
)
def test_a_state_is_shown_as_people_understand_it(state: str, shown: str) -> None:
    assert views.call_view(make.call(state=state)).state == shown


def test_a_live_call_has_no_outcome() -> None:
    view = views.call_view(make.call(), worker=1)
    assert (view.outcome, view.worker) == (None, 1)


def test_an_ended_call_has_one() -> None:
    record = make.call(state="ended", result=Result.META, reason=EndReason.GRAPH_ERROR, detail="(138000) off")
    outcome = views.call_view(record).outcome
    assert outcome is not None
    assert (outcome.result, outcome.reason, outcome.detail) == ("meta", "graph_error", "(138000) off")
    assert views.call_view(structs.replace(record, reason=None)).outcome is None


async def test_slots_and_numbers_are_shown_with_their_figures() -> None:
    slots = Slots(Direction.USER_INITIATED, 7)
    lease = await slots.try_acquire()  # held: one that is dropped gives its slot back
    assert slots_view(slots) == SlotsView(used=1, limit=7)
    assert isinstance(lease, Lease)
    async with a_world() as world:
        view = number_view(world.number, now=world.clock.now())
        assert (view.number, view.name, view.outgoing.limit) == ("+551155550100", "Loja Exemplo", 10)
        assert view.pack == world.number.pack_label


@pytest.mark.parametrize("reason", list(Reason))
def test_every_no_has_a_sentence(reason: Reason) -> None:
    view = views.refusal_view(replace(NO, reason=reason))
    assert view.reason == reason.value
    assert view.title.endswith(".")


def test_a_no_carries_its_figures() -> None:
    view = views.refusal_view(NO)
    assert (view.rule, view.observed, view.limit, view.retry_at, view.remedy) == ("contact/x", 5, 5, AT, "wait")
    assert views.refusal_view(replace(NO, remedy=None)).remedy is None


def test_a_no_names_its_source_where_the_rule_is_somebodys() -> None:
    for rule, source in (("request/after_decline", "guide R7"), ("gateway/store", None)):
        assert views.refusal_view(replace(NO, rule=rule)).source == source


@pytest.mark.parametrize("request_", ["place", "receive", "ask_permission"])
def test_a_stored_no_is_shown_as_it_was_said(request_: str) -> None:
    said = replace(NO, rule="contact/connected_per_24h")
    record = make.decision(request=request_, allowed=False, refusal=views.refusal_json(said))
    view = views.decided_view(record)
    assert (view.refusal, view.request) == (views.refusal_view(said), request_)
    assert view.refusal is not None
    assert view.refusal.source == "guide R8"
    assert {name: getattr(view, name) for name in ("decision_id", "user_key", "asked_by", "at", "pack")} == {
        name: getattr(record, name) for name in ("decision_id", "user_key", "asked_by", "at", "pack")
    }


def test_a_stored_yes_and_a_no_of_another_version() -> None:
    assert views.decided_view(make.decision(allowed=True, refusal=None)).refusal is None
    odd = {**views.refusal_json(NO), "reason": "of_tomorrow", "rule": "of/tomorrow"}
    view = views.decided_view(make.decision(allowed=False, refusal=odd)).refusal
    assert view is not None
    assert (view.reason, view.title, view.source) == ("of_tomorrow", "of_tomorrow", None)


def test_a_yes_carries_its_warnings_and_the_form_of_a_request() -> None:
    allow = Allow(warnings=(Warning(code=WarningCode.STREAK_NOTICE_SENT),), permission_expires_at=AT)
    view = views.decision_view(replace(an_overview(), place=allow, ask_template=NO))
    assert (view.allowed, view.refusal, view.warnings) == (True, None, ["streak_notice_sent"])
    assert (view.permission_expires_at, view.ask_form) == (AT, "template")
    assert view.ask is not None
    assert view.ask.reason == "connected_limit"


def test_a_no_that_may_be_asked_about_says_how() -> None:
    view = views.decision_view(replace(an_overview(), place=NO, form=RequestForm.FREE_FORM, ask_template=NO))
    assert (view.allowed, view.warnings, view.ask, view.ask_form) == (False, [], None, "free_form")
    assert view.refusal is not None


def test_nobody_can_neither_be_called_nor_asked() -> None:
    view = views.refused_view(NO)
    assert (view.allowed, view.ask_form) == (False, None)
    assert view.refusal == view.ask == views.refusal_view(NO)


def test_a_contact_is_shown_with_what_is_used_and_when_it_frees() -> None:
    used = Counter(used=2, limit=5, next_frees_at=AT)
    view = views.contact_view(
        UserRef(user_id="BR.1"), None, replace(an_overview(), connected_24h=used, ask_free_form=NO)
    )
    assert (view.connected_24h.used, view.connected_24h.limit, view.connected_24h.next_frees_at) == (2, 5, AT)
    assert (view.requests_24h.used, view.requests_7d.used) == (0, 0)
    assert view.ask_free_form == views.refusal_view(NO)
    assert (view.ask_template, view.window_open_until) == (None, None)
    assert view.permission == an_overview().permission.status.value


@pytest.mark.parametrize(("changes", "retry_at"), [({}, "2026-11-22T12:00:00+00:00"), ({"retry_at": None}, None)])
def test_a_no_is_stored_with_its_figures(changes: dict[str, Any], retry_at: str | None) -> None:
    stored = views.refusal_json(replace(NO, **changes))
    assert stored["retry_at"] == retry_at
    assert (stored["reason"], stored["rule"], stored["remedy"]) == ("connected_limit", "contact/x", "wait")
    assert views.refusal_json(replace(NO, remedy=None))["remedy"] is None
