"""Hands each webhook event to its call, turns it into facts, and makes it durable.

Responsible for: each event takes effect once; events that overtake their call are parked; late ones of ended calls
only fill the record; nothing is acknowledged before it is kept. Not responsible for reading JSON (see `events`), for
starting calls (see `admission`) nor for what an event does to a call (see `call`).

Theory of operation. Meta repeats events for up to seven days. Keys of the last minutes are in memory, also over a
restart. An event that is older by its own timestamp and not in memory is looked up in the journal, which keeps eight
days: what is there took effect already, with its facts in the same transaction. A live call is fed without that: it
knows by itself what is news. Nothing waits in a queue between receipt and call: an event reaches its call in the same
turn of the loop in which its delivery was read.
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
from gateway.intake.dedupe import Seen
from gateway.meta import events as ev
from gateway.meta import number_events as ne
from gateway.numbers.number import Number, Numbers
from gateway.store.records import CallDeclined, Change, EventRecord, TerminateFacts
from gateway.store.store import Store
from policy.facts import Fact

log = structlog.get_logger()

#: Keys of events that have taken effect, kept in memory: as many as come in the time below at 500 webhooks/s, or more.
SEEN: Final = 150_000
#: Events younger than this by Meta's timestamp are in memory if they came before; a start reads so many from the store.
REMEMBERED: Final = timedelta(minutes=5)

#: An event, and the fact that it is about a contact.
About = tuple[ev.Event, tuple[Contact, Fact] | None]


class Inbox:
    """Every event of every number comes through here."""

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
        self._seen = Seen(SEEN)

    def remember(self, keys: Iterable[str]) -> None:
        """Take over the keys of events that took effect before a restart."""
        for key in keys:
            self._seen.add(key, durable=True)

    async def deliver(
        self, events: Sequence[ev.Event], *, received_at: datetime | None = None, within_s: float | None = None
    ) -> None:
        """Apply the events in order, then return when all of them are durable.

        Calls are served before anything is written: a ringing user does not wait for a disk. An event that comes again
        takes no effect again, but is written again unless its first write is known to have succeeded. What is said
        about contacts in memory counts at once, whatever becomes of the database; about others, when the delivery is
        handed in again.

        `received_at`: if it came earlier than now. `within_s`: the database has so long, or is taken to be away.
        Raises: StoreDown: hand all of it in again. StoreError: some of it will never be kept, the rest is
        """
        now = self._clock.now()
        until = None if within_s is None else asyncio.get_running_loop().time() + within_s
        events = self._not_kept(events)
        late: list[ev.Event] = []
        news: list[ev.Event] = []
        for event in events:
            (late if self._may_be_known(event, now) else news).append(event)
        for event in news:
            await self._take(event, now)
        down: StoreDown | None = None
        if late:
            try:
                async with self._reading(until):
                    late = await self._not_in_journal(late)
            except StoreDown as error:
                late, down = [], error
            for event in late:
                await self._take(event, now)
        said, down, unreadable = await self._all_said((*news, *late), until, down)
        await self._keep(said, received_at or now, until=until, down=down)
        if unreadable is not None:
            raise unreadable

    def _not_kept(self, events: Sequence[ev.Event]) -> Sequence[ev.Event]:
        """Leave out what took effect and is durable."""
        left = [event for event in events if not self._seen.is_durable(event.dedupe_key)]
        if len(left) < len(events):
            self._count("repeated", len(events) - len(left))
        return left

    @asynccontextmanager
    async def _reading(self, until: float | None) -> AsyncIterator[None]:
        """Read from the store, while it is there and until that instant of the loop's. Raises: StoreDown"""
        if not self._store.up:
            raise StoreDown
        try:
            async with asyncio.timeout_at(until):
                yield
        except TimeoutError as error:
            raise StoreDown("no answer in time") from error

    def _may_be_known(self, event: ev.Event, now: datetime) -> bool:
        """Tell whether only the journal knows if an event has come before."""
        if event.at is None or now - event.at < REMEMBERED or event.dedupe_key in self._seen:
            return False
        if isinstance(event, ev.CallAnswered | ev.CallStatus | ev.CallTerminated):
            return self._call_of(event) is None
        return True

    async def _not_in_journal(self, events: Sequence[ev.Event]) -> list[ev.Event]:
        """Return those that never took effect. Raises: StoreDown."""
        keys: dict[str, list[str]] = {}
        for event in events:
            keys.setdefault(event.number_id, []).append(event.dedupe_key)
        known = {
            (number_id, key)
            for number_id, asked in keys.items()
            for key in await self._store.known_events(number_id, asked)
        }
        if known:
            self._count("repeated", len(known))
            self.remember(key for _, key in known)
        return [event for event in events if (event.number_id, event.dedupe_key) not in known]

    async def _take(self, event: ev.Event, now: datetime) -> None:
        """Let an event take effect, once. A bug in that harms no other event and keeps none from being kept."""
        if not self._first_time(event):
            self._count("repeated")
            return
        try:
            await self._apply(event, now)
            self._count(event.kind)
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(error):
                raise
            log.exception("event_broken", kind=event.kind, number_id=event.number_id)
            if isinstance(event, ev.CallOffered) and self._registry.by_meta_id(event.meta_call_id) is None:
                # Nobody will answer: the user need not listen to that.
                call_id = CallId(f"broken/{event.meta_call_id}")
                self._owed_hangups.keep_trying(event.number_id, event.meta_call_id, call_id)

    async def _keep(
        self, said: Sequence[About], received_at: datetime, *, until: float | None, down: StoreDown | None
    ) -> None:
        """Fold facts and hand them over for writing in one breath: what is written last must have been folded last."""
        rows = [row for each in said for row in self._fold(each, received_at)]
        for event, about in said:
            if isinstance(event, ev.PermissionReply) and about is not None:
                self._show(event, about[0])
        try:
            if down is not None:  # not all is known yet: it is written when it is handed in again, and then as a whole
                raise down
            await self._write(rows, until)
            for event, _ in said:
                self._seen.add(event.dedupe_key, durable=True)
        except StoreDown:
            self._contacts.owe(rows)
            raise
        except StoreError:
            if len(said) == 1:
                raise
            await self._keep_each(said, received_at, until=until)

    async def _keep_each(self, said: Sequence[About], received_at: datetime, *, until: float | None) -> None:
        """Write each event by itself: one that cannot be kept must not cost the others. Raises as `deliver` does."""
        refused: StoreError | None = None
        for each in said:
            try:
                await self._keep([each], received_at, until=until, down=None)
            except StoreDown:
                raise
            except StoreError as error:
                refused = error
        if refused is not None:
            raise refused

    def _fold(self, said: About, received_at: datetime) -> list[Change]:
        """Take over what an event says; return all that is to be written of it."""
        event, about = said
        rows: list[Change] = [_journal(event, received_at)]
        if isinstance(event, ev.CallTerminated):
            rows.append(_ended(event))
        if isinstance(event, ev.CallStatus) and event.status == "REJECTED":
            rows.append(CallDeclined(meta_call_id=event.meta_call_id))
        if about is not None:
            contact, fact = about
            rows.extend(self._contacts.apply(contact, fact, seen_at=received_at))
        return rows

    async def _write(self, rows: Sequence[Change], until: float | None) -> None:
        """Raises: StoreDown: not in time is as good as never, though it may be written yet. StoreError"""
        try:
            async with asyncio.timeout_at(until):
                await self._store.write(*rows)
        except TimeoutError as error:
            raise StoreDown("no answer in time") from error

    def _first_time(self, event: ev.Event) -> bool:
        key = event.dedupe_key
        if key in self._seen:
            return False
        self._seen.add(key, durable=False)
        return True

    def _count(self, kind: str, events: int = 1) -> None:
        self._metrics.events_total.labels(kind=kind).inc(events)

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
        registry = self._registry
        if registry.by_meta_id(event.meta_call_id) is not None or registry.has_ended(event.meta_call_id):
            return
        waiting = registry.take_parked(event.meta_call_id)
        ended = next((e for e in waiting if isinstance(e, ev.CallTerminated)), None)
        await self._admission.incoming(event, ended)

    def _to_call(self, event: ev.CallEvent, now: datetime) -> None:
        call = self._call_of(event)
        if call is not None:
            call.told(event)
        elif not self._turned_up(event) and not self._registry.has_ended(event.meta_call_id):
            self._registry.park(event, now=now)
        if isinstance(event, ev.CallTerminated):
            self._owed_hangups.confirmed(event.meta_call_id)
            number = self._numbers.get(event.number_id)
            if number is not None:
                number.meta_reported(event.error_code)

    def _turned_up(self, event: ev.CallEvent) -> bool:
        """Tell Meta's id of a call that nobody runs and whose `connect` was never answered; False: it is none such."""
        over = isinstance(event, ev.CallTerminated)
        owed = self._owed_hangups
        if not event.opaque or not owed.turned_up(CallId(event.opaque), event.meta_call_id, over=over):
            return False
        for waiting in self._registry.take_parked(event.meta_call_id):
            if isinstance(waiting, ev.CallTerminated):
                owed.confirmed(event.meta_call_id)
                self._store.write_soon(_ended(waiting))
        return True

    def _call_of(self, event: ev.CallEvent) -> LiveCall | None:
        """Find the call by Meta's id; one whose `connect` is still unanswered by what we sent along."""
        registry = self._registry
        found = registry.by_meta_id(event.meta_call_id)
        if found is None and event.opaque:
            found = registry.get(CallId(event.opaque))
        return found

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

    async def _all_said(
        self, events: Sequence[ev.Event], until: float | None, down: StoreDown | None
    ) -> tuple[list[About], StoreDown | None, StoreError | None]:
        """Return what each event says about which contact; once the store is down, only about those in memory.

        Left out is an event whose contact cannot be read and never will be: the error is the last thing returned.
        """
        said: list[About] = []
        unreadable: StoreError | None = None
        for event in events:
            number, news = self._numbers.get(event.number_id), said_by(event, self._registry.known)
            if number is None or news is None:
                said.append((event, None))
                continue
            contact: Contact | None
            try:
                contact = await self._contact(number, news, until, down)
            except StoreDown as error:
                down, contact = error, self._contacts.peek(number.id, news.user)
            except StoreError as error:
                unreadable = error
                continue
            said.append((event, None if contact is None else (contact, news.fact)))
        return said, down, unreadable

    async def _contact(self, number: Number, news: Said, until: float | None, down: StoreDown | None) -> Contact:
        """Raises: StoreDown"""
        if down is not None:
            raise down
        async with self._reading(until):
            return await self._contacts.get(number, news.user, news.name)

    def _show(self, event: ev.PermissionReply, contact: Contact) -> None:
        number = self._numbers.get(event.number_id)
        if number is not None:
            log.info("permission_reply", number_id=number.id, user=contact.user.key, accepted=event.accepted)
            self._contact_listener.contact_changed(number, contact)


def _journal(event: ev.Event, now: datetime) -> EventRecord:
    return EventRecord(
        phone_number_id=event.number_id,
        dedupe_key=event.dedupe_key,
        kind=event.kind,
        received_at=now,
        body=event.body,
    )


def _ended(event: ev.CallTerminated) -> TerminateFacts:
    """Fill the call's record, whoever runs the call or ran it: it may have ended before a restart."""
    return TerminateFacts(
        meta_call_id=event.meta_call_id,
        meta_status=event.status,
        meta_start_at=event.start_at,
        meta_end_at=event.end_at,
        duration_s=event.duration_s,
    )
