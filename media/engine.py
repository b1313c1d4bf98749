"""What the gateway asks of the media plane.

`MediaEngine` is the interface. Its implementation is `WorkerPool`, which starts worker processes and speaks
to them; all ICE, DTLS and SRTP work is done there. (`NullEngine` only answers, to measure signalling.) This module
and everything that it imports must not import aiortc, aioice or av: the signalling process runs it.
"""

from collections.abc import Sequence
from typing import Protocol

from media.model import (
    DtmfReceived,
    EventSink,
    LegConnected,
    LegFailed,
    LegFailure,
    LegId,
    MediaConfig,
    MediaEvent,
    Tone,
    WorkerDown,
    WorkerId,
    WorkerUp,
)
from media.null import NullEngine
from media.pool import WorkerPool
from media.stats import LegStats

__all__ = [
    "DtmfReceived",
    "EventSink",
    "LegConnected",
    "LegFailed",
    "LegFailure",
    "LegId",
    "LegStats",
    "MediaConfig",
    "MediaEngine",
    "MediaEvent",
    "NullEngine",
    "Tone",
    "WorkerDown",
    "WorkerId",
    "WorkerPool",
    "WorkerUp",
]


class MediaEngine(Protocol):
    """Makes legs and joins them. All methods may raise `NoWorker`, `WorkerGone` or `MediaTimeout` as well."""

    @property
    def workers(self) -> Sequence[WorkerId]:
        """Return the workers that are alive and ready."""
        ...

    def pick_worker(self) -> WorkerId:
        """Return the worker with the fewest legs. Raises: NoWorker."""
        ...

    async def answer_meta(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        """Return the SDP answer to Meta's offer; ICE and DTLS start in the background.

        Raises: SdpRefused, TooBusy.
        """
        ...

    async def offer_meta(self, leg: LegId, worker: WorkerId) -> str:
        """Return an SDP offer for Meta; next comes `accept_meta_answer`. Raises: TooBusy."""
        ...

    async def accept_meta_answer(self, leg: LegId, answer_sdp: str) -> None:
        """Apply Meta's SDP answer to our offer; the same answer again changes nothing.

        Raises: SdpRefused, UnknownLeg.
        """
        ...

    async def answer_browser(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        """Return the SDP answer to a browser's offer. Raises: SdpRefused, TooBusy."""
        ...

    async def join(self, a: LegId, b: LegId) -> None:
        """Forward audio both ways from now on, or from when both are connected; idempotent.

        Both legs must live in the same worker. A leg that was joined to a third one is parted from it.
        Raises: UnknownLeg.
        """
        ...

    async def part(self, leg: LegId) -> None:
        """Stop forwarding to and from this leg; idempotent. Raises: UnknownLeg."""
        ...

    async def play(self, leg: LegId, tone: Tone | None) -> None:
        """Play a tone towards this leg while no join feeds it; None stops it. Raises: UnknownLeg."""
        ...

    async def close(self, leg: LegId) -> LegStats | None:
        """Close the leg and return what it counted; None if there is no such leg. Idempotent."""
        ...

    async def stats(self, leg: LegId) -> LegStats | None:
        """Return what the leg has counted so far; None if there is no such leg."""
        ...

    async def start(self, on_event: EventSink) -> None:
        """Start the workers and return when all are ready; `on_event` is told what happens from now on. Call once."""
        ...

    async def aclose(self) -> None:
        """Close all legs and end the workers. Idempotent."""
        ...
