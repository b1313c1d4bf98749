"""The tables are total and every call ends."""

import pytest

from gateway.callflow.call import _FOREIGN, IGNORED, NOTED, TRANSITIONS, CallState, InputKind
from policy.facts import Direction

PAIRS = [
    (direction, state, received)
    for direction in Direction
    for state in TRANSITIONS[direction]
    for received in InputKind
]


@pytest.mark.parametrize(("direction", "state", "received"), PAIRS)
def test_each_pair_of_state_and_input_is_in_exactly_one_table(
    direction: Direction, state: CallState, received: InputKind
) -> None:
    moves = received in TRANSITIONS[direction][state]
    noted = received in NOTED[direction][state]
    ignored = received in IGNORED[direction][state]
    foreign = received in _FOREIGN[direction]
    assert moves + noted + ignored + foreign == 1


def test_both_tables_know_the_same_states() -> None:
    for direction in Direction:
        assert TRANSITIONS[direction].keys() == NOTED[direction].keys() == IGNORED[direction].keys()


def test_every_state_belongs_to_a_direction() -> None:
    assert {state for direction in Direction for state in TRANSITIONS[direction]} == set(CallState)


@pytest.mark.parametrize("direction", Direction)
def test_every_state_can_reach_the_end(direction: Direction) -> None:
    table = TRANSITIONS[direction]
    reaches = {CallState.ENDED}
    for _ in CallState:
        reaches |= {state for state, moves in table.items() if reaches & set(moves.values())}
    assert reaches == set(table)


@pytest.mark.parametrize("direction", Direction)
def test_nothing_leads_out_of_the_end(direction: Direction) -> None:
    assert not TRANSITIONS[direction][CallState.ENDED]


@pytest.mark.parametrize("direction", Direction)
def test_a_deadline_leads_out_of_every_state(direction: Direction) -> None:
    stays = {s for s, moves in TRANSITIONS[direction].items() if moves.get(InputKind.DEADLINE) in (s, None)}
    assert stays == {CallState.ENDED}


@pytest.mark.parametrize("direction", Direction)
def test_metas_terminate_ends_a_call_in_every_state_in_which_meta_has_it(direction: Direction) -> None:
    table = TRANSITIONS[direction]
    unknown_to_meta = {CallState.PREPARING, CallState.ENDED}
    ends = {state for state, moves in table.items() if moves.get(InputKind.META_TERMINATE) is CallState.ENDED}
    assert ends == set(table) - unknown_to_meta


def test_an_sdp_answer_is_never_the_pick_up() -> None:
    for moves in TRANSITIONS[Direction.BUSINESS_INITIATED].values():
        after = moves.get(InputKind.META_ANSWER)
        assert after is not CallState.ACTIVE or moves is TRANSITIONS[Direction.BUSINESS_INITIATED][CallState.ACTIVE]
