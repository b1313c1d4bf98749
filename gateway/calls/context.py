"""What a call is given when it begins: the ports that all calls share, and what is known about this one.

Values and interfaces only. `wiring` makes the ports, `starter` makes the rest.
"""

from dataclasses import dataclass
from typing import Protocol

from gateway.callflow.call import CallInput, Timeouts
from gateway.callflow.effects import StopReason
from gateway.calls.owed_hangups import OwedHangups
from gateway.calls.refusals import MetaRefusals
from gateway.calls.registry import Registry
from gateway.common.clock import Clock
from gateway.common.ids import CallId, OperatorId, UserRef
from gateway.common.metrics import Metrics
from gateway.contacts.directory import ContactListener, Contacts
from gateway.meta.graph import Graph
from gateway.numbers.number import Number
from gateway.store.store import Store
from gateway.wire.messages import CallView
from media.engine import LegId, MediaEngine, WorkerId


class Phones(Protocol):
    """What a call needs from the softphones. Implemented by `operators.hub.Hub`."""

    def ring(self, call_id: CallId, view: CallView) -> None: ...
    def stop_ringing(
        self, call_id: CallId, reason: StopReason, *, but: OperatorId | None = None, detail: str | None = None
    ) -> None: ...
    def show(self, operator: OperatorId, view: CallView) -> None: ...
    def leg_of(self, operator: OperatorId, worker: WorkerId) -> LegId | None: ...
    def release(self, operator: OperatorId, call_id: CallId) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """The ports of a call: Meta, media, softphones, store. All calls share one `CallContext`."""

    graph: Graph
    media: MediaEngine
    phones: Phones
    store: Store
    contacts: Contacts
    registry: Registry
    owed_hangups: OwedHangups
    refusals: MetaRefusals
    contact_listener: ContactListener
    metrics: Metrics
    clock: Clock
    timeouts: Timeouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is known about a call when it begins and never changes."""

    number: Number
    user: UserRef
    user_name: str | None
    contact_keys: frozenset[str]  #: one for each name of the user (see `engagements`)
    worker: WorkerId | None  #: None if the call will have no media
    first: CallInput  #: START or REFUSED
