"""Who says what of a number, who of them is believed, and until when."""

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import orjson
import pytest

from gateway.common.ids import PhoneNumberId
from gateway.meta.answers import NumberCallingSettings, NumberInfo
from gateway.meta.number_events import NumberEvent, NumberRestricted, NumberSettingsChanged, NumberWarned
from gateway.numbers import facts as nf
from gateway.numbers.facts import ByHand, FactsError, NumberFacts, facts_from_json, facts_to_json
from policy.facts import Direction
from policy.hours import CallHours, Holiday, Opening
from policy.number import CallingStatus, NumberState, Restriction, RestrictionType

T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
OUT, IN, HIDDEN = (
    RestrictionType.BUSINESS_INITIATED,
    RestrictionType.USER_INITIATED,
    RestrictionType.CALL_BUTTON_HIDDEN,
)
ON = NumberCallingSettings(calling=CallingStatus.ENABLED)
HOURS = CallHours(
    timezone="America/Sao_Paulo",
    weekly=(Opening(weekday=0, opens=time(9), closes=time(18)),),
    holidays=(Holiday(day=date(2026, 12, 25)), Holiday(day=date(2026, 12, 24), opens=time(9), closes=time(12))),
)


def until(kind: RestrictionType, hours: float | None) -> Restriction:
    return Restriction(type=kind, expires_at=None if hours is None else T0 + hours * HOUR)


def restricted(*restrictions: Restriction, at: datetime | None = T0) -> NumberRestricted:
    return NumberRestricted(
        number_id=PhoneNumberId(""),
        at=at,
        kind="number.restricted",
        dedupe_key="hash/1",
        body=b"{}",
        display_number="15550100001",
        restrictions=restrictions,
    )


def warned(violation: str = "LOW_BUSINESS_INITIATED_CALLING_QUALITY", *, at: datetime | None = T0) -> NumberWarned:
    return NumberWarned(
        number_id=PhoneNumberId(""),
        at=at,
        kind="number.warned",
        dedupe_key="hash/2",
        body=b"{}",
        display_number="15550100001",
        violation=violation,
        remediation=None,
    )


def changed(calling: dict[str, Any], *, at: datetime = T0) -> NumberSettingsChanged:
    return NumberSettingsChanged(
        number_id=PhoneNumberId("1"), at=at, kind="number.settings", dedupe_key="hash/3", body=b"{}", calling=calling
    )


def folded(*events: NumberEvent, facts: NumberFacts | None = None, now: datetime = T0) -> NumberFacts:
    known = facts or NumberFacts()
    for event in events:
        known = nf.with_event(known, event, now=now)
    return known


def live(facts: NumberFacts, hours: float = 0) -> tuple[Restriction, ...]:
    return nf.live_restrictions(nf.state_of(facts, ByHand()), now=T0 + hours * HOUR)


# --- Graph -------------------------------------------------------------------------------------------


def test_what_graph_lists_is_the_whole_truth_of_that_moment() -> None:
    said = NumberCallingSettings(
        calling=CallingStatus.DISABLED, sip_enabled=True, hours=HOURS, restrictions=(until(OUT, 1),)
    )
    facts = nf.with_settings(NumberFacts(), said, asked_at=T0)
    state = nf.state_of(facts, ByHand(country="BR"))
    assert state == NumberState(
        country="BR",
        calling=CallingStatus.DISABLED,
        sip_enabled=True,
        hours=HOURS,
        restrictions=(until(OUT, 1),),
    )
    again = nf.state_of(nf.with_settings(facts, ON, asked_at=T0 + HOUR), ByHand(country="BR"))
    assert again == NumberState(country="BR", calling=CallingStatus.ENABLED)


def test_what_meta_does_not_tell_of_the_number_stays() -> None:
    told = nf.with_info(NumberFacts(), NumberInfo(messaging_limit=250, coexistence=True))
    state = nf.state_of(nf.with_info(told, NumberInfo()), ByHand())
    assert (state.messaging_limit, state.coexistence) == (250, True)


# --- restrictions ------------------------------------------------------------------------------------


def test_a_restriction_ends_by_itself() -> None:
    facts = folded(restricted(until(OUT, 2)))
    assert live(facts, 2 - 1e-6) == (until(OUT, 2),)
    assert live(facts, 2) == ()


def test_what_only_a_webhook_told_outlives_a_look_at_the_settings() -> None:
    facts = nf.with_settings(folded(restricted(until(OUT, 48))), ON, asked_at=T0 + HOUR)
    assert live(facts, 2) == (until(OUT, 48),)


def test_what_graph_lists_itself_ends_when_graph_says_so() -> None:
    facts = folded(restricted(until(OUT, 48)))
    listed = replace(ON, restrictions=(until(OUT, 24),))
    facts = nf.with_settings(facts, listed, asked_at=T0 + HOUR)
    assert live(facts, 2) == (until(OUT, 24),)
    assert live(nf.with_settings(facts, ON, asked_at=T0 + 2 * HOUR), 2) == ()


