"""The statistics of a leg: numbers only, read on request and when the leg closes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LegStats:
    """Counters of one leg since it was made; `received` is from the peer, `sent` is to the peer."""

    rtp_packets_received: int = 0
    rtp_packets_sent: int = 0
    #: RTP bytes on the network: including headers and SRTP tag, without UDP and IP.
    rtp_bytes_received: int = 0
    rtp_bytes_sent: int = 0
    rtcp_packets_received: int = 0
    rtcp_packets_sent: int = 0
    #: Gaps in the received sequence numbers, minus late and repeated packets (RFC 3550 A.3). Never negative.
    rtp_packets_lost: int = 0
    #: Interarrival jitter of the received stream (RFC 3550 A.8).
    jitter_ms: float = 0.0
    #: Dropped datagrams and packets, by cause.
    dropped_over_budget: int = 0
    dropped_from_stranger: int = 0
    dropped_unprotect_failed: int = 0
    dropped_malformed: int = 0
    #: From the peer's last receiver report about our stream.
    remote_lost: int | None = None
    remote_jitter_ms: float | None = None
    round_trip_ms: float | None = None
    #: From the creation of the leg to ICE and DTLS both up; None: it never connected.
    connected_after_ms: float | None = None
    #: From the creation of the leg to the first RTP packet from the peer; None: none arrived.
    first_media_after_ms: float | None = None
    dtmf_digits: int = 0
    srtp_profile: str | None = None
