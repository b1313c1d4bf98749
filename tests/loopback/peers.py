"""The far ends of legs, for tests: real aiortc peer connections on 127.0.0.1 that speak in bare RTP packets.

A `Peer` is a browser, or Meta if it is asked to claim ICE-lite. What it says is bytes with a label instead of Opus:
nothing on the way may look into them, so what arrives must be what was said.
"""

import asyncio
import re
from collections.abc import Callable
from struct import pack, unpack_from
from typing import Any, NamedTuple, Self

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcdtlstransport import RTCDtlsTransport

from media import sdp
from media.host import LegHost
from media.model import LegConnected, LegFailed, LegFailure, LegId, MediaConfig, MediaEvent

#: Legs of these tests reach Meta on this machine, which no real configuration allows.
CONFIG = MediaConfig(candidate_networks=("127.0.0.0/8",))
FRAME = 960


async def until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    """Wait for a condition; fail if it does not come true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is about another process, or about many objects
            await asyncio.sleep(0.005)


class Heard(NamedTuple):
    """One RTP packet as it reached a peer, decrypted."""

    payload_type: int
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


class Peer:
    """A browser tab, or Meta's end of a call."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.heard: list[Heard] = []
        self.rtcp_heard = 0
        self.ssrc = 0x1000_0001
        self.sequence = 65_530
        self.timestamp = 4_000_000_000
        self.payloads = sdp.Payloads(opus=111, dtmf=126)

    @property
    def dtls(self) -> RTCDtlsTransport:
        return self.pc.getTransceivers()[0].sender.transport

    async def offer(self, *, lite: bool = False, change: Callable[[str], str] = lambda text: text) -> str:
        self.pc.addTransceiver("audio", direction="sendrecv")
        await self.pc.setLocalDescription(await self.pc.createOffer())
        text = with_keypad(self.pc.localDescription.sdp)
        self._listen()
        if lite:
            self.dtls.transport._connection.ice_controlling = False
            text = text.replace("t=0 0\r\n", "t=0 0\r\na=ice-lite\r\n")
        return change(text)

    async def answered(self, text: str) -> None:
        self.payloads = sdp.parse(text).payloads
        await self.pc.setRemoteDescription(RTCSessionDescription(text, "answer"))

    async def answer(self, offer: str, *, change: Callable[[str], str] = lambda text: text) -> str:
        self.payloads = sdp.parse(offer).payloads
        await self.pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        self.pc.getTransceivers()[0].direction = "sendrecv"
        await self.pc.setLocalDescription(await self.pc.createAnswer())
        self._listen()
        return change(with_keypad(self.pc.localDescription.sdp))

    def _listen(self) -> None:
        async def rtp(data: bytes, arrival_time_ms: int) -> None:
            first, second, sequence, timestamp, ssrc = unpack_from("!BBHLL", data)
            assert first == 0x80, "no extension, padding or CSRC"
            self.heard.append(Heard(second & 0x7F, second > 127, sequence, timestamp, ssrc, data[12:]))

        async def rtcp(data: bytes) -> None:
            self.rtcp_heard += 1

        self.dtls._handle_rtp_data = rtp  # type: ignore[method-assign]
        self.dtls._handle_rtcp_data = rtcp  # type: ignore[method-assign]

    async def say(self, text: str, *, times: int = 1, extension: bytes = b"", pace_s: float = 0.0) -> None:
        """Send packets that carry the text and a number."""
        for n in range(times):
            await self._send(self.payloads.opus, f"{text} {n}".encode(), extension=extension)
            self.timestamp = (self.timestamp + FRAME) & 0xFFFFFFFF
            await asyncio.sleep(pace_s)

    async def press(self, event: int) -> None:
        """Send the packets of one key press."""
        assert self.payloads.dtmf is not None
        for n in range(5):
            end = 0x80 if n >= 2 else 0
            await self._send(self.payloads.dtmf, pack("!BBH", event, end | 10, 160 * (n + 1)), marker=n == 0)
        self.timestamp = (self.timestamp + 5 * FRAME) & 0xFFFFFFFF

    async def _send(self, payload_type: int, payload: bytes, *, marker: bool = False, extension: bytes = b"") -> None:
        first, second = 0x90 if extension else 0x80, payload_type | (0x80 if marker else 0)
        head = pack("!BBHLL", first, second, self.sequence & 0xFFFF, self.timestamp, self.ssrc)
        self.sequence += 1
        await self.dtls._send_rtp(head + extension + payload)

    def vanish(self) -> None:
        """Send nothing any more, not even a goodbye."""

        async def send_data(data: bytes, addr: object) -> None:
            return None

        for protocol in self.dtls.transport._connection._protocols:
            protocol.send_stun = lambda message, addr: None  # type: ignore[method-assign]
            protocol.send_data = send_data  # type: ignore[method-assign]

    @property
    def texts(self) -> list[str]:
        """Return what was said to this peer, tones left out."""
        return [packet.payload.decode() for packet in self.heard if packet.payload[-2:-1] == b" "]

    async def close(self) -> None:
        await self.pc.close()


def with_keypad(text: str) -> str:
    """Add telephone-event, which aiortc does not speak, and leave Opus alone beside it."""
    payload_type = sdp.parse(text).payloads.opus
    text = re.sub(r"(m=audio \d+ \S+) [\d ]+", rf"\1 {payload_type} 126", text)
    return text + "a=rtpmap:126 telephone-event/8000\r\n"


class Stage:
    """A `LegHost` and its peers, closed together."""

    def __init__(self, config: MediaConfig = CONFIG) -> None:
        self.events: list[MediaEvent] = []
        self.host = LegHost(config, 0, self.events.append)
        self.peers: list[Peer] = []

    async def __aenter__(self) -> Self:
        await self.host.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        for peer in self.peers:
            await peer.close()
        await self.host.__aexit__(*error)

    def peer(self) -> Peer:
        self.peers.append(Peer())
        return self.peers[-1]

    async def browser(self, name: str = "browser", **how: Any) -> tuple[LegId, Peer]:
        """Return a connected browser leg."""
        leg, peer = LegId(name), self.peer()
        await peer.answered(await self.host.answer_browser(leg, await peer.offer(**how)))
        await self.connected(leg, peer)
        return leg, peer

    async def meta(self, name: str = "meta", **how: Any) -> tuple[LegId, Peer]:
        """Return a connected Meta leg for which Meta made the offer."""
        leg, peer = LegId(name), self.peer()
        await peer.answered(await self.host.answer_meta(leg, await peer.offer(lite=True, **how)))
        await self.connected(leg, peer)
        return leg, peer

    async def called_meta(self, name: str = "called", **how: Any) -> tuple[LegId, Peer]:
        """Return a connected Meta leg for which we made the offer."""
        leg, peer = LegId(name), self.peer()
        await self.host.accept_meta_answer(leg, await peer.answer(await self.host.offer_meta(leg), **how))
        await self.connected(leg, peer)
        return leg, peer

    async def connected(self, leg: LegId, peer: Peer) -> None:
        await until(lambda: LegConnected(leg) in self.events and peer.pc.connectionState == "connected")

    def failures(self, leg: LegId) -> list[LegFailure]:
        return [e.reason for e in self.events if isinstance(e, LegFailed) and e.leg == leg]

    async def failed(self, leg: LegId, *, timeout_s: float = 5.0) -> LegFailure:
        """Wait for the leg to fail, and return why."""
        await until(lambda: bool(self.failures(leg)), timeout_s=timeout_s)
        return self.failures(leg)[0]
