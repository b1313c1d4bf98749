"""The life of one call as tables: which input moves a call from which state to which. [P]

Theory of operation
-------------------
A call is a frozen `Call`, which holds everything that is known about it. `step` takes a call and one input and returns
the next `Call` and a tuple of effects; `claim` reserves a call for the first operator who answers. Nothing else
changes a call.

A user-initiated call::

    OFFERED -MEDIA_READY-> PRE_ACCEPTING -PRE_ACCEPTED-> RINGING -OPERATOR_ACCEPT-> ACCEPTING -ACCEPTED-> ACTIVE
                               |                                                        ^
                               +-OPERATOR_ACCEPT-> CLAIMED -----------PRE_ACCEPTED------+

A business-initiated call::

    PREPARING -MEDIA_READY-> REQUESTING -CONNECTED-> REQUESTED -META_RINGING-> RINGING -META_ACCEPTED-> ACTIVE
                                 |
                                 +-CONNECT_UNKNOWN-> UNCONFIRMED (Meta's webhooks will settle it)
                                 +-OPERATOR_HANGUP-> CANCELLING (terminate as soon as the call's id is known)

Both end as ``… -> ENDING -META_TERMINATE-> ENDED``. In ENDING we have asked Meta to end the call (or Meta told us that
the user declined) and wait for the `terminate` webhook. If it does not come, the deadline ends the call. The slot is
released at ENDED, because Meta counts the call until then.

* `connect` with an SDP answer (META_ANSWER) is not the pick-up; `ACCEPTED` is.
  Source: Meta, business-initiated calls, read 2026-11-22.
* Every (state, input) pair is in TRANSITIONS, in NOTED or in IGNORED. Webhooks come at least once and in any order, so
  input from a peer never raises: it moves the call, fills in a value that was unknown, or changes nothing.
* There is one `deadline_at` per call; its meaning depends on the state. A user-initiated call keeps its first deadline
  until it is ACTIVE, because Meta's time limit runs from the event's own timestamp.
* When the user hangs up, the end of the media path, or Meta's answer "already ended" to one of our requests, often
  arrives before the `terminate` webhook. META_CLOSING decides nothing by itself: it only sets a short deadline, in
  case the webhook is lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from gateway.callflow.outcome import EndReason, Outcome
from gateway.common.ids import CallId, MetaCallId, OperatorId
from policy.facts import Direction


class CallState(StrEnum):
    """Stored with the record; never renamed."""

    OFFERED = "offered"
    PRE_ACCEPTING = "pre_accepting"
    CLAIMED = "claimed"
    ACCEPTING = "accepting"
    PREPARING = "preparing"
    REQUESTING = "requesting"
    UNCONFIRMED = "unconfirmed"
    CANCELLING = "cancelling"
    REQUESTED = "requested"
    RINGING = "ringing"
    ACTIVE = "active"
    ENDING = "ending"
    ENDED = "ended"


class InputKind(StrEnum):
    """Everything that can happen to a call."""

    # from the media engine
    MEDIA_READY = "media_ready"
    MEDIA_FAILED = "media_failed"
    MEDIA_CLOSED = "media_closed"  #: the Meta leg is closed; brings its statistics
    # answers of the Graph API
    PRE_ACCEPTED = "pre_accepted"
    ACCEPTED = "accepted"
    CONNECTED = "connected"
    CONNECT_UNKNOWN = "connect_unknown"
    GRAPH_FAILED = "graph_failed"
    # from the softphones
    OPERATOR_ACCEPT = "operator_accept"
    OPERATOR_HANGUP = "operator_hangup"
    OPERATOR_GONE = "operator_gone"
    ALL_DECLINED = "all_declined"
    OPERATOR_HOLD = "operator_hold"
    # from the REST API
    API_HANGUP = "api_hangup"  #: ends a call in any live state, answered or still ringing
    # webhooks
    META_ANSWER = "meta_answer"
    META_RINGING = "meta_ringing"
    META_ACCEPTED = "meta_accepted"
    META_REJECTED = "meta_rejected"
    META_CLOSING = "meta_closing"  #: Meta closed the media path, or said that the call is over
    META_TERMINATE = "meta_terminate"
    # from the gateway itself
    START = "start"
    REFUSED = "refused"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"
    BROKEN = "broken"


class MetaEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What Meta's `terminate` says about a call; it is authoritative for the call's length."""

    status: str | None  #: COMPLETED, FAILED, …
    start_at: datetime | None = None  #: set if people talked
    end_at: datetime | None = None
    duration_s: int | None = None


