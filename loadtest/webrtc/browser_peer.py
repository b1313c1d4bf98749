"""A browser's side of a call without a browser: offers like Chrome, sends a tone, measures what it receives.

A full ICE agent on one address (127.0.0.1 by default) with DTLS-SRTP and real Opus. It makes the offer and the other
side answers; the caller carries the SDP (in the softphone: over the WebSocket).

    peer = BrowserPeer(tone_hz=1000)
    answer = await signalling.exchange(await peer.offer())
    await peer.answer(answer)
    await peer.connected(timeout_s=5)
    peer.speak()
"""

import asyncio
import random
import uuid
from typing import Any

from loadtest.common.background import Background
from loadtest.common.clock import Clock, wall_clock
from loadtest.webrtc.dtls_leg import DtlsLeg, DtlsRole, HandshakeFailed
from loadtest.webrtc.full_ice import FullIce, IceFailed
from loadtest.webrtc.rtp import Payloads, parse_rtp
from loadtest.webrtc.voice import Ear, Talker


class PeerFailed(Exception):
    """No media path: the answer cannot be used, or ICE or DTLS failed."""


class BrowserPeer:
    """One peer connection with one audio section. Order: `offer()`, `answer()`, `connected()`, `close()`.

    `speak()` and `hush()` may be called at any time; no RTP leaves while hushed.
    """

    def __init__(
        self,
        *,
        tone_hz: int = 1000,
        host: str = "127.0.0.1",
        listen_every_s: float | None = 0.25,
        clock: Clock = wall_clock,
        ice: FullIce | None = None,
    ) -> None:
        self.tone_hz = tone_hz
        self._clock = clock
        self.ice = ice or FullIce(host=host, controlling=True)
        self.dtls = DtlsLeg(self.ice, on_rtp=self._on_rtp, on_rtcp=self._on_rtcp)
        self.ssrc = random.getrandbits(32)
        self.payloads = Payloads()
        #: Measures the received audio.
        self.ear = Ear(self.payloads, listen_every_s)
        self._background = Background("browser peer")
        self._done: asyncio.Future[None] | None = None
        self._talker: Talker | None = None
        self._speaking = False

    async def offer(self) -> str:
        """Return an offer like Chrome's: sendrecv, actpass, Opus first, all candidates included."""
        await self._background.start()
        self._done = asyncio.get_running_loop().create_future()
        candidates = await self.ice.gather()
        stream, track = uuid.uuid4(), uuid.uuid4()
        lines = [
            "v=0",
            f"o=- {random.getrandbits(62)} 2 IN IP4 127.0.0.1",
            "s=-",
            "t=0 0",
            "a=group:BUNDLE 0",
            "a=extmap-allow-mixed",
            f"a=msid-semantic: WMS {stream}",
            f"m=audio {candidates[0].port} UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126",
            f"c=IN IP4 {candidates[0].host}",
            "a=rtcp:9 IN IP4 0.0.0.0",
            *(f"a=candidate:{candidate.to_sdp()} generation 0" for candidate in candidates),
            f"a=ice-ufrag:{self.ice.ufrag}",
            f"a=ice-pwd:{self.ice.password}",
            f"a=fingerprint:sha-256 {self.dtls.fingerprint}",
            "a=setup:actpass",
            "a=mid:0",
            "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            "a=sendrecv",
            f"a=msid:{stream} {track}",
            "a=rtcp-mux",
            "a=rtcp-rsize",
            *_CHROME_CODECS,
            f"a=ssrc:{self.ssrc} cname:simulated",
            f"a=ssrc:{self.ssrc} msid:{stream} {track}",
        ]
        return "".join(f"{line}\r\n" for line in lines)

    async def answer(self, sdp: str) -> None:
        """Apply the answer and start connecting; `connected()` reports the result.

        Raises: PeerFailed if the answer is incomplete.
        """
        remote = _read_answer(sdp)
        self.payloads = self.ear.payloads = remote.payloads
        self._background.spawn(self._connect(remote), "connect")

    async def _connect(self, remote: "_Answer") -> None:
        assert self._done is not None
        try:
            await self.ice.connect(
                ufrag=remote.ufrag, password=remote.password, candidates=remote.candidates, lite=remote.lite
            )
            role = DtlsRole.SERVER if remote.setup == "active" else DtlsRole.CLIENT
            await self.dtls.handshake(role=role, peer_fingerprint=remote.fingerprint)
        except (IceFailed, HandshakeFailed) as failure:
            if not self._done.done():
                self._done.set_exception(PeerFailed(str(failure)))
            return
        if not self._done.done():
            self._done.set_result(None)
        self._start_talking()

    async def connected(self, *, timeout_s: float = 10.0) -> None:
        """Wait until media can flow. Raises: PeerFailed, TimeoutError."""
        if self._done is None:
            raise PeerFailed("offer() must be called first")
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self._done)

    def speak(self) -> None:
        """Send the tone, from now on or as soon as the path is up."""
        self._speaking = True
        self._start_talking()

    def hush(self) -> None:
        """Stop sending."""
        self._speaking = False
        if self._talker is not None:
            self._talker.stop()

    def press(self, digits: str) -> None:
        """Send DTMF digits while speaking. Raises: ValueError for an invalid digit, PeerFailed if not speaking."""
        if self._talker is None or not self._talker.talking:
            raise PeerFailed("speak() must be called first")
        self._talker.press(digits)

    def _start_talking(self) -> None:
        if not self._speaking or not self.dtls.connected:
            return
        if self._talker is None:
            self._talker = Talker(
                send=self.dtls.send_rtp,
                send_rtcp=self.dtls.send_rtcp,
                tone_hz=self.tone_hz,
                clock=self._clock,
                ssrc=self.ssrc,
                payloads=self.payloads,
            )
        self._talker.start()

    @property
    def packets_sent(self) -> int:
        """RTP packets sent so far."""
        return self._talker.sent if self._talker else 0

    def measured(self) -> dict[str, Any]:
        """Return the measurements, for JSON."""
        return self.ear.measured() | {
            "connected": self.dtls.connected,
            "packets_sent": self.packets_sent,
            "undecryptable": self.dtls.undecryptable,
        }

    def _on_rtp(self, data: bytes) -> None:
        packet = parse_rtp(data)
        if packet is not None:
            self.ear.hear(packet, now=asyncio.get_running_loop().time())

    def _on_rtcp(self, data: bytes) -> None:
        self.ear.hear_rtcp(now=asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Stop and release everything. Idempotent; may be called at any time."""
        self.hush()
        await self._background.close()
        if self._done is not None:
            if not self._done.done():
                self._done.set_exception(PeerFailed("closed"))
            self._done.exception()  # mark as retrieved: nobody may have awaited it
        await self.dtls.close()
        await self.ice.close()


class _Answer:
    """A parsed answer; as lenient as a browser, because checking is left to the other side."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self.ufrag, self.password = self._need("ice-ufrag"), self._need("ice-pwd")
        fingerprints = [line.split(" ", 1) for line in self._all("fingerprint") if " " in line]
        sha256 = [value for algorithm, value in fingerprints if algorithm.lower() == "sha-256"]
        if not sha256:
            raise PeerFailed("no sha-256 fingerprint in the answer")
        self.fingerprint = sha256[0].upper()
        self.setup = self._need("setup")
        self.lite = "a=ice-lite" in lines
        self.candidates = [value for value in self._all("candidate") if " udp " in value.lower()]
        names = dict(line.split(" ", 1) for line in self._all("rtpmap") if " " in line)
        self.payloads = Payloads(
            opus=self._payload(names, "opus/48000/2", 111),
            dtmf=self._payload(names, "telephone-event/8000", 126),
        )

    def _all(self, name: str) -> list[str]:
        prefix = f"a={name}:"
        return [line.removeprefix(prefix) for line in self._lines if line.startswith(prefix)]

    def _need(self, name: str) -> str:
        values = self._all(name)
        if not values:
            raise PeerFailed(f"no a={name} in the answer")
        return values[0]

    @staticmethod
    def _payload(names: dict[str, str], codec: str, default: int) -> int:
        found = [number for number, name in names.items() if name.strip().lower() == codec]
        return int(found[0]) if found and found[0].isdecimal() else default


def _read_answer(sdp: str) -> _Answer:
    return _Answer([line.rstrip("\r") for line in sdp.split("\n")])


_CHROME_CODECS = (
    "a=rtpmap:111 opus/48000/2",
    "a=rtcp-fb:111 transport-cc",
    "a=fmtp:111 minptime=10;useinbandfec=1",
    "a=rtpmap:63 red/48000/2",
    "a=fmtp:63 111/111",
    "a=rtpmap:9 G722/8000",
    "a=rtpmap:0 PCMU/8000",
    "a=rtpmap:8 PCMA/8000",
    "a=rtpmap:13 CN/8000",
    "a=rtpmap:110 telephone-event/48000",
    "a=rtpmap:126 telephone-event/8000",
)
