"""The interface between the gateway and the media plane.

`MediaEngine` is the interface. `WorkerPool` implements it: it starts worker processes, which do all ICE, DTLS and SRTP
work, and talks to them. `NullEngine` carries no media and serves to measure signalling. This module and everything it
imports must not import aiortc, aioice or av, because the signalling process runs it.
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
    """Make legs and join them. Any method may also raise `NoWorker`, `WorkerGone` or `MediaTimeout`."""

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
        """Return an SDP offer for Meta; `accept_meta_answer` must follow. Raises: TooBusy."""
        ...

    async def accept_meta_answer(self, leg: LegId, answer_sdp: str) -> None:
        """Apply Meta's SDP answer to our offer; applying the same answer again changes nothing.

        Raises: SdpRefused, UnknownLeg.
        """
        ...

    async def answer_browser(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        """Return the SDP answer to a browser's offer. Raises: SdpRefused, TooBusy."""
        ...

    async def join(self, a: LegId, b: LegId) -> None:
        """Forward audio both ways from now on, or as soon as both legs are connected. Idempotent.

        Both legs must live in the same worker. Any earlier join of either leg ends.
        Raises: UnknownLeg.
        """
        ...

    async def part(self, leg: LegId) -> None:
        """Stop forwarding to and from this leg. Idempotent. Raises: UnknownLeg."""
        ...

    async def play(self, leg: LegId, tone: Tone | None) -> None:
        """Play a tone to this leg while no join feeds it; None stops it. Raises: UnknownLeg."""
        ...

    async def close(self, leg: LegId) -> LegStats | None:
        """Close the leg and return its statistics; None if there is no such leg. Idempotent."""
        ...

    async def stats(self, leg: LegId) -> LegStats | None:
        """Return the leg's statistics so far; None if there is no such leg."""
        ...

    async def start(self, on_event: EventSink) -> None:
        """Start the workers and return when all are ready; from then on `on_event` receives their events. Call once."""
        ...

    async def aclose(self) -> None:
        """Close all legs and stop the workers. Idempotent."""
        ...
