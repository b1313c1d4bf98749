"""Every error that `gateway/` raises.

    GatewayError
    ├── SettingsError           the settings are not valid; `problems` lists every mistake
    ├── StoreError              the database, or data for it or in it, cannot be used
    │   └── StoreDown           the database does not answer
    ├── SpoolDown               the spool cannot accept a delivery now: it or its disk is full
    ├── CannotDial              the operator's softphone cannot make a call now
    └── GraphError              a request to Meta's Graph API did not succeed
        ├── GraphPaused         nothing was sent: requests are paused
        ├── GraphRefused        Meta answered with a definite no
        └── GraphUnreachable    no usable answer; `maybe_sent` says whether Meta may have acted on it

Apart from its internal text, an error has three attributes: `reason` is a short word that never changes (a metric
label, a branch in a client), `retryable` says whether the same request may succeed later, `public` is a text that may
be shown to anyone: it never contains a token, an SDP, a phone number or a path. The media plane's errors are in
`media.errors`. Refusals by the policy gate are values, not exceptions.
"""

from collections.abc import Sequence
from datetime import datetime

from policy.decision import Refusal


class GatewayError(Exception):
    """A failure in the gateway or in a service that it depends on."""

    reason: str = "internal"
    retryable: bool = False
    #: The text that may be shown to anyone.
    public: str = "Something went wrong in the gateway."

    def __init__(self, detail: str = "", *, public: str | None = None) -> None:
        super().__init__(detail or public or self.public)
        if public is not None:
            self.public = public


class SettingsError(GatewayError):
    """The settings are not valid; each problem is one line, with secrets masked."""

    reason = "settings"
    public = "The settings are not valid."

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class StoreError(GatewayError):
    """The database, or data for it or in it, cannot be used."""

    reason = "store"
    public = "The database cannot be used."


class StoreDown(StoreError):
    """The database does not answer."""

    reason = "store_down"
    retryable = True
    public = "The database does not answer."


class SpoolDown(GatewayError):
    """The spool cannot accept a delivery now: it or its disk is full, or the disk fails. The text says which."""

    reason = "spool_down"
    retryable = True
    public = "The spool cannot accept deliveries now."


class CannotDial(GatewayError):
    """The operator's softphone cannot make a call now; `reason` is the error code of the softphone protocol."""

    reason = "cannot_dial"

    def __init__(self, reason: str, public: str) -> None:
        super().__init__(public=public)
        self.reason = reason


class GraphError(GatewayError):
    """A request to Meta did not succeed. `op` is the name of the request, `connect` for example."""

    reason = "graph_error"
    public = "The request to Meta failed."
    #: Whether the request may have reached Meta, so that Meta may have acted on it.
    maybe_sent: bool = True
    #: Meta's error code, if it gave one.
    code: int | None = None
    http_status: int | None = None

    def __init__(self, detail: str = "", *, op: str, public: str | None = None) -> None:
        super().__init__(f"{op}: {detail}", public=public)
        self.op = op


class GraphRefused(GraphError):
    """Meta answered with a definite no: the request had no effect.

    `retryable` says that the same request may succeed later, `transient` that it may succeed within a second.
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
        self.details = details  #: Meta's text, masked
        self.meaning = meaning  #: our text, for operators
        self.who_must_act = who_must_act
        self.retryable = retryable
        self.transient = transient
        self.retry_at = retry_at  #: aware UTC; None: Meta did not say
        #: The gate's own refusal of the same request, after it learned from this error (see `calls.refusals`).
        self.refusal: Refusal | None = None


class GraphPaused(GraphError):
    """Nothing was sent: requests are paused because Meta does not answer or refuses the token, see `refusal`."""

    reason = "graph_paused"
    retryable = True
    maybe_sent = False

    def __init__(self, *, op: str, refusal: Refusal, wait_s: int, public: str) -> None:
        super().__init__(refusal.reason.value, op=op, public=public)
        self.refusal = refusal
        self.wait_s = wait_s


class GraphUnreachable(GraphError):
    """No usable answer: connection refused or lost, timeout, or a server error that says nothing definite."""

    reason = "graph_unreachable"
    retryable = True
    public = "Meta could not be reached."
    #: Unlike `GraphRefused`, this says nothing about what Meta did.
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
