"""Hands each webhook event to its call, turns it into facts, and makes it durable.

Responsible for: each event takes effect once; events that overtake their call are parked; late ones of ended calls
only fill the record; nothing is acknowledged before it is kept. Not responsible for reading JSON (see `events`), for
starting calls (see `admission`) nor for what an event does to a call (see `call`).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from gateway import events as ev
from gateway import number_events as ne
from gateway.admission import Admission
from gateway.call import CallInput, InputKind
from gateway.contacts import Contact
from gateway.driver import CallDriver
from gateway.errors import StoreDown
from gateway.event_facts import said_by
from gateway.ids import CallId, MetaCallId
from gateway.numbers import Numbers
from gateway.records import Change, EventRecord, TerminateFacts
from gateway.services import Services
from policy.facts import Fact

log = structlog.get_logger()

#: Keys of events that have taken effect, kept in memory.
SEEN: Final = 200_000
#: Calls of which events may wait because the call itself is not known yet, and for how long.
PARKED: Final = 1_000
PARK_FOR: Final = timedelta(seconds=60)

CallEvent = ev.CallAnswered | ev.CallStatus | ev.CallTerminated

_STATUS_INPUT: Final = {
    "RINGING": InputKind.META_RINGING,
    "ACCEPTED": InputKind.META_ACCEPTED,
    "REJECTED": InputKind.META_REJECTED,
}


class Inbox:
    """Every event of every number comes through here."""

    def __init__(self, services: Services, numbers: Numbers, admission: Admission) -> None:
        self._services = services
        self._numbers = numbers
        self._admission = admission
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._parked: OrderedDict[MetaCallId, tuple[datetime, list[CallEvent]]] = OrderedDict()
        services.registry.on_learned = self._unpark

    def remember(self, keys: Iterable[str]) -> None:
        """Take over the keys of events that took effect before a restart."""
        for key in keys:
            self._seen[key] = None

    async def deliver(self, events: Sequence[ev.Event]) -> None:
        """Apply the events in order, then return when all of them are durable. Raises: StoreDown.

        Calls are served before anything is written: a ringing user does not wait for a disk. An event that comes again
        takes no effect again, but is written again: its first write may have failed.
        """
        now = self._services.clock.now()
        for event in events:
            if self._first_time(event):
                await self._apply(event, now)
        said = [(event, await self._said(event)) for event in events]
        await self._keep(said, now)

    async def _keep(self, said: Sequence[tuple[ev.Event, tuple[Contact, Fact] | None]], now: datetime) -> None:
        """Fold facts and hand them over for writing in one breath: what is written last must have been folded last."""
        contacts = self._services.contacts
        rows: list[Change] = [_journal(event, now) for event, _ in said]
        for event, about in said:
            if about is not None:
                contact, fact = about
                rows.extend(contacts.apply(contact, fact, seen_at=now))
                if isinstance(event, ev.PermissionReply):
                    self._show(event, contact)
        try:
            await self._services.store.write(*rows)
        except StoreDown:
            contacts.owe(rows)
            raise

    def _first_time(self, event: ev.Event) -> bool:
        key = event.dedupe_key
        if key in self._seen:
            self._services.metrics.events_total.labels(kind="repeated").inc()
            return False
        self._seen[key] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        self._services.metrics.events_total.labels(kind=event.kind).inc()
        return True

    # --- calls -------------------------------------------------------------------------------------

    async def _apply(self, event: ev.Event, now: datetime) -> None:
        match event:
            case ev.CallOffered():
                await self._offered(event)
            case ev.CallAnswered() | ev.CallStatus() | ev.CallTerminated():
                self._to_call(event, now)
            case ne.NumberWarned() | ne.NumberRestricted() | ne.NumberSettingsChanged():
                self._to_number(event, now)
            case ev.UnknownEvent():
                log.info("event_unknown", kind=event.kind, number_id=event.number_id)
            case _:
                pass  # facts only

    async def _offered(self, event: ev.CallOffered) -> None:
        registry = self._services.registry
        if registry.by_meta_id(event.meta_call_id) is not None or registry.has_ended(event.meta_call_id):
            return
        _, waiting = self._parked.pop(event.meta_call_id, (None, []))
        ended = next((e for e in waiting if isinstance(e, ev.CallTerminated)), None)
        await self._admission.incoming(event, ended)

    def _to_call(self, event: CallEvent, now: datetime) -> None:
        number = self._numbers.get(event.number_id)
        if isinstance(event, ev.CallTerminated) and number is not None:
            number.meta_reported(event.error_code)
        driver = self._driver_of(event)
        if driver is not None:
            _feed(driver, event)
        elif isinstance(event, ev.CallTerminated) and self._services.registry.has_ended(event.meta_call_id):
            self._services.store.write_soon(_late(event))
        else:
            self._park(event, now)

    def _driver_of(self, event: CallEvent) -> CallDriver | None:
        """Find the call by Meta's id; one whose `connect` is still unanswered by what we sent along."""
        registry = self._services.registry
        found = registry.by_meta_id(event.meta_call_id)
        if found is None and event.opaque:
            found = registry.get(CallId(event.opaque))
        return found

    def _park(self, event: CallEvent, now: datetime) -> None:
        while self._parked:
            oldest, (since, _) = next(iter(self._parked.items()))
            if len(self._parked) < PARKED and now - since < PARK_FOR:
                break
            del self._parked[oldest]
        self._parked.setdefault(event.meta_call_id, (now, []))[1].append(event)
        log.info("event_parked", kind=event.kind, number_id=event.number_id)

    def _unpark(self, driver: CallDriver, meta_call_id: MetaCallId) -> None:
        _, waiting = self._parked.pop(meta_call_id, (None, []))
        for event in waiting:
            _feed(driver, event)

    def _to_number(self, event: ne.NumberEvent, now: datetime) -> None:
        if isinstance(event, ne.NumberSettingsChanged):
            number = self._numbers.get(event.number_id)
        else:
            number = self._numbers.by_digits(event.display_number)
        if number is None:
            log.info("event_of_another_number", kind=event.kind, number_id=event.number_id)
            return
        log.info("number_event", kind=event.kind, number_id=number.id)
        number.told(event, now=now)

    # --- facts -------------------------------------------------------------------------------------

    async def _said(self, event: ev.Event) -> tuple[Contact, Fact] | None:
        """Return what this event says about which contact. Raises: StoreDown."""
        number, said = self._numbers.get(event.number_id), said_by(event, self._services.registry.known)
        if number is None or said is None:
            return None
        return await self._services.contacts.get(number, said.user, said.name), said.fact

    def _show(self, event: ev.PermissionReply, contact: Contact) -> None:
        number = self._numbers.get(event.number_id)
        if number is not None:
            log.info("permission_reply", number_id=number.id, user=contact.user.key, accepted=event.accepted)
            self._admission.show(number, contact.current)


def _feed(driver: CallDriver, event: CallEvent) -> None:
    match event:
        case ev.CallAnswered():
            driver.feed(CallInput(kind=InputKind.META_ANSWER, sdp=event.sdp, meta_call_id=event.meta_call_id))
        case ev.CallStatus():
            driver.feed(CallInput(kind=_STATUS_INPUT[event.status], meta_call_id=event.meta_call_id))
        case ev.CallTerminated():
            driver.feed_terminate(event)


def _journal(event: ev.Event, now: datetime) -> EventRecord:
    return EventRecord(
        phone_number_id=event.number_id,
        dedupe_key=event.dedupe_key,
        kind=event.kind,
        received_at=now,
        body=event.body,
    )


def _late(event: ev.CallTerminated) -> TerminateFacts:
    return TerminateFacts(
        meta_call_id=event.meta_call_id,
        meta_status=event.status,
        meta_start_at=event.start_at,
        meta_end_at=event.end_at,
        duration_s=event.duration_s,
    )
