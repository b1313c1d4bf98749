"""The protocol between gateway and worker: length-prefixed MessagePack over a Unix socket pair.

Both ends belong to the same release and are started together, so the format has no version. A frame that cannot be
decoded ends the connection, and with it the worker.
"""

import asyncio
from typing import Final

import msgspec
from msgspec import Struct

from media.model import (
    DtmfReceived,
    LegConnected,
    LegFailed,
    LegId,
    MediaConfig,
    Tone,
)
from media.stats import LegStats

MAX_FRAME_BYTES: Final = 1 << 20
_LENGTH_BYTES: Final = 4


class Start(Struct, frozen=True, tag=True):
    """The first frame to a worker."""

    config: MediaConfig
    index: int


class AnswerMeta(Struct, frozen=True, tag=True):
    """Request an SDP answer to Meta's offer."""

    leg: LegId
    sdp: str


class OfferMeta(Struct, frozen=True, tag=True):
    """Request an SDP offer for Meta."""

    leg: LegId


class AcceptMetaAnswer(Struct, frozen=True, tag=True):
    """Apply Meta's SDP answer."""

    leg: LegId
    sdp: str


class AnswerBrowser(Struct, frozen=True, tag=True):
    """Request an SDP answer to a browser's offer."""

    leg: LegId
    sdp: str


class Join(Struct, frozen=True, tag=True):
    """Join two legs."""

    a: LegId
    b: LegId


class Part(Struct, frozen=True, tag=True):
    """End the join of a leg."""

    leg: LegId


class Play(Struct, frozen=True, tag=True):
    """Play a tone; None stops it."""

    leg: LegId
    tone: Tone | None


class Close(Struct, frozen=True, tag=True):
    """Close a leg; the reply carries its statistics."""

    leg: LegId


class GetStats(Struct, frozen=True, tag=True):
    """Request a leg's statistics."""

    leg: LegId


Command = AnswerMeta | OfferMeta | AcceptMetaAnswer | AnswerBrowser | Join | Part | Play | Close | GetStats


class Request(Struct, frozen=True, tag=True):
    """A command with the number that its reply will carry."""

    id: int
    command: Command


class Reply(Struct, frozen=True, tag=True):
    """The command succeeded."""

    id: int
    sdp: str | None = None
    stats: LegStats | None = None


class Failure(Struct, frozen=True, tag=True):
    """The command raised a `MediaError`; see `errors.from_reason`."""

    id: int
    reason: str
    detail: str


class Ready(Struct, frozen=True, tag=True):
    """The worker is ready to take commands."""


class NotReady(Struct, frozen=True, tag=True):
    """The worker cannot start and ends: a port is in use, or the bind address is not local."""

    detail: str


class Beat(Struct, frozen=True, tag=True):
    """Heartbeat: the worker's event loop is running."""

    legs: int
    #: How late the loop was in sending this.
    lag_ms: float


ToWorker = Start | Request
Event = LegConnected | LegFailed | DtmfReceived
FromWorker = Ready | NotReady | Beat | Reply | Failure | LegConnected | LegFailed | DtmfReceived

_encoder: Final = msgspec.msgpack.Encoder()
to_worker: Final = msgspec.msgpack.Decoder(ToWorker)
from_worker: Final = msgspec.msgpack.Decoder(FromWorker)


def pack(message: ToWorker | FromWorker) -> bytes:
    """Return the encoded frame of a message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


async def read(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next frame's body; None if the connection is closed or the frame is too long."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return await reader.readexactly(size) if size <= MAX_FRAME_BYTES else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
