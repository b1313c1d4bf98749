"""ICE of one leg. All use of aioice's internals is in this file, written for aioice 0.13.0.

`Link` is aioice's protocol object with a guard in front; `LegIce` wraps aiortc's ICE transport around one `Link`. Which
socket carries the datagrams is decided in `port.py`.

What the guard does, and why the stock stack needs it:

* Only an address that passed a connectivity check (it sent a STUN message with a valid MESSAGE-INTEGRITY) may send
  anything but STUN. aioice hands every other datagram to DTLS, so a stranger's ClientHello ends the handshake (OWASP
  ASVS 5.0, 17.2.6). libwebrtc, pion and Asterisk check the source as well.
* RTP and RTCP go straight to the leg, and not through aioice's queue, a task and two futures.
* What a peer may send is limited: datagrams per second, addresses, and handshake datagrams waiting to be read. Only
  STUN with our user fragment or our transaction id counts against the STUN limit, so strangers cannot use it up.
* A request with wrong credentials gets no response. aioice answers 400 or 401 to anyone.
* No gathering: no interface is listed, no STUN server contacted, no name resolved.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aioice import Candidate as AioiceCandidate
from aioice import ice, stun
from aioice.candidate import candidate_foundation, candidate_priority
from aiortc.rtcicetransport import RTCIceGatherer, RTCIceParameters, RTCIceTransport

from media.errors import IceFailed
from media.sdp import Candidate

WRITTEN_FOR_AIOICE: Final = "0.13.0"
WRITTEN_FOR_AIORTC: Final = "1.16.0"

#: Addresses that one peer may use; a phone that changes networks uses only a few.
MAX_ADDRESSES: Final = 32
#: STUN messages per second to one leg, counted separately for addresses that passed a check and for all others; a peer
#: sends some tens while it connects.
STUN_BUDGET_PER_S: Final = 100
#: Handshake datagrams waiting to be read; a DTLS flight is three at most.
MAX_WAITING: Final = 32

Address = tuple[str, int]


class Budget:
    """Limit events per second."""

    __slots__ = ("_left", "_per_second", "_until")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = 0
        self._until = float("-inf")

    def take(self, now: float) -> bool:
        """Count one event and return whether it is allowed."""
        if now >= self._until:
            self._until = now + 1.0
            self._left = self._per_second
        self._left -= 1
        return self._left >= 0


@dataclass(slots=True)
class Drops:
    """Counters of dropped datagrams, by cause."""

    over_budget: int = 0
    from_stranger: int = 0
    unprotect_failed: int = 0
    malformed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IceRemote:
    """The peer's half of the ICE parameters."""

    ufrag: str
    pwd: str
    lite: bool
    #: Already filtered. The peer's own checks are answered whatever address they come from.
    candidates: Sequence[Candidate]


def request_ufrag(data: bytes) -> str | None:
    """Return which of our user fragments a STUN request is addressed to; None if it names none or is malformed."""
    try:
        message = stun.parse_message(data)
    except Exception:  # a third-party parser fed by strangers; it raises more than ValueError
        return None
    if message.message_class != stun.Class.REQUEST:
        return None
    return str(message.attributes.get("USERNAME", "")).partition(":")[0]


