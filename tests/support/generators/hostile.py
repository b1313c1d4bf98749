"""What those who mean harm send to a media port, and how to see what we send."""

import asyncio
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import aioice.ice
import pytest

from media.ice import Address, Link


def gather_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stock aiortc peers find 127.0.0.1, which aioice leaves out, and nothing else."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


def client_hello() -> bytes:
    """Return a DTLS ClientHello that no server can accept."""
    body = b"\xfe\xfd" + os.urandom(32) + b"\0\0" + b"\0\2\0\0" + b"\1\0"
    size = struct.pack("!I", len(body))[1:]
    shake = b"\1" + size + b"\0\0" + b"\0\0\0" + size + body
    return b"\x16\xfe\xfd" + bytes(8) + struct.pack("!H", len(shake)) + shake


def binding_request(ufrag: str) -> bytes:
    """Return a STUN request without credentials."""
    name = f"{ufrag}:x".encode()
    name += bytes(-len(name) % 4)
    username = struct.pack("!HH", 6, len(f"{ufrag}:x")) + name
    return struct.pack("!HHI12s", 1, len(username), 0x2112A442, os.urandom(12)) + username


def binding_response() -> bytes:
    """Return a STUN success response to nothing that we asked."""
    return struct.pack("!HHI12s", 0x101, 0, 0x2112A442, os.urandom(12))


def with_candidates(text: str, *addresses: str) -> str:
    """Return the description with these candidates, `host port` each, instead of its own."""
    kept = [line for line in text.splitlines() if not line.startswith(("a=candidate", "a=end-of"))]
    kept += [f"a=candidate:{n} 1 udp {2130706431 - n} {address} typ host" for n, address in enumerate(addresses)]
    return "\r\n".join(kept) + "\r\n"


def media_port(text: str) -> int:
    """Return the port that the description's audio section names."""
    return int(text.partition("m=audio ")[2].split(" ")[0])


def candidate_port(text: str) -> int:
    """Return the port of the description's first candidate."""
    return int(text.partition("a=candidate:")[2].split(" ")[5])


def datagrams(sock: socket.socket) -> list[bytes]:
    """Return what waits at a socket that does not block."""
    found = []
    try:
        while True:
            found.append(sock.recv(2048))
    except BlockingIOError:
        return found


class Spray:
    """A stranger: a thread with a socket of its own, which sends to the given ports as long as it is open."""

    def __init__(self, *, per_s: int, packets: Sequence[Callable[[], bytes]] = (client_hello,)) -> None:
        self.ports: tuple[int, ...] = ()
        self.sent = 0
        self._pause_s = 1 / per_s
        self._packets = packets
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stranger")

    def __enter__(self) -> "Spray":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            due = time.perf_counter()
            while not self._done.is_set():
                for port in self.ports:
                    try:
                        sock.sendto(self._packets[self.sent % len(self._packets)](), ("127.0.0.1", port))
                    except OSError:  # the other side's buffer is full, or its socket is closed
                        continue
                    finally:
                        self.sent += 1
                due = max(due + self._pause_s * max(1, len(self.ports)), time.perf_counter() - 0.1)
                self._done.wait(max(0.0, due - time.perf_counter()))


class Wire:
    """Every datagram that legs would send, kept from the network."""

    def __init__(self) -> None:
        self.sent: list[Address] = []

    @property
    def addresses(self) -> set[Address]:
        """Return where the datagrams would have gone."""
        return set(self.sent)

    @classmethod
    def tap(cls, monkeypatch: pytest.MonkeyPatch) -> "Wire":
        """Put a wire behind every link that is made from now on."""
        wire, use = cls(), Link.use

        def tapped(link: Link, transport: asyncio.DatagramTransport, address: Address) -> None:
            use(link, _Tapped(transport, wire), address)  # type: ignore[arg-type]

        monkeypatch.setattr(Link, "use", tapped)
        return wire


class _Tapped:
    """A transport that notes instead of sending."""

    def __init__(self, transport: asyncio.DatagramTransport, wire: Wire) -> None:
        self._transport = transport
        self._wire = wire

    def sendto(self, data: bytes, addr: Any = None) -> None:
        self._wire.sent.append(addr[:2])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class SocketWatch:
    """What this process asked of its sockets: addresses sent to, names looked up. Sees asyncio's own loop only."""

    def __init__(self) -> None:
        self.sent: list[Address] = []
        self.looked_up: list[object] = []


_watch: SocketWatch | None = None
_hooked = False
_LOOK_UPS: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watch is None:
        return
    if event in ("socket.sendto", "socket.connect"):
        _watch.sent.append(args[1][:2])
    elif event in _LOOK_UPS:
        _watch.looked_up.append(args[0])


@contextmanager
def socket_watch() -> Iterator[SocketWatch]:
    """Watch the process's sockets through the interpreter's audit hook, which cannot be taken out again."""
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    _watch = watch = SocketWatch()
    try:
        yield watch
    finally:
        _watch = None
