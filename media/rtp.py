"""RTP numbering: what we send stays one continuous stream, what we receive is counted. Pure; `now` is an argument.

Theory of operation. A receiver gets one stream from us for the whole call: one SSRC, sequence numbers without gaps of
our making, timestamps that keep step with the clock. What feeds the stream changes (a tone, the other leg, a third leg
after a transfer); `OutgoingStream` calls each of these a *source*. When the source changes, its numbers are shifted to
continue where the last one stopped: with the next sequence number, and a timestamp advanced by the time that has
passed. The first packet of a source carries the marker bit (RFC 3551 §4.1: start of a talkspurt), so that the
receiver's jitter buffer can adapt.

Within a source nothing else changes: losses remain gaps, and the order is kept. No number is ever reused, because SRTP
would then encrypt two packets with the same key stream; a late packet from before the current source began is dropped.
"""

import random
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

#: Version, padding, extension, CSRC count; marker, payload type; sequence number; timestamp; SSRC.
HEADER: Final = Struct("!BBHLL")
CLOCK_RATE_HZ: Final = 48_000
#: RTP timestamp units of one 20 ms packet.
FRAME: Final = 960
#: RFC 3550 A.1: a larger step forward means that the sender has restarted.
MAX_DROPOUT: Final = 3_000
_pack: Final = HEADER.pack
_unpack: Final = HEADER.unpack_from
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF


class Packet(NamedTuple):
    """A decrypted RTP packet, without CSRC list, header extensions and padding."""

    payload_type: int
    #: 0x80 or 0.
    marker: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


def parse(data: bytes) -> Packet | None:
    """Return the packet, or None if it is malformed."""
    if len(data) < 12:
        return None
    first, second, sequence, timestamp, ssrc = _unpack(data)
    if first == 0x80:  # no optional parts: nearly every packet
        return Packet(second & 0x7F, second & 0x80, sequence, timestamp, ssrc, data[12:])
    start, end = 12 + 4 * (first & 0x0F), len(data)
    if first & 0x10:
        if end < start + 4:
            return None
        start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
    if first & 0x20:
        end -= data[-1] or end
    if first >> 6 != 2 or start > end:
        return None
    return Packet(second & 0x7F, second & 0x80, sequence, timestamp, ssrc, data[start:end])


class OutgoingStream:
    """The numbering of the one RTP stream that we send to a peer."""

    __slots__ = (
        "_first",
        "_in_sequence",
        "_offset",
        "_sequence",
        "_source",
        "_timestamp",
        "_timestamp_at",
        "octets",
        "packets",
        "ssrc",
    )

    def __init__(self, rng: random.Random) -> None:
        self.ssrc = rng.getrandbits(32)
        self.packets = 0
        #: Payload bytes only, as sender reports count them (RFC 3550 §6.4.1).
        self.octets = 0
        # Not masked to 16 bits, so that older and newer can be compared. Starts in the lower half, so that both ends of
        # SRTP agree on the roll-over counter, whichever packet arrives first (RFC 3711 §3.3.1).
        self._sequence = rng.getrandbits(15)
        self._first = self._sequence
        self._in_sequence = 0
        self._timestamp = rng.getrandbits(32)
        self._timestamp_at: float | None = None
        self._offset = 0
        self._source: object = None

    def next(
        self, source: object, packet: Packet, *, payload_type: int, steady: bool = True, now: float
    ) -> bytes | None:
        """Return the unencrypted packet renumbered as the next of this stream; None if it is too late to send.

        `steady` is False for packets whose timestamp is not their sampling time (telephone-event).
        """
        _, marker, in_sequence, sampled_at, _, payload = packet
        step = (in_sequence - self._in_sequence) & _U16
        if source is not self._source or MAX_DROPOUT < step < 0x8000:
            self._begin(source, packet, now)
            marker, step = 0x80, 1
        if step < 0x8000:
            if step == 0:
                return None
            self._in_sequence = in_sequence
            self._sequence += step
            sequence = self._sequence
        else:
            sequence = self._sequence - (0x10000 - step)
            if sequence < self._first:
                return None
        timestamp = (sampled_at + self._offset) & _U32
        if steady and sequence == self._sequence:
            self._timestamp, self._timestamp_at = timestamp, now
        self.packets += 1
        self.octets += len(payload)
        return _pack(0x80, marker | payload_type, sequence & _U16, timestamp, self.ssrc) + payload

    def timestamp(self, now: float) -> int:
        """Return the RTP timestamp that corresponds to `now`, for sender reports."""
        if self._timestamp_at is None:
            return self._timestamp
        return (self._timestamp + int((now - self._timestamp_at) * CLOCK_RATE_HZ)) & _U32

    def _begin(self, source: object, packet: Packet, now: float) -> None:
        """Shift the numbers of a new or restarted source so that they follow everything sent so far."""
        self._source = source
        self._in_sequence = (packet.sequence - 1) & _U16
        self._first = self._sequence + 1
        passed = FRAME
        if self._timestamp_at is not None:
            passed = max(FRAME, int((now - self._timestamp_at) * CLOCK_RATE_HZ))
        self._offset = self._timestamp + passed - packet.timestamp
        self._timestamp = (self._timestamp + passed) & _U32
        self._timestamp_at = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """A reception report block for the stream that we receive (RFC 3550 §6.4.1)."""

    ssrc: int
    fraction_lost: int
    lost: int
    highest_sequence: int
    #: In RTP timestamp units.
    jitter: int


