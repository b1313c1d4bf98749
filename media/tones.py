"""Generated audio: Opus packets encoded once when a worker starts, played to legs that no join feeds.

All legs share one timer, which fires every 20 ms while any tone plays. A tone is one more source of the leg's outgoing
stream (see `rtp.py`), so it can start and stop at any time.
"""

import asyncio
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Final

import av

from media.bridge import Endpoint
from media.model import Tone
from media.rtp import FRAME, Packet

SAMPLE_RATE_HZ: Final = 48_000
FRAME_S: Final = 0.02
#: Packet sizes as for speech, because the peer may have asked for 20 kbit/s.
BIT_RATE: Final = 20_000
#: Ringback in Brazil: 425 Hz, 1 s on, 4 s off. Source: Anatel, tones of the switched telephone network.
RINGBACK_HZ: Final = 425.0
#: Hold: a slow arpeggio, soft enough to talk over: C5 E5 G5 A5 G5 E5 and a rest.
HOLD_NOTES_HZ: Final = (523.25, 659.25, 783.99, 880.0, 783.99, 659.25)
NOTE_S: Final = 0.8
_PEAK: Final = 32_767
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF


@cache
def encode_tones() -> Mapping[Tone, tuple[bytes, ...]]:
    """Return one cycle of every tone as Opus packets of 20 ms: mono, 48 kHz. Takes about 0.3 s."""
    return {Tone.RINGBACK: encode(_ringback()), Tone.HOLD: encode(_hold())}


def encode(samples: "array[int]") -> tuple[bytes, ...]:
    """Encode int16 mono samples at 48 kHz as Opus packets of 960 samples; an incomplete last packet is dropped."""
    encoder = av.CodecContext.create("libopus", "w")
    assert isinstance(encoder, av.AudioCodecContext)
    encoder.format = av.AudioFormat("s16")
    encoder.layout = av.AudioLayout("mono")
    encoder.sample_rate = SAMPLE_RATE_HZ
    encoder.bit_rate = BIT_RATE
    encoder.time_base = Fraction(1, SAMPLE_RATE_HZ)
    encoder.options = {"application": "audio", "frame_duration": "20"}
    packets: list[bytes] = []
    for start in range(0, len(samples) - FRAME + 1, FRAME):
        frame = av.AudioFrame(format="s16", layout="mono", samples=FRAME)
        frame.planes[0].update(samples[start : start + FRAME].tobytes())
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, start, encoder.time_base
        packets += (bytes(packet) for packet in encoder.encode(frame))
    return tuple(packets)


def _ringback() -> "array[int]":
    on = _note(((RINGBACK_HZ, 0.25),), seconds=1.0, attack_s=0.01, release_s=0.01)
    return on + _silence(4.0)


def _hold() -> "array[int]":
    melody = array("h")
    for hz in HOLD_NOTES_HZ:
        melody += _note(((hz, 0.08), (hz / 2, 0.05)), seconds=NOTE_S, attack_s=0.05, release_s=0.6)
    return melody + _silence(2 * NOTE_S)


def _note(
    partials: Iterable[tuple[float, float]], *, seconds: float, attack_s: float, release_s: float
) -> "array[int]":
    """Return a sum of sines (frequency, amplitude from 0 to 1) that fades in and out."""
    count = int(seconds * SAMPLE_RATE_HZ)
    waves = [(2 * math.pi * hz / SAMPLE_RATE_HZ, level * _PEAK) for hz, level in partials]
    rise, fall = attack_s * SAMPLE_RATE_HZ, release_s * SAMPLE_RATE_HZ
    sine = math.sin
    return array(
        "h",
        (
            int(min(1.0, n / rise, (count - n) / fall) * sum(level * sine(step * n) for step, level in waves))
            for n in range(count)
        ),
    )


def _silence(seconds: float) -> "array[int]":
    return array("h", bytes(2 * int(seconds * SAMPLE_RATE_HZ)))


class _Playing:
    """A tone being played to one leg. The object itself is the source of the packets."""

    __slots__ = ("_began_at", "_count", "_endpoint", "_frames", "_index", "tone")

    def __init__(self, endpoint: Endpoint, tone: Tone, frames: Sequence[bytes], now: float) -> None:
        self.tone = tone
        self._endpoint = endpoint
        self._frames = frames
        self._began_at = now
        self._index = -1
        self._count = 0

    def advance(self, now: float) -> None:
        """Send the packet that is due; after a stall, skip packets to keep time."""
        self._index = max(self._index + 1, int((now - self._began_at) / FRAME_S))
        packet = Packet(
            payload_type=0,
            marker=0,
            sequence=self._count & _U16,
            timestamp=self._index * FRAME & _U32,
            ssrc=0,
            payload=self._frames[self._index % len(self._frames)],
        )
        self._count += 1
        self._endpoint.speak(self, packet, now=now)


class TonePlayer:
    """Play tones to any number of legs, paced by one timer."""

    def __init__(self, tones: Mapping[Tone, tuple[bytes, ...]]) -> None:
        self._tones = tones
        self._playing: dict[Endpoint, _Playing] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._due = 0.0

    def play(self, endpoint: Endpoint, tone: Tone | None) -> None:
        """Play this tone from the beginning, or continue if it is playing already; None stops."""
        current = self._playing.get(endpoint)
        if tone is None:
            self._playing.pop(endpoint, None)
        elif current is None or current.tone is not tone:
            now = self._loop.time()
            self._playing[endpoint] = _Playing(endpoint, tone, self._tones[tone], now)
            if self._timer is None:
                self._due = now
                self._timer = self._loop.call_soon(self._tick)

    def close(self) -> None:
        """Stop everything."""
        self._playing.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        if not self._playing:
            self._timer = None
            return
        # A timer may fire slightly early; time must not step back.
        now = max(self._due, self._loop.time())
        for playing in tuple(self._playing.values()):
            playing.advance(now)
        self._due = max(self._due + FRAME_S, now)
        self._timer = self._loop.call_at(self._due, self._tick)
