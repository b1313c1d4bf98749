"""Deliver what waits in the spool to the inbox, oldest first, once the database is up again.

Theory of operation. A delivery in the spool has taken effect already, because the inbox serves calls before it writes.
Here its events are delivered again to be written, and it leaves the spool only when they are durable. A batch is
delivered together, started in order, so that its deliveries share transactions. New deliveries go straight to the
database meanwhile.

* If the database goes down again, deliveries that were not written stay in their place.
* A delivery that can never be written is set apart in the spool for a person to look at; the rest goes on.
* Deliveries that an earlier process left may hold calls which that process accepted and which have no driver now. None
  of them rings again. A call that is not in the database gets a record, and is ended at Meta unless the spool holds its
  `terminate`.
"""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final, Protocol

import structlog

from gateway.callflow.call import CallState
from gateway.callflow.outcome import EndReason, Result
from gateway.calls.owed_hangups import OwedHangups
from gateway.calls.registry import Registry
from gateway.common.clock import Clock
from gateway.common.errors import SpoolDown, StoreDown, StoreError
from gateway.common.ids import CallId, MetaCallId
from gateway.common.metrics import Metrics
from gateway.contacts.webhook_facts import KnownCall
from gateway.intake.spool import Spool
from gateway.intake.spool_file import Delivery
from gateway.meta.events import CallOffered, CallTerminated, Event, read_delivery
from gateway.store.records import CallRecord, EndOwed
from gateway.store.store import Store
from policy.facts import Direction

log = structlog.get_logger()

#: Deliveries in one batch: few enough that calls do not wait behind them.
BATCH: Final = 32
BATCH_BYTES: Final = 4_000_000
#: How long to wait before the next attempt while the database is down.
AGAIN_S: Final = 0.2
#: How often a spool that accepts nothing is probed.
PROBE_S: Final = 5.0
RESTARTED: Final = "The gateway was restarted while the database was down, during this call."


class Delivers(Protocol):
    """What the replay needs from the inbox."""

    async def deliver(self, events: Sequence[Event], *, received_at: datetime) -> None: ...


class Replay:
    """Replays the spool. `run` is one task, until cancelled."""

    def __init__(
        self,
        *,
        spool: Spool,
        inbox: Delivers,
        registry: Registry,
        owed_hangups: OwedHangups,
        store: Store,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._spool = spool
        self._inbox = inbox
        self._registry = registry
        self._owed_hangups = owed_hangups
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._left_until = spool.last_seq  #: up to this seq an earlier process left it; 0: none of that remains
        self._left: dict[MetaCallId, CallRecord] = {}  #: that process's calls that were not in the database
        self._over: set[MetaCallId] = set()

    async def run(self) -> None:
        """Replay deliveries whenever there are some and the database is up."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe_spool())
            while True:
                await self._spool.until_some()
                if not self._store.up or not await self._replay_batch():
                    await asyncio.sleep(AGAIN_S)

    async def _probe_spool(self) -> None:
        """Probe a spool that accepts nothing, every `PROBE_S`, until it works again."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self._spool.problem is not None:
                await self._spool.try_again()

    async def _replay_batch(self) -> bool:
        """Deliver the next batch; return whether any delivery left the spool."""
        try:
            batch = await self._spool.oldest(BATCH, BATCH_BYTES)
            if batch and batch[0].seq <= self._left_until:
                batch = [delivery for delivery in batch if delivery.seq <= self._left_until]
                await self._find_left_calls(batch)
            kept = await self._deliver_batch(batch)
            await self._spool.remove(kept)
            if self._left_until:
                following = await self._spool.oldest(1, 0)
                if not following or following[0].seq > self._left_until:
                    self._close_left_calls()
        except (StoreDown, SpoolDown) as error:
            log.debug("unspool_waits", detail=str(error))
            return False
        except Exception:  # any bug: try again, so that the spool does not wait for ever
            log.exception("unspool_broken")
            return False
        return bool(kept)

    async def _deliver_batch(self, batch: Sequence[Delivery]) -> list[Delivery]:
        """Deliver a batch; return the deliveries that may leave the spool."""
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(self._deliver_one(delivery)) for delivery in batch]
        return [delivery for delivery, end in zip(batch, ends, strict=True) if end.result()]

    async def _deliver_one(self, delivery: Delivery) -> bool:
        """Deliver one delivery; return whether it may leave the spool."""
        try:
            await self._inbox.deliver(read_delivery(delivery.body), received_at=delivery.received_at)
        except StoreDown:
            return False
        except StoreError as error:
            await self._set_apart(delivery, str(error))
            return False
        except Exception as error:
            log.exception("delivery_broken")
            await self._set_apart(delivery, f"a fault of the gateway: {type(error).__name__}")
            return False
        return True

    async def _set_apart(self, delivery: Delivery, reason: str) -> None:
        """Set a delivery apart; if that fails, it stays in the spool and is tried again."""
        with suppress(SpoolDown):
            await self._spool.refuse(delivery, reason)
            self._metrics.spool_refused_total.inc()
            log.error("delivery_refused", detail=reason)

    # --- what an earlier process left ----------------------------------------------------------------

    async def _find_left_calls(self, batch: Sequence[Delivery]) -> None:
        """Remember the calls in `batch` as ended, so that none of them rings. Raises: StoreDown."""
        for delivery in batch:
            for event in read_delivery(delivery.body):
                if isinstance(event, CallTerminated):
                    self._over.add(event.meta_call_id)
                elif isinstance(event, CallOffered):
                    await self._adopt_call(event)

    async def _adopt_call(self, event: CallOffered) -> None:
        """Store a call that the database does not know as ended, with the mark that its hang-up is owed.

        Both are written in one transaction, so another crash loses neither. A call whose record can never be written is
        ended at Meta all the same. Raises: StoreDown.
        """
        store, meta_call_id, record = self._store, event.meta_call_id, self._record(event)
        self._registry.bury(meta_call_id, KnownCall(user=event.user, direction=Direction.USER_INITIATED))
        if meta_call_id in self._left:
            return
        try:
            if await store.call_by_meta_id(meta_call_id) is not None:
                return
            await store.write(record, EndOwed(call_id=record.call_id, owed=True, meta_call_id=meta_call_id))
        except StoreDown:
            raise
        except StoreError as error:
            log.error("spool_call_not_kept", number_id=event.number_id, detail=str(error))
        self._left[meta_call_id] = record

    def _record(self, event: CallOffered) -> CallRecord:
        return CallRecord(
            call_id=CallId(uuid.uuid4().hex),
            version=1,
            phone_number_id=event.number_id,
            direction=Direction.USER_INITIATED,
            state=CallState.ENDED.value,
            user=event.user,
            user_name=event.user_name,
            created_at=event.at,
            meta_call_id=event.meta_call_id,
            ended_at=self._clock.now(),
            result=Result.GATEWAY,
            reason=EndReason.INTERNAL,
            detail=RESTARTED,
        )

    def _close_left_calls(self) -> None:
        """Have the earlier process's calls ended at Meta, except those whose `terminate` was in the spool.

        Called when none of that process's deliveries is left in the spool.
        """
        for meta_call_id, record in self._left.items():
            if meta_call_id in self._over:
                self._store.write_soon(EndOwed(call_id=record.call_id, owed=False, meta_call_id=meta_call_id))
            else:
                self._owed_hangups.keep_trying(record.phone_number_id, meta_call_id, record.call_id)
        log.info("spool_calls_closed", calls=len(self._left))
        self._left_until = 0
        self._left.clear()
        self._over.clear()
