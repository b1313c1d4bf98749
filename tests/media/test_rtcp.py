"""RTCP: our reports are what others read, and theirs are understood."""

import random

import pytest
from aiortc.rtp import (
    RtcpByePacket,
    RtcpPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSrPacket,
)
from hypothesis import given
from hypothesis import strategies as st

from media import rtcp
from media.rtp import IncomingStream, OutgoingStream, Packet

NOW = 1000.0


def build(*, sent: int = 0, received: int = 0, sender_report: int | None = None) -> tuple[OutgoingStream, bytes]:
    outgoing, incoming = OutgoingStream(random.Random(1)), IncomingStream()
    for n in range(sent):
        outgoing.next("a", Packet(111, 0, n, n * 960, 5, b"12345"), payload_type=111, now=NOW)
    for n in range(received):
        incoming.count(Packet(111, 0, n, n * 960, 77, b"x"), steady=True, now=NOW)
    data = rtcp.build(
        outgoing,
        incoming,
        cname="name",
        sender_report=sender_report,
        sender_report_at=NOW - 0.5,
        now=NOW,
    )
    return outgoing, data


def test_a_leg_that_sent_nothing_reports_as_a_receiver() -> None:
    outgoing, data = build(received=3)
    report, names = RtcpPacket.parse(data)

    assert isinstance(report, RtcpRrPacket)
    assert isinstance(names, RtcpSdesPacket)
    assert report.ssrc == names.chunks[0].ssrc == outgoing.ssrc
    assert names.chunks[0].items == [(1, b"name")]
    assert [(block.ssrc, block.highest_sequence, block.packets_lost) for block in report.reports] == [(77, 2, 0)]


def test_a_leg_that_sent_reports_what_and_when() -> None:
    _, data = build(sent=4, received=1, sender_report=0x12345678)
    report, _ = RtcpPacket.parse(data)

    assert isinstance(report, RtcpSrPacket)
    assert (report.sender_info.packet_count, report.sender_info.octet_count) == (4, 20)
    assert report.sender_info.ntp_timestamp == rtcp.ntp(NOW)
    assert (report.reports[0].lsr, report.reports[0].dlsr) == (0x12345678, 32_768)


def test_a_leg_that_received_nothing_reports_on_nobody() -> None:
    report, _ = RtcpPacket.parse(build()[1])

    assert isinstance(report, RtcpRrPacket)
    assert report.reports == []


def block(*, ssrc: int = 5, lsr: int = 0, dlsr: int = 0) -> RtcpReceiverInfo:
    return RtcpReceiverInfo(
        ssrc=ssrc, fraction_lost=0, packets_lost=3, highest_sequence=9, jitter=96, lsr=lsr, dlsr=dlsr
    )


def test_the_peers_report_tells_loss_jitter_and_round_trip() -> None:
    sent_at = (rtcp.ntp(NOW) >> 16) & 0xFFFFFFFF
    data = bytes(RtcpRrPacket(ssrc=9, reports=[block(lsr=sent_at, dlsr=6_554)]))
    report = rtcp.read(data, ssrc=5, now=NOW + 0.15)

    assert report is not None
    assert (report.lost, report.jitter_ms) == (3, 2.0)
    assert report.round_trip_ms == pytest.approx(50, abs=0.1)


def test_a_round_trip_of_less_than_nothing_is_not_believed() -> None:
    sent_at = (rtcp.ntp(NOW) >> 16) & 0xFFFFFFFF
    report = rtcp.read(bytes(RtcpRrPacket(ssrc=9, reports=[block(lsr=sent_at, dlsr=99_999)])), ssrc=5, now=NOW)

    assert report is not None
    assert report.round_trip_ms is None


def test_a_report_on_somebody_else_says_nothing_of_us() -> None:
    info = RtcpSenderInfo(ntp_timestamp=0x0001_2345_6789_0000, rtp_timestamp=0, packet_count=0, octet_count=0)
    data = bytes(RtcpSrPacket(ssrc=9, sender_info=info, reports=[block(ssrc=6)])) + bytes(RtcpByePacket([9]))

    assert rtcp.read(data, ssrc=5, now=NOW) == rtcp.PeerReport(sender_report=0x23456789)


def test_a_report_before_our_first_has_no_round_trip() -> None:
    report = rtcp.read(bytes(RtcpRrPacket(ssrc=9, reports=[block()])), ssrc=5, now=NOW)

    assert report is not None
    assert (report.lost, report.round_trip_ms) == (3, None)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda data: b"\x81\xc9\x00\x07" + data))
def test_any_bytes_are_a_report_or_none(data: bytes) -> None:
    read = rtcp.read(data, ssrc=5, now=NOW)

    assert read is None or isinstance(read, rtcp.PeerReport)
