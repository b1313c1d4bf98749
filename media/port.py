"""The UDP sockets of a worker: one shared by all browser legs, and one for each Meta leg.

Each browser has its own address, so one socket serves them all and a firewall needs only one inbound port. Meta's
relays have few addresses and fixed ports and tell calls apart by *our* address, so two Meta legs on one socket would
share one 5-tuple. Since we send first, their sockets need no inbound rule.

Whether a datagram may pass is decided by the guard in `ice.Link`.
"""

import asyncio
import socket
from collections import deque
from typing import Any, Final, cast

from media.errors import TooBusy
from media.ice import Address, Link, request_ufrag
from media.model import MediaConfig

#: Ports of the range to try for one leg; other programs on this machine may hold some.
BIND_TRIES: Final = 16
#: Receive buffer of the shared socket; holds what 500 browser legs send in 100 ms.
SHARED_BUFFER_BYTES: Final = 4 << 20
#: Datagrams read from the shared socket before other callbacks get their turn.
SHARED_BURST: Final = 256
#: Larger datagrams are truncated, and then fail to decrypt.
MAX_DATAGRAM_BYTES: Final = 2_048


class UdpSocket(asyncio.DatagramTransport):
    """A UDP socket used instead of the event loop's own transports.

    Those read at most some tens of datagrams per iteration, so a backlog on the shared socket grows while legs with
    their own sockets are served. They also buffer what the kernel does not accept at once, which for audio is too late
    anyway.
    """

    def __init__(self, sock: socket.socket, protocol: asyncio.DatagramProtocol, *, burst: int) -> None:
        super().__init__()
        self._sock, self._protocol, self._burst = sock, protocol, burst
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)
        protocol.connection_made(self)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send one datagram; it is dropped if the kernel does not accept it."""
        try:  # noqa: SIM105  a context manager would cost half a microsecond per packet
            self._sock.sendto(data, addr)
        except OSError:
            pass

    def is_closing(self) -> bool:
        """Return whether `close` was called."""
        return self._sock.fileno() < 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if not self.is_closing():
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._loop.call_soon(self._protocol.connection_lost, None)

    def _read(self) -> None:
        receive, take = self._sock.recvfrom, self._protocol.datagram_received
        for _ in range(self._burst):
            try:
                data, address = receive(MAX_DATAGRAM_BYTES)
            except OSError:  # nothing more to read; a peer that is gone is noticed by its silence
                return
            take(data, address)
            if self.is_closing():
                return


class SharedPort(asyncio.DatagramProtocol):
    """The one socket of all browser legs of a worker.

    A STUN request names our user fragment, and thereby its leg. Any other datagram belongs to the leg whose checked
    STUN request came from the same address; from other addresses it is dropped and counted.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._by_ufrag: dict[str, Link] = {}
        self._by_address: dict[Address, Link] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._gone = asyncio.Event()
        self.dropped_from_stranger = 0

    @classmethod
    async def open(cls, host: str, port: int) -> "SharedPort":
        """Bind the socket; port 0 is any free port. Raises: OSError."""
        sock = bind_socket(host, port)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SHARED_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SHARED_BUFFER_BYTES)
        shared = cls(sock.getsockname()[:2])
        UdpSocket(sock, shared, burst=SHARED_BURST)
        return shared

    @property
    def legs(self) -> int:
        """Return the number of legs on the socket."""
        return len(self._by_ufrag)

    def attach(self, ufrag: str, link: Link) -> None:
        """Let a leg use the socket until its link closes."""
        assert self._transport is not None
        link.use(self._transport, self.address)
        self._by_ufrag[ufrag] = link

        def checked(address: Address) -> None:
            # The latest leg that passed a check from this address: a reloaded page may use the same one.
            self._by_address[address] = link

        def closed() -> None:
            self._by_ufrag.pop(ufrag, None)
            for address in link.checked:
                if self._by_address.get(address) is link:
                    del self._by_address[address]

        link.on_checked, link.on_closed = checked, closed

    async def close(self) -> None:
        """Close the socket."""
        assert self._transport is not None
        self._transport.close()
        await self._gone.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Record that the socket is closed."""
        self._gone.set()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Pass one datagram to its leg."""
        link = self._by_address.get(addr if len(addr) == 2 else addr[:2])
        first = data[0] if data else 255
        if link is not None and first > 3:
            link.checked_received(data, first)
            return
        if first < 4 and not first & 1:  # a STUN request, by the class bits of RFC 8489 §5
            ufrag = request_ufrag(data)
            if ufrag is not None:
                link = self._by_ufrag.get(ufrag)
        if link is None:
            self.dropped_from_stranger += 1
            return
        link.datagram_received(data, addr)


class MetaPorts:
    """The local ports of a worker's Meta legs: its share of the range, or any free port."""

    def __init__(self, config: MediaConfig, index: int) -> None:
        self._host = config.bind_address
        self._free: deque[int] | None = None
        if config.ports is not None:
            first, last = config.ports
            # The first ports of the range are the workers' browser ports.
            self._free = deque(range(first + config.workers + index, last + 1, config.workers))

    async def open(self, link: Link) -> int:
        """Give the leg its own socket until its link closes, and return its port for `release`.

        Raises: TooBusy.
        """
        sock, port = self._bind()
        link.use(UdpSocket(sock, link, burst=1), (self._host, port))
        return port

    def release(self, port: int) -> None:
        """Return a port to the pool. It is reused after all others, so that late packets do not reach another leg."""
        if self._free is not None:
            self._free.append(port)

    def _bind(self) -> tuple[socket.socket, int]:
        if self._free is None:
            sock = bind_socket(self._host, 0)
            return sock, int(sock.getsockname()[1])
        for _ in range(min(BIND_TRIES, len(self._free))):
            port = self._free.popleft()
            try:
                return bind_socket(self._host, port), port
            except OSError:  # in use by another program
                self._free.append(port)
        raise TooBusy("no free port in the configured range")


def browser_port(config: MediaConfig, index: int) -> int:
    """Return the port of a worker's shared socket; 0: any free port."""
    return 0 if config.ports is None else config.ports[0] + index


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a UDP socket bound to the address. Raises: OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
