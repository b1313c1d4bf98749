"""Far ends whose RTP comes from a pump: users at the simulated Meta, and operators with a browser's leg.

ICE, DTLS, SDP, RTCP and signalling are those of the simulated people with audio; RTP is only what `Pump.play` sends.
"""

import asyncio
from dataclasses import replace
from typing import Any

from aioice import Candidate
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import StunProtocol

from loadtest.loads.media_pump import Line, Pump
from loadtest.operators.signalling_bot import SignallingBot
from loadtest.simulator.sdp import BusinessSdp, MetaMedia
from loadtest.simulator.webrtc_user import UserMedia
from loadtest.webrtc.browser_peer import BrowserPeer
from loadtest.webrtc.dtls_leg import DtlsRole
from loadtest.webrtc.full_ice import FullIce, OneAddressConnection


class PumpedUser(UserMedia):
    """A user at the simulated Meta; its relay has a socket of the pump, and announces this port."""

    def __init__(self, pump: Pump, *args: Any, port: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._pump, self._port = pump, port
        self.line: Line | None = None

    def _media(self) -> MetaMedia:
        return replace(super()._media(), port=self._port)

    async def connect(self, remote: BusinessSdp, role: DtlsRole) -> None:
        """Connect, and leave RTP to the pump."""
        await super().connect(remote, role)
        if self.connected.is_set():
            assert self.leg.peer is not None
            self.line = self._pump.line(
                self._relay.transport, peer=self.leg.peer, keys=self._dtls, payload_type=remote.payloads.opus
            )

    def talk(self) -> None:
        """Do nothing: the pump sends."""

    async def close(self) -> None:
        """Leave the relay."""
        if self.line is not None:
            self._pump.drop(self._relay.transport, self.line)
        await super().close()


class PumpedPeer(BrowserPeer):
    """A browser's leg with its socket in the pump."""

    def __init__(self, pump: Pump, *, controlling: bool = True) -> None:
        ice = FullIce(controlling=controlling, kind=lambda **more: _PumpedConnection(pump, **more))
        super().__init__(ice=ice)
        self._pump = pump
        self.line: Line | None = None

    async def connected(self, *, timeout_s: float = 10.0) -> None:
        """Wait until media can flow, and leave RTP to the pump. Raises: PeerFailed, TimeoutError."""
        await super().connected(timeout_s=timeout_s)
        if self.line is None:
            transport, address = self.ice.path()
            self.line = self._pump.line(transport, peer=address, keys=self.dtls, payload_type=self.payloads.opus)

    def speak(self) -> None:
        """Do nothing: the pump sends."""


class _PumpedConnection(OneAddressConnection):
    """aioice's connection on a socket of the pump."""

    def __init__(self, pump: Pump, *, host: str, controlling: bool) -> None:
        super().__init__(host=host, controlling=controlling)
        self._pump = pump

    async def get_component_candidates(self, component: int, addresses: list[str], timeout: int = 5) -> list[Candidate]:
        """Return one host candidate for each address."""
        found = []
        for address in addresses:
            transport, protocol = await self._pump.open(lambda: StunProtocol(self), local_addr=(address, 0))
            host, port = transport.get_extra_info("sockname")
            candidate = Candidate(
                foundation=candidate_foundation("host", "udp", host),
                component=component,
                transport="udp",
                priority=candidate_priority(component, "host"),
                host=host,
                port=port,
                type="host",
            )
            assert isinstance(protocol, StunProtocol)
            protocol.local_candidate = candidate
            self._protocols.append(protocol)
            found.append(candidate)
        return found


class PumpedOperator(SignallingBot):
    """An operator that answers and holds by policy, with a browser's leg in each worker."""

    def __init__(self, pump: Pump, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._pump = pump
        self.peers: dict[int, PumpedPeer] = {}

    async def make_leg(self, worker: int) -> None:
        """Make the leg in one worker, and return when media can flow."""
        peer = self.peers[worker] = PumpedPeer(self._pump)
        answer = await self.request("leg", worker=worker, sdp=await peer.offer())
        await peer.answer(answer["sdp"])
        await peer.connected()

    @property
    def line(self) -> Line | None:
        """The line of the leg that the current call uses."""
        worker = None if self.call is None else self.call["worker"]
        return None if worker is None else self.peers[worker].line

    async def hold(self, *, on: bool) -> None:
        """Put the current call on hold, or resume it. Raises: RequestFailed, TimeoutError."""
        assert self.call is not None
        await self.request("hold", call_id=self.call["call_id"], on=on)

    async def close(self) -> None:
        """Close everything. Idempotent."""
        await super().close()
        async with asyncio.TaskGroup() as group:
            for peer in self.peers.values():
                group.create_task(peer.close())
