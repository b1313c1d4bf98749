"""The softphone protocol: every WebSocket message of the subprotocol `calls.v1` as a typed struct. [P]

A request has an `id`; the server answers it once, with `Ok` or `Failed` and the same id. A push has no id. The JSON
tag is `type`. `softphone.server` handles the messages.
"""

from datetime import datetime
from typing import Annotated, Any

import msgspec

SUBPROTOCOL = "calls.v1"

RequestId = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
ShortText = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
SdpText = Annotated[str, msgspec.Meta(min_length=1, max_length=16_384)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Base of all messages."""


# --- views: used by both the WebSocket and the REST API ----------------------------------------


class UserView(msgspec.Struct, frozen=True, kw_only=True):
    number: str | None  #: E.164 with "+"; None if only the BSUID is known
    user_id: str | None
    name: str | None


class OutcomeView(msgspec.Struct, frozen=True, kw_only=True):
    result: str
    reason: str
    detail: str | None


class CallView(msgspec.Struct, frozen=True, kw_only=True):
    call_id: str
    number_id: str
    direction: str  #: USER_INITIATED or BUSINESS_INITIATED
    state: str  #: connecting, ringing, active, held, ending, ended
    user: UserView
    operator: str | None
    worker: int | None  #: the media worker whose leg carries this call
    created_at: datetime
    accepted_at: datetime | None
    ended_at: datetime | None
    duration_s: int | None
    outcome: OutcomeView | None


class SlotsView(msgspec.Struct, frozen=True, kw_only=True):
    used: int
    limit: int


class RefusalView(msgspec.Struct, frozen=True, kw_only=True):
    reason: str
    rule: str
    observed: int | None
    limit: int | None
    retry_at: datetime | None
    remedy: str | None
    title: str  #: one English sentence for logs and REST clients; the page translates `reason`
    source: str | None = None  #: the guide's rule, or Meta's page and when we read it; None: the gateway's own rule


class DecidedView(msgspec.Struct, frozen=True, kw_only=True):
    """A past answer of the gate."""

    decision_id: str
    phone_number_id: str
    user_key: str
    asked_by: str  #: an operator, "meta" or "api"
    request: str  #: place, receive or ask_permission
    at: datetime
    allowed: bool
    pack: str  #: name and version of the rules at that time
    refusal: RefusalView | None


class RestrictionView(msgspec.Struct, frozen=True, kw_only=True):
    type: str  #: Meta's word, RESTRICTED_BUSINESS_INITIATED_CALLING for example
    until: datetime | None  #: None: until Meta lifts it


class NumberWarningView(msgspec.Struct, frozen=True, kw_only=True):
    """A warning by Meta about a number's calls; nothing is restricted yet."""

    violation: str  #: Meta's word
    at: datetime
    remediation: str | None  #: Meta's advice


class CallHoursView(msgspec.Struct, frozen=True, kw_only=True):
    timezone: str
    open: bool  #: whether it is open now
    opens_at: datetime | None  #: when it opens next; None: it is open now, or never opens
    enforced: list[str]  #: directions of calls that are refused outside the hours


class NumberStatusView(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a number, and what it may do regardless of the contact."""

    country: str | None
    calling: str  #: ENABLED, DISABLED, NOT_SET, UNKNOWN
    coexistence: bool
    sip: bool
    payment_ok: bool
    messaging_limit: int | None  #: None: not known
    restrictions: list[RestrictionView]
    warnings: list[NumberWarningView]
    hours: CallHoursView | None  #: None: always open
    place: RefusalView | None  #: why the number may not place calls; None: it may
    receive: RefusalView | None  #: why the number does not take calls; None: it does
    read_at: datetime | None  #: when the number was last read from Meta


class NumberView(msgspec.Struct, frozen=True, kw_only=True):
    number_id: str
    number: str  #: E.164 with "+"
    name: str
    pack: str
    incoming: SlotsView
    outgoing: SlotsView
    placed_24h: "CounterView"
    status: NumberStatusView


class DecisionView(msgspec.Struct, frozen=True, kw_only=True):
    allowed: bool
    refusal: RefusalView | None
    warnings: list[str]
    permission_expires_at: datetime | None
    ask_form: str | None  #: free_form or template: the form of a permission request sent now
    ask: RefusalView | None  #: why a permission request may not be sent now; None: it may
    asked_at: datetime | None  #: when permission was last requested
    declined_at: datetime | None  #: when the contact last declined
    streak: int  #: unanswered calls in a row
    streak_limit: int | None  #: the streak at which the permission ends


class CounterView(msgspec.Struct, frozen=True, kw_only=True):
    used: int
    limit: int
    next_frees_at: datetime | None


class PermissionRequestView(msgspec.Struct, frozen=True, kw_only=True):
    """A permission request and what became of it."""

    message_id: str | None  #: None: Meta gave no clear answer, so the request may have been sent
    form: str  #: free_form or template
    asked_at: datetime
    outcome: str  #: pending, granted, declined, lapsed, superseded
    answered_at: datetime | None


class ContactView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the gate knows about a contact."""

    user: UserView
    decision: DecisionView
    permission: str  #: none, requested, temporary, permanent, declined, expired, revoked
    window_open_until: datetime | None
    connected_24h: CounterView
    requests_24h: CounterView
    requests_7d: CounterView
    ask_free_form: RefusalView | None  #: why a free-form request may not be sent now; None: it may
    ask_template: RefusalView | None
    checked_at: datetime
    next_call_at: datetime | None  #: when a call is allowed: `checked_at` if it is now; None: waiting does not help
    next_free_form_at: datetime | None
    next_template_at: datetime | None
    requests: list[PermissionRequestView]  #: all permission requests, oldest first


# --- requests ------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """Log in: the first message on the socket, within 5 s. Has exactly one of `ticket` and `resume`."""

    id: RequestId
    ticket: ShortText | None = None
    resume: ShortText | None = None


class Leg(Message, frozen=True, kw_only=True, tag="leg"):
    """Offer a (new) warm browser leg to one media worker; the reply has the SDP answer."""

    id: RequestId
    worker: int
    sdp: SdpText


class SetStatus(Message, frozen=True, kw_only=True, tag="status"):
    id: RequestId
    available: bool


class Check(Message, frozen=True, kw_only=True, tag="check"):
    """Ask the gate whether a call is allowed, without placing it."""

    id: RequestId
    number_id: ShortText
    to: ShortText


class Dial(Message, frozen=True, kw_only=True, tag="dial"):
    id: RequestId
    number_id: ShortText
    to: ShortText


class AskPermission(Message, frozen=True, kw_only=True, tag="ask_permission"):
    id: RequestId
    number_id: ShortText
    to: ShortText


class Accept(Message, frozen=True, kw_only=True, tag="accept"):
    id: RequestId
    call_id: ShortText


class Reject(Message, frozen=True, kw_only=True, tag="reject"):
    """Decline a ringing call; it keeps ringing at the other operators."""

    id: RequestId
    call_id: ShortText


class Hangup(Message, frozen=True, kw_only=True, tag="hangup"):
    id: RequestId
    call_id: ShortText


class Hold(Message, frozen=True, kw_only=True, tag="hold"):
    id: RequestId
    call_id: ShortText
    on: bool


class Recent(Message, frozen=True, kw_only=True, tag="recent"):
    id: RequestId
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20


class Bye(Message, frozen=True, kw_only=True, tag="bye"):
    """Log out: a call in progress ends at once, without a grace period."""

    id: RequestId


class Leaving(Message, frozen=True, kw_only=True, tag="leaving"):
    """Announce that the page is being closed or reloaded: without a new `hello` within 5 s, the call ends.

    If the socket is lost without this message, the grace period is 15 s.
    """

    id: RequestId


Request = (
    Hello | Leg | SetStatus | Check | Dial | AskPermission | Accept | Reject | Hangup | Hold | Recent | Bye | Leaving
)

# --- replies -------------------------------------------------------------------------------------


class Ok(Message, frozen=True, kw_only=True, tag="ok"):
    """The request succeeded; the fields of `data` depend on the request."""

    id: int
    data: Any = None


class Failed(Message, frozen=True, kw_only=True, tag="error"):
    """The request failed."""

    id: int | None  #: None: the message could not be read
    #: Stable: bad_message, unauthorized, refused, no_leg, busy, gone, already_taken, graph_error, unavailable, and
    #: outcome_unknown (Meta gave no clear answer and may have acted on the request).
    code: str
    title: str
    refusal: RefusalView | None = None


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """`Ok.data` of `hello`."""

    operator: str
    resume: str
    resumed: bool
    available: bool
    workers: list[int]
    numbers: list[NumberView]
    calls: list[CallView]  #: live calls of this operator, ringing ones included
    heartbeat_s: float


class LegAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`Ok.data` of `leg`."""

    worker: int
    sdp: str


# --- pushes --------------------------------------------------------------------------------------


class Incoming(Message, frozen=True, kw_only=True, tag="incoming"):
    """Ring. It ends with a `call` push for the same id (accepted here) or with `gone`."""

    call: CallView


class Gone(Message, frozen=True, kw_only=True, tag="gone"):
    """Stop ringing."""

    call_id: str
    reason: str  #: answered_elsewhere, hung_up_by_user, not_answered, declined, failed
    detail: str | None = None  #: Meta's text, if `reason` is `failed`


class CallChanged(Message, frozen=True, kw_only=True, tag="call"):
    """A call of this operator changed; in state `ended` it has an outcome."""

    call: CallView


class SlotsChanged(Message, frozen=True, kw_only=True, tag="slots"):
    number_id: str
    incoming: SlotsView
    outgoing: SlotsView


class NumberChanged(Message, frozen=True, kw_only=True, tag="number"):
    """The status of a business number changed: its restrictions, its calling hours or its settings at Meta."""

    number_id: str
    status: NumberStatusView


class ContactChanged(Message, frozen=True, kw_only=True, tag="contact"):
    """The gate's decision about a contact changed, after a permission reply for example."""

    number_id: str
    user: UserView
    decision: DecisionView


class LegLost(Message, frozen=True, kw_only=True, tag="leg_lost"):
    """The warm leg to this worker is lost: offer a new one."""

    worker: int
    reason: str


class WorkersChanged(Message, frozen=True, kw_only=True, tag="workers"):
    """The list of media workers changed: offer a leg to each new one; legs to removed ones are gone."""

    workers: list[int]


class Digit(Message, frozen=True, kw_only=True, tag="digit"):
    """The user pressed a key (DTMF)."""

    call_id: str
    digit: str


class Notice(Message, frozen=True, kw_only=True, tag="notice"):
    """A message for the operator; the page translates `code`, `detail` is Meta's text."""

    level: str  #: info, warning, error
    code: str  #: media_worker_restarted, graph_error, replaced, draining, store_down
    detail: str | None = None


Push = (
    Incoming
    | Gone
    | CallChanged
    | SlotsChanged
    | NumberChanged
    | ContactChanged
    | LegLost
    | WorkersChanged
    | Digit
    | Notice
)

#: Encodes a message to a frame's bytes; call it once for all softphones that get the same message.
encode = msgspec.json.Encoder().encode

#: WebSocket close codes.
CLOSE_UNAUTHORIZED = 4401
CLOSE_TIMEOUT = 4408
CLOSE_REPLACED = 4409
CLOSE_TOO_MANY = 4429
