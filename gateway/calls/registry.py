"""The live calls, by our id and by Meta's; the webhooks that wait for a call; the ids of ended calls.

Webhooks overtake each other, and may come before the answer to `connect`. An event about a call that is not known yet
is parked, and handed to the call as soon as its Meta id is known. An event that comes after the end finds a tombstone,
so that it is not taken for a new call.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from gateway.callflow.call import Call, CallInput
from gateway.common.ids import CallId, MetaCallId, OperatorId
from gateway.contacts.engagements import Engagements
from gateway.contacts.webhook_facts import KnownCall
from gateway.meta.events import CallEvent
from gateway.wire.messages import CallView
from media.engine import WorkerId

log = structlog.get_logger()

#: How many ended calls are remembered.
TOMBSTONES: Final = 20_000
#: For how many unknown calls events may wait, and for how long.
PARKED: Final = 1_000
PARK_FOR: Final = timedelta(seconds=60)


class LiveCall(Protocol):
    """What others may ask of a live call. Implemented by `driver.CallDriver`."""

    @property
    def call(self) -> Call:
        """Return its state now."""
        ...

    @property
    def contact_keys(self) -> frozenset[str]:
        """Return a key for each name of its user (see `contacts.engagements`)."""
        ...

    @property
    def may_connect(self) -> bool:
        """Tell whether this may still become a connected business-initiated call."""
        ...

    @property
    def worker(self) -> WorkerId | None:
        """Return the media worker of its legs; None if it has no media."""
        ...

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended and released everything."""
        ...

    def known(self) -> KnownCall:
        """Return the user and direction of this call, which an event about it may omit."""
        ...

    def feed(self, received: CallInput) -> None:
        """Queue an input; it is applied after those that came before."""
        ...

    def told(self, event: CallEvent) -> None:
        """Hand the call a webhook event about it."""
        ...

    def claim(self, operator: OperatorId) -> bool:
        """Give the call to the first operator who answers; return False for every later one."""
        ...

    def shown_by(self, take: Callable[[], None]) -> None:
        """Let the operator's phone take the call. If `take` fails, end the call: no phone could hang it up."""
        ...

    def operator_leg_changed(self) -> None:
        """Join the legs anew: the operator's browser lost its leg or made a new one."""
        ...

    def view(self) -> CallView:
        """Return the call as softphones and the API are shown it."""
        ...


class Registry:
    """All live calls of this process."""

    def __init__(self, engagements: Engagements) -> None:
        self._engagements = engagements
        self._calls: dict[CallId, LiveCall] = {}
        self._by_meta_id: dict[MetaCallId, LiveCall] = {}
        self._parked: OrderedDict[MetaCallId, tuple[datetime, list[CallEvent]]] = OrderedDict()
        self._ended: OrderedDict[MetaCallId, KnownCall | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[LiveCall]:
        return iter(tuple(self._calls.values()))

    def get(self, call_id: CallId) -> LiveCall | None:
        """Find a live call by our id."""
        return self._calls.get(call_id)

    def by_meta_id(self, meta_call_id: MetaCallId) -> LiveCall | None:
        """Find a live call by Meta's id."""
        return self._by_meta_id.get(meta_call_id)

    # --- a call's life -----------------------------------------------------------------------------

    def add(self, call: LiveCall) -> None:
        """Add a new call; its contact is busy from now on."""
        self._calls[call.call.call_id] = call
        self._engagements.engage(call.contact_keys, call)
        if call.call.meta_call_id is not None:
            self.learn_meta_id(call, call.call.meta_call_id)

    def learn_meta_id(self, call: LiveCall, meta_call_id: MetaCallId) -> None:
        """Make the call known by Meta's id, and hand it the events that were parked under that id."""
        if meta_call_id not in self._by_meta_id:
            self._by_meta_id[meta_call_id] = call
            for event in self.take_parked(meta_call_id):
                call.told(event)

    def remove(self, call: LiveCall) -> None:
        """Remove a call that has ended; only its tombstone stays."""
        if self._calls.pop(call.call.call_id, None) is None:
            return
        self._engagements.release(call.contact_keys, call)
        if call.call.meta_call_id is not None:
            if self._by_meta_id.get(call.call.meta_call_id) is call:
                del self._by_meta_id[call.call.meta_call_id]
            self.bury(call.call.meta_call_id, call.known())

    # --- ended calls -------------------------------------------------------------------------------

    def bury(self, meta_call_id: MetaCallId, known: KnownCall | None = None) -> None:
        """Remember a call as ended."""
        self._ended[meta_call_id] = known
        if len(self._ended) > TOMBSTONES:
            self._ended.popitem(last=False)

    def has_ended(self, meta_call_id: MetaCallId) -> bool:
        return meta_call_id in self._ended

    def known(self, meta_call_id: MetaCallId) -> KnownCall | None:
        """Return what is known about a call, live or ended."""
        call = self._by_meta_id.get(meta_call_id)
        return call.known() if call is not None else self._ended.get(meta_call_id)

    # --- webhooks that wait for their call -----------------------------------------------------------

    def park(self, event: CallEvent, *, now: datetime) -> None:
        """Keep an event until its call is known, for `PARK_FOR`, within `PARKED` calls."""
        while self._parked:
            oldest, (since, _) = next(iter(self._parked.items()))
            if len(self._parked) < PARKED and now - since < PARK_FOR:
                break
            del self._parked[oldest]
        self._parked.setdefault(event.meta_call_id, (now, []))[1].append(event)
        log.info("event_parked", kind=event.kind, number_id=event.number_id)

    def take_parked(self, meta_call_id: MetaCallId) -> list[CallEvent]:
        """Remove and return the events that wait for this call, in the order in which they came."""
        _, waiting = self._parked.pop(meta_call_id, (None, []))
        return waiting
