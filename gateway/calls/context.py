"""What a call is given when it is born: the parts that all calls share, and what is known of this one.

Values and interfaces only; constructed in `app` and `admission`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.callflow.call import CallInput, Timeouts
from gateway.callflow.effects import StopReason
from gateway.calls.owed_hangups import Endings
from gateway.calls.registry import Registry
from gateway.common.clock import Clock
from gateway.common.ids import CallId, OperatorId, PhoneNumberId, UserRef
from gateway.common.metrics import Metrics
from gateway.contacts.directory import Contact, Contacts
from gateway.meta.graph import Graph
from gateway.meta.health import Pauses, no_pauses
from gateway.numbers.number import Number
from gateway.store.store import Store
from gateway.wire.messages import CallView
from media.engine import LegId, MediaEngine, WorkerId


class Phones(Protocol):
    """What a call needs of the softphones (see `hub`)."""

    def ring(self, call_id: CallId, view: CallView) -> None: ...
    def stop_ringing(
        self, call_id: CallId, reason: StopReason, *, but: OperatorId | None = None, detail: str | None = None
    ) -> None: ...
    def show(self, operator: OperatorId, view: CallView) -> None: ...
    def leg_of(self, operator: OperatorId, worker: WorkerId) -> LegId | None: ...
    def release(self, operator: OperatorId, call_id: CallId) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every call shares; constructed once in `app`."""

    graph: Graph
    media: MediaEngine
    phones: Phones
    store: Store
    contacts: Contacts
    registry: Registry
    endings: Endings
    metrics: Metrics
    clock: Clock
    timeouts: Timeouts
    #: Until when Meta is not asked for something because it is away, or refuses the token (see `meta_health`).
    meta_pauses: Callable[[str, PhoneNumberId], Pauses] = no_pauses
    #: Whether every delivery that we acknowledged is counted: none waits in the spool.
    all_counted: Callable[[], bool] = lambda: True
    #: Told when Meta contradicts what we know of a contact (see `reconcile`).
    reconcile_soon: Callable[[Number, Contact], None] = lambda number, contact: None
    #: Told when the gate's answer about a contact may have changed, so that operators see it.
    contact_changed: Callable[[Number, Contact], None] = lambda number, contact: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is known of a call when it is born and never changes."""

    number: Number
    user: UserRef
    user_name: str | None
    contact_keys: frozenset[str]  #: one for each name of the user (see `registry`)
    worker: WorkerId | None  #: None only where no media will be made
    first: CallInput  #: START or REFUSED
