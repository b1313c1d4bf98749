"""Every error that `gateway/` raises.

    GatewayError
    ├── SettingsError           the settings cannot work; `problems` lists every mistake
    ├── StoreError              the database holds, or is, something that we cannot work with
    │   └── StoreDown           the database does not answer
    ├── SpoolDown               the spool takes no delivery now: full, or its disk is
    ├── CannotDial              the operator's softphone cannot take a call now
    └── GraphError              a request to Meta's Graph API did not succeed
        ├── GraphPaused         nothing was sent: Meta is not asked now
        ├── GraphRefused        Meta answered with a definite no
        └── GraphUnreachable    no usable answer; `maybe_sent` says whether Meta may have acted on it

An error says three things apart from its internal text: `reason` is a short word that never changes (a metric
label, a branch in a client), `retryable` whether the same request may succeed later, `public` what may be shown
to anybody. `public` never holds a token, an SDP, a phone number or a path. Not responsible for the media plane's
errors (see `media.errors`) nor for refusals of the policy gate, which are values and no exceptions.
"""

from collections.abc import Sequence
from datetime import datetime

from policy.decision import Refusal


class GatewayError(Exception):
    """Something of ours, or beside us, went wrong."""

    reason: str = "internal"
    retryable: bool = False
    #: What a stranger may read.
    public: str = "Something went wrong in the gateway."

    def __init__(self, detail: str = "", *, public: str | None = None) -> None:
        super().__init__(detail or public or self.public)
        if public is not None:
            self.public = public


class SettingsError(GatewayError):
    """The settings cannot work; each problem is one plain line, secrets masked."""

    reason = "settings"
    public = "The settings cannot work."

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class StoreError(GatewayError):
    """The database holds, or is, something that we cannot work with."""

    reason = "store"
    public = "The database cannot be used."


class StoreDown(StoreError):
    """The database does not answer."""

    reason = "store_down"
    retryable = True
    public = "The database does not answer."


class SpoolDown(GatewayError):
    """The spool takes no delivery now: it is full, or its disk is, or does not answer. The text says which."""

    reason = "spool_down"
    retryable = True
    public = "The spool takes no deliveries now."


class CannotDial(GatewayError):
    """The operator's softphone cannot take a call now; `reason` is the wire's error code."""

    reason = "cannot_dial"

    def __init__(self, reason: str, public: str) -> None:
        super().__init__(public=public)
        self.reason = reason


class GraphError(GatewayError):
    """A request to Meta did not succeed. `op` is the request's name, `connect` for example."""

    reason = "graph_error"
    public = "The request to Meta failed."
    #: Whether the request may have reached Meta and may have been acted on.
    maybe_sent: bool = True
    #: Meta's error code, where it gave one.
    code: int | None = None
    http_status: int | None = None

    def __init__(self, detail: str = "", *, op: str, public: str | None = None) -> None:
        super().__init__(f"{op}: {detail}", public=public)
        self.op = op


class GraphRefused(GraphError):
    """Meta answered with a definite no: what was asked for has not happened.

    `retryable` says that the same request may succeed later, `transient` that later may be in a second.
    """

    reason = "graph_refused"
    maybe_sent = False
    code: int
    http_status: int

    def __init__(
        self,
        *,
        op: str,
        code: int,
        http_status: int,
        details: str,
        meaning: str,
        who_must_act: str,
        retryable: bool = False,
        transient: bool = False,
        retry_at: datetime | None = None,
    ) -> None:
        said = details or meaning
        super().__init__(f"HTTP {http_status}: ({code}) {said}", op=op, public=f"Meta refused: ({code}) {said}")
        self.code = code
        self.http_status = http_status
        self.details = details  #: Meta's own words, masked
        self.meaning = meaning  #: ours, in words an operator understands
        self.who_must_act = who_must_act
        self.retryable = retryable
        self.transient = transient
        self.retry_at = retry_at  #: aware UTC; None: Meta did not say
        #: The gate's own no to the same request, now that it knows what Meta knows (see `contradiction`).
        self.refusal: Refusal | None = None


class GraphPaused(GraphError):
    """Nothing was sent, because Meta does not answer or refuses the token; `refusal` says until when."""

    reason = "graph_paused"
    retryable = True
    maybe_sent = False

    def __init__(self, *, op: str, refusal: Refusal, wait_s: int, public: str) -> None:
        super().__init__(refusal.reason.value, op=op, public=public)
        self.refusal = refusal
        self.wait_s = wait_s


class GraphUnreachable(GraphError):
    """No usable answer: refused connection, timeout, cut, or a server error that says nothing definite."""

    reason = "graph_unreachable"
    retryable = True
    public = "Meta could not be reached."
    #: The opposite of `GraphRefused`: silence says nothing about what Meta did.
    definite = False

    def __init__(
        self,
        detail: str,
        *,
        op: str,
        maybe_sent: bool,
        status: str,
        http_status: int | None = None,
        code: int | None = None,
    ) -> None:
        said = f"Meta gave no clear answer: {detail}" if http_status is not None else None
        super().__init__(detail, op=op, public=said)
        self.maybe_sent = maybe_sent
        self.status = status  #: metric label: an HTTP status, `timeout`, `cut` or `not_connected`
        self.http_status = http_status
        self.code = code
