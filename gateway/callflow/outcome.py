"""How a call ended, in fixed words that records, metrics and pages share. [P]"""

from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """Who or what decided the end."""

    COMPLETED = "completed"  #: two people talked
    REFUSED = "refused"  #: our gate or our slots said no
    USER = "user"  #: the WhatsApp user ended it before a conversation
    OPERATOR = "operator"  #: the operator's side ended it before a conversation
    GATEWAY = "gateway"  #: the gateway or its media failed, or it was shut down
    META = "meta"  #: Meta refused or failed
    INDETERMINATE = "indeterminate"  #: a `connect` may or may not have reached Meta


class EndReason(StrEnum):
    """The reason behind a result; a metric label, never renamed."""

    HUNG_UP_BY_USER = "hung_up_by_user"
    HUNG_UP_BY_OPERATOR = "hung_up_by_operator"
    OPERATOR_GONE = "operator_gone"
    NOT_ANSWERED = "not_answered"
    NO_OPERATOR = "no_operator"
    DECLINED = "declined"
    CANCELLED = "cancelled"
    POLICY = "policy"
    NO_SLOT = "no_slot"
    OVERLOAD = "overload"
    STORE_DOWN = "store_down"
    SDP_REFUSED = "sdp_refused"
    MEDIA_FAILED = "media_failed"
    MEDIA_TIMEOUT = "media_timeout"
    WORKER_DIED = "worker_died"
    GRAPH_ERROR = "graph_error"
    META_FAILED = "meta_failed"
    TIMEOUT = "timeout"
    DRAINED = "drained"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended; set once for each call."""

    result: Result
    reason: EndReason
    detail: str | None = None  #: safe to show to the operator, e.g. Meta's error text
