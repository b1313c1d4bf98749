"""Many far ends of calls in one plain loop: UDP sockets, paced SRTP out, counts and delays of what comes back.

ICE and DTLS are left to others: anything that is not RTP of a `Line` goes to the socket's own asyncio protocol, as it
would without a pump. It is cheap because packets are encrypted before they are due, one callback reads all sockets, and
only one received packet in `SAMPLE` is decrypted, to check that it is what the partner sent.

A packet carries its sender and number in the padding of a real Opus packet (RFC 6716 §3.2.5), so a decoder still hears
the tone. A delay runs from just before the packet is given to the sender's socket to the instant at which the kernel
put it into the receiver's (SO_TIMESTAMPNS); time until we read it is not included. Linux only.
"""

import asyncio
import contextlib
import gc
import random
import select
import socket
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Final, Protocol

import pylibsrtp

from loadtest.common.clock import instant, wall_clock
from loadtest.webrtc.audio import PACKET_S, SAMPLE_RATE_HZ, SAMPLES_PER_PACKET, tone_packets
from loadtest.webrtc.rtp import HEADER, is_rtcp

Address = tuple[str, int]

#: One in this many received packets is decrypted.
SAMPLE: Final = 8
#: Number of packets for which a line remembers the sending time: 10 s.
_REMEMBERED: Final = 512
_TICK_S: Final = 0.001
#: If sending is later than this, the rest of the schedule is moved.
_PATIENCE_S: Final = 0.008
_PREPARED_AT_ONCE: Final = 2_000
_DATAGRAM: Final = 2_048
_EVENTS: Final = 512
_BUFFER_BYTES: Final = 4 << 20
_TONE_HZ: Final = 440
#: Sender's line, and number of the packet.
_MARK: Final = Struct("!LL")
#: The kernel returns a struct timespec; Python 3.11 has no name for the constant.
_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = Struct("@qq")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_TIMESPEC.size)


class Keys(Protocol):
    """SRTP of one far end."""

    def protect(self, packet: bytes) -> bytes: ...
    def unprotect(self, packet: bytes) -> bytes: ...


def markable(opus: bytes) -> bytes:
    """Return the start of a single-frame Opus packet that can end in a mark, as padding.

    Raises: ValueError for a packet of several frames.
    """
    if opus[0] & 3:
        raise ValueError("the Opus packet must have exactly one frame")
    # Code 3: one frame (M = 1), padding (p = 1), and this many bytes of it at the end.
    return bytes((opus[0] | 3, 0x41, _MARK.size)) + opus[1:]


