"""One step of a call: the next state, its deadline, its outcome and its effects. [P]

`call` holds the tables; this module adds the effects and outcomes that belong to each move.
"""

from datetime import datetime
from typing import Final

from msgspec.structs import replace

from gateway.callflow import effects as fx
from gateway.callflow.call import NOTED, TRANSITIONS, Call, CallInput, CallState, InputKind, Timeouts
from gateway.callflow.effects import Effect, StopReason
from gateway.callflow.outcome import EndReason, Outcome, Result
from gateway.common.ids import MetaCallId, OperatorId
from policy.facts import Direction

S, IN = CallState, InputKind


#: The user did not answer. If a `REJECTED` webhook arrives later, the outcome becomes DECLINED.
MISSED: Final = Outcome(result=Result.USER, reason=EndReason.NOT_ANSWERED)
DECLINED: Final = Outcome(result=Result.USER, reason=EndReason.DECLINED)


def step(
    call: Call, received: CallInput, *, now: float, at: datetime, timeouts: Timeouts
) -> tuple[Call, tuple[Effect, ...]]:
    """Apply one input to a call. For an ignored input, return the same call and no effects.

    `now` is loop time in seconds, `at` the same instant as aware UTC. After DEADLINE the deadline has moved or is None,
    so the driver's timer cannot spin.
    """
    if received.kind in NOTED[call.direction][call.state]:
        return _fill_in(call, received), ()
    after_state = TRANSITIONS[call.direction][call.state].get(received.kind)
    if after_state is None:
        return call, ()
    entered = after_state is not call.state
    after = replace(
        call,
        state=after_state,
        deadline_at=_deadline(call, received.kind, after_state, now=now, timeouts=timeouts),
        meta_call_id=call.meta_call_id or received.meta_call_id,
        operator=received.operator if received.kind is IN.OPERATOR_ACCEPT else call.operator,
        sdp=received.sdp if received.kind is IN.MEDIA_READY else call.sdp,
        answer_applied=call.answer_applied or received.kind is IN.META_ANSWER,
        held=received.hold if received.kind is IN.OPERATOR_HOLD else call.held,
        ringing_at=at if entered and after_state is S.RINGING else call.ringing_at,
        accepted_at=at if entered and after_state is S.ACTIVE else call.accepted_at,
        ended_at=at if entered and after_state is S.ENDED else call.ended_at,
        meta_end=call.meta_end or received.meta_end,
        outcome=call.outcome or _outcome(call, received, after_state),
        version=call.version + 1,
    )
    return after, tuple(_effects(call, after, received))


def claim(call: Call, operator: OperatorId) -> Call | None:
    """Reserve a ringing call for the first operator who answers; return None for every later one."""
    if call.claimed_by is not None or call.state not in (S.PRE_ACCEPTING, S.RINGING):
        return None
    return replace(call, claimed_by=operator)


def broken(call: Call, *, at: datetime) -> Call:
    """End a call that a bug has stopped.

    A call whose `connect` was sent and whose Meta id is unknown may still ring: its result is INDETERMINATE.
    """
    left = call.direction is Direction.BUSINESS_INITIATED and call.state is not S.PREPARING
    result = Result.INDETERMINATE if left and call.meta_call_id is None else Result.GATEWAY
    return replace(
        call,
        state=S.ENDED,
        deadline_at=None,
        ended_at=at,
        outcome=call.outcome or Outcome(result=result, reason=EndReason.INTERNAL),
        version=call.version + 1,
    )


def _fill_in(call: Call, received: CallInput) -> Call:
    match received.kind:
        case IN.MEDIA_CLOSED if call.leg_stats is None:
            return replace(call, leg_stats=received.leg_stats, version=call.version + 1)
        case IN.META_REJECTED if call.outcome == MISSED:
            return replace(call, outcome=DECLINED, version=call.version + 1)
        case IN.META_TERMINATE if call.meta_end is None and received.meta_end is not None:
            return replace(call, meta_end=received.meta_end, version=call.version + 1)
        case _:
            return call


def _deadline(call: Call, kind: InputKind, after: CallState, *, now: float, timeouts: Timeouts) -> float | None:
    if kind is IN.META_CLOSING:
        soon = now + timeouts.closed_s
        return soon if call.deadline_at is None else min(soon, call.deadline_at)
    if after is call.state:
        return call.deadline_at
    match after:
        case S.ACTIVE | S.ENDED:
            return None
        case S.ENDING:
            return now + timeouts.ending_s
        case S.REQUESTING:
            return now + timeouts.connect_s
        case S.UNCONFIRMED | S.CANCELLING:
            return now + timeouts.unconfirmed_s
        case S.REQUESTED:
            return now + timeouts.ring_s
        case S.RINGING if call.direction is Direction.BUSINESS_INITIATED:
            return now + timeouts.ring_s if call.state is not S.REQUESTED else call.deadline_at
        case _:
            return call.deadline_at


# --- outcomes --------------------------------------------------------------------------------------


