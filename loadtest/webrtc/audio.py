"""Opus tones to send, and the measurement of received audio.

Audio is int16, mono, 48 kHz; one packet is 960 samples = 20 ms. A tone is encoded once and then only sent. To measure,
a short stretch of packets is decoded every `every_s` seconds, not all of them: one core has to carry many simulated
people.
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
#: Level reported for complete silence.
SILENCE_DBFS = -100.0

_LOOP_PACKETS = 50  # one second: any whole number of Hz repeats without a click
_LEAD_PACKETS = 10  # encoded first and discarded, so that the loop starts with a settled encoder
_DECIMATION = 6  # analysis at 8 kHz
_ANALYSIS_HZ = SAMPLE_RATE_HZ // _DECIMATION
_WINDOW = 512  # 64 ms of analysis samples
#: Packets decoded for one measurement: one to settle the decoder after the gap, four to analyse.
STRETCH_PACKETS = 5


@lru_cache(maxsize=64)
def tone_packets(hz: int, level: float = 0.2) -> tuple[bytes, ...]:
    """Return one second of a sine as Opus packets, which can be repeated endlessly.

    `level` is a fraction of full scale. Raises: ValueError for a frequency outside the telephone band.
    """
    if not 100 <= hz <= 3400:
        raise ValueError("a tone must be from 100 to 3400 Hz")
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
    """Decode packets to 8 kHz samples for analysis."""

    def __init__(self) -> None:
        self._codec = av.AudioCodecContext.create("libopus", "r")
        self._codec.sample_rate, self._codec.layout, self._codec.format = SAMPLE_RATE_HZ, "mono", "s16"

    def decode(self, packet: bytes) -> "array.array[int]":
        """Return the packet's samples at 8 kHz; none if it cannot be decoded."""
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
    """The result of one measurement."""

    level_dbfs: float
    #: The strongest frequency; None in (near) silence.
    tone_hz: float | None
    #: Share of the energy at that frequency, 0 to 1. A pure tone is above 0.9.
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
    """Interpolate the peak between bins with a parabola through three logarithms."""
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
    """Radix-2 FFT of a power-of-two number of values (about 1 ms for 512)."""
    size = len(values)
    if size == 1:
        return [complex(values[0])]
    even, odd = _fft(values[::2]), _fft(values[1::2])
    turned = [twiddle * value for twiddle, value in zip(_twiddles(size), odd, strict=True)]
    plus = [a + b for a, b in zip(even, turned, strict=True)]
    return plus + [a - b for a, b in zip(even, turned, strict=True)]
