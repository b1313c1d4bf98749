"""DTLS-SRTP of one leg. All use of aiortc's private DTLS attributes is in this file.

It holds the certificate shared by all legs of a process, runs the handshake (a failure names its reason) and extracts
the SRTP keys. RTP does not pass through aiortc; see `srtp.py` and `bridge.py`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiortc.rtcdtlstransport import (
    RTCCertificate,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    SRTPProtectionProfile,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from media.errors import DtlsFailed
from media.ice import LegIce
from media.negotiation import DtlsRole
from media.srtp import SrtpKeys, srtp_keys

#: Suites for DTLS 1.2; DTLS 1.3 has its own, all AEAD. aiortc's list ends in two AES-CBC suites (ASVS 5.0, 17.2.2).
#: Source: RFC 8827 §6.5: every implementation must support the first.
CIPHERS: Final = b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384"
#: aiortc's certificates are valid for 30 days; a leg keeps the certificate it started with.
RENEW_AFTER_S: Final = 24 * 3600.0


class SharedCertificate(RTCCertificate):
    """A certificate with its DTLS context; making a context costs 0.2 ms, too much to do it for each leg."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, cert: x509.Certificate) -> None:
        super().__init__(key, cert)
        self._context: SSL.Context | None = None
        #: The fingerprint in our SDP. Source: Meta refuses a description with several fingerprints.
        self.fingerprint = next(f.value for f in self.getFingerprints() if f.algorithm == "sha-256")

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        if self._context is None:
            self._context = super()._create_ssl_context(srtp_profiles)
            self._context.set_cipher_list(CIPHERS)
            # Unrelated peers share this context: no peer may resume another peer's session.
            self._context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        return self._context


class Certificates:
    """The certificate for new legs, renewed daily."""

    def __init__(self) -> None:
        self._certificate: SharedCertificate | None = None
        self._made_at = 0.0

    def current(self, *, now: float) -> SharedCertificate:
        """Return the certificate for a leg that is made now."""
        if self._certificate is None or now - self._made_at > RENEW_AFTER_S:
            self._certificate = SharedCertificate.generateCertificate()
            self._made_at = now
        return self._certificate


class LegDtls(RTCDtlsTransport):
    """The DTLS transport of one leg."""

    def __init__(self, ice: LegIce, certificate: RTCCertificate) -> None:
        super().__init__(ice.transport, [certificate])
        self.fingerprint_mismatch = False
        #: Called when either side ends the connection; never before the handshake is done.
        self.on_closed: Callable[[], None] = lambda: None
        self.on("statechange", self._state_changed)

    async def handshake(self, role: DtlsRole, fingerprint: str) -> SrtpKeys:
        """Run the handshake and return the SRTP keys. Raises: DtlsFailed. The caller sets the time limit."""
        self._set_role(role.value)
        expected = RTCDtlsFingerprint(algorithm="sha-256", value=fingerprint)
        await self.start(RTCDtlsParameters(fingerprints=[expected]))
        if self.state != "connected":
            if self.fingerprint_mismatch:
                raise DtlsFailed("the peer's certificate does not match the fingerprint in its SDP")
            raise DtlsFailed("the handshake failed")
        received, sent = self._rx_srtp, self._tx_srtp
        assert self._ssl is not None
        return srtp_keys(received=received, sent=sent, profile=self._ssl.get_selected_srtp_profile().decode())

    async def close(self) -> None:
        """Send close_notify and end the reading task. Idempotent."""
        reader = self._task
        await self.stop()
        if reader is not None:
            await asyncio.wait([reader])
        self.remove_all_listeners()

    def _validate_peer_identity(self, remoteParameters: RTCDtlsParameters) -> None:
        super()._validate_peer_identity(remoteParameters)
        self.fingerprint_mismatch = self.state == "failed"

    def _state_changed(self, *_: Any) -> None:
        if self.state == "closed":
            self.on_closed()
