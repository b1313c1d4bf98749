"""The RTP side of a leg, and how two legs are joined. Runs inside the datagram handler: no task, no queue.

An `Endpoint` decrypts what arrives, counts it, and hands it to the joined leg, which renumbers, encrypts and sends it.
RTCP ends here; key presses (DTMF) are reported. How a leg connects is in `leg.py`, which tone plays when in `tones.py`.

A packet costs about 30 us, half of it here and in `rtp.py`, so the packet path is written for speed: a callable kept in
an attribute is copied to a local variable before the call (`x = self._x; x(data)`), which saves an attribute lookup in
the class, and a `Packet` is unpacked, which is cheaper than reading its fields.

Nothing is sent to a leg before its first join or tone: Meta treats media before the accept as an error.
"""

import random
from collections.abc import Callable
from typing import Final

import pylibsrtp

from media import rtcp
from media.dtmf import DtmfReader
from media.ice import Budget, Drops
from media.rtp import IncomingStream, OutgoingStream, Packet, parse
from media.sdp import Payloads
from media.srtp import SrtpKeys
from media.stats import LegStats

#: Sources (SSRCs) that one peer may use over its lifetime, for RTP and for RTCP; each costs a crypto context.
MAX_SOURCES: Final = 16
#: Key presses reported per second; no person types faster, and each one is a message to the gateway.
MAX_DIGITS_PER_S: Final = 25


