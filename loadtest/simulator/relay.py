"""Meta's media relay as a business sees it: one UDP port, ICE-lite, always CONTROLLED.

It never sends a connectivity check. It answers checks with the right credentials, learns the business's address from
them (RFC 8445 §7.3, §8: a lite agent uses the pair that the controlling side nominates), and drops everything else from
addresses without a valid check. As on Meta's relays many calls share the port and are told apart by the business's
address; two calls from one business address would have the same 5-tuple.
"""

import asyncio
import base64
import secrets
import socket
import string
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aioice import stun

_RECEIVE_BUFFER_BYTES = 4 << 20
_MAX_EARLY_CHECKS = 8
Address = tuple[str, int]
OpenSocket = Callable[..., Awaitable[tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]]]


def _new_ufrag() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(16))


def _new_password() -> str:
    """Return a password in Meta's format: 24 characters of base64 with padding."""
    return base64.b64encode(secrets.token_bytes(16)).decode()


class RelayLeg:
    """One call on the relay; a `Carrier` for DTLS once `nominated` is done."""

    role = "controlled"

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self.ufrag, self.password = _new_ufrag(), _new_password()
        self.remote_ufrag: str | None = None
        #: Source address of nominated checks; None before the first.
        self.peer: Address | None = None
        self.nominated = asyncio.Event()
        self.checks = 0
        self.srtp_sink: Callable[[bytes], None] | None = None
        self.addresses: set[Address] = set()
        self._early: dict[Address, stun.Message] = {}
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False

    def expect(self, remote_ufrag: str) -> None:
        """Start answering checks, now that the business's SDP is known."""
        self.remote_ufrag = remote_ufrag
        early, self._early = self._early, {}
        for address, request in early.items():
            self.check(request, address)

    def check(self, request: stun.Message, address: Address) -> None:
        """Handle a binding request whose USERNAME names this leg."""
        if not request.check_message_integrity(self.password.encode()):
            self._relay.refuse(request, address, (401, "Unauthenticated"), key=None)
            return
        if self.remote_ufrag is None:  # checks succeed only after the answer was processed
            if len(self._early) < _MAX_EARLY_CHECKS:
                self._early[address] = request
            return
        if request.attributes["USERNAME"] != f"{self.ufrag}:{self.remote_ufrag}":
            self._relay.refuse(request, address, (401, "Unauthenticated"), key=None)
            return
        if "ICE-CONTROLLED" in request.attributes:  # a lite agent never becomes controlling
            self._relay.refuse(request, address, (487, "Role Conflict"), key=self.password)
            return
        self.checks += 1
        self._relay.vouch(address, self)
        self._relay.confirm(request, address, self.password)
        if "USE-CANDIDATE" in request.attributes:
            self.peer = address
            self.nominated.set()

    def receive(self, data: bytes) -> None:
        """Process one datagram that is not STUN from a vouched-for address."""
        if self.srtp_sink is not None and 127 < data[0] < 192:
            self.srtp_sink(data)
        else:
            self._queue.put_nowait(data)

    async def _recv(self) -> bytes:
        data = await self._queue.get()
        if data is None:
            raise ConnectionError("the leg is closed")
        return data

    async def _send(self, data: bytes) -> None:
        self.send_now(data)

    def send_now(self, data: bytes) -> None:
        """Send to the nominated address; drop the data if there is none yet."""
        if self.peer is not None and not self.closed:
            self._relay.send(data, self.peer)

    def close(self) -> None:
        """Leave the relay. Idempotent."""
        if not self.closed:
            self.closed = True
            self._relay.forget(self)
            self._queue.put_nowait(None)


class Relay(asyncio.DatagramProtocol):
    """The shared socket. `await Relay.open(host)`, `leg()` for each call, `close()`."""

    def __init__(self) -> None:
        self._by_ufrag: dict[str, RelayLeg] = {}
        self._by_address: dict[Address, RelayLeg] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._gone: asyncio.Event = asyncio.Event()
        self.host, self.port = "", 0
        #: Dropped datagrams: malformed, or from an address without a valid check.
        self.dropped = 0
        #: Called when two live calls come from the same business address.
        self.on_shared_address: Callable[[RelayLeg], None] = lambda leg: None

    @classmethod
    async def open(cls, host: str, port: int = 0, *, create: OpenSocket | None = None) -> "Relay":
        """Bind the port and return the relay; `create` replaces the loop's `create_datagram_endpoint`."""
        relay = cls()
        await (create or asyncio.get_running_loop().create_datagram_endpoint)(lambda: relay, local_addr=(host, port))
        return relay

    @property
    def transport(self) -> asyncio.DatagramTransport:
        """The socket of all calls."""
        assert self._transport is not None
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.host, self.port = transport.get_extra_info("sockname")[:2]
        sock: Any = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        address = (addr[0], addr[1])
        if data and data[0] > 3:
            leg = self._by_address.get(address)
            if leg is None:
                self.dropped += 1
            else:
                leg.receive(data)
            return
        self._stun_received(data, address)

    def _stun_received(self, data: bytes, address: Address) -> None:
        try:
            message = stun.parse_message(data)
        except ValueError:
            self.dropped += 1
            return
        name = message.attributes.get("USERNAME", "")
        leg = self._by_ufrag.get(name.partition(":")[0])
        is_check = message.message_class is stun.Class.REQUEST and message.message_method is stun.Method.BINDING
        if leg is None or not is_check or "MESSAGE-INTEGRITY" not in message.attributes:
            self.dropped += 1
            return
        leg.check(message, address)

    def leg(self) -> RelayLeg:
        """Return a new leg with its own credentials."""
        leg = RelayLeg(self)
        self._by_ufrag[leg.ufrag] = leg
        return leg

    def vouch(self, address: Address, leg: RelayLeg) -> None:
        """Accept datagrams of `address` for `leg`."""
        other = self._by_address.get(address)
        if other is not leg:
            if other is not None:
                self.on_shared_address(leg)
                other.addresses.discard(address)
            self._by_address[address] = leg
            leg.addresses.add(address)

    def forget(self, leg: RelayLeg) -> None:
        """Remove a leg completely."""
        self._by_ufrag.pop(leg.ufrag, None)
        for address in leg.addresses:
            self._by_address.pop(address, None)

    def confirm(self, request: stun.Message, address: Address, password: str) -> None:
        """Answer a valid check."""
        response = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, request.transaction_id)
        response.attributes["XOR-MAPPED-ADDRESS"] = address
        response.add_message_integrity(password.encode())
        self.send(bytes(response), address)

    def refuse(self, request: stun.Message, address: Address, error: tuple[int, str], *, key: str | None) -> None:
        """Answer an invalid check; an unauthenticated one gets an unsigned response (RFC 8489 §9.1.3)."""
        response = stun.Message(stun.Method.BINDING, stun.Class.ERROR, request.transaction_id)
        response.attributes["ERROR-CODE"] = error
        if key is None:
            response.add_fingerprint()
        else:
            response.add_message_integrity(key.encode())
        self.send(bytes(response), address)

    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, address)

    async def close(self) -> None:
        """Close the socket and every leg."""
        for leg in list(self._by_ufrag.values()):
            leg.close()
        if self._transport is not None:
            self._transport.close()
            await self._gone.wait()