class Line:
    """What one far end sends and receives. Made by `Pump.line`."""

    def __init__(self, number: int, *, sock: socket.socket, peer: Address, keys: Keys, payload_type: int) -> None:
        self.number = number
        self.sock, self.peer = sock, peer
        #: The line that it should receive.
        self.partner: Line | None = None
        #: The server encodes packets anew: they carry no mark, and are counted instead.
        self.transcoded = False
        self.sent = self.heard = 0
        #: Packets that the kernel did not accept.
        self.unsent = 0
        #: Sampled packets that are not what the partner sent.
        self.strange = 0
        #: Delays of sampled packets, in seconds.
        self.delays: list[float] = []
        self._keys, self._payload_type = keys, payload_type
        self._ssrc = random.getrandbits(32)
        self._sequence = random.getrandbits(15)
        self._packets: list[bytes] = []
        #: Number of the first packet of the latest preparation.
        self._first = 0
        self._sent_at = [0.0] * _REMEMBERED
        self._first_heard: int | None = None

    @property
    def prepared(self) -> int:
        """Number of packets waiting to be sent."""
        return len(self._packets)

    def prepare(self, count: int, payloads: Sequence[bytes]) -> None:
        """Encrypt the next packets; their timestamps continue from now, as a microphone's would."""
        timestamp = int(instant() * SAMPLE_RATE_HZ)
        protect, number = self._keys.protect, self.sent
        self._first = number
        second, ssrc, sequence = self._payload_type, self._ssrc, self._sequence
        self._packets = [
            protect(
                HEADER.pack(
                    0x80,
                    second,
                    (sequence + index) & 0xFFFF,
                    (timestamp + index * SAMPLES_PER_PACKET) & 0xFFFFFFFF,
                    ssrc,
                )
                + payloads[index % len(payloads)]
                + _MARK.pack(self.number, number + index)
            )
            for index in range(count)
        ]
        self._sequence += count

    def send(self, index: int) -> None:
        """Send the prepared packet with this index."""
        self._sent_at[self.sent % _REMEMBERED] = wall_clock()
        self.sent += 1
        try:
            self.sock.sendto(self._packets[index], self.peer)
        except BlockingIOError:
            self.unsent += 1

    def hear(self, data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Count one RTP packet, and check it if it is one of the sample."""
        self.heard += 1
        if self._first_heard is None:
            self._first_heard = int.from_bytes(data[2:4], "big")
        if self.heard % SAMPLE:
            return
        at = wall_clock()
        for _, _, stamp in ancillary:
            seconds, nanoseconds = _TIMESPEC.unpack(stamp)
            at = seconds + nanoseconds / 1e9
        number = self._counted(data) if self.transcoded else self._read(data)
        if number is None or self.partner is None:
            self.strange += 1
        elif not self.transcoded or number >= self.partner._first:  # one held back over a pause does not count as late
            self.delays.append(at - self.partner._sent_at[number % _REMEMBERED])

    def _read(self, data: bytes) -> int | None:
        """Return the number of the partner's packet; None if it is not one."""
        try:
            clear = self._keys.unprotect(data)
            sender, number = _MARK.unpack_from(clear, len(clear) - _MARK.size)
        except (pylibsrtp.Error, ValueError, ArithmeticError):
            return None
        ours = self.partner is not None and sender == self.partner.number
        return int(number) if ours else None

    def _counted(self, data: bytes) -> int | None:
        """Return the number of the partner's packet from which this one was made, if none before it was lost."""
        assert self._first_heard is not None
        return (int.from_bytes(data[2:4], "big") - self._first_heard) & 0xFFFF


class Socket(asyncio.DatagramTransport):
    """A UDP socket that the pump reads."""

    def __init__(self, pump: "Pump", sock: socket.socket, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__({"socket": sock, "sockname": sock.getsockname()})
        self.sock, self.protocol = sock, protocol
        #: By the address that the other side of the line sends from.
        self.lines: dict[Address, Line] = {}
        self._pump = pump

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send one datagram; lost if the kernel does not accept it."""
        with contextlib.suppress(OSError):
            self.sock.sendto(data, addr)

    def is_closing(self) -> bool:
        """Return whether `close` was called."""
        return self.sock.fileno() < 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if not self.is_closing():
            self._pump.forget(self)
            self.sock.close()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def read(self) -> None:
        """Read what has arrived: one datagram if the socket has one far end, more if many share it."""
        for _ in range(max(1, len(self.lines) // 4)):
            try:
                data, ancillary, _, address = self.sock.recvmsg(_DATAGRAM, _ANCILLARY_BYTES)
            except OSError:  # nothing more to read; ICMP errors are left to ICE
                return
            line = self.lines.get(address)
            if line is not None and data and 127 < data[0] < 192 and not is_rtcp(data):
                line.hear(data, ancillary)
            else:
                self.protocol.datagram_received(data, address)
                if self.is_closing():
                    return


class Pump:
    """The sockets and lines. `open()` makes sockets, `line()` lines, `play()` sends; call `close()` at the end."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, Socket] = {}
        self._numbers = 0
        self._payloads = tuple(markable(packet) for packet in tone_packets(_TONE_HZ))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    async def open(
        self, factory: Callable[[], asyncio.DatagramProtocol], *, local_addr: Address
    ) -> tuple[Socket, asyncio.DatagramProtocol]:
        """Bind a socket; arguments and result are those of `loop.create_datagram_endpoint`. Raises: OSError."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.bind(local_addr)
        except OSError:
            sock.close()
            raise
        protocol = factory()
        transport = Socket(self, sock, protocol)
        self._sockets[sock.fileno()] = transport
        self._epoll.register(sock, select.EPOLLIN)
        protocol.connection_made(transport)
        return transport, protocol

    def line(self, transport: asyncio.BaseTransport, *, peer: Address, keys: Keys, payload_type: int) -> Line:
        """Return a line on one of the pump's sockets; RTP from `peer` belongs to the line from now on."""
        assert isinstance(transport, Socket)
        self._numbers += 1
        line = Line(self._numbers, sock=transport.sock, peer=peer, keys=keys, payload_type=payload_type)
        transport.lines[peer] = line
        return line

    def drop(self, transport: asyncio.BaseTransport, line: Line) -> None:
        """Stop receiving for a line on a socket that stays open. Idempotent."""
        assert isinstance(transport, Socket)
        transport.lines.pop(line.peer, None)

    def forget(self, transport: Socket) -> None:
        """Stop reading this socket; it is being closed."""
        del self._sockets[transport.sock.fileno()]
        self._epoll.unregister(transport.sock)

    async def prepare(self, lines: Sequence[Line], *, seconds: float) -> None:
        """Encrypt what the lines will send in this many seconds."""
        count = max(1, round(seconds / PACKET_S))
        for index, line in enumerate(lines):
            line.prepare(count, self._payloads)
            if index % max(1, _PREPARED_AT_ONCE // count) == 0:
                await asyncio.sleep(0)  # let ICE, DTLS and signalling run

    async def play(self, lines: Sequence[Line]) -> list[float]:
        """Send what was prepared: 50 packets a second on each line, with the lines spread over the 20 ms.

        Sockets are read once per tick, so that the server need not wake us up for each packet, as with a network card
        that coalesces interrupts. Garbage is not collected meanwhile, because that would stop all calls. If something
        else stalls us, the schedule is moved: independent callers would never send all overdue packets at once. Return
        by how many seconds the first packet of each batch was late.
        """
        order = random.Random(len(lines)).sample(list(lines), len(lines))
        late_s: list[float] = []
        self._loop.remove_reader(self._epoll.fileno())
        gc.disable()
        try:
            await self._play(order, late_s)
        finally:
            gc.enable()
            self._loop.add_reader(self._epoll.fileno(), self._ready)
        return late_s

    async def _play(self, order: Sequence[Line], late_s: list[float]) -> None:
        gap_s, total, sent, began_at = PACKET_S / len(order), order[0].prepared * len(order), 0, instant()
        while sent < total:
            passed_s = instant() - began_at
            due = min(total, int(passed_s / gap_s) + 1)
            if sent < due:
                late_s.append(passed_s - sent * gap_s)
                if late_s[-1] > _PATIENCE_S:
                    began_at += late_s[-1]
                    continue
            while sent < due:
                index, place = divmod(sent, len(order))
                order[place].send(index)
                sent += 1
            self._ready()
            await asyncio.sleep(_TICK_S)

    def _ready(self) -> None:
        for descriptor, _ in self._epoll.poll(0, _EVENTS):
            transport = self._sockets.get(descriptor)  # None: an earlier one in this round closed it
            if transport is not None:
                transport.read()

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        if not self._epoll.closed:
            for transport in tuple(self._sockets.values()):
                transport.close()
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
