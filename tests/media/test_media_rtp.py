"""RTP arithmetic: what the receiver hears is one stream; what it loses is counted."""

import random
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.rtp import FRAME, HEADER, IncomingStream, OutgoingStream, Packet, parse


def packet(sequence: int, timestamp: int = 0, *, ssrc: int = 7, marker: int = 0, payload: bytes = b"x") -> Packet:
    return Packet(111, marker, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc, payload)


def head(data: bytes | None) -> tuple[int, int, int, int, int]:
    assert data is not None
    return HEADER.unpack_from(data)


class Sender:
    """Feeds an `OutgoingStream` and keeps what came out."""

    def __init__(self, seed: int = 1) -> None:
        self.stream = OutgoingStream(random.Random(seed))
        self.sent: list[tuple[int, int, int, int, int]] = []

    def send(self, source: object, sequence: int, timestamp: int = 0, *, now: float, steady: bool = True) -> bool:
        data = self.stream.next(source, packet(sequence, timestamp), payload_type=96, steady=steady, now=now)
        if data is not None:
            self.sent.append(head(data))
        return data is not None

    @property
    def sequences(self) -> list[int]:
        first = self.sent[0][2]
        return [(sequence - first) & 0xFFFF for _, _, sequence, _, _ in self.sent]

    @property
    def timestamps(self) -> list[int]:
        first = self.sent[0][3]
        return [(timestamp - first) & 0xFFFFFFFF for _, _, _, timestamp, _ in self.sent]

    @property
    def markers(self) -> list[bool]:
        return [bool(second & 0x80) for _, second, _, _, _ in self.sent]


def test_a_plain_packet_is_read() -> None:
    data = pack("!BBHLL", 0x80, 0x80 | 111, 5, 6, 7) + b"opus"

    assert parse(data) == Packet(111, 0x80, 5, 6, 7, b"opus")


def test_csrc_extension_and_padding_are_taken_off() -> None:
    data = pack("!BBHLL", 0xB2, 111, 5, 6, 7) + b"csrccsrc" + b"\xbe\xde\x00\x01\x10\xff\x00\x00" + b"opus" + b"\0\0\3"

    assert parse(data) == Packet(111, 0, 5, 6, 7, b"opus")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80" * 11,
        pack("!BBHLL", 0x40, 0, 0, 0, 0),  # version 1
        pack("!BBHLL", 0x81, 0, 0, 0, 0),  # CSRC cut off
        pack("!BBHLL", 0x90, 0, 0, 0, 0) + b"\xbe\xde",  # extension cut off
        pack("!BBHLL", 0x90, 0, 0, 0, 0) + b"\xbe\xde\x00\x09",
        pack("!BBHLL", 0xA0, 0, 0, 0, 0) + b"\x05",  # more padding than payload
        pack("!BBHLL", 0xA0, 0, 0, 0, 0) + b"\x00",  # padding of length 0
    ],
)
def test_a_malformed_packet_is_none(data: bytes) -> None:
    assert parse(data) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_a_packet_or_none(data: bytes) -> None:
    read = parse(data)

    assert read is None or len(read.payload) <= len(data) - 12


def test_one_source_keeps_its_distances_and_its_losses() -> None:
    sender = Sender()
    for n in (0, 1, 2, 5, 6):
        sender.send("a", 65_534 + n, n * FRAME, now=n * 0.02)

    assert sender.sequences == [0, 1, 2, 5, 6]
    assert sender.timestamps == [n * FRAME for n in (0, 1, 2, 5, 6)]
    assert sender.markers == [True, False, False, False, False]


def test_the_next_source_goes_on_where_the_last_one_stopped() -> None:
    sender = Sender()
    for n in range(3):
        sender.send("tone", n, n * FRAME, now=n * 0.02)
    for n in range(3):
        sender.send("voice", 40_000 + n, 123_456 + n * FRAME, now=0.06 + n * 0.02)

    assert sender.sequences == [0, 1, 2, 3, 4, 5]
    assert sender.timestamps == [n * FRAME for n in range(6)]
    assert sender.markers == [True, False, False, True, False, False]
    assert len({ssrc for *_, ssrc in sender.sent}) == 1


def test_time_goes_on_while_nobody_speaks() -> None:
    sender = Sender()
    sender.send("a", 1, 0, now=0.0)
    sender.send("b", 9, 77, now=2.5)

    assert sender.sequences == [0, 1]
    assert sender.timestamps == [0, 120_000]


def test_a_source_that_comes_back_is_a_new_one() -> None:
    sender = Sender()
    for n, source in enumerate(["a", "b", "a"]):
        sender.send(source, 100 if source == "a" else 5000, now=n * 0.02)

    assert sender.sequences == [0, 1, 2]


def test_a_packet_out_of_order_takes_its_place() -> None:
    sender = Sender()
    for n in (0, 2, 1, 3):
        sender.send("a", n, n * FRAME, now=0.0)

    assert sender.sequences == [0, 2, 1, 3]
    assert sender.timestamps == [0, 2 * FRAME, FRAME, 3 * FRAME]


def test_a_packet_from_before_the_source_began_is_not_sent() -> None:
    sender = Sender()
    sender.send("a", 10, now=0.0)
    sender.send("b", 500, now=0.02)

    assert not sender.send("b", 499, now=0.03)
    assert sender.sequences == [0, 1]


