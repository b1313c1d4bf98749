"""The values of the media plane: ids, settings, and the events that it sends to the gateway.

The signalling process imports this module (through `media.engine`), so nothing here may import aiortc.
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
    """Audio generated here, sent to a leg while no join feeds it."""

    RINGBACK = "ringback"
    HOLD = "hold"


class LegFailure(StrEnum):
    """Why a leg failed. Values are stored and never renamed."""

    ICE_FAILED = "ice_failed"
    DTLS_FAILED = "dtls_failed"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    SETUP_TIMEOUT = "setup_timeout"
    MEDIA_TIMEOUT = "media_timeout"
    CLOSED_BY_PEER = "closed_by_peer"
    WORKER_DIED = "worker_died"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaConfig:
    """Media settings."""

    workers: int = 1
    #: Local address of all media sockets.
    bind_address: str = "127.0.0.1"
    #: Address announced to browsers (1:1 NAT); None: the bind address.
    announced_address: str | None = None
    #: First and last local UDP port. Worker i's browser port is first + i; Meta legs use the rest. None: any free port.
    ports: tuple[int, int] | None = None
    #: Networks (CIDR) in which Meta's candidates may lie, in addition to global unicast addresses.
    candidate_networks: tuple[str, ...] = ()
    #: From both descriptions being known to ICE and DTLS being up.
    setup_timeout_s: float = 10.0
    #: A joined leg that sends nothing for this long has failed.
    media_timeout_s: float = 8.0
    #: RTP and RTCP packets that one peer may send per second; Opus at 20 ms needs 50.
    packet_budget_per_s: int = 250
    #: ICE and DTLS set-ups that one worker runs concurrently, and how many more may wait for their turn.
    setups_at_once: int = 4
    setups_waiting: int = 64
    #: Added to the niceness of worker processes, so that signalling has priority.
    nice: int = 5
    heartbeat_s: float = 1.0
    #: A worker that sends nothing for this long is killed and restarted.
    heartbeat_timeout_s: float = 5.0
    #: A request that a worker does not answer within this time raises `MediaTimeout`.
    request_timeout_s: float = 5.0
    #: First and longest pause before a dead worker is restarted; the pause doubles in between.
    restart_min_s: float = 0.2
    restart_max_s: float = 10.0
    #: Interval of RTCP reports on a leg that we may send to.
    rtcp_interval_s: float = 2.0

    def __post_init__(self) -> None:
        """Reject settings that cannot work. Raises: ValueError."""
        if self.workers < 1:
            raise ValueError("workers must be at least 1")
        if self.announced_address is None and ip_address(self.bind_address).is_unspecified:
            raise ValueError("announced_address is needed where bind_address is a wildcard")
        if self.ports is not None:
            first, last = self.ports
            if not 0 < first <= last <= 65_535 or last - first + 1 < 2 * self.workers:
                raise ValueError("ports must leave each worker a browser port and one for a Meta leg")


class LegConnected(Struct, frozen=True, tag=True):
    """ICE and DTLS are up. Sent once for each leg, and never after `LegFailed`."""

    leg: LegId


class LegFailed(Struct, frozen=True, tag=True):
    """The leg has failed and its sockets are closed. Sent at most once. `close` still returns its statistics."""

    leg: LegId
    reason: LegFailure


class DtmfReceived(Struct, frozen=True, tag=True):
    """The peer pressed a key: one of `0123456789*#ABCD`. Sent once for each press."""

    leg: LegId
    digit: str


class WorkerDown(Struct, frozen=True, tag=True):
    """A worker process ended. A `LegFailed` for each of its legs follows."""

    worker: WorkerId
    legs: tuple[LegId, ...] = ()


class WorkerUp(Struct, frozen=True, tag=True):
    """A worker process is ready for legs, after its first start or a restart."""

    worker: WorkerId


MediaEvent = LegConnected | LegFailed | DtmfReceived | WorkerDown | WorkerUp

#: Called in the gateway's loop; must not block and must not raise.
EventSink = Callable[[MediaEvent], None]


def unheard(event: MediaEvent) -> None:
    """Ignore an event: the event sink of an engine that has not been started."""
