"""Tones are recognised, packets counted, digits heard."""

import array
import asyncio
import math
import random

import pytest

from loadtest.webrtc.audio import OpusDecoder, analyse, silence_packet, tone_packets
from loadtest.webrtc.rtp import (
    DTMF_DIGITS,
    Payloads,
    RtpPacket,
    SenderCounts,
    build_rtp,
    dtmf_digit,
    dtmf_payload,
    is_rtcp,
    parse_rtp,
    sender_report,
)
from loadtest.webrtc.voice import Ear, Talker


def packet(sequence: int, payload: bytes, *, timestamp: int | None = None, payload_type: int = 111) -> RtpPacket:
    return RtpPacket(
        payload_type=payload_type,
        sequence=sequence & 0xFFFF,
        timestamp=sequence * 960 if timestamp is None else timestamp,
        ssrc=7,
        marker=False,
        payload=payload,
    )


@pytest.mark.parametrize("hz", [300, 440, 620, 850, 1000, 2100])
def test_a_tone_survives_opus(hz: int) -> None:
    decoder = OpusDecoder()
    samples = [sample for one in tone_packets(hz)[:6] for sample in decoder.decode(one)]
    sound = analyse(samples)
    assert sound.tone_hz == pytest.approx(hz, abs=6)
    assert sound.purity > 0.9
    assert -26 < sound.level_dbfs < -14


def test_silence_has_no_tone() -> None:
    decoder = OpusDecoder()
    samples = [sample for _ in range(6) for sample in decoder.decode(silence_packet())]
    assert analyse(samples).tone_hz is None
    assert analyse([]).tone_hz is None


def test_noise_is_not_a_pure_tone() -> None:
    dice = random.Random(3)
    assert analyse([dice.randint(-9000, 9000) for _ in range(640)]).purity < 0.3


def test_of_two_tones_the_louder_is_dominant() -> None:
    wave = [
        int(8000 * math.sin(2 * math.pi * 700 * n / 8000) + 2000 * math.sin(2 * math.pi * 1500 * n / 8000))
        for n in range(640)
    ]
    assert analyse(array.array("h", wave)).tone_hz == pytest.approx(700, abs=5)


@pytest.mark.parametrize("hz", [0, 99, 3401])
def test_a_tone_must_fit_a_phone_line(hz: int) -> None:
    with pytest.raises(ValueError, match="tone"):
        tone_packets(hz)


def test_an_undecodable_packet_is_silence_not_an_error() -> None:
    assert len(OpusDecoder().decode(b"")) == 0


def test_rtp_comes_back_as_it_went() -> None:
    sent = packet(65535, b"abc")
    assert parse_rtp(build_rtp(sent)) == sent


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x00" * 20, b"\x9f" + b"\x00" * 11, b"\xa0" + b"\x00" * 11 + b"\xff"])
def test_malformed_rtp_is_none(data: bytes) -> None:
    assert parse_rtp(data) is None


def test_header_extensions_and_padding_are_skipped() -> None:
    plain = build_rtp(packet(1, b""))
    data = bytes([0xB0]) + plain[1:] + b"\xbe\xde\x00\x01\x10\x00\x00\x00" + b"voice" + b"\x00\x00\x03"
    parsed = parse_rtp(data)
    assert parsed is not None
    assert parsed.payload == b"voice"


def test_a_sender_report_is_rtcp() -> None:
    report = sender_report(SenderCounts(ssrc=1, rtp_timestamp=2, packets=3, octets=4), now=1_790_000_000.5, cname="x")
    assert is_rtcp(report)
    assert len(report) % 4 == 0
    assert int.from_bytes(report[8:12], "big") == 1_790_000_000 + 2_208_988_800


@pytest.mark.parametrize("digit", DTMF_DIGITS)
def test_every_digit_has_a_code(digit: str) -> None:
    assert dtmf_digit(dtmf_payload(digit, duration=160, end=False)) == digit


