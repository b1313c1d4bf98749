"""The effects that a step of a call can ask for: values, performed by `calls.driver`, safe to repeat. [P]"""

from dataclasses import dataclass
from enum import StrEnum

from gateway.callflow.outcome import Outcome
from gateway.common.ids import MetaCallId, OperatorId


class StopReason(StrEnum):
    """Why a softphone stops ringing; shown to the operator."""

    ANSWERED_ELSEWHERE = "answered_elsewhere"
    HUNG_UP_BY_USER = "hung_up_by_user"
    NOT_ANSWERED = "not_answered"
    DECLINED = "declined"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeAnswer:
    """Make the Meta leg from Meta's offer; answered by MEDIA_READY with our SDP or MEDIA_FAILED."""

    offer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeOffer:
    """Make the Meta leg and our offer; answered by MEDIA_READY or MEDIA_FAILED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyAnswer:
    """Give Meta's SDP answer to the Meta leg."""

    sdp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPreAccept:
    meta_call_id: MetaCallId
    sdp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendAccept:
    """Accept the call; `sdp` is exactly the string that was sent with `pre_accept`."""

    meta_call_id: MetaCallId
    sdp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendConnect:
    """Place the call. The only effect that is never repeated: the user's phone would ring twice."""

    sdp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReject:
    meta_call_id: MetaCallId


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTerminate:
    meta_call_id: MetaCallId


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Ring every available operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRinging:
    reason: StopReason
    but: OperatorId | None = None  #: except this operator, who answered
    detail: str | None = None  #: safe to show, e.g. Meta's error text


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayRingback:
    """Play ringback to the operator while the user's phone rings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Let media flow both ways between the Meta leg and the operator's leg."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Separate the legs and play hold audio to the user, or join the legs again."""

    on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseMedia:
    """Close the Meta leg; the operator's warm leg stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Release the slot and close the record. Always the last effect of a call."""

    outcome: Outcome


Effect = (
    MakeAnswer
    | MakeOffer
    | ApplyAnswer
    | SendPreAccept
    | SendAccept
    | SendConnect
    | SendReject
    | SendTerminate
    | Ring
    | StopRinging
    | PlayRingback
    | Join
    | Hold
    | CloseMedia
    | Finish
)
