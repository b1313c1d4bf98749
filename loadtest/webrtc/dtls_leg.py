"""DTLS-SRTP over any datagram carrier: aiortc's transport, with RTP passed on without queue or task.

ICE is done by the carrier; roles and fingerprints from SDP are arguments. Written for aiortc 1.16, whose `_ssl`,
`_rx_srtp`, `_tx_srtp`, `_task` and `_set_role` are private: on this side only this file uses them.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol, cast

import pylibsrtp
from aiortc.rtcdtlstransport import (
    RTCCertificate,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    SRTPProtectionProfile,
)
from aiortc.rtcicetransport import RTCIceTransport
from OpenSSL import SSL

from loadtest.webrtc.rtp import is_rtcp


class DtlsRole(StrEnum):
    """The DTLS role; the client sends the first message."""

    CLIENT = "client"
    SERVER = "server"


class HandshakeFailed(Exception):
    """No DTLS connection: wrong fingerprint, no common profile, or the carrier was closed."""


class Carrier(Protocol):
    """A datagram path to one peer, already checked by ICE."""

    #: Receives SRTP and SRTCP datagrams once set; everything else comes through `_recv`.
    srtp_sink: Callable[[bytes], None] | None

    @property
    def role(self) -> str: ...
    async def _recv(self) -> bytes: ...
    async def _send(self, data: bytes) -> None: ...
    def send_now(self, data: bytes) -> None: ...


class SharedCertificate(RTCCertificate):
    """One certificate and one DTLS context for every leg of the process."""

    _context: SSL.Context | None = None

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        if self._context is None:
            self._context = super()._create_ssl_context(srtp_profiles)
        return self._context


@lru_cache(maxsize=1)
def process_certificate() -> SharedCertificate:
    """Return the certificate of this process, made on first use (ECDSA P-256, as Meta requires)."""
    return SharedCertificate.generateCertificate()


def sha256_fingerprint(certificate: RTCCertificate) -> str:
    """Return the fingerprint as written in SDP after `sha-256 `."""
    return next(f.value for f in certificate.getFingerprints() if f.algorithm == "sha-256")


class DtlsLeg:
    """One DTLS-SRTP association. Order of calls: `handshake()` once, `send*()`, `close()`."""

    def __init__(
        self,
        carrier: Carrier,
        *,
        on_rtp: Callable[[bytes], None],
        on_rtcp: Callable[[bytes], None],
        certificate: RTCCertificate | None = None,
    ) -> None:
        self._carrier, self._on_rtp, self._on_rtcp = carrier, on_rtp, on_rtcp
        self.certificate = certificate or process_certificate()
        self._dtls = RTCDtlsTransport(cast(RTCIceTransport, carrier), [self.certificate])
        #: Datagrams that failed authentication or replay protection.
        self.undecryptable = 0

    @property
    def fingerprint(self) -> str:
        """Our sha-256 fingerprint."""
        return sha256_fingerprint(self.certificate)

    @property
    def connected(self) -> bool:
        """Whether media can be sent."""
        return self._dtls.state == "connected"

    async def handshake(self, *, role: DtlsRole, peer_fingerprint: str) -> None:
        """Complete DTLS and check the peer's certificate against its sha-256 fingerprint.

        Raises: HandshakeFailed.
        """
        self._dtls._set_role(str(role))
        fingerprint = RTCDtlsFingerprint(algorithm="sha-256", value=peer_fingerprint)
        await self._dtls.start(RTCDtlsParameters(fingerprints=[fingerprint]))
        if self._dtls.state != "connected":
            raise HandshakeFailed(f"DTLS as {role} ended {self._dtls.state}")
        self._carrier.srtp_sink = self._receive

    def protect(self, packet: bytes) -> bytes:
        """Encrypt one RTP packet; requires a connection."""
        return bytes(self._dtls._tx_srtp.protect(packet))

    def unprotect(self, packet: bytes) -> bytes:
        """Decrypt one RTP packet; requires a connection. Raises: pylibsrtp.Error."""
        return bytes(self._dtls._rx_srtp.unprotect(packet))

    def _receive(self, data: bytes) -> None:
        session = self._dtls._rx_srtp
        try:
            if is_rtcp(data):
                self._on_rtcp(session.unprotect_rtcp(data))
            else:
                self._on_rtp(session.unprotect(data))
        except pylibsrtp.Error:
            self.undecryptable += 1

    def send_rtp(self, packet: bytes) -> None:
        """Encrypt and send one RTP packet now; dropped while not connected."""
        if self.connected:
            self._carrier.send_now(self._dtls._tx_srtp.protect(packet))

    def send_rtcp(self, packet: bytes) -> None:
        """Encrypt and send one RTCP packet now; dropped while not connected."""
        if self.connected:
            self._carrier.send_now(self._dtls._tx_srtp.protect_rtcp(packet))

    async def close(self) -> None:
        """Send close_notify and stop the reading task. Idempotent."""
        self._carrier.srtp_sink = None
        pump: asyncio.Future[Any] | None = self._dtls._task
        await self._dtls.stop()
        if pump is not None:
            await asyncio.wait([pump])