def test_the_same_packet_twice_is_sent_once() -> None:
    sender = Sender()
    sender.send("a", 10, now=0.0)

    assert not sender.send("a", 10, now=0.0)


def test_a_source_that_begins_anew_leaves_no_hole() -> None:
    sender = Sender()
    sender.send("a", 0, 0, now=0.0)
    sender.send("a", 20_000, 9_999_999, now=0.02)

    assert sender.sequences == [0, 1]
    assert sender.timestamps == [0, FRAME]
    assert sender.markers == [True, True]


def test_key_presses_do_not_move_the_clock() -> None:
    sender = Sender()
    sender.send("a", 0, 0, now=0.0)
    for n in range(1, 11):
        sender.send("a", n, FRAME, now=n * 0.02, steady=False)
    sender.send("b", 5, 0, now=0.22)

    assert sender.timestamps == [0, *[FRAME] * 10, 11 * FRAME]


def test_the_clock_of_sender_reports_runs_on() -> None:
    sender = Sender()
    before = sender.stream.timestamp(5.0)
    assert before == sender.stream.timestamp(6.0)  # nothing sent: nothing to go by
    sender.send("a", 0, 0, now=1.0)

    assert (sender.stream.timestamp(1.5) - sender.sent[0][3]) & 0xFFFFFFFF == 24_000


def test_what_was_sent_is_counted() -> None:
    sender = Sender()
    sender.send("a", 0, now=0.0)
    sender.send("a", 1, now=0.0)

    assert (sender.stream.packets, sender.stream.octets) == (2, 2)


@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 0xFFFF)), min_size=1, max_size=60),
)
def test_no_number_is_ever_used_twice(seed: int, steps: list[tuple[str, int]]) -> None:
    """Each source is replay-checked by SRTP before it comes here, so it repeats no number in itself."""
    sender = Sender(seed)
    used: set[tuple[str, int]] = set()
    previous = None
    for n, (source, sequence) in enumerate(steps):
        if source != previous:
            used = set()  # SRTP's window is long, but a new stint of a source must not rely on it
        previous = source
        if (source, sequence) not in used:
            used.add((source, sequence))
            sender.send(source, sequence, now=n * 0.02)
    # Sequence numbers wrap; with the roll-over counter they are unique if the stream never fell back a whole round.
    unwrapped, top = [], sender.sent[0][2]
    for _, _, sequence, _, _ in sender.sent:
        step = (sequence - top) & 0xFFFF
        index = top + (step if step < 0x8000 else step - 0x10000)
        top = max(top, index)
        unwrapped.append(index)

    assert len(set(unwrapped)) == len(unwrapped)


def received(*packets: Packet, interval_s: float = 0.02) -> IncomingStream:
    stream = IncomingStream()
    for n, one in enumerate(packets):
        stream.count(one, steady=True, now=n * interval_s)
    return stream


def test_nothing_received_is_nothing_lost() -> None:
    stream = IncomingStream()

    assert (stream.lost, stream.jitter_ms, stream.report()) == (0, 0.0, None)


def test_holes_are_losses_until_they_are_filled() -> None:
    assert received(packet(1), packet(2), packet(5)).lost == 2
    assert received(packet(1), packet(2), packet(5), packet(4)).lost == 1
    assert received(packet(1), packet(2), packet(5), packet(4), packet(3)).lost == 0


def test_losses_are_counted_over_a_wrap() -> None:
    assert received(packet(65_534), packet(1)).lost == 2


def test_losses_of_a_source_that_ended_are_kept() -> None:
    assert received(packet(1), packet(3), packet(900, ssrc=8), packet(902, ssrc=8)).lost == 2


def test_a_source_that_begins_anew_loses_nothing_by_it() -> None:
    assert received(packet(1), packet(20_000)).lost == 0


def test_a_packet_from_before_the_first_is_no_negative_loss() -> None:
    assert received(packet(10), packet(9), packet(8)).lost == 0


def test_steady_packets_have_no_jitter_and_shaken_ones_have() -> None:
    steady = received(*[packet(n, n * FRAME) for n in range(50)])
    shaken = received(*[packet(n, n * FRAME + (480 if n % 2 else 0)) for n in range(100)])

    assert steady.jitter_ms == pytest.approx(0, abs=0.001)
    assert shaken.jitter_ms == pytest.approx(10, rel=0.05)


def test_a_wrapping_timestamp_is_no_jitter() -> None:
    stream = received(*[packet(n, 2**32 - 5 * FRAME + n * FRAME) for n in range(10)])

    assert stream.jitter_ms == pytest.approx(0, abs=0.001)


def test_key_presses_are_no_jitter() -> None:
    stream = IncomingStream()
    for n in range(10):
        stream.count(packet(n, 5), steady=False, now=n * 0.02)

    assert stream.jitter_ms == 0


def test_a_report_says_what_was_lost_since_the_last_one() -> None:
    stream = received(packet(0), packet(1), packet(3))
    first = stream.report()
    for n in range(4, 8):
        stream.count(packet(n), steady=True, now=1.0)
    second, third = stream.report(), stream.report()

    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.fraction_lost, first.lost, first.highest_sequence) == (64, 1, 3)
    assert (second.fraction_lost, second.lost, second.highest_sequence) == (0, 1, 7)
    assert third.fraction_lost == 0