class IncomingStream:
    """Count a peer's packets: loss and jitter as in RFC 3550 A.3 and A.8."""

    __slots__ = (
        "_base",
        "_expected_before",
        "_highest",
        "_jitter",
        "_lost_before",
        "_received",
        "_received_before",
        "_transit",
        "ssrc",
    )

    def __init__(self) -> None:
        self.ssrc: int | None = None
        self._lost_before = 0
        self._jitter = 0.0
        self._restart(0)

    def _restart(self, sequence: int) -> None:
        self._base = self._highest = sequence
        self._received = 0
        self._expected_before = self._received_before = 0
        self._transit: float | None = None

    def count(self, packet: Packet, *, steady: bool, now: float) -> None:
        """Count one packet. It has passed SRTP's replay check, so no packet is counted twice."""
        _, _, sequence, timestamp, ssrc, _ = packet
        step = (sequence - self._highest) & _U16
        if ssrc != self.ssrc or MAX_DROPOUT < step < 0x8000:
            self._lost_before = self.lost
            self.ssrc = ssrc
            self._restart(sequence)
        elif step < 0x8000:
            self._highest += step
        self._received += 1
        if steady:
            transit = now * CLOCK_RATE_HZ - timestamp
            if self._transit is not None:
                # The difference is modulo 2**32, because timestamps wrap.
                delta = abs((transit - self._transit + 0x80000000) % 0x100000000 - 0x80000000)
                self._jitter += (delta - self._jitter) / 16
            self._transit = transit

    @property
    def lost(self) -> int:
        """Return the number of packets lost, over all sources so far; never negative."""
        if self.ssrc is None:
            return 0
        return self._lost_before + max(0, self._highest - self._base + 1 - self._received)

    @property
    def jitter_ms(self) -> float:
        """Return the interarrival jitter."""
        return self._jitter * 1000 / CLOCK_RATE_HZ

    def report(self) -> Reception | None:
        """Return the reception since the last call; None if nothing has arrived yet."""
        if self.ssrc is None:
            return None
        expected = self._highest - self._base + 1
        due = expected - self._expected_before
        missing = due - (self._received - self._received_before)
        self._expected_before, self._received_before = expected, self._received
        return Reception(
            ssrc=self.ssrc,
            fraction_lost=min(255, max(0, (missing << 8) // due)) if due > 0 else 0,
            lost=self.lost,
            highest_sequence=self._highest & _U32,
            jitter=int(self._jitter),
        )