class Endpoint:
    """The RTP and RTCP of one leg."""

    __slots__ = (
        "_created_at",
        "_digit_budget",
        "_digits",
        "_dtmf",
        "_first_media_at",
        "_incoming",
        "_keys",
        "_now",
        "_outgoing",
        "_peer_report",
        "_profile",
        "_receive",
        "_reporters",
        "_rtcp_received",
        "_rtcp_sent",
        "_rtp_bytes_received",
        "_rtp_bytes_sent",
        "_rtp_received",
        "_send",
        "_sender_report",
        "_sender_report_at",
        "_sources",
        "_transmit",
        "cname",
        "connected_at",
        "drops",
        "heard_at",
        "joined_at",
        "may_report",
        "on_digit",
        "peer",
    )

    def __init__(
        self,
        *,
        transmit: Callable[[bytes], None],
        on_digit: Callable[[str], None],
        drops: Drops,
        may_report: bool,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._transmit = transmit
        self._now = now
        self.on_digit = on_digit
        self.drops = drops
        self.cname = f"{rng.getrandbits(64):016x}"
        #: Whether RTCP may be sent; on a Meta leg only after the first join or tone.
        self.may_report = may_report
        #: The leg that receives this leg's audio.
        self.peer: Endpoint | None = None
        #: When the last datagram with valid credentials arrived.
        self.heard_at = now()
        self.connected_at: float | None = None
        self._created_at = self.heard_at
        self._first_media_at: float | None = None
        self.joined_at = self.heard_at
        self._keys: SrtpKeys | None = None
        self._profile: str | None = None
        self._send: Payloads | None = None
        self._receive: Payloads | None = None
        self._outgoing = OutgoingStream(rng)
        self._incoming = IncomingStream()
        self._sources: dict[bytes, object] = {}
        self._reporters: set[bytes] = set()
        self._dtmf = DtmfReader()
        self._digits = 0
        self._digit_budget = Budget(MAX_DIGITS_PER_S)
        self._sender_report: int | None = None
        self._sender_report_at = 0.0
        self._peer_report = rtcp.PeerReport()
        self._rtp_received = self._rtp_bytes_received = self._rtcp_received = 0
        self._rtp_bytes_sent = self._rtcp_sent = 0

    @property
    def ssrc(self) -> int:
        """Return the SSRC that we send with."""
        return self._outgoing.ssrc

    @property
    def connected(self) -> bool:
        """Return whether the SRTP keys are known."""
        return self._keys is not None

    def secure(self, keys: SrtpKeys, *, send: Payloads | None, receive: Payloads) -> None:
        """Start receiving; `send` is None if the peer does not want to receive."""
        self._send, self._receive = send, receive
        self.connected_at = self.heard_at = self._now()
        self._keys, self._profile = keys, keys.profile

    def shut(self) -> None:
        """Stop sending and receiving."""
        self._keys = None

    def received(self, data: bytes) -> None:
        """Process one RTP or RTCP datagram from a checked address."""
        keys, receive = self._keys, self._receive
        if keys is None or receive is None or len(data) < 12:
            self.drops.malformed += 1
            return
        if 192 <= data[1] < 224:  # RFC 5761 §4
            self._rtcp_in(keys, data)
            return
        name = data[8:12]
        source = self._sources.get(name)
        if source is None and len(self._sources) >= MAX_SOURCES:
            self.drops.malformed += 1
            return
        unprotect = keys.unprotect
        try:
            packet = parse(unprotect(data))
        except (pylibsrtp.Error, ValueError):  # forged, replayed, or longer than a packet can be
            self.drops.unprotect_failed += 1
            return
        if packet is None:
            self.drops.malformed += 1
            return
        if source is None:
            source = self._sources[name] = object()
        self._rtp_received += 1
        self._rtp_bytes_received += len(data)
        self._take(packet, source, receive)

    def _take(self, packet: Packet, source: object, receive: Payloads) -> None:
        """Count a decrypted packet and forward it."""
        clock = self._now
        now = self.heard_at = clock()
        if self._first_media_at is None:
            self._first_media_at = now
        payload_type, _, _, timestamp, _, payload = packet
        is_audio = payload_type == receive.opus
        self._incoming.count(packet, steady=is_audio, now=now)
        if not is_audio:
            if payload_type != receive.dtmf:
                self.drops.malformed += 1
                return
            digit = self._dtmf.read(timestamp, payload)
            if digit is not None and self._digit_budget.take(now):
                self._digits += 1
                self.on_digit(digit)
        peer = self.peer
        if peer is not None and payload:  # padding only: a bandwidth probe
            peer.speak(source, packet, is_audio=is_audio, now=now)

    def speak(self, source: object, packet: Packet, *, is_audio: bool = True, now: float) -> None:
        """Send a packet to this leg's peer as the next one of its stream."""
        keys, payloads = self._keys, self._send
        if keys is None or payloads is None:
            return
        payload_type = payloads.opus if is_audio else payloads.dtmf
        if payload_type is None:
            return  # the peer did not negotiate telephone-event
        clear = self._outgoing.next(source, packet, payload_type=payload_type, steady=is_audio, now=now)
        if clear is None:
            return
        protect, transmit = keys.protect, self._transmit
        try:
            data = protect(clear)
        except (pylibsrtp.Error, ValueError):
            self.drops.malformed += 1
            return
        self._rtp_bytes_sent += len(data)
        transmit(data)

    def report(self) -> None:
        """Send an RTCP report; it also keeps NAT bindings open while no RTP is sent."""
        keys = self._keys
        if keys is None or not self.may_report:
            return
        data = rtcp.build(
            self._outgoing,
            self._incoming,
            cname=self.cname,
            sender_report=self._sender_report,
            sender_report_at=self._sender_report_at,
            now=self._now(),
        )
        self._rtcp_sent += 1
        self._transmit(keys.protect_rtcp(data))

    def _rtcp_in(self, keys: SrtpKeys, data: bytes) -> None:
        name = data[4:8]
        if name not in self._reporters and len(self._reporters) >= MAX_SOURCES:
            self.drops.malformed += 1
            return
        try:
            clear = keys.unprotect_rtcp(data)
        except (pylibsrtp.Error, ValueError):
            self.drops.unprotect_failed += 1
            return
        self._reporters.add(name)
        now = self._now()
        report = rtcp.read(clear, ssrc=self._outgoing.ssrc, now=now)
        if report is None:
            self.drops.malformed += 1
            return
        self.heard_at = now
        self._rtcp_received += 1
        if report.sender_report is not None:
            self._sender_report, self._sender_report_at = report.sender_report, now
        if report.lost is not None:
            self._peer_report = report

    def stats(self) -> LegStats:
        """Return the counters so far."""

        def after_ms(instant: float | None) -> float | None:
            return None if instant is None else (instant - self._created_at) * 1000

        return LegStats(
            rtp_packets_received=self._rtp_received,
            rtp_packets_sent=self._outgoing.packets,
            rtp_bytes_received=self._rtp_bytes_received,
            rtp_bytes_sent=self._rtp_bytes_sent,
            rtcp_packets_received=self._rtcp_received,
            rtcp_packets_sent=self._rtcp_sent,
            rtp_packets_lost=self._incoming.lost,
            jitter_ms=self._incoming.jitter_ms,
            dropped_over_budget=self.drops.over_budget,
            dropped_from_stranger=self.drops.from_stranger,
            dropped_unprotect_failed=self.drops.unprotect_failed,
            dropped_malformed=self.drops.malformed,
            remote_lost=self._peer_report.lost,
            remote_jitter_ms=self._peer_report.jitter_ms,
            round_trip_ms=self._peer_report.round_trip_ms,
            connected_after_ms=after_ms(self.connected_at),
            first_media_after_ms=after_ms(self._first_media_at),
            dtmf_digits=self._digits,
            srtp_profile=self._profile,
        )


def join(a: Endpoint, b: Endpoint, *, now: float) -> None:
    """Forward audio between the two, ending any earlier joins of either. Idempotent."""
    if a.peer is b:
        return
    for one, other in ((a, b), (b, a)):
        part(one)
        one.peer, one.joined_at, one.may_report = other, now, True


def part(endpoint: Endpoint) -> None:
    """Stop forwarding between the leg and the one it is joined to. Idempotent."""
    other, endpoint.peer = endpoint.peer, None
    if other is not None:
        other.peer = None
