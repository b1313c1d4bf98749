"""A simulated user without media: SDP of the right shape, but no sockets, keys, tasks or timers.

For loads of signalling against a gateway with the media engine `null`. It cannot notice media that is early or missing,
since there is none.
"""

import asyncio
import itertools
import secrets

from loadtest.common.clock import Clock
from loadtest.simulator.sdp import BusinessSdp, MetaMedia
from loadtest.simulator.webrtc_user import UserMedia
from loadtest.webrtc.dtls_leg import DtlsRole
from loadtest.webrtc.rtp import Payloads
from loadtest.webrtc.voice import Ear

#: Port of Meta's relays; nothing listens there on loopback.
_PORT = 3480
_FINGERPRINT = ":".join(f"{byte:02X}" for byte in secrets.token_bytes(32))
_ssrcs = itertools.count(1_000_000_001)


class SilentMedia(UserMedia):
    """Replaces `UserMedia`; connected as soon as both descriptions are known."""

    def __init__(self, host: str, *, clock: Clock) -> None:
        # Deliberately not the parent's __init__, which takes a place on the relay and makes a certificate.
        self._host, self._clock = host, clock
        self._ssrc = next(_ssrcs) & 0xFFFFFFFF
        self._talker = None
        self._remote = None
        self.ear = Ear(Payloads(), None)
        self.connected = asyncio.Event()
        self.welcome_since = None
        self._may_talk = False
        self.early_packets = 0
        self.foreign_ssrc_packets = 0

    def _media(self) -> MetaMedia:
        return MetaMedia(
            host=self._host,
            port=_PORT,
            ufrag=secrets.token_hex(8),
            password=secrets.token_hex(12),
            fingerprint=_FINGERPRINT,
            ssrc=self._ssrc,
            session_id=int(self._clock() * 1000),
        )

    async def connect(self, remote: BusinessSdp, role: DtlsRole) -> None:
        """Become connected."""
        self.connect_now()

    def connect_now(self) -> None:
        """Become connected at once, without a task."""
        self.connected.set()

    def talk(self) -> None:
        """Do nothing."""

    def press(self, digits: str) -> bool:
        """Send nothing and return False."""
        return False

    def measured(self) -> dict[str, object]:
        """Return the figures of a user that received nothing, in the format of `UserMedia.measured`."""
        return self.ear.measured() | {"connected": self.connected.is_set(), "packets_sent": 0, "early_packets": 0}

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""
