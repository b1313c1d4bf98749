"""The state of a contact: one and the same from facts in any order and number, small, and as good as all the facts."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.contact import (
    EMPTY,
    KEPT,
    SLACK,
    SNAPSHOT_VERSION,
    ContactState,
    apply,
    calls_counted,
    facts_of,
    fold,
    instant_after,
    last_connected_at,
    latest,
    limited_until,
    merge,
    missed_calls,
    requests_counted,
    state_from_dict,
    state_to_dict,
    window_opened_at,
)
from policy.facts import Action, CallConnected, CallRejected, CallUnanswered, Direction, Fact, FactError, RequestForm
from policy.pack import MAX_LIMIT
from policy.windows import DAY, WEEK
from tests.policy.make import (
    HOUR,
    SECOND,
    T0,
    TICK,
    answered,
    callback,
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
from tests.policy.strategies import histories

ASK = Action.SEND_REQUEST


@given(histories(), st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_give_one_state(facts: list[Fact], random: Random) -> None:
    again = facts + random.choices(facts, k=len(facts)) if facts else []
    random.shuffle(again)
    assert fold(again) == fold(facts)


@given(histories(max_size=10), st.randoms(use_true_random=False))
def test_facts_that_contradict_each_other_under_one_key_still_give_one_state(facts: list[Fact], random: Random) -> None:
    quarrel = [replace(fact, key=f"k{index % 3}") for index, fact in enumerate(facts)]
    shuffled = random.sample(quarrel, len(quarrel))
    assert fold(shuffled) == fold(quarrel)


@given(histories(), histories(), histories())
def test_merging_is_a_join(one: list[Fact], two: list[Fact], three: list[Fact]) -> None:
    a, b, c = (fold(facts) for facts in (one, two, three))
    assert merge(a, a) == a == merge(a, EMPTY) == merge(EMPTY, a)
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(histories(), st.integers(0, 24))
def test_two_halves_of_a_life_merge_into_the_whole(facts: list[Fact], cut: int) -> None:
    overlap = max(cut - 3, 0)
    assert merge(fold(facts[:cut]), fold(facts[overlap:])) == fold(facts)


def test_one_person_under_number_and_bsuid_loses_and_doubles_nothing() -> None:
    shared = answered(hours(1))
    by_number = contact(granted(), shared, answered(hours(2)))
    by_bsuid = contact(shared, answered(hours(3)))
    both = merge(by_number, by_bsuid)
    assert calls_counted(both) == [hours(1), hours(2), hours(3)]
    assert both.granted == by_number.granted


@given(histories())
def test_a_state_is_made_of_facts_that_make_it_again(facts: list[Fact]) -> None:
    state = fold(facts)
    assert fold(facts_of(state)) == state
    assert set(facts_of(state)) <= set(facts)


@given(histories())
def test_a_snapshot_survives_json(facts: list[Fact]) -> None:
    state = fold(facts)
    assert state_from_dict(json.loads(json.dumps(state_to_dict(state)))) == state


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": SNAPSHOT_VERSION + 1, "facts": []},
        {"version": SNAPSHOT_VERSION},
        {"version": SNAPSHOT_VERSION, "facts": {}},
        {"version": SNAPSHOT_VERSION, "facts": ["call_connected"]},
        {"version": SNAPSHOT_VERSION, "facts": [{"kind": "call_connected"}]},
    ],
)
def test_what_is_no_snapshot_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(FactError):
        state_from_dict(data)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([], T0),
        ([granted(T0 - TICK)], T0),
        ([granted(T0)], T0 + TICK),
        ([granted(hours(1)), message(hours(2))], hours(2) + TICK),
    ],
)
def test_metas_word_comes_after_everything_that_is_known(facts: list[Fact], expected: datetime) -> None:
    assert instant_after(contact(*facts), now=T0) == expected


@given(histories())
def test_what_happens_after_everything_has_the_last_word(facts: list[Fact]) -> None:
    state = fold(facts)
    last = revoked(instant_after(state, now=T0))
    assert apply(state, last).revoked == last


def _noisy_life(count: int) -> ContactState:
    state = EMPTY
    for number in range(count):
        at = T0 + number * timedelta(minutes=7)
        for make in (answered, user_call, requested, message, granted, callback, declined, revoked):
            state = apply(state, make(at))
        state = apply(state, limit(at, at + HOUR))
        state = apply(state, usage(at, 1))
        state = apply(state, unanswered(at + SECOND))
        state = apply(state, rejected(at + SECOND))
    return state


def test_a_long_life_does_not_grow() -> None:
    grown = len(facts_of(_noisy_life(2000)))
    # 2 days of calls, 8 of requests, cut off at KEPT.
    assert grown < 2 * KEPT + 2 * DAY // timedelta(minutes=7) + 12


def test_even_an_endless_streak_is_bounded() -> None:
    state = EMPTY
    for number in range(KEPT + 50):
        state = apply(state, CallUnanswered(at=T0 + number * SECOND, key=f"u{number}"))
    assert len(state.unanswered) == KEPT
    assert state.unanswered[-1].at == T0 + (KEPT + 49) * SECOND


def test_what_is_kept_is_enough_for_the_highest_limit_a_pack_may_have() -> None:
    assert KEPT >= MAX_LIMIT


@pytest.mark.parametrize(("age", "kept"), [(DAY + SLACK - TICK, 2), (DAY + SLACK, 1)])
def test_connected_calls_are_kept_for_a_day_and_the_slack(age: timedelta, kept: int) -> None:
    assert len(contact(answered(T0 - age), answered(T0)).connected) == kept


@pytest.mark.parametrize(("age", "kept"), [(WEEK + SLACK - TICK, 2), (WEEK + SLACK, 1)])
def test_requests_are_kept_for_a_week_and_the_slack(age: timedelta, kept: int) -> None:
    assert len(contact(requested(T0 - age), requested(T0)).requests) == kept


@pytest.mark.parametrize("ends", [answered, granted])
def test_a_streak_that_has_ended_is_forgotten(ends: object) -> None:
    assert callable(ends)
    state = contact(unanswered(T0 - TICK), rejected(T0 - TICK), unanswered(T0), ends(T0))
    assert [call.at for call in state.unanswered] == [T0]
    assert state.rejected == ()


def test_a_users_call_ends_no_streak() -> None:
    assert len(contact(unanswered(T0 - HOUR), user_call(T0)).unanswered) == 1


@pytest.mark.parametrize("kind", [answered, user_call])
def test_a_connected_call_of_either_direction_clears_the_requests_before_it(kind: object) -> None:
    assert callable(kind)
    state = contact(requested(T0 - TICK), requested(T0), requested(T0 + TICK), kind(T0))
    # The one in the same instant still counts: nobody knows which came first.
    assert requests_counted(state, window=DAY) == [T0, T0 + TICK]


def test_the_last_talk_is_the_later_of_both_directions() -> None:
    assert last_connected_at(EMPTY) is None
    assert last_connected_at(contact(answered(T0))) == T0
    assert last_connected_at(contact(user_call(T0))) == T0
    assert last_connected_at(contact(answered(hours(1)), user_call(hours(2)))) == hours(2)
    assert last_connected_at(contact(answered(hours(3)), user_call(hours(2)))) == hours(3)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([], None),
        ([message(T0)], T0),
        ([message(T0), message(hours(1))], hours(1)),
        ([user_call(T0)], None),  # it opened the window when it was placed: a fact of its own
        ([message(hours(-1)), user_call(T0)], hours(-1)),
        ([answered(T0)], T0),
        ([answered(T0), message(hours(-1))], T0),
        ([window_closed(T0)], None),
        ([message(T0), window_closed(hours(1))], None),
        ([message(T0), window_closed(T0)], None),
        ([message(hours(1)), window_closed(T0)], hours(1)),
    ],
)
def test_what_opens_the_window(facts: list[Fact], expected: datetime | None) -> None:
    assert window_opened_at(contact(*facts)) == expected


def test_metas_count_of_calls_replaces_ours_before_it() -> None:
    state = contact(answered(hours(-2)), answered(hours(-1)), answered(hours(1)), usage(T0, 1))
    assert calls_counted(state) == [T0, hours(1)]


def test_a_call_in_the_very_instant_of_metas_report_counts_beside_it() -> None:
    assert calls_counted(contact(answered(T0), usage(T0, 1))) == [T0, T0]


def test_an_absurd_report_is_cut_off() -> None:
    assert len(calls_counted(contact(usage(T0, 10**9)))) == KEPT
    assert len(requests_counted(contact(usage(T0, 0, 10**9, ASK)), window=WEEK)) == KEPT


def test_metas_report_has_a_figure_for_each_window() -> None:
    state = contact(requested(hours(-1)), requested(hours(1)), usage(T0, 1, 2, ASK))
    assert requests_counted(state, window=DAY) == [T0, hours(1)]
    assert requests_counted(state, window=WEEK) == [T0, T0, hours(1)]


def test_a_connected_call_clears_metas_report_of_requests() -> None:
    state = contact(usage(T0, 1, 2, ASK), user_call(T0 + TICK), requested(hours(1)))
    assert requests_counted(state, window=WEEK) == [hours(1)]
    assert requests_counted(contact(usage(T0, 1, 2, ASK), user_call(T0)), window=WEEK) == [T0, T0]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([], None),
        ([limit(T0, hours(5), ASK)], None),  # of the other action
        ([limit(T0, hours(5))], hours(5)),
        ([limit(T0, hours(5)), limit(hours(1), hours(3))], hours(5)),  # a second no takes nothing back
        ([limit(T0, hours(5)), usage(T0 + TICK, 0)], None),
        ([limit(T0, hours(5)), usage(T0, 0)], hours(5)),  # one answer of Meta's told both
        ([limit(T0, hours(5)), usage(T0 + TICK, 0, 0, ASK)], hours(5)),
        ([limit(T0, hours(5)), user_call(hours(1))], hours(5)),
    ],
)
def test_until_when_meta_refuses_calls(facts: list[Fact], expected: datetime | None) -> None:
    assert limited_until(contact(*facts), Action.START_CALL) == expected


def test_a_connected_call_lifts_metas_limit_on_requests() -> None:
    assert limited_until(contact(limit(T0, hours(5), ASK)), ASK) == hours(5)
    assert limited_until(contact(limit(T0, hours(5), ASK), user_call(T0)), ASK) == hours(5)
    assert limited_until(contact(limit(T0, hours(5), ASK), user_call(T0 + TICK)), ASK) is None
    assert limited_until(contact(limit(T0, hours(5), ASK), usage(hours(1), 0, 0, ASK)), ASK) is None


def test_the_same_call_reported_with_two_times_is_one_call_at_the_later() -> None:
    first = CallConnected(at=T0, key="wacid.A", direction=Direction.BUSINESS_INITIATED)
    second = CallConnected(at=T0 + SECOND, key="wacid.A", direction=Direction.BUSINESS_INITIATED)
    assert calls_counted(contact(first, second)) == calls_counted(contact(second, first)) == [T0 + SECOND]


def test_two_tales_of_one_instant_end_the_same_whoever_speaks_first() -> None:
    form, other = (replace(requested(T0, form=form), key="wamid.A") for form in RequestForm)
    assert contact(form, other) == contact(other, form)
    assert len(contact(form, other).requests) == 1


def test_of_two_grants_at_one_instant_the_temporary_one_counts() -> None:
    short, good = granted(T0), granted(T0, permanent=True)
    assert contact(short, good).granted == contact(good, short).granted == short


def test_what_is_no_fact_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        apply(EMPTY, "call_connected")  # type: ignore[arg-type]


def test_the_later_of_two_instants_of_which_either_may_be_missing() -> None:
    assert latest(None, None) is None
    assert latest(T0, None) == latest(None, T0) == latest(T0, hours(-1)) == T0


# --- missed calls ------------------------------------------------------------------------------------


def _of_call(kind: type[CallUnanswered] | type[CallRejected], name: str, at: datetime) -> Fact:
    return kind(at=at, key=f"{'unanswered' if kind is CallUnanswered else 'rejected'}/{name}")


def _picked_up(name: str, at: datetime) -> Fact:
    return CallConnected(at=at, key=f"connected/{name}", direction=Direction.BUSINESS_INITIATED)


@pytest.mark.parametrize(
    ("facts", "all_missed", "without_rejected"),
    [
        ([], [], []),
        ([_of_call(CallUnanswered, "1", T0)], [T0], [T0]),
        ([_of_call(CallRejected, "1", T0)], [T0], []),
        # one call, told of twice
        ([_of_call(CallRejected, "1", T0), _of_call(CallUnanswered, "1", hours(1))], [T0], []),
        # two calls
        ([_of_call(CallRejected, "1", T0), _of_call(CallUnanswered, "2", hours(1))], [T0, hours(1)], [hours(1)]),
        (
            [_of_call(CallRejected, "2", hours(1)), _of_call(CallUnanswered, "1", hours(2))],
            [hours(1), hours(2)],
            [hours(2)],
        ),
        # picked up after all
        ([_of_call(CallUnanswered, "1", hours(1)), _picked_up("1", T0)], [], []),
        ([_of_call(CallUnanswered, "2", hours(1)), _picked_up("1", T0)], [hours(1)], [hours(1)]),
        ([_of_call(CallRejected, "1", hours(1)), _picked_up("1", T0)], [], []),
        # keys that name no call are of different calls
        ([unanswered(T0), rejected(T0)], [T0, T0], [T0]),
    ],
)
def test_a_call_is_missed_once_however_many_facts_tell_of_it(
    facts: list[Fact], all_missed: list[datetime], without_rejected: list[datetime]
) -> None:
    for told in (facts, facts[::-1], [*facts, *facts]):
        state = contact(*told)
        assert missed_calls(state, rejected=True) == all_missed
        assert missed_calls(state, rejected=False) == without_rejected
