"""The media of one simulated WhatsApp user's call: ICE-lite, DTLS-SRTP, real Opus in real time.

It writes Meta's SDP, connects once the business's SDP is known, and stays silent until `talk()`: in a user-initiated
call after the 200 to `accept`, in a business-initiated one after the user answers. Media from the business before that
is counted as early.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.common.clock import Clock
from loadtest.simulator.relay import Relay
from loadtest.simulator.sdp import BusinessSdp, MetaMedia, Setup, write_answer, write_offer
from loadtest.webrtc.dtls_leg import DtlsLeg, DtlsRole, HandshakeFailed
from loadtest.webrtc.rtp import Payloads, parse_rtp
from loadtest.webrtc.voice import Ear, Talker


@dataclass(frozen=True, slots=True, kw_only=True)
class UserVoice:
    """How a person speaks and listens."""

    tone_hz: int
    #: Delay of the echo of received audio; None: send the tone only.
    echo_after_s: float | None
    listen_every_s: float | None


class UserMedia:
    """One call's media. Order of calls: `offer()` or `answer()`, `connect()`, `welcome()`, `talk()`,
    `close()`."""

    def __init__(self, relay: Relay, voice: UserVoice, *, clock: Clock, on_early: Callable[[], None]) -> None:
        self._relay, self._voice, self._clock = relay, voice, clock
        self._on_early = on_early
        self.leg = relay.leg()
        self._dtls = DtlsLeg(self.leg, on_rtp=self._on_rtp, on_rtcp=self._on_rtcp)
        self._ssrc = random.getrandbits(32)
        self._payloads = Payloads()
        self.ear = Ear(self._payloads, voice.listen_every_s)
        self._talker: Talker | None = None
        self._remote: BusinessSdp | None = None
        self.connected = asyncio.Event()
        #: Loop time of the answer; media from the business is expected from then on.
        self.welcome_since: float | None = None
        self._may_talk = False
        #: RTP packets from the business before that.
        self.early_packets = 0
        #: Packets with an SSRC that was not announced.
        self.foreign_ssrc_packets = 0

    def _media(self) -> MetaMedia:
        return MetaMedia(
            host=self._relay.host,
            port=self._relay.port,
            ufrag=self.leg.ufrag,
            password=self.leg.password,
            fingerprint=self._dtls.fingerprint,
            ssrc=self._ssrc,
            session_id=int(self._clock() * 1000),
        )

    def offer(self) -> str:
        """Return Meta's offer (user-initiated)."""
        return write_offer(self._media())

    def answer(self, offer: BusinessSdp, setup: Setup) -> str:
        """Return Meta's answer (business-initiated)."""
        return write_answer(self._media(), offer, setup)

    async def connect(self, remote: BusinessSdp, role: DtlsRole) -> None:
        """Answer checks, wait for the nomination, complete DTLS. Returns silently if closed meanwhile.

        Raises: HandshakeFailed.
        """
        self._remote = remote
        self._payloads = remote.payloads
        self.ear.payloads = remote.payloads
        self.leg.expect(remote.ufrag)
        await self.leg.nominated.wait()
        try:
            await self._dtls.handshake(role=role, peer_fingerprint=remote.fingerprint)
        except HandshakeFailed:
            if not self.leg.closed:
                raise
            return
        self.connected.set()
        self._speak()

    def welcome(self) -> None:
        """Expect the business's media from now on: the call has been answered."""
        if self.welcome_since is None:
            self.welcome_since = asyncio.get_running_loop().time()

    def talk(self) -> None:
        """Start speaking, now or as soon as connected."""
        self._may_talk = True
        self._speak()

    def _speak(self) -> None:
        ready = self.connected.is_set() and self._may_talk and not self.leg.closed
        if not ready or self._remote is None or not self._remote.sendrecv or self._talker is not None:
            return
        self._talker = Talker(
            send=self._dtls.send_rtp,
            send_rtcp=self._dtls.send_rtcp,
            tone_hz=self._voice.tone_hz,
            clock=self._clock,
            ssrc=self._ssrc,
            payloads=self._payloads,
        )
        self._talker.echo_after(self._voice.echo_after_s)
        self._talker.start()

    def press(self, digits: str) -> bool:
        """Send DTMF digits; False if nothing is being sent yet. Raises: ValueError."""
        if self._talker is None:
            return False
        self._talker.press(digits)
        return True

    def _on_rtp(self, data: bytes) -> None:
        packet = parse_rtp(data)
        if packet is None:
            return
        now = asyncio.get_running_loop().time()
        if self._remote is not None and self._remote.ssrc not in (None, packet.ssrc):
            self.foreign_ssrc_packets += 1
        if self.welcome_since is None:
            self.early_packets += 1
            if self.early_packets == 1:
                self._on_early()
        self.ear.hear(packet, now=now)
        if self._talker is not None and packet.payload_type == self._payloads.opus:
            self._talker.repeat(packet.payload, now=now)

    def _on_rtcp(self, data: bytes) -> None:
        self.ear.hear_rtcp(now=asyncio.get_running_loop().time())

    def measured(self) -> dict[str, Any]:
        """Return the figures of sent and received audio, for JSON."""
        first, since = self.ear.first_audio_at, self.welcome_since
        after = None if first is None or since is None else round(first - since, 3)
        return self.ear.measured() | {
            "connected": self.connected.is_set(),
            "packets_sent": self._talker.sent if self._talker else 0,
            "early_packets": self.early_packets,
            "foreign_ssrc_packets": self.foreign_ssrc_packets,
            "undecryptable": self._dtls.undecryptable,
            "first_audio_after_accept_s": after,
        }

    async def close(self) -> None:
        """Stop speaking and leave the relay."""
        if self._talker is not None:
            self._talker.stop()
        await self._dtls.close()
        self.leg.close()
