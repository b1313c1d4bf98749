"""RTP, RTCP and telephone-event packets (RFC 3550, RFC 4733): only what a simulated phone needs.

Pure: no sockets, no clock, no keys.
"""

import struct
from dataclasses import dataclass

#: Digits by telephone-event code (RFC 4733 §3.2).
DTMF_DIGITS = "0123456789*#ABCD"
HEADER = struct.Struct("!BBHLL")
_EVENT = struct.Struct("!BBH")
NTP_EPOCH_OFFSET_S = 2_208_988_800


@dataclass(frozen=True, slots=True, kw_only=True)
class Payloads:
    """The negotiated payload types."""

    opus: int = 111
    dtmf: int | None = 126


@dataclass(frozen=True, slots=True, kw_only=True)
class RtpPacket:
    """One parsed RTP packet."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    marker: bool
    payload: bytes


def is_rtcp(datagram: bytes) -> bool:
    """Return whether a datagram is RTCP, on a port shared with RTP (RFC 5761 §4)."""
    return len(datagram) > 1 and 192 <= datagram[1] <= 223


def parse_rtp(data: bytes) -> RtpPacket | None:
    """Return the packet, or None if it is not well-formed RTP."""
    if len(data) < HEADER.size or data[0] >> 6 != 2:
        return None
    first, second, sequence, timestamp, ssrc = HEADER.unpack_from(data)
    start = HEADER.size + 4 * (first & 0x0F)
    if first & 0x10:
        if len(data) < start + 4:
            return None
        start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
    end = len(data) - (data[-1] if first & 0x20 else 0)
    if start > end:
        return None
    return RtpPacket(
        payload_type=second & 0x7F,
        sequence=sequence,
        timestamp=timestamp,
        ssrc=ssrc,
        marker=bool(second & 0x80),
        payload=data[start:end],
    )


def build_rtp(packet: RtpPacket) -> bytes:
    """Return a packet's bytes, without extensions."""
    second = packet.payload_type | (0x80 if packet.marker else 0)
    return HEADER.pack(0x80, second, packet.sequence, packet.timestamp, packet.ssrc) + packet.payload


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderCounts:
    """The contents of a sender report, except the time."""

    ssrc: int
    rtp_timestamp: int
    packets: int
    octets: int


def sender_report(counts: SenderCounts, *, now: float, cname: str) -> bytes:
    """Return a compound SR + SDES packet (RFC 3550 §6.4.1); `now` is UNIX seconds."""
    ntp = int((now + NTP_EPOCH_OFFSET_S) * 2**32) & 0xFFFFFFFFFFFFFFFF
    report = struct.pack(
        "!BBHLQLLL",
        0x80,
        200,
        6,
        counts.ssrc,
        ntp,
        counts.rtp_timestamp & 0xFFFFFFFF,
        counts.packets & 0xFFFFFFFF,
        counts.octets & 0xFFFFFFFF,
    )
    name = cname.encode()
    chunk = struct.pack("!LBB", counts.ssrc, 1, len(name)) + name + b"\0"
    chunk += bytes(-len(chunk) % 4)
    return report + struct.pack("!BBH", 0x81, 202, len(chunk) // 4) + chunk


def dtmf_payload(digit: str, *, duration: int, end: bool) -> bytes:
    """Return a telephone-event payload; `duration` is in units of 1/8000 s.

    Raises: ValueError for a character that is not a keypad digit.
    """
    return _EVENT.pack(DTMF_DIGITS.index(digit), (0x80 if end else 0) | 10, duration)


def dtmf_digit(payload: bytes) -> str | None:
    """Return the digit of a telephone-event payload; None if it is another event."""
    if len(payload) < _EVENT.size or payload[0] >= len(DTMF_DIGITS):
        return None
    return DTMF_DIGITS[payload[0]]
