"""The state of one operator's login, and of one call that rings. Only `hub` changes it."""

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Protocol

from gateway.common.ids import CallId, OperatorId
from gateway.operators import ring_policy
from gateway.wire import messages as msg
from media.engine import LegId, WorkerId


class Line(Protocol):
    """One open WebSocket, as a phone sees it. Implemented by `softphone.outbox.Outbox`."""

    def send(self, frame: bytes) -> None: ...
    def hang_up(self, code: int) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Phone:
    """One operator's login; it outlives its WebSocket for some seconds (see `hub`)."""

    operator: OperatorId
    resume: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    line: Line | None = None
    available: bool = True
    call: CallId | None = None
    legs: dict[WorkerId, LegId] = field(default_factory=dict)
    connected: set[LegId] = field(default_factory=set)
    lost: asyncio.TimerHandle | None = None
    rings: dict[CallId, "Ringing"] = field(default_factory=dict)  #: the calls that ring here, oldest first

    def push(self, message: msg.Push) -> None:
        self.send(msg.encode(message))

    def send(self, frame: bytes) -> None:
        if self.line is not None:
            self.line.send(frame)

    @property
    def is_free(self) -> bool:
        return self.line is not None and self.available and self.call is None

    @property
    def can_ring(self) -> bool:
        """Tell whether one more call may ring here."""
        return self.is_free and len(self.rings) < ring_policy.MOST_CALLS

    def may_ring_for(self, ringing: "Ringing") -> bool:
        return ring_policy.may_ring(self.operator, at=ringing.at, declined=ringing.declined)


@dataclass(slots=True, kw_only=True, eq=False)
class Ringing:
    """A call that rings, or that would ring if any phone were free."""

    view: msg.CallView
    frame: bytes  #: the encoded `Incoming` message
    at: dict[OperatorId, Phone] = field(default_factory=dict)
    declined: set[OperatorId] = field(default_factory=set)
    widens: asyncio.TimerHandle | None = None  #: None: it rings at all free phones

    @property
    def has_room(self) -> bool:
        return ring_policy.has_room(rings=len(self.at), declined=len(self.declined), widened=self.widens is None)

    def waits_for(self, phone: Phone) -> bool:
        """Tell whether this call would ring at a phone if fewer other calls did."""
        return phone.is_free and phone.may_ring_for(self)

    def widen(self) -> None:
        """Mark that the call rings at all free phones from now on."""
        if self.widens is not None:
            self.widens.cancel()
            self.widens = None
