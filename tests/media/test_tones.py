"""Tones: the right pitch and rhythm, in packets that an Opus decoder takes."""

import math
from array import array

import av
import pytest

from media.model import Tone
from media.rtp import FRAME
from media.tones import RINGBACK_HZ, encode, encode_tones


def decoded(packets: tuple[bytes, ...]) -> "array[int]":
    decoder = av.CodecContext.create("libopus", "r")
    assert isinstance(decoder, av.AudioCodecContext)
    decoder.format, decoder.layout, decoder.sample_rate = (
        av.AudioFormat("s16"),
        av.AudioLayout("mono"),
        48_000,
    )
    samples = array("h")
    for packet in packets:
        for frame in decoder.decode(av.Packet(packet)):
            samples.frombytes(bytes(frame.planes[0])[: 2 * frame.samples])
    return samples


def level(samples: "array[int]", hz: float) -> float:
    """Return the amplitude at one frequency, from 0 to 1."""
    step = 2 * math.pi * hz / 48_000
    real = sum(value * math.cos(step * n) for n, value in enumerate(samples))
    imaginary = sum(value * math.sin(step * n) for n, value in enumerate(samples))
    return 2 * math.hypot(real, imaginary) / len(samples) / 32_767


@pytest.mark.parametrize(("tone", "seconds"), [(Tone.RINGBACK, 5.0), (Tone.HOLD, 6.4)])
def test_a_round_of_a_tone_is_packets_of_20_ms_that_a_narrow_peer_can_take(tone: Tone, seconds: float) -> None:
    packets = encode_tones()[tone]

    assert len(packets) == seconds * 50
    assert all(0 < len(packet) <= 200 for packet in packets)
    assert sum(map(len, packets)) * 8 / seconds < 30_000


def test_every_tone_is_there() -> None:
    assert set(encode_tones()) == set(Tone)


def test_ringback_is_one_second_of_425_hz_and_four_of_silence() -> None:
    samples = decoded(encode_tones()[Tone.RINGBACK])
    second = 48_000

    assert level(samples[second // 4 : second * 3 // 4], RINGBACK_HZ) == pytest.approx(0.25, abs=0.08)
    assert max(map(abs, samples[second * 5 // 4 : second * 4])) < 100


def test_hold_begins_with_its_first_note_and_ends_in_a_rest() -> None:
    samples = decoded(encode_tones()[Tone.HOLD])

    assert level(samples[4_800:24_000], 523.25) > 0.02
    assert max(map(abs, samples[-24_000:])) < 200


def test_samples_that_fill_no_packet_are_left_out() -> None:
    assert len(encode(array("h", bytes(2 * (2 * FRAME + 100))))) == 2
