"""RTCP of one leg: build our compound reports, read the peer's. Pure. RTCP ends here and is never forwarded.

A report describes sequence numbers and losses as seen on this leg. Forwarding the other leg's reports would be wrong,
because every leg has its own numbering.

NTP time here is the event loop's clock, not the wall clock: RFC 3550 §4 allows it, only differences are used, and it
never jumps.
"""

from dataclasses import dataclass
from typing import Final

from aiortc.rtp import (
    RtcpPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
    clamp_packets_lost,
)

from media.rtp import CLOCK_RATE_HZ, IncomingStream, OutgoingStream

_SDES_CNAME: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport:
    """Contents of the peer's RTCP; None: not reported."""

    #: Middle 32 bits of the NTP time in the peer's sender report; we echo them in ours.
    sender_report: int | None = None
    lost: int | None = None
    jitter_ms: float | None = None
    round_trip_ms: float | None = None


def ntp(now: float) -> int:
    """Return loop time as a 64-bit NTP timestamp."""
    return int(now * (1 << 32)) & 0xFFFFFFFFFFFFFFFF


def _middle(timestamp: int) -> int:
    return (timestamp >> 16) & 0xFFFFFFFF


def build(
    outgoing: OutgoingStream,
    incoming: IncomingStream,
    *,
    cname: str,
    sender_report: int | None,
    sender_report_at: float,
    now: float,
) -> bytes:
    """Return a compound report: SR if we have sent RTP, else RR; followed by SDES (RFC 3550 §6.1).

    `sender_report` and `sender_report_at` are the peer's last sender report and when it arrived.
    """
    blocks = []
    reception = incoming.report()
    if reception is not None:
        blocks.append(
            RtcpReceiverInfo(
                ssrc=reception.ssrc,
                fraction_lost=reception.fraction_lost,
                packets_lost=clamp_packets_lost(reception.lost),
                highest_sequence=reception.highest_sequence,
                jitter=reception.jitter,
                lsr=sender_report or 0,
                dlsr=0 if sender_report is None else int((now - sender_report_at) * 65_536) & 0xFFFFFFFF,
            )
        )
    report: RtcpSrPacket | RtcpRrPacket
    if outgoing.packets:
        info = RtcpSenderInfo(
            ntp_timestamp=ntp(now),
            rtp_timestamp=outgoing.timestamp(now),
            packet_count=outgoing.packets & 0xFFFFFFFF,
            octet_count=outgoing.octets & 0xFFFFFFFF,
        )
        report = RtcpSrPacket(ssrc=outgoing.ssrc, sender_info=info, reports=blocks)
    else:
        report = RtcpRrPacket(ssrc=outgoing.ssrc, reports=blocks)
    source = RtcpSourceInfo(ssrc=outgoing.ssrc, items=[(_SDES_CNAME, cname.encode())])
    return bytes(report) + bytes(RtcpSdesPacket(chunks=[source]))


def read(data: bytes, *, ssrc: int, now: float) -> PeerReport | None:
    """Return what a compound packet reports about our stream `ssrc`; None if it is malformed."""
    try:
        packets = RtcpPacket.parse(data)
    except Exception:  # a third-party parser fed by a peer: whatever it raises, the packet is bad
        return None
    sender_report: int | None = None
    block: RtcpReceiverInfo | None = None
    for packet in packets:
        if isinstance(packet, RtcpSrPacket):
            sender_report = _middle(packet.sender_info.ntp_timestamp)
        if isinstance(packet, RtcpSrPacket | RtcpRrPacket):
            block = next((report for report in packet.reports if report.ssrc == ssrc), block)
    if block is None:
        return PeerReport(sender_report=sender_report)
    round_trip: float | None = None
    if block.lsr:
        units = (_middle(ntp(now)) - block.lsr - block.dlsr) & 0xFFFFFFFF
        # More than half the range means negative: the clocks disagree, or the peer's figures are wrong.
        round_trip = units * 1000 / 65_536 if units < 0x80000000 else None
    return PeerReport(
        sender_report=sender_report,
        lost=block.packets_lost,
        jitter_ms=block.jitter * 1000 / CLOCK_RATE_HZ,
        round_trip_ms=round_trip,
    )