class CallInput(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to a call; only the fields of its kind are set."""

    kind: InputKind
    sdp: str | None = None  #: START (Meta's offer), MEDIA_READY (ours), META_ANSWER
    meta_call_id: MetaCallId | None = None  #: CONNECTED and every webhook
    operator: OperatorId | None = None
    reason: EndReason | None = None  #: MEDIA_FAILED, REFUSED
    detail: str | None = None  #: safe to show
    meta_end: MetaEnd | None = None  #: META_TERMINATE
    leg_stats: Mapping[str, object] | None = None  #: MEDIA_CLOSED: `LegStats` as plain values
    hold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a state may last, in seconds of loop time."""

    prepare_s: float = 10.0
    connect_s: float = 8.0  #: longer than the Graph client's own timeout, so that one fires first
    ring_s: float = 60.0  #: for business-initiated calls; our choice, Meta documents no limit
    unconfirmed_s: float = 60.0
    ending_s: float = 10.0
    closed_s: float = 3.0  #: from the moment Meta ends the media path to its `terminate`


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call at one instant."""

    call_id: CallId
    direction: Direction
    state: CallState
    deadline_at: float | None  #: loop time
    meta_call_id: MetaCallId | None = None
    operator: OperatorId | None = None
    sdp: str | None = None  #: our SDP: the answer of pre_accept and accept, or the offer of connect
    answer_applied: bool = False
    held: bool = False
    claimed_by: OperatorId | None = None  #: the first operator who answered; OPERATOR_ACCEPT is queued
    created_at: datetime  #: this and the next three: aware UTC
    ringing_at: datetime | None = None
    accepted_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    meta_end: MetaEnd | None = None
    leg_stats: Mapping[str, object] | None = None
    version: int = 0


S, IN = CallState, InputKind

#: A call in progress; shared by both directions.
_ACTIVE: Final = {
    IN.OPERATOR_HANGUP: S.ENDING,
    IN.OPERATOR_GONE: S.ENDING,
    IN.OPERATOR_HOLD: S.ACTIVE,
    IN.API_HANGUP: S.ENDING,
    IN.MEDIA_FAILED: S.ENDING,
    IN.META_CLOSING: S.ACTIVE,
    IN.META_TERMINATE: S.ENDED,
    IN.DEADLINE: S.ENDING,  # only META_CLOSING sets one
    IN.SHUTDOWN: S.ENDING,
    IN.BROKEN: S.ENDING,
}
_ENDING: Final = {
    IN.META_TERMINATE: S.ENDED,
    IN.DEADLINE: S.ENDED,  # never confirmed: counted
}

USER_INITIATED: Final[Mapping[CallState, Mapping[InputKind, CallState]]] = {
    S.OFFERED: {
        IN.START: S.OFFERED,
        IN.REFUSED: S.ENDING,
        IN.MEDIA_READY: S.PRE_ACCEPTING,
        IN.MEDIA_FAILED: S.ENDING,
        IN.ALL_DECLINED: S.ENDING,
        IN.API_HANGUP: S.ENDING,
        IN.META_TERMINATE: S.ENDED,
        IN.DEADLINE: S.ENDING,
        IN.SHUTDOWN: S.ENDING,
        IN.BROKEN: S.ENDING,
    },
    S.PRE_ACCEPTING: {
        IN.PRE_ACCEPTED: S.RINGING,
        IN.OPERATOR_ACCEPT: S.CLAIMED,
        IN.ALL_DECLINED: S.ENDING,
        IN.API_HANGUP: S.ENDING,
        IN.GRAPH_FAILED: S.ENDING,
        IN.MEDIA_FAILED: S.ENDING,
        IN.META_CLOSING: S.PRE_ACCEPTING,
        IN.META_TERMINATE: S.ENDED,
        IN.DEADLINE: S.ENDING,
        IN.SHUTDOWN: S.ENDING,
        IN.BROKEN: S.ENDING,
    },
    S.CLAIMED: {
        IN.PRE_ACCEPTED: S.ACCEPTING,
        IN.OPERATOR_HANGUP: S.ENDING,
        IN.API_HANGUP: S.ENDING,
        IN.OPERATOR_GONE: S.ENDING,
        IN.GRAPH_FAILED: S.ENDING,
        IN.MEDIA_FAILED: S.ENDING,
        IN.META_CLOSING: S.CLAIMED,
        IN.META_TERMINATE: S.ENDED,
        IN.DEADLINE: S.ENDING,
        IN.SHUTDOWN: S.ENDING,
        IN.BROKEN: S.ENDING,
    },
    S.RINGING: {
        IN.OPERATOR_ACCEPT: S.ACCEPTING,
        IN.ALL_DECLINED: S.ENDING,
        IN.API_HANGUP: S.ENDING,
        IN.MEDIA_FAILED: S.ENDING,
        IN.META_CLOSING: S.RINGING,
        IN.META_TERMINATE: S.ENDED,
        IN.DEADLINE: S.ENDING,
        IN.SHUTDOWN: S.ENDING,
        IN.BROKEN: S.ENDING,
    },
    S.ACCEPTING: {
        IN.ACCEPTED: S.ACTIVE,
        IN.OPERATOR_HANGUP: S.ENDING,
        IN.API_HANGUP: S.ENDING,
        IN.OPERATOR_GONE: S.ENDING,
        IN.GRAPH_FAILED: S.ENDING,
        IN.MEDIA_FAILED: S.ENDING,
        IN.META_CLOSING: S.ACCEPTING,
        IN.META_TERMINATE: S.ENDED,
        IN.DEADLINE: S.ENDING,
        IN.SHUTDOWN: S.ENDING,
        IN.BROKEN: S.ENDING,
    },
    S.ACTIVE: _ACTIVE,
    S.ENDING: _ENDING,
    S.ENDED: {},
}

#: Meta has the call; the user has not picked up.
_ASKED: Final = {
    IN.META_ANSWER: S.REQUESTED,  # the media path only
    IN.META_RINGING: S.RINGING,
    IN.META_ACCEPTED: S.ACTIVE,  # RINGING lost or late
    IN.META_REJECTED: S.ENDING,
    IN.META_TERMINATE: S.ENDED,
    IN.MEDIA_FAILED: S.ENDING,
    IN.META_CLOSING: S.REQUESTED,
    IN.OPERATOR_HANGUP: S.ENDING,
    IN.API_HANGUP: S.ENDING,
    IN.OPERATOR_GONE: S.ENDING,
    IN.DEADLINE: S.ENDING,
    IN.SHUTDOWN: S.ENDING,
    IN.BROKEN: S.ENDING,
}

BUSINESS_INITIATED: Final[Mapping[CallState, Mapping[InputKind, CallState]]] = {
    S.PREPARING: {  # nothing has left for Meta
        IN.START: S.PREPARING,
        IN.MEDIA_READY: S.REQUESTING,
        IN.MEDIA_FAILED: S.ENDED,
        IN.OPERATOR_HANGUP: S.ENDED,
        IN.API_HANGUP: S.ENDED,
        IN.OPERATOR_GONE: S.ENDED,
        IN.DEADLINE: S.ENDED,
        IN.SHUTDOWN: S.ENDED,
        IN.BROKEN: S.ENDED,
    },
    S.REQUESTING: {  # `connect` is on its way; its webhooks may overtake its response
        IN.CONNECTED: S.REQUESTED,
        IN.CONNECT_UNKNOWN: S.UNCONFIRMED,
        IN.GRAPH_FAILED: S.ENDED,
        IN.META_ANSWER: S.REQUESTED,
        IN.META_RINGING: S.RINGING,
        IN.META_ACCEPTED: S.ACTIVE,
        IN.META_REJECTED: S.ENDING,
        IN.META_TERMINATE: S.ENDED,
        IN.MEDIA_FAILED: S.CANCELLING,
        IN.OPERATOR_HANGUP: S.CANCELLING,
        IN.API_HANGUP: S.CANCELLING,
        IN.OPERATOR_GONE: S.CANCELLING,
        IN.DEADLINE: S.UNCONFIRMED,
        IN.SHUTDOWN: S.CANCELLING,
        IN.BROKEN: S.CANCELLING,
    },
    S.UNCONFIRMED: {  # unknown whether Meta has the call; its webhooks settle it
        IN.CONNECTED: S.REQUESTED,
        IN.GRAPH_FAILED: S.ENDED,
        IN.META_ANSWER: S.REQUESTED,
        IN.META_RINGING: S.RINGING,
        IN.META_ACCEPTED: S.ACTIVE,
        IN.META_REJECTED: S.ENDING,
        IN.META_TERMINATE: S.ENDED,
        IN.MEDIA_FAILED: S.CANCELLING,
        IN.OPERATOR_HANGUP: S.CANCELLING,
        IN.API_HANGUP: S.CANCELLING,
        IN.OPERATOR_GONE: S.CANCELLING,
        IN.DEADLINE: S.ENDED,
        IN.SHUTDOWN: S.CANCELLING,
        IN.BROKEN: S.CANCELLING,
    },
    S.CANCELLING: {  # cancelled before Meta's id was known
        IN.CONNECTED: S.ENDING,
        IN.GRAPH_FAILED: S.ENDED,
        IN.META_ANSWER: S.ENDING,
        IN.META_RINGING: S.ENDING,
        IN.META_ACCEPTED: S.ENDING,
        IN.META_REJECTED: S.ENDING,
        IN.META_TERMINATE: S.ENDED,
        IN.DEADLINE: S.ENDED,
    },
    S.REQUESTED: _ASKED,
    S.RINGING: _ASKED | {IN.META_ANSWER: S.RINGING, IN.META_CLOSING: S.RINGING},
    S.ACTIVE: _ACTIVE | {IN.META_ANSWER: S.ACTIVE},
    S.ENDING: _ENDING,
    S.ENDED: {},
}

TRANSITIONS: Final = {
    Direction.USER_INITIATED: USER_INITIATED,
    Direction.BUSINESS_INITIATED: BUSINESS_INITIATED,
}

#: Moves no state and causes no effect; fills in a value that was unknown, however late it comes.
NOTED: Final[Mapping[Direction, Mapping[CallState, frozenset[InputKind]]]] = {
    Direction.USER_INITIATED: {
        state: frozenset({IN.MEDIA_CLOSED} | ({IN.META_TERMINATE} if state is S.ENDED else set()))
        for state in USER_INITIATED
    },
    Direction.BUSINESS_INITIATED: {
        state: frozenset(
            {IN.MEDIA_CLOSED}
            | ({IN.META_REJECTED} if state in (S.ENDING, S.ENDED) else set())
            | ({IN.META_TERMINATE} if state is S.ENDED else set())
        )
        for state in BUSINESS_INITIATED
    },
}

#: Inputs of the other direction: never expected, ignored in every state.
_FOREIGN: Final = {
    Direction.USER_INITIATED: frozenset(
        {
            IN.META_ANSWER,
            IN.META_RINGING,
            IN.META_ACCEPTED,
            IN.META_REJECTED,
            IN.CONNECTED,
            IN.CONNECT_UNKNOWN,
        }
    ),
    Direction.BUSINESS_INITIATED: frozenset({IN.PRE_ACCEPTED, IN.ACCEPTED, IN.OPERATOR_ACCEPT, IN.ALL_DECLINED}),
}
_BEGUN: Final = frozenset({IN.START, IN.REFUSED, IN.MEDIA_READY})  #: repeated: the call has begun already
_TOO_EARLY: Final = frozenset({IN.PRE_ACCEPTED, IN.ACCEPTED, IN.GRAPH_FAILED})  #: answers to a request not sent yet
_NO_CLAIM: Final = frozenset({IN.OPERATOR_HANGUP, IN.OPERATOR_GONE, IN.OPERATOR_HOLD})  #: no operator has the call
_TAKEN: Final = frozenset({IN.OPERATOR_ACCEPT, IN.ALL_DECLINED})  #: an operator has the call already
_CONFIRMED: Final = frozenset({IN.CONNECTED, IN.CONNECT_UNKNOWN, IN.GRAPH_FAILED})  #: a webhook came first


def _other_inputs(direction: Direction, state: CallState) -> frozenset[InputKind]:
    """Return all inputs of a direction that neither move a state nor are noted in it."""
    return frozenset(IN) - TRANSITIONS[direction][state].keys() - NOTED[direction][state] - _FOREIGN[direction]


#: Expected, and changes nothing: late answers, repeated webhooks, an operator who answers too late.
IGNORED: Final[Mapping[Direction, Mapping[CallState, frozenset[InputKind]]]] = {
    Direction.USER_INITIATED: {
        S.OFFERED: _TOO_EARLY | _NO_CLAIM | {IN.OPERATOR_ACCEPT, IN.META_CLOSING},
        S.PRE_ACCEPTING: _BEGUN | _NO_CLAIM | {IN.ACCEPTED},
        S.CLAIMED: _BEGUN | _TAKEN | {IN.ACCEPTED, IN.OPERATOR_HOLD},
        S.RINGING: _BEGUN | _NO_CLAIM | _TOO_EARLY,
        S.ACCEPTING: _BEGUN | _TAKEN | {IN.PRE_ACCEPTED, IN.OPERATOR_HOLD},
        S.ACTIVE: _BEGUN | _TAKEN | _TOO_EARLY,
        S.ENDING: _other_inputs(Direction.USER_INITIATED, S.ENDING),
        S.ENDED: _other_inputs(Direction.USER_INITIATED, S.ENDED),
    },
    Direction.BUSINESS_INITIATED: {
        S.PREPARING: _CONFIRMED
        | {IN.META_ANSWER, IN.META_RINGING, IN.META_ACCEPTED, IN.META_REJECTED, IN.META_TERMINATE}
        | {IN.REFUSED, IN.META_CLOSING, IN.OPERATOR_HOLD},
        S.REQUESTING: _BEGUN | {IN.META_CLOSING, IN.OPERATOR_HOLD},
        S.UNCONFIRMED: _BEGUN | {IN.CONNECT_UNKNOWN, IN.META_CLOSING, IN.OPERATOR_HOLD},
        S.CANCELLING: _BEGUN
        | _NO_CLAIM
        | {IN.API_HANGUP}
        | {IN.CONNECT_UNKNOWN, IN.MEDIA_FAILED, IN.META_CLOSING, IN.SHUTDOWN, IN.BROKEN},
        S.REQUESTED: _BEGUN | _CONFIRMED | {IN.OPERATOR_HOLD},
        S.RINGING: _BEGUN | _CONFIRMED | {IN.OPERATOR_HOLD},
        S.ACTIVE: _BEGUN | _CONFIRMED | {IN.META_RINGING, IN.META_ACCEPTED, IN.META_REJECTED},
        S.ENDING: _other_inputs(Direction.BUSINESS_INITIATED, S.ENDING),
        S.ENDED: _other_inputs(Direction.BUSINESS_INITIATED, S.ENDED),
    },
}


def new_call(
    call_id: CallId,
    direction: Direction,
    *,
    deadline_at: float,
    created_at: datetime,
    meta_call_id: MetaCallId | None = None,
    operator: OperatorId | None = None,
) -> Call:
    """Return a call before its START. A call that an operator places is claimed by them from the beginning."""
    born = S.OFFERED if direction is Direction.USER_INITIATED else S.PREPARING
    return Call(
        call_id=call_id,
        direction=direction,
        state=born,
        deadline_at=deadline_at,
        created_at=created_at,
        meta_call_id=meta_call_id,
        operator=operator,
        claimed_by=operator,
    )
