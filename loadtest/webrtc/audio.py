"""Opus tones to speak and a way to measure what is heard.

Sound is int16, mono, 48 kHz; one packet is 960 samples = 20 ms. A tone is encoded once and then only sent.
Measuring decodes a short stretch of packets every `every_s` seconds, not all of them: one core has to carry many
simulated people.
"""

import array
import cmath
import fractions
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import av

SAMPLE_RATE_HZ = 48_000
SAMPLES_PER_PACKET = 960
PACKET_S = 0.02
FULL_SCALE = 32767.0
#: What a level is when there is nothing at all.
SILENCE_DBFS = -100.0

_LOOP_PACKETS = 50  # one second: any whole number of Hz comes round without a click
_LEAD_PACKETS = 10  # encoded first and thrown away, so that the loop starts with a settled encoder
_DECIMATION = 6  # analysis at 8 kHz
_ANALYSIS_HZ = SAMPLE_RATE_HZ // _DECIMATION
_WINDOW = 512  # 64 ms of analysis samples
#: Packets decoded for one measurement: one to settle the decoder after the gap, four to look at.
STRETCH_PACKETS = 5


@lru_cache(maxsize=64)
def tone_packets(hz: int, level: float = 0.2) -> tuple[bytes, ...]:
    """Return one second of Opus packets of a sine that can be repeated for ever.

    `level` is a share of full scale. Raises: ValueError for a frequency that a phone line does not carry.
    """
    if not 100 <= hz <= 3400:
        raise ValueError("a tone lies between 100 and 3400 Hz")
    wave = _sine(hz, level)
    encoder = _encoder()
    packets: list[bytes] = []
    for index in range(_LEAD_PACKETS + _LOOP_PACKETS):
        start = index * SAMPLES_PER_PACKET % SAMPLE_RATE_HZ
        packets += _encode(encoder, wave[start : start + SAMPLES_PER_PACKET], index)
    return tuple(packets[_LEAD_PACKETS : _LEAD_PACKETS + _LOOP_PACKETS])


@lru_cache(maxsize=1)
def silence_packet() -> bytes:
    """Return one Opus packet of digital silence."""
    encoder = _encoder()
    empty = array.array("h", bytes(2 * SAMPLES_PER_PACKET))
    return [packet for index in range(5) for packet in _encode(encoder, empty, index)][-1]


def _sine(hz: int, level: float) -> "array.array[int]":
    step = 2 * math.pi * hz / SAMPLE_RATE_HZ
    peak = level * FULL_SCALE
    return array.array("h", (int(peak * math.sin(step * index)) for index in range(SAMPLE_RATE_HZ)))


def _encoder() -> av.AudioCodecContext:
    encoder = av.AudioCodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = SAMPLE_RATE_HZ, "mono", "s16"
    encoder.bit_rate = 24_000
    encoder.time_base = fractions.Fraction(1, SAMPLE_RATE_HZ)
    encoder.options = {"application": "voip", "frame_duration": "20"}
    return encoder


def _encode(encoder: av.AudioCodecContext, samples: "array.array[int]", index: int) -> list[bytes]:
    frame = av.AudioFrame(format="s16", layout="mono", samples=SAMPLES_PER_PACKET)
    frame.planes[0].update(samples.tobytes())
    frame.sample_rate = SAMPLE_RATE_HZ
    frame.pts = index * SAMPLES_PER_PACKET
    frame.time_base = fractions.Fraction(1, SAMPLE_RATE_HZ)
    return [bytes(packet) for packet in encoder.encode(frame)]


class OpusDecoder:
    """Decodes packets to 8 kHz analysis samples."""

    def __init__(self) -> None:
        self._codec = av.AudioCodecContext.create("libopus", "r")
        self._codec.sample_rate, self._codec.layout, self._codec.format = SAMPLE_RATE_HZ, "mono", "s16"

    def decode(self, packet: bytes) -> "array.array[int]":
        """Return the packet's samples at 8 kHz; an undecodable packet gives none."""
        samples = array.array("h")
        try:
            frames = self._codec.decode(av.Packet(packet))
        except (av.FFmpegError, ValueError):
            return samples
        for frame in frames:
            whole = array.array("h", bytes(frame.planes[0])[: 2 * frame.samples])
            samples.extend(whole[::_DECIMATION])
        return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """What one measured stretch contained."""

    level_dbfs: float
    #: The strongest frequency; None in (near) silence.
    tone_hz: float | None
    #: Share of the energy that lies at that frequency, 0 to 1. A pure tone is above 0.9.
    purity: float


QUIET = Sound(level_dbfs=SILENCE_DBFS, tone_hz=None, purity=0.0)


def analyse(samples: Sequence[int]) -> Sound:
    """Return the level and the dominant tone of the last 64 ms of 8 kHz samples."""
    window = samples[-_WINDOW:]
    if len(window) < _WINDOW:
        return QUIET
    power = sum(sample * sample for sample in window) / _WINDOW
    level = 10 * math.log10(power / FULL_SCALE**2) if power > 0 else SILENCE_DBFS
    if level < -60:
        return Sound(level_dbfs=max(level, SILENCE_DBFS), tone_hz=None, purity=0.0)
    shape = _hann()
    spectrum = _fft([sample * weight for sample, weight in zip(window, shape, strict=True)])
    energy = [abs(value) ** 2 for value in spectrum[: _WINDOW // 2]]
    peak = max(range(2, len(energy) - 2), key=energy.__getitem__)
    near, total = sum(energy[peak - 2 : peak + 3]), sum(energy[2:])
    return Sound(level_dbfs=level, tone_hz=_refine(energy, peak), purity=near / total if total else 0.0)


def _refine(energy: Sequence[float], peak: int) -> float:
    """Place the peak between the bins with a parabola through three logarithms."""
    left, middle, right = (math.log(energy[peak + step] + 1e-9) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = 0.5 * (left - right) / bend if bend else 0.0
    return (peak + offset) * _ANALYSIS_HZ / _WINDOW


@lru_cache(maxsize=1)
def _hann() -> tuple[float, ...]:
    return tuple(0.5 - 0.5 * math.cos(2 * math.pi * index / _WINDOW) for index in range(_WINDOW))


@lru_cache(maxsize=16)
def _twiddles(size: int) -> tuple[complex, ...]:
    return tuple(cmath.exp(-2j * math.pi * index / size) for index in range(size // 2))


def _fft(values: Sequence[float | complex]) -> list[complex]:
    """Radix-2 transform of a power of two of values (about 1 ms for 512)."""
    size = len(values)
    if size == 1:
        return [complex(values[0])]
    even, odd = _fft(values[::2]), _fft(values[1::2])
    turned = [twiddle * value for twiddle, value in zip(_twiddles(size), odd, strict=True)]
    plus = [a + b for a, b in zip(even, turned, strict=True)]
    return plus + [a - b for a, b in zip(even, turned, strict=True)]
