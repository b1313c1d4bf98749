"""A full ICE agent on one chosen address, as browsers and a business's media server have.

aioice's `Connection` with gathering restricted to the given address (by default it uses every address of the machine
except loopback), and SRTP passed on without its queue. Written for aioice 0.13.
"""

import asyncio
from collections.abc import Callable, Sequence

from aioice import Candidate, Connection


class IceFailed(Exception):
    """No candidate pair worked."""


class OneAddressConnection(Connection):
    """An aioice connection that gathers host candidates on one address and nothing else."""

    def __init__(self, *, host: str, controlling: bool) -> None:
        super().__init__(ice_controlling=controlling)
        self._host = host
        self.srtp_sink: Callable[[bytes], None] | None = None

    async def gather_candidates(self) -> None:
        """Gather on the chosen address."""
        if not self._local_candidates_start:
            self._local_candidates_start = True
            self._local_candidates += await self.get_component_candidates(1, [self._host])
            self._local_candidates_end = True

    def data_received(self, data: bytes, component: int) -> None:
        """Pass SRTP on at once; queue everything else for DTLS."""
        if self.srtp_sink is not None and data and 127 < data[0] < 192:
            self.srtp_sink(data)
        else:
            super().data_received(data, component)


class FullIce:
    """A `Carrier` over this connection: `gather()`, `connect()`, `close()`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        controlling: bool = True,
        kind: Callable[..., OneAddressConnection] = OneAddressConnection,
    ) -> None:
        self.connection = kind(host=host, controlling=controlling)
        self._recv = self.connection.recv
        self._send = self.connection.send

    @property
    def role(self) -> str:
        """Return our ICE role."""
        return "controlling" if self.connection.ice_controlling else "controlled"

    @property
    def srtp_sink(self) -> Callable[[bytes], None] | None:
        """Receiver of SRTP and SRTCP datagrams."""
        return self.connection.srtp_sink

    @srtp_sink.setter
    def srtp_sink(self, sink: Callable[[bytes], None] | None) -> None:
        self.connection.srtp_sink = sink

    @property
    def ufrag(self) -> str:
        """Our username fragment."""
        return self.connection.local_username

    @property
    def password(self) -> str:
        """Our ICE password."""
        return self.connection.local_password

    async def gather(self) -> list[Candidate]:
        """Open the socket and return our candidates."""
        await self.connection.gather_candidates()
        return self.connection.local_candidates

    async def connect(
        self, *, ufrag: str, password: str, candidates: Sequence[str], lite: bool, timeout_s: float = 10.0
    ) -> None:
        """Run connectivity checks against a peer; `candidates` are SDP values, without `candidate:`.

        Raises: IceFailed.
        """
        connection = self.connection
        connection.remote_username, connection.remote_password = ufrag, password
        connection.remote_is_lite = lite
        try:
            for text in candidates:
                await connection.add_remote_candidate(Candidate.from_sdp(text))
            await connection.add_remote_candidate(None)
            async with asyncio.timeout(timeout_s):
                await connection.connect()
        except (ConnectionError, TimeoutError, ValueError) as failure:
            raise IceFailed(str(failure) or "timeout") from failure

    def path(self) -> tuple[asyncio.DatagramTransport, tuple[str, int]]:
        """Return the socket and the peer's address of the nominated pair; requires a connection."""
        pair = self.connection._nominated[1]
        return pair.protocol.transport, pair.remote_addr

    def send_now(self, data: bytes) -> None:
        """Send over the nominated pair."""
        pair = self.connection._nominated.get(1)
        if pair is not None and not pair.protocol.transport.is_closing():
            pair.protocol.transport.sendto(data, pair.remote_addr)

    async def close(self) -> None:
        """Close the socket. Idempotent."""
        await self.connection.close()