def test_the_ear_counts_losses_but_not_reordering() -> None:
    ear = Ear(Payloads(), every_s=None)
    for sequence in (65534, 65535, 2, 1, 3):
        ear.hear(packet(sequence, b"x"), now=0.0)
    assert (ear.packets, ear.lost) == (5, 2)


def test_the_ear_hears_a_tone_after_five_packets() -> None:
    ear = Ear(Payloads(), every_s=0.25)
    for index, payload in enumerate(tone_packets(620)[:5]):
        ear.hear(packet(index, payload), now=index * 0.02)
    assert ear.hears_tone(620)
    assert not ear.hears_tone(440)
    assert ear.first_audio_at == 0.0
    assert len(ear.sounds) == 1


def test_a_repeated_digit_is_one_digit_until_its_timestamp_moves() -> None:
    ear = Ear(Payloads())
    for timestamp in (100, 100, 100, 5000, 5000):
        payload = dtmf_payload("5", duration=160, end=False)
        ear.hear(packet(1, payload, timestamp=timestamp, payload_type=126), now=0.0)
    assert ear.digits == "55"


def test_an_unknown_payload_type_is_counted() -> None:
    ear = Ear(Payloads())
    ear.hear(packet(1, b"x", payload_type=0), now=0.0)
    assert (ear.unexpected, ear.audio_packets) == (1, 0)


class Line:
    """Collects what a talker sends, with the time."""

    def __init__(self, *, tone_hz: int | None = 440) -> None:
        self.rtp: list[RtpPacket] = []
        self.rtcp: list[bytes] = []
        self.talker = Talker(
            send=self._take,
            send_rtcp=self.rtcp.append,
            tone_hz=tone_hz,
            clock=lambda: 0.0,
            ssrc=7,
        )

    def _take(self, data: bytes) -> None:
        parsed = parse_rtp(data)
        assert parsed is not None
        self.rtp.append(parsed)


async def test_a_talker_sends_every_20_ms() -> None:
    line = Line()
    line.talker.start()
    await asyncio.sleep(0.31)
    line.talker.stop()
    sent = len(line.rtp)
    assert 13 <= sent <= 17
    assert line.rtp[0].marker
    assert not line.rtp[1].marker
    steps = [(b.timestamp - a.timestamp) & 0xFFFFFFFF for a, b in zip(line.rtp, line.rtp[1:], strict=False)]
    assert set(steps) == {960}
    assert line.rtcp
    await asyncio.sleep(0.05)
    assert len(line.rtp) == sent


async def test_digits_are_sent_and_heard() -> None:
    line, ear = Line(), Ear(Payloads())
    line.talker.start()
    line.talker.press("1#")
    async with asyncio.timeout(3):
        while ear.digits != "1#":
            await asyncio.sleep(0.02)
            for one in line.rtp:
                ear.hear(one, now=0.0)
            line.rtp.clear()
    line.talker.stop()


async def test_a_wrong_digit_is_refused_whole() -> None:
    line = Line()
    with pytest.raises(ValueError, match="substring"):
        line.talker.press("12x")
    line.talker.start()
    await asyncio.sleep(0.1)
    line.talker.stop()
    assert all(one.payload_type == 111 for one in line.rtp)


async def test_the_echo_replaces_the_tone_after_its_delay() -> None:
    line = Line()
    line.talker.echo_after(0.06)
    line.talker.start()
    loop = asyncio.get_running_loop()
    for index in range(5):
        line.talker.repeat(b"heard%d" % index, now=loop.time())
    await asyncio.sleep(0.25)
    line.talker.stop()
    payloads = [one.payload for one in line.rtp]
    start = payloads.index(b"heard0")
    assert 2 <= start <= 6
    assert payloads[start : start + 5] == [b"heard%d" % index for index in range(5)]
    assert set(payloads[start + 5 :]) == {silence_packet()}