def test_a_webhook_that_came_while_graph_was_asked_is_not_lost() -> None:
    facts = folded(restricted(until(OUT, 48), at=T0 + HOUR), now=T0 + HOUR)
    facts = nf.with_settings(facts, replace(ON, restrictions=(until(OUT, 24),)), asked_at=T0)
    assert live(facts, 2) == (until(OUT, 48),)


def test_the_longest_of_a_type_is_the_one_in_force() -> None:
    facts = folded(restricted(until(OUT, 1)), restricted(until(OUT, 3), until(IN, 2)), restricted(until(OUT, 2)))
    assert live(facts) == (until(OUT, 3), until(IN, 2))


def test_of_one_type_the_endless_one_is_in_force() -> None:
    state = NumberState(restrictions=(until(OUT, 1), until(OUT, None), until(OUT, 2)))
    assert nf.live_restrictions(state, now=T0) == (until(OUT, None),)


@pytest.mark.parametrize("kind", [OUT, IN])
@pytest.mark.parametrize("at", [T0, None])
def test_a_restriction_that_came_without_an_end_has_metas_usual_one(kind: RestrictionType, at: datetime | None) -> None:
    assert live(folded(restricted(until(kind, None), at=at))) == (until(kind, 7 * 24),)


@pytest.mark.parametrize("ends", ["shown again", "asked by hand"])
def test_a_hidden_button_stays_until_it_is_shown_again(ends: str) -> None:
    facts = nf.with_settings(folded(restricted(until(HIDDEN, None))), ON, asked_at=T0)
    assert live(facts, 10_000) == (until(HIDDEN, None),)
    if ends == "shown again":
        assert live(folded(changed({"call_icon_visibility": "DISABLE_ALL"}), facts=facts)) != ()
        facts = folded(changed({"call_icon_visibility": "DEFAULT"}), facts=facts)
    else:
        facts = nf.asked_by_hand(facts)
    assert live(facts) == ()


def test_the_same_twice_and_in_any_order_is_the_same() -> None:
    one, other = restricted(until(OUT, 1)), restricted(until(OUT, 3))
    assert live(folded(one, other, one)) == live(folded(other, one)) == (until(OUT, 3),)
    assert len(folded(one, one, one).announced) == 1


def test_what_ended_long_ago_is_forgotten_and_a_clock_put_back_finds_the_rest() -> None:
    facts = folded(restricted(until(OUT, 1)))
    assert folded(restricted(until(IN, 50)), facts=facts, now=T0 + 2 * HOUR).announced[0] == facts.announced[0]
    assert len(folded(restricted(until(IN, 50)), facts=facts, now=T0 + 26 * HOUR).announced) == 1


# --- warnings ----------------------------------------------------------------------------------------


def test_a_warning_is_shown_for_a_week() -> None:
    facts = folded(warned())
    assert [each.violation for each in nf.live_warnings(facts, now=T0)] == ["LOW_BUSINESS_INITIATED_CALLING_QUALITY"]
    assert nf.live_warnings(facts, now=T0 + nf.WARNED_FOR) == ()


def test_the_newest_warning_of_a_kind_counts_whatever_comes_last() -> None:
    old, new, other = warned(at=T0), warned(at=T0 + HOUR), warned("USER_INITIATED_CALLS_LOW_PICKUP_RATE")
    facts = folded(new, old, other, now=T0 + HOUR)
    assert {each.violation: each.at for each in facts.warned} == {old.violation: T0 + HOUR, other.violation: T0}
    assert folded(old, new, now=T0 + HOUR).warned[0].at == T0 + HOUR


def test_a_warning_without_a_time_came_now() -> None:
    assert folded(warned(at=None)).warned[0].at == T0


# --- changed settings --------------------------------------------------------------------------------


def test_a_change_names_what_changed_and_leaves_the_rest() -> None:
    facts = nf.with_settings(NumberFacts(), replace(ON, hours=HOURS, restrictions=(until(OUT, 9),)), asked_at=T0)
    state = nf.state_of(folded(changed({"status": "DISABLED"}, at=T0 + HOUR), facts=facts), ByHand())
    assert (state.calling, state.hours, state.restrictions) == (CallingStatus.DISABLED, HOURS, (until(OUT, 9),))


def test_every_part_that_a_change_names_is_taken_over() -> None:
    calling = {
        "status": "enabled",
        "sip": {"status": "ENABLED"},
        "call_hours": {
            "status": "ENABLED",
            "timezone_id": "UTC",
            "weekly_operating_hours": [{"day_of_week": "MONDAY", "open_time": "0900", "close_time": "1800"}],
        },
        "restrictions": {"restrictions_list": [{"type": OUT.value, "expiration": int(T0.timestamp()) + 3_600}]},
    }
    state = nf.state_of(folded(changed(calling)), ByHand())
    assert (state.calling, state.sip_enabled) == (CallingStatus.ENABLED, True)
    assert state.hours is not None
    assert state.restrictions == (until(OUT, 1),)


