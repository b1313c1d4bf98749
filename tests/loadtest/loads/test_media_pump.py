"""The pump: what it sends arrives and is known again, and whatever is not RTP of a line goes where it went before."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator

import pylibsrtp
import pytest

from loadtest.loads.media_pump import SAMPLE, Pump, Socket, markable
from loadtest.loads.media_talk import CARRIED_MS, Pair, paired, talk, until_quiet
from loadtest.webrtc.audio import OpusDecoder, tone_packets
from tests.support.harness.waiting import until

LOOPBACK = ("127.0.0.1", 0)


class Clear:
    """No encryption; what begins with a wrong byte cannot be decrypted."""

    def protect(self, packet: bytes) -> bytes:
        return packet

    def unprotect(self, packet: bytes) -> bytes:
        if packet[0] != 0x80:
            raise pylibsrtp.Error("replayed")
        return packet


class Inbox(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost = 0

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.got.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost += 1


@pytest.fixture
async def pump() -> AsyncIterator[Pump]:
    pump = Pump()
    yield pump
    pump.close()


async def opened(pump: Pump) -> tuple[Socket, Inbox]:
    transport, inbox = await pump.open(Inbox, local_addr=LOOPBACK)
    assert isinstance(inbox, Inbox)
    return transport, inbox


def at(transport: Socket) -> tuple[str, int]:
    host, port = transport.get_extra_info("sockname")
    return host, port


async def direct(pump: Pump, payload_type: int = 111) -> Pair:
    """Return two far ends with nothing in between."""
    (one, _), (other, _) = await opened(pump), await opened(pump)
    lines = [
        pump.line(mine, peer=at(theirs), keys=Clear(), payload_type=payload_type)
        for mine, theirs in ((one, other), (other, one))
    ]
    return paired(*lines)


def test_a_marked_packet_sounds_as_before() -> None:
    plain, marked = OpusDecoder(), OpusDecoder()
    for number, packet in enumerate(tone_packets(440)):
        assert marked.decode(markable(packet) + number.to_bytes(8, "big")) == plain.decode(packet)
    with pytest.raises(ValueError, match="one frame"):
        markable(b"\x01" + bytes(20))


async def test_both_ends_of_all_calls_hear_each_other(pump: Pump) -> None:
    pairs = [await direct(pump) for _ in range(3)]
    found = await talk(pump, pairs, seconds=0.4, pid=1)
    again = await talk(pump, pairs, seconds=0.2, pid=1)
    assert (found.missing, found.to_user.sent, found.to_operator.heard) == (0, 60, 60)
    assert (again.missing, again.to_user.sent) == (0, 30)
    assert found.to_user.strange == found.to_operator.strange == 0
    assert len(found.delays_ms) == 6 * (20 // SAMPLE)
    assert all(0 < delay_ms < 1_000 for delay_ms in found.delays_ms)
    assert found.seconds == pytest.approx(0.4, abs=0.3)


async def test_what_is_lost_is_missing_in_its_direction(pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = await direct(pump)
    send = pair.user.send

    def lossy(index: int) -> None:
        if index == 3:
            pair.user.sent += 1
        else:
            send(index)

    monkeypatch.setattr(pair.user, "send", lossy)
    found = await talk(pump, [pair], seconds=0.2, pid=1)
    assert (found.missing, found.to_operator.sent - found.to_operator.heard, found.heard) == (1, 1, 19)


async def test_what_somebody_else_said_is_strange(pump: Pump) -> None:
    one, other = await direct(pump), await direct(pump)
    one.user.partner, other.user.partner = other.operator, one.operator
    found = await talk(pump, [one, other], seconds=0.4, pid=1)
    assert (found.to_user.strange, found.to_operator.strange) == (4, 0)
    one.operator.heard = SAMPLE - 1
    one.operator.hear(b"\x90" + bytes(40), [])
    assert one.operator.strange == 1


async def test_of_a_far_side_that_makes_packets_of_its_own_they_are_counted(pump: Pump) -> None:
    pair = await direct(pump)
    pair.user.transcoded = pair.operator.transcoded = True
    found = await talk(pump, [pair], seconds=0.4, pid=1)
    assert found.to_user.strange == found.to_operator.strange == 0
    assert all(0 < delay_ms < 1_000 for delay_ms in found.delays_ms)


async def test_all_but_rtp_of_a_line_goes_to_the_protocol(pump: Pump) -> None:
    (one, inbox), (other, _) = await opened(pump), await opened(pump)
    stranger, _ = await opened(pump)
    line = pump.line(one, peer=at(other), keys=Clear(), payload_type=111)
    stun, rtcp, rtp = b"\x00\x01" + bytes(18), b"\x80\xc8" + bytes(26), b"\x80\x6f" + bytes(30)
    for data in (stun, rtcp, b"", rtp):
        other.sendto(data, at(one))
    stranger.sendto(rtp, at(one))
    await until(lambda: len(inbox.got) == 4)
    assert (sorted(inbox.got), line.heard) == (sorted((stun, rtcp, b"", rtp)), 1)
    pump.drop(one, line)
    other.sendto(rtp, at(one))
    await until(lambda: len(inbox.got) == 5)
    assert line.heard == 1


async def test_a_closed_socket_says_so_once_and_the_others_go_on(pump: Pump) -> None:
    (one, inbox), (other, heard) = await opened(pump), await opened(pump)
    one.close()
    one.close()
    one.sendto(b"late", at(other))
    other.sendto(b"still here", at(other))
    await until(lambda: heard.got == [b"still here"])
    assert (inbox.lost, one.is_closing(), other.is_closing()) == (1, True, False)
    pump.close()
    pump.close()
    await until(lambda: heard.lost == 1)


async def test_a_port_in_use_is_an_error_and_leaves_no_socket(pump: Pump) -> None:
    one, _ = await opened(pump)
    with pytest.raises(OSError, match="in use"):
        await pump.open(Inbox, local_addr=at(one))


async def test_a_generator_that_stalls_says_so_and_moves_its_schedule(pump: Pump) -> None:
    pair = await direct(pump)
    asyncio.get_running_loop().call_later(0.05, time.sleep, 0.2)
    found = await talk(pump, [pair], seconds=0.2, pid=1)
    assert found.late_p99_ms > CARRIED_MS
    assert found.seconds > 0.35
    assert found.pace < 0.6
    assert found.generator_was_the_limit
    assert gc.isenabled()


async def test_waiting_for_silence_ends(pump: Pump) -> None:
    pair = await direct(pump)
    await until_quiet(pair)
