"""Hand each webhook event to its call, turn it into facts, and make it durable.

Each event takes effect once. Events that overtake their call are parked; late events of ended calls only complete the
record. Nothing is acknowledged before it is durable. `meta.events` reads the JSON, `admission` starts calls, and
`callflow` says what an event does to a call.

Theory of operation. Meta repeats events for up to seven days. The keys of the last minutes are in memory, and are read
back after a restart. An event that is older by its own timestamp and not in memory is looked up in the journal, which
keeps eight days: an event that is there took effect already, and its facts were written in the same transaction. Events
for a live call skip that look-up, because the call itself ignores repeats. There is no queue between receipt and call:
an event reaches its call in the same turn of the loop in which its delivery was read.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import structlog

from gateway.admission.admission import Admission
from gateway.calls.owed_hangups import OwedHangups
from gateway.calls.registry import LiveCall, Registry
from gateway.common.clock import Clock
from gateway.common.errors import StoreDown, StoreError
from gateway.common.ids import CallId
from gateway.common.metrics import Metrics
from gateway.common.shielding import was_cancelled
from gateway.contacts.directory import Contact, ContactListener, Contacts
from gateway.contacts.webhook_facts import Said, said_by
from gateway.intake.dedupe import SeenEvents
from gateway.meta import events as ev
from gateway.meta import number_events as ne
from gateway.numbers.number import Number, Numbers
from gateway.store.records import CallDeclined, Change, EventRecord, TerminateFacts
from gateway.store.store import Store
from policy.facts import Fact

log = structlog.get_logger()

#: How many keys of applied events are kept in memory: those of `REMEMBERED` at 500 webhooks/s.
SEEN: Final = 150_000
#: An event younger than this by Meta's timestamp is in memory if it was applied; a start reads these from the store.
REMEMBERED: Final = timedelta(minutes=5)

#: An event, and the contact and fact that it is about, if any.
EventFact = tuple[ev.Event, tuple[Contact, Fact] | None]


class Inbox:
    """Applies every event of every number."""

    def __init__(
        self,
        *,
        admission: Admission,
        numbers: Numbers,
        contacts: Contacts,
        contact_listener: ContactListener,
        registry: Registry,
        owed_hangups: OwedHangups,
        store: Store,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._numbers = numbers
        self._contacts = contacts
        self._contact_listener = contact_listener
        self._registry = registry
        self._owed_hangups = owed_hangups
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._seen = SeenEvents(SEEN)

    def remember(self, keys: Iterable[str]) -> None:
        """Add the keys of events that are durable, such as those from before a restart."""
        for key in keys:
            self._seen.add(key, durable=True)

    async def deliver(
        self, events: Sequence[ev.Event], *, received_at: datetime | None = None, within_s: float | None = None
    ) -> None:
        """Apply the events in order, then return when all of them are durable.

        Calls get their events before anything is written, so that a ringing user does not wait for a disk. A repeated
        event takes no effect again, but is written again unless its first write is known to have succeeded. Facts about
        contacts in memory count at once, whether or not the database is up; facts about other contacts count when the
        delivery is delivered again.

        `received_at`: when the delivery was received, if not now. `within_s`: how long the database may take; after
        that it counts as down.

        Raises:
            StoreDown: deliver all events again.
            StoreError: some events can never be written; all others are durable.
        """
        now = self._clock.now()
        until = None if within_s is None else asyncio.get_running_loop().time() + within_s
        events = self._without_durable(events)
        late: list[ev.Event] = []
        news: list[ev.Event] = []
        for event in events:
            (late if self._may_be_known(event, now) else news).append(event)
        for event in news:
            await self._apply_once(event, now)
        down: StoreDown | None = None
        if late:
            try:
                async with self._reading_store(until):
                    late = await self._not_in_journal(late)
            except StoreDown as error:
                late, down = [], error
            for event in late:
                await self._apply_once(event, now)
        said, down, unreadable = await self._find_facts((*news, *late), until, down)
        await self._write_events(said, received_at or now, until=until, down=down)
        if unreadable is not None:
            raise unreadable

    def _without_durable(self, events: Sequence[ev.Event]) -> Sequence[ev.Event]:
        """Return the events without those that took effect and are durable."""
        left = [event for event in events if not self._seen.is_durable(event.dedupe_key)]
        if len(left) < len(events):
            self._count_events("repeated", len(events) - len(left))
        return left

    @asynccontextmanager
    async def _reading_store(self, until: float | None) -> AsyncIterator[None]:
        """Run a read of the store, if it is up, until this instant of loop time at the latest. Raises: StoreDown."""
        if not self._store.up:
            raise StoreDown
        try:
            async with asyncio.timeout_at(until):
                yield
        except TimeoutError as error:
            raise StoreDown("no answer in time") from error

    def _may_be_known(self, event: ev.Event, now: datetime) -> bool:
        """Tell whether only the journal can say if an event took effect before."""
        if event.at is None or now - event.at < REMEMBERED or event.dedupe_key in self._seen:
            return False
        if isinstance(event, ev.CallAnswered | ev.CallStatus | ev.CallTerminated):
            return self._call_of(event) is None
        return True

    async def _not_in_journal(self, events: Sequence[ev.Event]) -> list[ev.Event]:
        """Return the events that never took effect. Raises: StoreDown."""
        keys: dict[str, list[str]] = {}
        for event in events:
            keys.setdefault(event.number_id, []).append(event.dedupe_key)
        known = {
            (number_id, key)
            for number_id, asked in keys.items()
            for key in await self._store.known_events(number_id, asked)
        }
        if known:
            self._count_events("repeated", len(known))
            self.remember(key for _, key in known)
        return [event for event in events if (event.number_id, event.dedupe_key) not in known]

    async def _apply_once(self, event: ev.Event, now: datetime) -> None:
        """Apply an event if it has not taken effect yet. A bug in that affects no other event and no write."""
        if not self._remember_if_new(event):
            self._count_events("repeated")
            return
        try:
            await self._apply_event(event, now)
            self._count_events(event.kind)
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            log.exception("event_broken", kind=event.kind, number_id=event.number_id)
            if isinstance(event, ev.CallOffered) and self._registry.by_meta_id(event.meta_call_id) is None:
                # No operator will answer this call: end it, so that the user does not wait in vain.
                call_id = CallId(f"broken/{event.meta_call_id}")
                self._owed_hangups.keep_trying(event.number_id, event.meta_call_id, call_id)

    async def _write_events(
        self, said: Sequence[EventFact], received_at: datetime, *, until: float | None, down: StoreDown | None
    ) -> None:
        """Apply the facts and write the events.

        Nothing suspends between the two: what is written last must have been applied last.
        """
        rows = [row for each in said for row in self._apply_fact(each, received_at)]
        for event, about in said:
            if isinstance(event, ev.PermissionReply) and about is not None:
                self._announce_reply(event, about[0])
        try:
            if down is not None:  # some contacts are unread: all is written when the delivery is delivered again
                raise down
            await self._write_rows(rows, until)
            for event, _ in said:
                self._seen.add(event.dedupe_key, durable=True)
        except StoreDown:
            self._contacts.owe(rows)
            raise
        except StoreError:
            if len(said) == 1:
                raise
            await self._write_each_event(said, received_at, until=until)

    async def _write_each_event(self, said: Sequence[EventFact], received_at: datetime, *, until: float | None) -> None:
        """Write each event by itself, so that one that cannot be written spoils no other. Raises as `deliver` does."""
        refused: StoreError | None = None
        for each in said:
            try:
                await self._write_events([each], received_at, until=until, down=None)
            except StoreDown:
                raise
            except StoreError as error:
                refused = error
        if refused is not None:
            raise refused

    def _apply_fact(self, said: EventFact, received_at: datetime) -> list[Change]:
        """Apply the fact of an event to its contact; return all rows to be written for the event."""
        event, about = said
        rows: list[Change] = [_journal_row(event, received_at)]
        if isinstance(event, ev.CallTerminated):
            rows.append(_terminate_row(event))
        if isinstance(event, ev.CallStatus) and event.status == "REJECTED":
            rows.append(CallDeclined(meta_call_id=event.meta_call_id))
        if about is not None:
            contact, fact = about
            rows.extend(self._contacts.apply(contact, fact, seen_at=received_at))
        return rows

    async def _write_rows(self, rows: Sequence[Change], until: float | None) -> None:
        """Write rows until this instant of loop time at the latest.

        Raises:
            StoreDown: not written in time, though the write may still succeed.
            StoreError: the rows can never be written.
        """
        try:
            async with asyncio.timeout_at(until):
                await self._store.write(*rows)
        except TimeoutError as error:
            raise StoreDown("no answer in time") from error

    def _remember_if_new(self, event: ev.Event) -> bool:
        """Remember an event; return whether it was unknown."""
        key = event.dedupe_key
        if key in self._seen:
            return False
        self._seen.add(key, durable=False)
        return True

    def _count_events(self, kind: str, events: int = 1) -> None:
        self._metrics.events_total.labels(kind=kind).inc(events)

    # --- calls -------------------------------------------------------------------------------------

    async def _apply_event(self, event: ev.Event, now: datetime) -> None:
        match event:
            case ev.CallOffered():
                await self._offer_call(event)
            case ev.CallAnswered() | ev.CallStatus() | ev.CallTerminated():
                self._hand_to_call(event, now)
            case ne.NumberWarned() | ne.NumberRestricted() | ne.NumberSettingsChanged():
                self._hand_to_number(event, now)
            case ev.UnknownEvent():
                log.info("event_unknown", kind=event.kind, number_id=event.number_id)
            case _:
                pass  # facts only

    async def _offer_call(self, event: ev.CallOffered) -> None:
        registry = self._registry
        if registry.by_meta_id(event.meta_call_id) is not None or registry.has_ended(event.meta_call_id):
            return
        waiting = registry.take_parked(event.meta_call_id)
        ended = next((e for e in waiting if isinstance(e, ev.CallTerminated)), None)
        await self._admission.incoming(event, ended)

    def _hand_to_call(self, event: ev.CallEvent, now: datetime) -> None:
        call = self._call_of(event)
        if call is not None:
            call.told(event)
        elif not self._end_expected_call(event) and not self._registry.has_ended(event.meta_call_id):
            self._registry.park(event, now=now)
        if isinstance(event, ev.CallTerminated):
            self._owed_hangups.confirmed(event.meta_call_id)
            number = self._numbers.get(event.number_id)
            if number is not None:
                number.meta_reported(event.error_code)

    def _end_expected_call(self, event: ev.CallEvent) -> bool:
        """Have a call ended whose `connect` was never answered, now that a webhook tells Meta's id of it.

        Returns: False if the event is about no such call (see `OwedHangups.expect`).
        """
        over = isinstance(event, ev.CallTerminated)
        owed = self._owed_hangups
        if not event.opaque or not owed.turned_up(CallId(event.opaque), event.meta_call_id, over=over):
            return False
        for waiting in self._registry.take_parked(event.meta_call_id):
            if isinstance(waiting, ev.CallTerminated):
                owed.confirmed(event.meta_call_id)
                self._store.write_soon(_terminate_row(waiting))
        return True

    def _call_of(self, event: ev.CallEvent) -> LiveCall | None:
        """Find the call by Meta's id or, while its `connect` is unanswered, by the id that we sent with it."""
        registry = self._registry
        found = registry.by_meta_id(event.meta_call_id)
        if found is None and event.opaque:
            found = registry.get(CallId(event.opaque))
        return found

    def _hand_to_number(self, event: ne.NumberEvent, now: datetime) -> None:
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

    async def _find_facts(
        self, events: Sequence[ev.Event], until: float | None, down: StoreDown | None
    ) -> tuple[list[EventFact], StoreDown | None, StoreError | None]:
        """Return each event with its contact and fact; then the error if the store is down; then that of a contact.

        Once the store is down, only contacts in memory are found. An event whose contact can never be read is left out;
        the last element is the error of reading it.
        """
        said: list[EventFact] = []
        unreadable: StoreError | None = None
        for event in events:
            number, news = self._numbers.get(event.number_id), said_by(event, self._registry.known)
            if number is None or news is None:
                said.append((event, None))
                continue
            contact: Contact | None
            try:
                contact = await self._load_contact(number, news, until, down)
            except StoreDown as error:
                down, contact = error, self._contacts.peek(number.id, news.user)
            except StoreError as error:
                unreadable = error
                continue
            said.append((event, None if contact is None else (contact, news.fact)))
        return said, down, unreadable

    async def _load_contact(self, number: Number, news: Said, until: float | None, down: StoreDown | None) -> Contact:
        """Load the contact that an event is about. Raises: StoreDown, StoreError."""
        if down is not None:
            raise down
        async with self._reading_store(until):
            return await self._contacts.get(number, news.user, news.name)

    def _announce_reply(self, event: ev.PermissionReply, contact: Contact) -> None:
        number = self._numbers.get(event.number_id)
        if number is not None:
            log.info("permission_reply", number_id=number.id, user=contact.user.key, accepted=event.accepted)
            self._contact_listener.contact_changed(number, contact)


def _journal_row(event: ev.Event, now: datetime) -> EventRecord:
    return EventRecord(
        phone_number_id=event.number_id,
        dedupe_key=event.dedupe_key,
        kind=event.kind,
        received_at=now,
        body=event.body,
    )


def _terminate_row(event: ev.CallTerminated) -> TerminateFacts:
    """Return the row that completes the call's record. The call may have ended before a restart."""
    return TerminateFacts(
        meta_call_id=event.meta_call_id,
        meta_status=event.status,
        meta_start_at=event.start_at,
        meta_end_at=event.end_at,
        duration_s=event.duration_s,
    )
