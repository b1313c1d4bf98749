"""The words of the media plane: ids, settings, and the events that it tells the gateway.

Values only. The signalling process imports this (through `media.engine`), so nothing here may import aiortc.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import NewType

from msgspec import Struct

LegId = NewType("LegId", str)
WorkerId = NewType("WorkerId", int)


class Tone(StrEnum):
    """Audio that we make ourselves, towards a leg that nobody else feeds."""

    RINGBACK = "ringback"
    HOLD = "hold"


class LegFailure(StrEnum):
    """Why a leg is of no use any more. Values are stored and never renamed."""

    ICE_FAILED = "ice_failed"
    DTLS_FAILED = "dtls_failed"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    SETUP_TIMEOUT = "setup_timeout"
    MEDIA_TIMEOUT = "media_timeout"
    CLOSED_BY_PEER = "closed_by_peer"
    WORKER_DIED = "worker_died"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaConfig:
    """What an operator of the gateway can choose about media."""

    workers: int = 1
    #: The local address that all media sockets are bound to.
    bind_address: str = "127.0.0.1"
    #: The address that browsers are told (1:1 NAT); None: the bind address.
    announced_address: str | None = None
    #: First and last local UDP port; worker i's browser port is first + i, Meta legs use the rest. None: any free.
    ports: tuple[int, int] | None = None
    #: Networks (CIDR) in which Meta's candidates may lie, besides global unicast addresses.
    candidate_networks: tuple[str, ...] = ()
    #: From the moment both descriptions are known to ICE and DTLS up.
    setup_timeout_s: float = 10.0
    #: A joined leg that sends nothing for this long has failed.
    media_timeout_s: float = 8.0
    #: RTP and RTCP that one peer may send; Opus at 20 ms needs 50.
    packet_budget_per_s: int = 250
    #: ICE and DTLS set-ups that one worker runs at a time, and how many may wait for their turn.
    setups_at_once: int = 4
    setups_waiting: int = 64
    #: Added to the niceness of worker processes, so that signalling goes first.
    nice: int = 5
    heartbeat_s: float = 1.0
    #: A worker that is silent for this long is killed and started again.
    heartbeat_timeout_s: float = 5.0
    #: A request to a worker that is not answered in this time raises `MediaTimeout`.
    request_timeout_s: float = 5.0
    #: First and longest pause before a worker that died is started again; it doubles in between.
    restart_min_s: float = 0.2
    restart_max_s: float = 10.0
    #: Interval of RTCP reports on a leg that we may send to.
    rtcp_interval_s: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises: ValueError."""
        if self.workers < 1:
            raise ValueError("workers must be at least 1")
        if self.announced_address is None and ip_address(self.bind_address).is_unspecified:
            raise ValueError("announced_address is needed where bind_address is a wildcard")
        if self.ports is not None:
            first, last = self.ports
            if not 0 < first <= last <= 65_535 or last - first + 1 < 2 * self.workers:
                raise ValueError("ports must leave each worker a browser port and one for a Meta leg")


class LegConnected(Struct, frozen=True, tag=True):
    """ICE and DTLS are up; said once for each leg, and never after `LegFailed`."""

    leg: LegId


class LegFailed(Struct, frozen=True, tag=True):
    """The leg is dead and its sockets are closed; said at most once. `close` still returns its statistics."""

    leg: LegId
    reason: LegFailure


class DtmfReceived(Struct, frozen=True, tag=True):
    """The peer pressed a key: one of `0123456789*#ABCD`. Said once for each press."""

    leg: LegId
    digit: str


class WorkerDown(Struct, frozen=True, tag=True):
    """A worker process ended; each of its legs gets a `LegFailed` too, after this."""

    worker: WorkerId
    legs: tuple[LegId, ...] = ()


class WorkerUp(Struct, frozen=True, tag=True):
    """A worker process is ready for legs, for the first time or again."""

    worker: WorkerId


MediaEvent = LegConnected | LegFailed | DtmfReceived | WorkerDown | WorkerUp

#: Called in the gateway's loop; must not block and must not raise.
EventSink = Callable[[MediaEvent], None]


def unheard(event: MediaEvent) -> None:
    """Be the sink of an engine that was not started."""
