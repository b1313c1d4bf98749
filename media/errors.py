"""Every error that `media/` raises.

    MediaError
    ├── SdpRefused          the peer's SDP is malformed, too large, or lacks something that we need
    │   └── NoCommonCodec   the SDP is well-formed, but offers no Opus at 48 kHz
    ├── UnknownLeg          no such leg: never made, or closed already
    ├── NoWorker            no worker process is alive
    ├── WorkerGone          the worker died, or was killed, before it answered
    ├── TooBusy             the set-up queue is full, or no port is free
    ├── IceFailed           no path to the peer was found, or the path was lost
    ├── DtlsFailed          the handshake failed, or the certificate does not match its fingerprint
    └── MediaTimeout        the worker did not answer, or the peer stopped sending

`reason` is a short word that never changes: it is a metric label, and it carries an error from a worker process to the
gateway. The text is for people and contains no secret, no address and no phone number.
"""

from typing import ClassVar, Final


class MediaError(Exception):
    """Something went wrong in the media plane."""

    reason: ClassVar[str] = "media_error"
    #: Whether the same request may succeed if it is made again, on a new leg.
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.reason)
        self.detail = detail


class SdpRefused(MediaError):
    """The peer's SDP cannot be used; `detail` says what is wrong with it."""

    reason = "sdp_refused"


class NoCommonCodec(SdpRefused):
    """The peer's SDP offers no codec that we support."""

    reason = "no_common_codec"


class UnknownLeg(MediaError):
    """There is no such leg; it was never made, or it has been closed."""

    reason = "unknown_leg"


class NoWorker(MediaError):
    """No worker process is alive."""

    reason = "no_worker"
    retryable = True


class WorkerGone(MediaError):
    """The worker died before it answered."""

    reason = "worker_gone"
    retryable = True


class TooBusy(MediaError):
    """The set-up queue is full, or no port is free."""

    reason = "too_busy"
    retryable = True


class IceFailed(MediaError):
    """No path to the peer was found, or the path was lost."""

    reason = "ice_failed"


class DtlsFailed(MediaError):
    """The DTLS handshake failed, or the peer's certificate does not match the fingerprint in its SDP."""

    reason = "dtls_failed"


class MediaTimeout(MediaError):
    """The worker did not answer in time, or the peer stopped sending."""

    reason = "media_timeout"
    retryable = True


BY_REASON: Final[dict[str, type[MediaError]]] = {
    error.reason: error
    for error in (
        MediaError, SdpRefused, NoCommonCodec, UnknownLeg, NoWorker, WorkerGone, TooBusy,
        IceFailed, DtlsFailed, MediaTimeout,
    )
}  # fmt: skip


def from_reason(reason: str, detail: str) -> MediaError:
    """Return the error that a worker process named; an unknown reason gives a plain `MediaError`."""
    return BY_REASON.get(reason, MediaError)(detail)