def _outcome(call: Call, received: CallInput, after: CallState) -> Outcome | None:
    """Return the outcome if this step is one towards the end; `step` keeps the first."""
    if after not in (S.ENDING, S.ENDED, S.CANCELLING):
        return None
    talked = call.state is S.ACTIVE
    match received.kind:
        case IN.REFUSED:
            return Outcome(result=Result.REFUSED, reason=received.reason or EndReason.POLICY, detail=received.detail)
        case IN.META_TERMINATE:
            return _outcome_of_terminate(call, received, talked=talked)
        case IN.META_REJECTED:
            return DECLINED
        case IN.OPERATOR_HANGUP | IN.API_HANGUP if talked:
            return Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_OPERATOR)
        case IN.OPERATOR_HANGUP:
            return Outcome(result=Result.OPERATOR, reason=EndReason.CANCELLED)
        case IN.OPERATOR_GONE:
            return Outcome(result=Result.COMPLETED if talked else Result.OPERATOR, reason=EndReason.OPERATOR_GONE)
        case IN.API_HANGUP if call.direction is Direction.USER_INITIATED and call.operator is None:
            return Outcome(result=Result.OPERATOR, reason=EndReason.DECLINED)
        case IN.API_HANGUP:
            return Outcome(result=Result.OPERATOR, reason=EndReason.CANCELLED)
        case IN.ALL_DECLINED:
            return Outcome(result=Result.OPERATOR, reason=EndReason.DECLINED)
        case IN.GRAPH_FAILED:
            return Outcome(result=Result.META, reason=EndReason.GRAPH_ERROR, detail=received.detail)
        case IN.MEDIA_FAILED:
            return Outcome(
                result=Result.GATEWAY,
                reason=received.reason or EndReason.MEDIA_FAILED,
                detail=received.detail,
            )
        case IN.DEADLINE:
            return _outcome_of_deadline(call)
        case IN.SHUTDOWN:
            return Outcome(result=Result.GATEWAY, reason=EndReason.DRAINED)
        case _:
            return Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL)


def _outcome_of_terminate(call: Call, received: CallInput, *, talked: bool) -> Outcome:
    end = received.meta_end
    if end is not None and end.status == "FAILED":
        return Outcome(result=Result.META, reason=EndReason.META_FAILED, detail=received.detail)
    if talked or (end is not None and end.start_at is not None):
        return Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_USER)
    if call.direction is Direction.USER_INITIATED:
        return Outcome(result=Result.USER, reason=EndReason.CANCELLED)
    return MISSED


def _outcome_of_deadline(call: Call) -> Outcome:
    match call.state:
        case S.REQUESTED | S.RINGING if call.direction is Direction.BUSINESS_INITIATED:
            return MISSED
        case S.PRE_ACCEPTING | S.RINGING:
            return Outcome(result=Result.OPERATOR, reason=EndReason.NOT_ANSWERED)
        case S.ACTIVE:
            return Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_USER)
        case S.UNCONFIRMED | S.CANCELLING:
            return Outcome(result=Result.INDETERMINATE, reason=EndReason.TIMEOUT)
        case _:
            return Outcome(result=Result.GATEWAY, reason=EndReason.TIMEOUT)


# --- effects ---------------------------------------------------------------------------------------


def _effects(before: Call, after: Call, received: CallInput) -> list[Effect]:
    if after.state in (S.ENDING, S.ENDED, S.CANCELLING):
        return _ending_effects(before, after, received)
    asked: list[Effect] = []
    match received.kind:
        case IN.START if before.direction is Direction.USER_INITIATED:
            asked.append(fx.MakeAnswer(offer=received.sdp or ""))
        case IN.START:
            asked.append(fx.MakeOffer())
        case IN.META_ANSWER if not before.answer_applied:
            asked.append(fx.ApplyAnswer(sdp=received.sdp or ""))
        case IN.OPERATOR_HOLD:
            asked.append(fx.Hold(on=after.held))
        case _:
            pass
    if after.state is not before.state:
        asked += _entry_effects(after)
    return asked


def _entry_effects(call: Call) -> list[Effect]:
    """Return the effects of entering a state on the way to ACTIVE."""
    meta_call_id, sdp = call.meta_call_id or MetaCallId(""), call.sdp or ""
    match call.state:
        case S.PRE_ACCEPTING:
            return [fx.SendPreAccept(meta_call_id=meta_call_id, sdp=sdp), fx.Ring()]
        case S.CLAIMED:
            return [_stop_other_phones(call)]
        case S.ACCEPTING:
            return [_stop_other_phones(call), fx.SendAccept(meta_call_id=meta_call_id, sdp=sdp)]
        case S.REQUESTING:
            return [fx.SendConnect(sdp=sdp)]
        case S.RINGING if call.direction is Direction.BUSINESS_INITIATED:
            return [fx.PlayRingback()]
        case S.ACTIVE:
            return [fx.Join()]
        case _:
            return []


def _stop_other_phones(call: Call) -> Effect:
    return fx.StopRinging(reason=StopReason.ANSWERED_ELSEWHERE, but=call.operator)


def _ending_effects(before: Call, after: Call, received: CallInput) -> list[Effect]:
    asked: list[Effect] = []
    if before.outcome is None and after.outcome is not None:  # the first step towards the end
        asked += [
            fx.StopRinging(reason=_stop_reason(after.outcome), detail=after.outcome.detail),
            fx.CloseMedia(),
        ]
    if after.state is S.ENDING and received.kind is not IN.META_REJECTED and after.meta_call_id:
        # Before pre_accept a call is ended with `reject`, after it with `terminate`.
        # Source: Meta, user-initiated calls and SIP troubleshooting, read 2026-11-22.
        if before.state is S.OFFERED:
            asked.append(fx.SendReject(meta_call_id=after.meta_call_id))
        else:
            asked.append(fx.SendTerminate(meta_call_id=after.meta_call_id))
    if after.state is S.ENDED and after.outcome is not None:
        asked.append(fx.Finish(outcome=after.outcome))
    return asked


def _stop_reason(outcome: Outcome) -> StopReason:
    match outcome.reason:
        case EndReason.CANCELLED | EndReason.HUNG_UP_BY_USER:
            return StopReason.HUNG_UP_BY_USER
        case EndReason.NOT_ANSWERED:
            return StopReason.NOT_ANSWERED
        case EndReason.DECLINED:
            return StopReason.DECLINED
        case _:
            return StopReason.FAILED
