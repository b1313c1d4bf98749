"""Asks Meta what it has on record about a contact, and takes that over where it contradicts us.

Responsible for when Meta is asked (for a stranger before a no, after a contradiction, on demand), how often, and how
long somebody waits for it. Meta's answer becomes facts only where it differs: see `drift`, which compares. Not
responsible for the gate's answer afterwards (see `admission`).

An answer that comes too late for the operator who waited is taken over all the same.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog

from gateway.common.background import Start
from gateway.common.clock import Clock
from gateway.common.errors import GatewayError
from gateway.common.metrics import Metrics
from gateway.common.rate_limit import Rate, RateLimit
from gateway.common.single_flight import SingleFlight
from gateway.contacts.directory import Contact, ContactListener, Contacts
from gateway.contacts.drift import Drift, drifts
from gateway.contacts.engagements import Engagements
from gateway.meta.graph import Graph
from gateway.numbers.number import Number
from gateway.store.store import Store
from policy.contact import EMPTY, ContactState

log = structlog.get_logger()

#: How long an operator waits for what Meta knows of a stranger.
PATIENCE_S: Final = 1.5
#: A stranger is looked up so often, and so often if that failed. In memory alone: Meta is asked only while somebody
#: waits to hear about this very stranger, and READS hold whatever is remembered. So a restart costs one more
#: read for each stranger whom somebody asks about again: too little to write a row for everybody who is nobody yet.
STRANGER_EVERY: Final = timedelta(hours=24)
FAILED_EVERY: Final = timedelta(minutes=1)
#: Strangers whose lookup is remembered.
REMEMBERED: Final = 50_000
#: After a contradiction: by then the call that met it is over, and Meta's counts have settled.
SOON_S: Final = 2.0
#: Reads of permissions, half of what Meta allows and 25 more at once: no second has more than 75 of Meta's 100.
# Source: Meta, "User call permissions": 100 reads a second, read 2026-11-22.
READS: Final = Rate(per_s=50, burst=25)
#: Meta's refusals that contradict what we know of a contact: the gate had said yes.
# Source: Meta, "Calling API troubleshooting", read 2026-11-22.
CONTRADICTIONS: Final = frozenset({138006, 138009, 138012, 138017})
#: How often Meta is asked anew because the contact changed meanwhile.
TRIES: Final = 2


Work = Callable[[Number, Contact], Coroutine[Any, Any, None]]


class TooOften(GatewayError):
    """Meta has been asked so often within the last second that this must wait."""

    reason = "too_many"
    retryable = True
    public = "Meta has been asked about too many contacts within a second."


class Reconciler:
    """One for all numbers."""

    def __init__(
        self,
        *,
        graph: Graph,
        contacts: Contacts,
        engagements: Engagements,
        listener: ContactListener,
        store: Store,
        metrics: Metrics,
        clock: Clock,
        start: Start,
    ) -> None:
        self._graph = graph
        self._contacts = contacts
        self._engagements = engagements
        self._listener = listener
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self.patience_s = PATIENCE_S
        self.soon_s = SOON_S
        self._not_before: OrderedDict[str, datetime] = OrderedDict()  # by contact_id
        self._under_way: SingleFlight[str, None] = SingleFlight(start)  # by contact_id
        self._closed = False
        self._reads = RateLimit(READS)

    async def learn(self, number: Number, contact: Contact) -> bool:
        """Find out about somebody of whom we know nothing; return whether Meta knew better. Never raises."""
        answer = self._under_way.join(contact.contact_id)
        if answer is None:
            if self._closed or not _is_stranger(contact.state) or not self._is_due(contact) or not self._may_ask():
                return False
            answer = self._begin(number, contact, self._ask_about_stranger)
        before = contact.state
        await asyncio.wait((answer,), timeout=self.patience_s)
        known = self._contacts.peek(number.id, contact.user) or contact
        return known.state != before

    def reconcile_soon(self, number: Number, contact: Contact) -> None:
        """Meta has contradicted us about this contact: look whether that is all."""
        if not self._closed and self._under_way.join(contact.contact_id) is None:
            self._begin(number, contact, self._ask_in_a_moment)

    async def reconcile(self, number: Number, contact: Contact) -> tuple[Drift, ...]:
        """Ask Meta now; return what differed. Raises: TooOften, GraphError, StoreDown."""
        if not self._may_ask():
            raise TooOften
        return await self._ask(number, contact)

    def close(self) -> None:
        """Ask no more; what is on its way is cut."""
        self._closed = True
        self._under_way.close()

    # --- when ------------------------------------------------------------------------------------

    def _is_due(self, contact: Contact) -> bool:
        due_at = self._not_before.get(contact.contact_id)
        return due_at is None or self._clock.now() >= due_at

    def _wait_for_next(self, contact: Contact, wait: timedelta) -> None:
        self._not_before[contact.contact_id] = self._clock.now() + wait
        self._not_before.move_to_end(contact.contact_id)
        if len(self._not_before) > REMEMBERED:
            self._not_before.popitem(last=False)

    def _may_ask(self) -> bool:
        """Tell whether Meta may be asked at this moment, and count it; nobody waits for a turn."""
        may_ask = self._reads.take(now=asyncio.get_running_loop().time())
        if not may_ask:
            log.warning("reconcile_skipped", cause="rate")
        return may_ask

    def _begin(self, number: Number, contact: Contact, work: Work) -> asyncio.Future[None]:
        return self._under_way.begin(contact.contact_id, partial(self._guarded, number, contact, work))

    async def _guarded(self, number: Number, contact: Contact, work: Work) -> None:
        """Our own answer stands where Meta gives none, and a bug here must not end anything else."""
        try:
            await work(number, contact)
        except GatewayError as error:
            log.warning("reconcile_failed", number_id=number.id, detail=error.public)
        except Exception:
            log.exception("reconcile_broken", number_id=number.id)

    async def _ask_about_stranger(self, number: Number, contact: Contact) -> None:
        self._wait_for_next(contact, FAILED_EVERY)
        await self._ask(number, contact)
        self._wait_for_next(contact, STRANGER_EVERY)

    async def _ask_in_a_moment(self, number: Number, contact: Contact) -> None:
        await asyncio.sleep(self.soon_s)
        if self._may_ask():
            await self._ask(number, contact)

    # --- what ------------------------------------------------------------------------------------

    async def _ask(self, number: Number, contact: Contact) -> tuple[Drift, ...]:
        for _ in range(TRIES):
            asked_at, before, counts = self._clock.now(), contact.state, not self._engagements.is_busy(contact)
            metas = await self._graph.call_permissions(number.id, contact.user)
            contact = await self._contacts.get(number, contact.user)  # it may have been joined with another
            if contact.state == before:
                counts = counts and not self._engagements.is_busy(contact)
                found = drifts(number.pack, before, metas, asked_at=asked_at, counts=counts)
                self._take_over(number, contact, before, found)
                return found
        log.info("reconcile_overtaken", number_id=number.id, user=contact.user.key)
        return ()

    def _take_over(self, number: Number, contact: Contact, before: ContactState, found: tuple[Drift, ...]) -> None:
        if not found:
            return
        for drift in found:
            self._metrics.policy_drift_total.labels(rule=drift.rule).inc()
            log.warning(
                "policy_drift",
                number_id=number.id,
                user=contact.user.key,
                rule=drift.rule,
                ours=drift.ours,
                metas=drift.metas,
            )
        facts = dict.fromkeys(fact for drift in found for fact in drift.facts)
        changes = self._contacts.apply(contact, *facts, seen_at=self._clock.now())
        self._store.write_soon(*changes)
        if contact.state != before:
            self._listener.contact_changed(number, contact)


def _is_stranger(state: ContactState) -> bool:
    """Tell whether nothing is known of calls and permission; that somebody wrote to us says nothing about those."""
    return replace(state, window_opened=None, window_closed=None) == EMPTY
