"""One step of a call: the next state, its deadline, the outcome, and what is asked for. [P]

Responsible for `step` and the effects and outcomes that belong to each move of the tables in `call`. Not responsible
for which moves there are.
"""

from msgspec.structs import replace

from gateway.callflow import effects as fx
from gateway.callflow.call import TRANSITIONS, Call, CallInput, CallState, InputKind, Timeouts
from gateway.callflow.effects import Effect, StopReason
from gateway.callflow.outcome import EndReason, Outcome, Result
from gateway.common.ids import MetaCallId
from policy.facts import Direction

S, IN = CallState, InputKind


def step(call: Call, received: CallInput, *, now: float, timeouts: Timeouts) -> tuple[Call, tuple[Effect, ...]]:
    """Apply one input. An ignored input returns the call itself and no effects.

    After DEADLINE the deadline has moved or is gone, so the driver's timer cannot spin.
    """
    after_state = TRANSITIONS[call.direction][call.state].get(received.kind)
    if after_state is None:
        return call, ()
    after = replace(
        call,
        state=after_state,
        deadline_at=_deadline(call, received.kind, after_state, now=now, timeouts=timeouts),
        meta_call_id=call.meta_call_id or received.meta_call_id,
        operator=received.operator if received.kind is IN.OPERATOR_ACCEPT else call.operator,
        sdp=received.sdp if received.kind is IN.MEDIA_READY else call.sdp,
        answer_applied=call.answer_applied or received.kind is IN.META_ANSWER,
        held=received.hold if received.kind is IN.OPERATOR_HOLD else call.held,
        outcome=call.outcome or _outcome(call, received, after_state),
        version=call.version + 1,
    )
    return after, tuple(_effects(call, after, received))


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
    """Name the end, once, at the first step towards it."""
    if after not in (S.ENDING, S.ENDED, S.CANCELLING):
        return None
    talked = call.state is S.ACTIVE
    match received.kind:
        case IN.REFUSED:
            return Outcome(result=Result.REFUSED, reason=received.reason or EndReason.POLICY, detail=received.detail)
        case IN.META_TERMINATE:
            return _terminated(call, received, talked=talked)
        case IN.META_REJECTED:
            return Outcome(result=Result.USER, reason=EndReason.DECLINED)
        case IN.OPERATOR_HANGUP if talked:
            return Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_OPERATOR)
        case IN.OPERATOR_HANGUP:
            return Outcome(result=Result.OPERATOR, reason=EndReason.CANCELLED)
        case IN.OPERATOR_GONE:
            return Outcome(result=Result.COMPLETED if talked else Result.OPERATOR, reason=EndReason.OPERATOR_GONE)
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
            return _too_late(call)
        case IN.SHUTDOWN:
            return Outcome(result=Result.GATEWAY, reason=EndReason.DRAINED)
        case _:
            return Outcome(result=Result.GATEWAY, reason=EndReason.INTERNAL)


def _terminated(call: Call, received: CallInput, *, talked: bool) -> Outcome:
    if received.failed:
        return Outcome(result=Result.META, reason=EndReason.META_FAILED, detail=received.detail)
    if talked or received.answered:
        return Outcome(result=Result.COMPLETED, reason=EndReason.HUNG_UP_BY_USER)
    if call.direction is Direction.USER_INITIATED:
        return Outcome(result=Result.USER, reason=EndReason.CANCELLED)
    return Outcome(result=Result.USER, reason=EndReason.NOT_ANSWERED)


def _too_late(call: Call) -> Outcome:
    match call.state:
        case S.REQUESTED | S.RINGING if call.direction is Direction.BUSINESS_INITIATED:
            return Outcome(result=Result.USER, reason=EndReason.NOT_ANSWERED)
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
    """What entering a state on the way up asks for."""
    meta_call_id, sdp = call.meta_call_id or MetaCallId(""), call.sdp or ""
    match call.state:
        case S.PRE_ACCEPTING:
            return [fx.SendPreAccept(meta_call_id=meta_call_id, sdp=sdp), fx.Ring()]
        case S.CLAIMED:
            return [_taken(call)]
        case S.ACCEPTING:
            return [_taken(call), fx.SendAccept(meta_call_id=meta_call_id, sdp=sdp)]
        case S.REQUESTING:
            return [fx.SendConnect(sdp=sdp)]
        case S.RINGING if call.direction is Direction.BUSINESS_INITIATED:
            return [fx.PlayRingback()]
        case S.ACTIVE:
            return [fx.Join()]
        case _:
            return []


def _taken(call: Call) -> Effect:
    return fx.StopRinging(reason=StopReason.ANSWERED_ELSEWHERE, but=call.operator)


def _ending_effects(before: Call, after: Call, received: CallInput) -> list[Effect]:
    asked: list[Effect] = []
    if before.outcome is None and after.outcome is not None:  # the first step towards the end
        asked += [
            fx.StopRinging(reason=_stop_reason(after.outcome), detail=after.outcome.detail),
            fx.CloseMedia(),
        ]
    if after.state is S.ENDING and received.kind is not IN.META_REJECTED and after.meta_call_id:
        # Before pre_accept the caller is rejected, after it terminated.
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