def test_a_change_that_was_overtaken_changes_nothing() -> None:
    facts = nf.with_settings(NumberFacts(), ON, asked_at=T0)
    assert folded(changed({"status": "DISABLED"}, at=T0 - HOUR), facts=facts) == facts
    assert folded(changed({}), facts=facts) == facts


# --- errors and successes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (138000, NumberState(calling=CallingStatus.DISABLED)),
        (138013, NumberState(country_refused=True)),
        (138014, NumberState(restrictions=(until(OUT, None),))),
        (138015, NumberState(eligibility_refused=True)),
        (131044, NumberState(payment_ok=False)),
        (131055, NumberState(sip_enabled=True)),
        (138006, NumberState()),
        (131000, NumberState()),
    ],
)
def test_an_error_that_speaks_of_the_number_is_believed(code: int, state: NumberState) -> None:
    assert nf.state_of(nf.with_error(NumberFacts(), code), ByHand()) == state


def test_a_success_takes_back_what_no_settings_tell() -> None:
    facts = NumberFacts()
    for code in (138013, 138014, 138015, 131044):
        facts = nf.with_error(facts, code)
    assert nf.state_of(nf.with_success(facts), ByHand()) == NumberState()


def test_a_restriction_that_was_only_met_is_gone_when_graph_lists_none() -> None:
    met = nf.with_error(NumberFacts(), 138014)
    assert live(nf.with_settings(met, ON, asked_at=T0)) == ()


def test_somebody_who_asks_by_hand_may_have_mended_it() -> None:
    facts = NumberFacts(payment_ok=False, country_refused=True, eligibility_refused=True)
    assert nf.asked_by_hand(facts) == NumberFacts()


def test_a_limit_that_meta_tells_goes_before_what_it_refused_once() -> None:
    refused = nf.with_error(NumberFacts(), 138015)
    assert nf.with_info(refused, NumberInfo()).eligibility_refused
    assert not nf.with_info(refused, NumberInfo(messaging_limit=10_000)).eligibility_refused


# --- by hand -----------------------------------------------------------------------------------------


def test_what_is_set_by_hand_goes_before_what_meta_tells() -> None:
    facts = NumberFacts(
        calling=CallingStatus.DISABLED, sip_enabled=True, coexistence=True, messaging_limit=250, hours=None
    )
    hand = ByHand(
        country="PT",
        calling=CallingStatus.ENABLED,
        sip_enabled=False,
        coexistence=False,
        messaging_limit=10_000,
        hours=HOURS,
        hours_enforced=frozenset({Direction.USER_INITIATED}),
    )
    assert nf.state_of(facts, hand) == NumberState(
        country="PT",
        calling=CallingStatus.ENABLED,
        messaging_limit=10_000,
        hours=HOURS,
        hours_enforced=frozenset({Direction.USER_INITIATED}),
    )


# --- kept --------------------------------------------------------------------------------------------


FULL = NumberFacts(
    calling=CallingStatus.ENABLED,
    sip_enabled=True,
    hours=HOURS,
    coexistence=False,
    messaging_limit=2_000,
    eligibility_refused=True,
    country_refused=True,
    listed=(until(OUT, 1),),
    announced=(nf.Announced(restriction=until(HIDDEN, None), at=T0),),
    restriction_met=True,
    warned=(nf.Warned(violation="LOW", at=T0, remediation="Call less."),),
    settings_at=T0,
    read_at=T0 + HOUR,
)


@pytest.mark.parametrize("facts", [NumberFacts(), FULL, nf.with_settings(NumberFacts(), ON, asked_at=T0)])
def test_facts_come_back_as_they_were_kept(facts: NumberFacts) -> None:
    assert facts_from_json(orjson.loads(orjson.dumps(facts_to_json(facts)))) == facts


def test_payment_trouble_does_not_outlive_the_process() -> None:
    assert facts_from_json(facts_to_json(NumberFacts(payment_ok=False))).payment_ok


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"calling": "PERHAPS"},
        {"hours": {"timezone": "Nowhere/At_All", "weekly": [], "holidays": []}},
        {"hours": {"timezone": "UTC", "weekly": [{"weekday": 9, "opens": "09:00:00", "closes": "10:00:00"}]}},
        {"listed": 5},
        {"read_at": "yesterday"},
    ],
)
def test_what_is_no_facts_is_told(change: dict[str, Any]) -> None:
    with pytest.raises(FactsError):
        facts_from_json({**facts_to_json(NumberFacts()), **change})
