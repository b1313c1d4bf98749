"""What gateway and worker say to each other: length-prefixed MessagePack over a Unix socket pair.

Both ends are of the same release, started together; the format carries no version. A frame that cannot be read ends
the connection, and with it the worker.
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
    """Asks for an SDP answer to Meta's offer."""

    leg: LegId
    sdp: str


class OfferMeta(Struct, frozen=True, tag=True):
    """Asks for an SDP offer for Meta."""

    leg: LegId


class AcceptMetaAnswer(Struct, frozen=True, tag=True):
    """Applies Meta's SDP answer."""

    leg: LegId
    sdp: str


class AnswerBrowser(Struct, frozen=True, tag=True):
    """Asks for an SDP answer to a browser's offer."""

    leg: LegId
    sdp: str


class Join(Struct, frozen=True, tag=True):
    """Joins two legs."""

    a: LegId
    b: LegId


class Part(Struct, frozen=True, tag=True):
    """Parts a leg from the one that it is joined to."""

    leg: LegId


class Play(Struct, frozen=True, tag=True):
    """Plays a tone, or none."""

    leg: LegId
    tone: Tone | None


class Close(Struct, frozen=True, tag=True):
    """Closes a leg; answered with its statistics."""

    leg: LegId


class GetStats(Struct, frozen=True, tag=True):
    """Asks for a leg's statistics."""

    leg: LegId


Command = AnswerMeta | OfferMeta | AcceptMetaAnswer | AnswerBrowser | Join | Part | Play | Close | GetStats


class Request(Struct, frozen=True, tag=True):
    """A command, and the number that its reply will carry."""

    id: int
    command: Command


class Reply(Struct, frozen=True, tag=True):
    """The command was carried out."""

    id: int
    sdp: str | None = None
    stats: LegStats | None = None


class Failure(Struct, frozen=True, tag=True):
    """The command raised a `MediaError`; see `errors.from_reason`."""

    id: int
    reason: str
    detail: str


class Ready(Struct, frozen=True, tag=True):
    """The worker takes commands now."""


class NotReady(Struct, frozen=True, tag=True):
    """The worker cannot work, and ends: a port is taken, or the address is not ours."""

    detail: str


class Beat(Struct, frozen=True, tag=True):
    """The worker's loop turns."""

    legs: int
    #: How much later than wanted the loop came to send this.
    lag_ms: float


ToWorker = Start | Request
Event = LegConnected | LegFailed | DtmfReceived
FromWorker = Ready | NotReady | Beat | Reply | Failure | LegConnected | LegFailed | DtmfReceived

_encoder: Final = msgspec.msgpack.Encoder()
to_worker: Final = msgspec.msgpack.Decoder(ToWorker)
from_worker: Final = msgspec.msgpack.Decoder(FromWorker)


def pack(message: ToWorker | FromWorker) -> bytes:
    """Return the frame of a message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


async def read(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next frame's body; None if the other end is gone, or writes nonsense."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return await reader.readexactly(size) if size <= MAX_FRAME_BYTES else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