class Link(ice.StunProtocol):
    """The datagrams of one leg, both ways. It is the protocol of the leg's own socket, or is fed by a shared one."""

    def __init__(self, connection: ice.Connection, *, packet_budget: int) -> None:
        super().__init__(connection)
        self.drops = Drops()
        #: Receives RTP and RTCP, still encrypted.
        self.on_media: Callable[[bytes], None] = lambda data: None
        #: Called for every STUN message with valid credentials.
        self.on_alive: Callable[[], None] = lambda: None
        #: Called when an address passes a check for the first time; used by a shared socket.
        self.on_checked: Callable[[Address], None] = lambda address: None
        #: Set if the socket is shared: called instead of closing it.
        self.on_closed: Callable[[], None] | None = None
        self._now = asyncio.get_running_loop().time
        #: Addresses that may send more than STUN.
        self.checked: set[Address] = set()
        self._packets = Budget(packet_budget)
        self._checks = Budget(STUN_BUDGET_PER_S)
        self._knocks = Budget(STUN_BUDGET_PER_S)
        #: Prefix of the USERNAME in every request to us.
        self._name = f"{connection.local_username}:".encode()

    def use(self, transport: asyncio.DatagramTransport, address: Address) -> None:
        """Send through this socket; call once, before `LegIce.connect`."""
        self.transport = transport
        host, port = address
        self.local_candidate = AioiceCandidate(
            foundation=candidate_foundation("host", "udp", host),
            component=1,
            transport="udp",
            priority=candidate_priority(1, "host"),
            host=host,
            port=port,
            type="host",
        )

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        """Dispatch one datagram by its first byte (RFC 7983 §7) and by its source."""
        assert isinstance(data, bytes)
        address = addr if len(addr) == 2 else addr[:2]  # IPv6 addresses have four parts
        first = data[0] if data else 255
        if first < 4:
            self._stun_received(data, address)
        elif address not in self.checked:
            self.drops.from_stranger += 1
        else:
            self.checked_received(data, first)

    def checked_received(self, data: bytes, first: int) -> None:
        """Process a datagram that is not STUN, from an address that passed a check."""
        clock, on_media = self._now, self.on_media
        if not self._packets.take(clock()):
            self.drops.over_budget += 1
        elif 127 < first < 192:
            on_media(data)
        elif 19 < first < 64 and self.receiver._queue.qsize() < MAX_WAITING:
            self.receiver.data_received(data, 1)
        else:
            self.drops.malformed += 1

    def send_stun(self, message: stun.Message, addr: Address) -> None:
        """Send a STUN message, but no error response to a stranger; a success response means the check passed."""
        if message.message_class == stun.Class.RESPONSE:
            self._passed(addr)
        elif message.message_class == stun.Class.ERROR and message.error_code in (400, 401):
            self.drops.from_stranger += 1
            return
        if not self.transport.is_closing():
            super().send_stun(message, addr)

    async def close(self) -> None:
        """Stop receiving; close the socket if it is not shared."""
        if self.on_closed is not None:
            self.on_closed()
        else:
            await super().close()

    def _stun_received(self, data: bytes, address: Address) -> None:
        known = address in self.checked
        answers_us = data[8:20] in self.transactions
        if not answers_us and self._name not in data:
            if known:
                self.drops.malformed += 1
            else:
                self.drops.from_stranger += 1
            return
        budget = self._checks if known or answers_us else self._knocks
        if not budget.take(self._now()):
            self.drops.over_budget += 1
            return
        try:
            self._handle_stun(stun.parse_message(data), address)
        except Exception:  # as in request_ufrag; aioice also fails on requests without PRIORITY
            self.drops.malformed += 1

    def _handle_stun(self, message: stun.Message, address: Address) -> None:
        if message.message_class == stun.Class.REQUEST:
            if address in self.checked or len(self.checked) < MAX_ADDRESSES:
                self.receiver.request_received(message, address, self)
            else:
                self.drops.from_stranger += 1
            return
        transaction = self.transactions.get(message.transaction_id)
        if transaction is None:
            self.drops.from_stranger += 1
            return
        password = self.receiver.remote_password or ""
        if message.message_class == stun.Class.RESPONSE and message.check_message_integrity(password.encode()):
            # Before aioice handles the check: the peer's ClientHello may be in the same burst.
            self._passed(address)
        transaction.response_received(message, address)

    def _passed(self, address: Address) -> None:
        if address not in self.checked:
            self.checked.add(address)
        self.on_checked(address)
        self.on_alive()


class _Gatherer(RTCIceGatherer):
    """A gatherer without anything to gather."""

    def __init__(self) -> None:
        # An empty list: by default aiortc contacts a public STUN server for every call.
        super().__init__(iceServers=[], local_username=secrets.token_hex(8), local_password=secrets.token_hex(16))

    @property
    def connection(self) -> ice.Connection:
        return self._connection

    async def gather(self) -> None:
        return None


class LegIce:
    """The ICE agent of one leg; with `controlling` it nominates the pair of addresses."""

    def __init__(self, *, controlling: bool, packet_budget: int) -> None:
        gatherer = _Gatherer()
        self._connection = gatherer.connection
        # Set before the first check can arrive; otherwise a full-ICE peer is told of a role conflict.
        self._connection.ice_controlling = controlling
        self.transport = RTCIceTransport(gatherer)
        self.link = Link(self._connection, packet_budget=packet_budget)
        self._nominated: dict[int, ice.CandidatePair] = self._connection._nominated
        #: The pair used last, with its address; aioice would build the address anew for each packet.
        self._pair: ice.CandidatePair | None = None
        self._peer: Address = ("", 0)
        self.ufrag: str = self._connection.local_username
        self.pwd: str = self._connection.local_password

    async def connect(self, remote: IceRemote) -> None:
        """Run the checks and return when a pair is nominated. Raises: IceFailed.

        Has no time limit of its own: the caller sets one.
        """
        connection = self._connection
        connection._protocols = [self.link]
        connection._local_candidates = [self.link.local_candidate]
        connection._local_candidates_start = connection._local_candidates_end = True
        for candidate in remote.candidates:
            await connection.add_remote_candidate(_to_aioice(candidate))
        if remote.candidates:
            # Without end-of-candidates aioice polls its check list at 50 Hz for as long as it runs.
            await self.transport.addRemoteCandidate(None)
        await self.transport.start(
            RTCIceParameters(usernameFragment=remote.ufrag, password=remote.pwd, iceLite=remote.lite)
        )
        if self.transport.state != "completed":
            raise IceFailed("no path to the peer was found")

    def send(self, data: bytes) -> None:
        """Send to the nominated address; does nothing if there is none (any more)."""
        pair = self._nominated.get(1)
        if pair is None:
            return
        if pair is not self._pair:
            self._pair, self._peer = pair, pair.remote_addr
        transport = self.link.transport
        if not transport.is_closing():
            transport.sendto(data, self._peer)

    @property
    def lost(self) -> bool:
        """Return whether the peer's consent expired (RFC 7675) or we closed the connection."""
        return self._connection._closing

    async def close(self) -> None:
        """Stop all checks and close the socket. Idempotent."""
        await self.transport.stop()
        await self.link.close()  # aioice closes it only if connect() got that far


def _to_aioice(candidate: Candidate) -> AioiceCandidate:
    return AioiceCandidate(
        foundation=candidate.foundation,
        component=candidate.component,
        transport=candidate.transport,
        priority=candidate.priority,
        host=candidate.address,
        port=candidate.port,
        type=candidate.type,
    )
