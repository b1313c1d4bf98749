"""One call through every order of inputs."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.callflow import effects as fx
from gateway.callflow.call import NOTED, Call, CallInput, CallState, InputKind, MetaEnd, Timeouts, new_call
from gateway.callflow.effects import Effect, StopReason
from gateway.callflow.outcome import EndReason, Outcome, Result
from gateway.callflow.step import broken, claim, step
from gateway.common.ids import CallId, MetaCallId, OperatorId
from policy.facts import Direction

TIMEOUTS = Timeouts(prepare_s=10, connect_s=8, ring_s=60, unconfirmed_s=60, ending_s=10)
AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = AT + timedelta(seconds=5)
WACID = MetaCallId("wacid.TEST")
ANA = OperatorId("ana")
IN, S = InputKind, CallState


def user_call(deadline_at: float = 30.0) -> Call:
    return new_call(CallId("c1"), Direction.USER_INITIATED, deadline_at=deadline_at, created_at=AT, meta_call_id=WACID)


def business_call(deadline_at: float = 10.0) -> Call:
    return new_call(CallId("c2"), Direction.BUSINESS_INITIATED, deadline_at=deadline_at, created_at=AT, operator=ANA)


def given_input(kind: InputKind) -> CallInput:
    """An input with everything that its kind carries."""
    return CallInput(
        kind=kind,
        sdp={IN.START: "theirs", IN.MEDIA_READY: "ours", IN.META_ANSWER: "answer"}.get(kind),
        meta_call_id=WACID if kind is IN.CONNECTED or kind.value.startswith("meta_") else None,
        operator=ANA if kind is IN.OPERATOR_ACCEPT else None,
        hold=kind is IN.OPERATOR_HOLD,
        leg_stats={"packets": 1} if kind is IN.MEDIA_CLOSED else None,
    )


def walk(call: Call, *kinds: InputKind | CallInput, now: float = 1.0) -> tuple[Call, list[Effect]]:
    effects: list[Effect] = []
    for kind in kinds:
        received = kind if isinstance(kind, CallInput) else given_input(kind)
        call, asked = step(call, received, now=now, at=AT, timeouts=TIMEOUTS)
        effects += asked
    return call, effects


def of_type(effects: Sequence[Effect], *types: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, types)]


# --- the way up ------------------------------------------------------------------------------------


def test_a_user_initiated_call_is_pre_accepted_at_once_and_rings() -> None:
    call, effects = walk(user_call(), IN.START, IN.MEDIA_READY)
    assert call.state is S.PRE_ACCEPTING
    assert effects == [
        fx.MakeAnswer(offer="theirs"),
        fx.SendPreAccept(meta_call_id=WACID, sdp="ours"),
        fx.Ring(),
    ]


def test_the_first_operator_gets_the_call_and_the_accept_has_the_identical_sdp() -> None:
    call, effects = walk(user_call(), IN.START, IN.MEDIA_READY, IN.PRE_ACCEPTED, IN.OPERATOR_ACCEPT)
    assert call.state is S.ACCEPTING
    assert call.operator == ANA
    assert fx.StopRinging(reason=StopReason.ANSWERED_ELSEWHERE, but=ANA) in effects
    assert of_type(effects, fx.SendPreAccept, fx.SendAccept) == [
        fx.SendPreAccept(meta_call_id=WACID, sdp="ours"),
        fx.SendAccept(meta_call_id=WACID, sdp="ours"),
    ]


def test_an_operator_faster_than_pre_accept_is_accepted_after_it() -> None:
    claimed, effects = walk(user_call(), IN.START, IN.MEDIA_READY, IN.OPERATOR_ACCEPT)
    assert claimed.state is S.CLAIMED
    assert not of_type(effects, fx.SendAccept)
    accepting, effects = walk(claimed, IN.PRE_ACCEPTED)
    assert accepting.state is S.ACCEPTING
    assert of_type(effects, fx.SendAccept)


def test_media_flows_only_after_the_200_of_accept() -> None:
    accepting, effects = walk(user_call(), IN.START, IN.MEDIA_READY, IN.PRE_ACCEPTED, IN.OPERATOR_ACCEPT)
    assert not of_type(effects, fx.Join)
    active, effects = walk(accepting, IN.ACCEPTED)
    assert (active.state, active.deadline_at) == (S.ACTIVE, None)
    assert effects == [fx.Join()]


def test_a_user_initiated_call_keeps_its_deadline_until_it_is_up() -> None:
    call = user_call(deadline_at=27.5)
    for kind in (IN.START, IN.MEDIA_READY, IN.PRE_ACCEPTED, IN.OPERATOR_ACCEPT):
        call, _ = walk(call, kind, now=20.0)
        assert call.deadline_at == 27.5


def test_a_business_initiated_call_rings_back_and_begins_with_accepted() -> None:
    call, effects = walk(business_call(), IN.START, IN.MEDIA_READY, IN.CONNECTED, IN.META_ANSWER)
    assert call.state is S.REQUESTED
    assert effects == [fx.MakeOffer(), fx.SendConnect(sdp="ours"), fx.ApplyAnswer(sdp="answer")]
    call, effects = walk(call, IN.META_RINGING)
    assert effects == [fx.PlayRingback()]
    call, effects = walk(call, IN.META_ACCEPTED)
    assert call.state is S.ACTIVE
    assert effects == [fx.Join()]


def test_webhooks_that_overtake_the_response_of_connect_tell_the_id() -> None:
    call, _ = walk(business_call(), IN.START, IN.MEDIA_READY, IN.META_ANSWER, IN.META_RINGING, IN.META_ACCEPTED)
    assert (call.state, call.meta_call_id) == (S.ACTIVE, WACID)
    same, asked = walk(call, IN.CONNECTED)
    assert same is call
    assert not asked


def test_an_answer_after_the_pick_up_is_still_applied_and_only_once() -> None:
    call, _ = walk(business_call(), IN.START, IN.MEDIA_READY, IN.CONNECTED, IN.META_ACCEPTED)
    call, effects = walk(call, IN.META_ANSWER, IN.META_ANSWER)
    assert call.state is S.ACTIVE
    assert effects == [fx.ApplyAnswer(sdp="answer")]


def test_an_unknown_connect_waits_for_metas_webhooks() -> None:
    call, effects = walk(business_call(), IN.START, IN.MEDIA_READY, IN.CONNECT_UNKNOWN)
    assert call.state is S.UNCONFIRMED
    assert len(of_type(effects, fx.SendConnect)) == 1
    call, _ = walk(call, IN.META_RINGING)
    assert (call.state, call.meta_call_id) == (S.RINGING, WACID)


def test_hold_and_resume_do_not_end_anything() -> None:
    active, _ = walk(user_call(), IN.START, IN.MEDIA_READY, IN.PRE_ACCEPTED, IN.OPERATOR_ACCEPT, IN.ACCEPTED)
    held, effects = walk(active, CallInput(kind=IN.OPERATOR_HOLD, hold=True))
    assert held.held
    assert effects == [fx.Hold(on=True)]
    back, effects = walk(held, CallInput(kind=IN.OPERATOR_HOLD, hold=False))
    assert not back.held
    assert effects == [fx.Hold(on=False)]


# --- the ends --------------------------------------------------------------------------------------

UP_TO_RINGING = (IN.START, IN.MEDIA_READY, IN.PRE_ACCEPTED)
UP_TO_ACTIVE = (*UP_TO_RINGING, IN.OPERATOR_ACCEPT, IN.ACCEPTED)
DIALLED = (IN.START, IN.MEDIA_READY, IN.CONNECTED, IN.META_ANSWER, IN.META_RINGING)
TALKED = CallInput(kind=IN.META_TERMINATE, meta_end=MetaEnd(status="COMPLETED", start_at=AT))


@pytest.mark.parametrize(
    ("call", "kinds", "result", "reason"),
    [
        (user_call(), (*UP_TO_RINGING, IN.META_TERMINATE), Result.USER, EndReason.CANCELLED),
        (user_call(), (*UP_TO_RINGING, IN.DEADLINE), Result.OPERATOR, EndReason.NOT_ANSWERED),
        (user_call(), (*UP_TO_RINGING, IN.ALL_DECLINED), Result.OPERATOR, EndReason.DECLINED),
        (user_call(), (*UP_TO_ACTIVE, TALKED), Result.COMPLETED, EndReason.HUNG_UP_BY_USER),
        (user_call(), (*UP_TO_ACTIVE, IN.OPERATOR_HANGUP), Result.COMPLETED, EndReason.HUNG_UP_BY_OPERATOR),
        (user_call(), (*UP_TO_ACTIVE, IN.OPERATOR_GONE), Result.COMPLETED, EndReason.OPERATOR_GONE),
        (user_call(), (IN.START, IN.MEDIA_FAILED), Result.GATEWAY, EndReason.MEDIA_FAILED),
        (user_call(), (IN.START, IN.MEDIA_READY, IN.GRAPH_FAILED), Result.META, EndReason.GRAPH_ERROR),
        (user_call(), (IN.START, IN.SHUTDOWN), Result.GATEWAY, EndReason.DRAINED),
        (user_call(), (IN.START, IN.DEADLINE), Result.GATEWAY, EndReason.TIMEOUT),
        (user_call(), (IN.REFUSED,), Result.REFUSED, EndReason.POLICY),
        (business_call(), (*DIALLED, IN.META_REJECTED), Result.USER, EndReason.DECLINED),
        (business_call(), (*DIALLED, IN.META_TERMINATE), Result.USER, EndReason.NOT_ANSWERED),
        (business_call(), (*DIALLED, IN.DEADLINE), Result.USER, EndReason.NOT_ANSWERED),
        (business_call(), (*DIALLED, IN.OPERATOR_HANGUP), Result.OPERATOR, EndReason.CANCELLED),
        (business_call(), (*DIALLED, IN.BROKEN), Result.GATEWAY, EndReason.INTERNAL),
        (business_call(), (*DIALLED[:2], IN.GRAPH_FAILED), Result.META, EndReason.GRAPH_ERROR),
        (business_call(), (*DIALLED, IN.META_ACCEPTED, TALKED), Result.COMPLETED, EndReason.HUNG_UP_BY_USER),
        (
            business_call(),
            (*DIALLED[:2], IN.CONNECT_UNKNOWN, IN.DEADLINE),
            Result.INDETERMINATE,
            EndReason.TIMEOUT,
        ),
        (
            business_call(),
            (*DIALLED, CallInput(kind=IN.META_TERMINATE, meta_end=MetaEnd(status="FAILED"), detail="(138020) …")),
            Result.META,
            EndReason.META_FAILED,
        ),
    ],
)
def test_each_end_has_its_name(call: Call, kinds: tuple[InputKind, ...], result: Result, reason: EndReason) -> None:
    ended, _ = walk(call, *kinds)
    assert ended.outcome is not None
    assert (ended.outcome.result, ended.outcome.reason) == (result, reason)


def test_the_first_outcome_stays() -> None:
    call, effects = walk(user_call(), *UP_TO_ACTIVE, IN.OPERATOR_HANGUP, TALKED)
    outcome = Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_OPERATOR)
    assert call.outcome == outcome
    assert effects[-1] == fx.Finish(outcome=outcome)


def test_a_caller_is_rejected_before_pre_accept_and_terminated_after_it() -> None:
    _, before = walk(user_call(), IN.START, IN.MEDIA_FAILED)
    _, after = walk(user_call(), *UP_TO_RINGING, IN.DEADLINE)
    assert of_type(before, fx.SendReject, fx.SendTerminate) == [fx.SendReject(meta_call_id=WACID)]
    assert of_type(after, fx.SendReject, fx.SendTerminate) == [fx.SendTerminate(meta_call_id=WACID)]


def test_a_call_that_the_user_ended_is_not_terminated_again() -> None:
    _, effects = walk(user_call(), *UP_TO_ACTIVE, TALKED)
    assert not of_type(effects, fx.SendReject, fx.SendTerminate)


def test_a_call_that_the_user_declined_is_not_terminated() -> None:
    call, effects = walk(business_call(), *DIALLED, IN.META_REJECTED)
    assert call.state is S.ENDING
    assert not of_type(effects, fx.SendTerminate)


def test_an_operator_who_gives_up_before_the_id_is_known_terminates_as_soon_as_it_is() -> None:
    call, effects = walk(business_call(), IN.START, IN.MEDIA_READY, IN.OPERATOR_HANGUP)
    assert call.state is S.CANCELLING
    assert not of_type(effects, fx.SendTerminate)
    call, effects = walk(call, IN.CONNECTED)
    assert of_type(effects, fx.SendTerminate) == [fx.SendTerminate(meta_call_id=WACID)]


def test_media_that_failed_before_the_id_was_known_is_closed_once() -> None:
    _, effects = walk(business_call(), IN.START, IN.MEDIA_READY, IN.MEDIA_FAILED, IN.CONNECTED, IN.META_TERMINATE)
    assert len(of_type(effects, fx.CloseMedia)) == len(of_type(effects, fx.StopRinging)) == 1


def test_a_pick_up_that_crosses_a_cancel_is_still_terminated() -> None:
    call, effects = walk(business_call(), IN.START, IN.MEDIA_READY, IN.OPERATOR_HANGUP, IN.META_ACCEPTED)
    assert call.state is S.ENDING
    assert not of_type(effects, fx.Join)
    assert of_type(effects, fx.SendTerminate)


@pytest.mark.parametrize("call", [user_call(), business_call()], ids=["user", "business"])
def test_an_ended_call_ignores_everything_but_what_only_fills_in(call: Call) -> None:
    up = UP_TO_ACTIVE if call.direction is Direction.USER_INITIATED else (*DIALLED, IN.META_ACCEPTED)
    ended, _ = walk(call, *up, TALKED)
    for kind in InputKind:
        after, effects = step(ended, given_input(kind), now=5.0, at=LATER, timeouts=TIMEOUTS)
        assert not effects
        if kind is IN.MEDIA_CLOSED:
            assert after == replace(ended, leg_stats={"packets": 1}, version=ended.version + 1)
        else:
            assert after == ended


def test_what_is_noted_moves_no_call_and_asks_for_nothing() -> None:
    for call in (user_call(), business_call()):
        for state, kinds in NOTED[call.direction].items():
            for kind in kinds:
                before = replace(call, state=state)
                after, effects = step(before, given_input(kind), now=5.0, at=LATER, timeouts=TIMEOUTS)
                assert (after.state, after.deadline_at, effects) == (state, before.deadline_at, ())


def test_who_declined_did_not_fail_to_answer_whichever_webhook_came_first() -> None:
    for early in ((IN.META_TERMINATE, IN.META_REJECTED), (IN.META_REJECTED, IN.META_TERMINATE)):
        call, _ = walk(business_call(), *DIALLED, *early)
        assert (call.state, call.outcome) == (S.ENDED, Outcome(result=Result.USER, reason=EndReason.DECLINED))
    given_up, _ = walk(business_call(), *DIALLED, IN.DEADLINE)
    assert given_up.outcome == Outcome(result=Result.USER, reason=EndReason.NOT_ANSWERED)
    corrected, effects = walk(given_up, IN.META_REJECTED)
    assert corrected.outcome == Outcome(result=Result.USER, reason=EndReason.DECLINED)
    assert not effects
    cancelled, _ = walk(business_call(), *DIALLED, IN.OPERATOR_HANGUP)
    assert walk(cancelled, IN.META_REJECTED)[0] == cancelled


def test_a_terminate_after_the_end_closes_the_record_once() -> None:
    call, _ = walk(user_call(), *UP_TO_ACTIVE, IN.OPERATOR_HANGUP, IN.DEADLINE)
    assert (call.state, call.meta_end) == (S.ENDED, None)
    end = MetaEnd(status="COMPLETED", start_at=AT, end_at=LATER, duration_s=5)
    closed, _ = walk(call, CallInput(kind=IN.META_TERMINATE, meta_end=end))
    assert (closed.meta_end, closed.outcome) == (end, call.outcome)
    assert walk(closed, TALKED)[0] == closed


def test_the_instants_of_a_call_are_those_of_its_moves() -> None:
    call = user_call()
    for kind in (*UP_TO_ACTIVE, TALKED):
        received = kind if isinstance(kind, CallInput) else given_input(kind)
        call, _ = step(call, received, now=1.0, at=AT + timedelta(seconds=call.version), timeouts=TIMEOUTS)
    instants = [call.created_at, call.ringing_at, call.accepted_at, call.ended_at]
    assert [None not in instants, instants] == [True, sorted(filter(None, instants))]
    assert len(set(instants)) == 4


def test_the_first_who_claims_has_the_call() -> None:
    ringing, _ = walk(user_call(), IN.START, IN.MEDIA_READY, IN.PRE_ACCEPTED)
    claimed = claim(ringing, ANA)
    assert claimed is not None
    assert (claimed.claimed_by, claimed.state) == (ANA, S.RINGING)
    assert claim(claimed, OperatorId("bia")) is None
    assert claim(claimed, ANA) is None
    assert claim(user_call(), ANA) is None  # it does not ring yet
    assert claim(business_call(), ANA) is None  # theirs from the beginning


@pytest.mark.parametrize(
    ("call", "up", "reason", "result"),
    [
        (user_call(), (), EndReason.DECLINED, Result.OPERATOR),
        (user_call(), (IN.START, IN.MEDIA_READY, IN.PRE_ACCEPTED), EndReason.DECLINED, Result.OPERATOR),
        (user_call(), (IN.START, IN.MEDIA_READY, IN.OPERATOR_ACCEPT), EndReason.CANCELLED, Result.OPERATOR),
        (business_call(), (IN.START,), EndReason.CANCELLED, Result.OPERATOR),
        (business_call(), (IN.START, IN.MEDIA_READY, IN.CONNECTED), EndReason.CANCELLED, Result.OPERATOR),
    ],
)
def test_the_api_ends_a_call_that_rings_and_one_that_somebody_has(
    call: Call, up: tuple[InputKind, ...], reason: EndReason, result: Result
) -> None:
    ended, _ = walk(call, *up, IN.API_HANGUP)
    assert ended.state in (S.ENDING, S.ENDED)
    assert ended.outcome == Outcome(result=result, reason=reason)


def test_a_bug_ends_a_call_and_leaves_in_doubt_what_may_ring() -> None:
    sent, _ = walk(business_call(), IN.START, IN.MEDIA_READY)
    for call, result in (
        (user_call(), Result.GATEWAY),
        (business_call(), Result.GATEWAY),
        (sent, Result.INDETERMINATE),
    ):
        ended = broken(call, at=LATER)
        assert (ended.state, ended.deadline_at, ended.ended_at) == (S.ENDED, None, LATER)
        assert ended.outcome == Outcome(result=result, reason=EndReason.INTERNAL)


def test_the_end_of_the_media_path_decides_nothing_before_metas_terminate() -> None:
    for call, kinds in ((user_call(), UP_TO_ACTIVE), (business_call(), (*DIALLED, IN.META_ACCEPTED))):
        active, _ = walk(call, *kinds)
        closed, effects = walk(active, IN.META_CLOSING, now=5.0)
        assert (closed.state, closed.outcome, closed.deadline_at) == (S.ACTIVE, None, 5.0 + TIMEOUTS.closed_s)
        assert not effects
        ended, _ = walk(closed, TALKED)
        assert ended.outcome == Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_USER)


def test_a_terminate_that_is_lost_after_the_media_path_closed_is_made_up_for() -> None:
    closed, _ = walk(user_call(), *UP_TO_ACTIVE, IN.META_CLOSING)
    held, _ = walk(closed, IN.OPERATOR_HOLD)
    assert held.deadline_at == closed.deadline_at
    ending, effects = walk(held, IN.DEADLINE)
    assert ending.outcome == Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_USER)
    assert of_type(effects, fx.SendTerminate)


# --- any order -------------------------------------------------------------------------------------

inputs = st.lists(st.sampled_from(InputKind).map(given_input), max_size=40)


@given(start=st.sampled_from([user_call(), business_call()]), received=inputs)
def test_whatever_arrives_in_whatever_order(start: Call, received: list[CallInput]) -> None:
    _, effects = walk(start, *received)
    finished = of_type(effects, fx.Finish)
    assert len(finished) <= 1
    if finished:
        assert effects[-1] is finished[0]
    assert len(of_type(effects, fx.SendConnect)) <= 1
    assert len(of_type(effects, fx.SendAccept)) <= 1
    assert len(of_type(effects, fx.ApplyAnswer)) <= 1
    assert len(of_type(effects, fx.SendReject, fx.SendTerminate)) <= 1
    joined = [n for n, effect in enumerate(effects) if isinstance(effect, fx.Join)]
    closed = [n for n, effect in enumerate(effects) if isinstance(effect, fx.CloseMedia)]
    assert len(joined) <= 1
    assert len(closed) <= 1
    if joined and closed:
        assert joined[0] < closed[0]


@given(start=st.sampled_from([user_call(), business_call()]), received=inputs)
def test_deadlines_alone_end_every_call_that_is_not_up(start: Call, received: list[CallInput]) -> None:
    call, _ = walk(start, *received)
    now = 1.0
    for _ in range(len(CallState)):
        if call.deadline_at is None:
            break
        before, now = call, max(now, call.deadline_at)
        call, _ = step(call, CallInput(kind=IN.DEADLINE), now=now, at=AT, timeouts=TIMEOUTS)
        assert call.deadline_at is None or call.deadline_at > now or call.deadline_at != before.deadline_at
    assert call.state in (S.ACTIVE, S.ENDED)


@given(start=st.sampled_from([user_call(), business_call()]), received=inputs)
def test_an_input_that_comes_twice_never_keeps_a_call_alive(start: Call, received: list[CallInput]) -> None:
    once, _ = walk(start, *received)
    twice, _ = walk(start, *(copy for one in received for copy in (one, one)))
    assert (once.state is S.ENDED) <= (twice.state is S.ENDED)
