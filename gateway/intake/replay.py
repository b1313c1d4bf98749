"""Hands what waits in the spool to the inbox, oldest first, once the database answers again.

Theory of operation. A delivery in the spool has taken effect already: the inbox serves calls first and keeps things
afterwards. So here its events are handed in once more to be written down, and it leaves the spool only when they are.
Some are handed in together, begun in their order, so that they share transactions. New deliveries go straight to the
database meanwhile.

* The database goes away again: what was not kept stays, in its place.
* A delivery that will never be kept is set apart in the spool for a person to look at, and the rest goes on.
* What an earlier process left in the spool: that process took the calls in, and nobody runs them any more. None of
  them rings again. Each that the database knows nothing of gets a record, and is ended at Meta unless the spool says
  that it is over.

Not responsible for putting anything into the spool (see `intake`).
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

#: Handed in together: few enough that calls do not wait behind them.
BATCH: Final = 32
BATCH_BYTES: Final = 4_000_000
#: The pause between two looks at a database that is away.
AGAIN_S: Final = 0.2
#: How often a spool that takes nothing is tried.
PROBE_S: Final = 5.0
RESTARTED: Final = "The gateway was restarted while the database was away, during this call."


class Delivers(Protocol):
    """What is needed of the inbox."""

    async def deliver(self, events: Sequence[Event], *, received_at: datetime) -> None: ...


class Replay:
    """Runs in one task, until cancelled."""

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
        self._left_until = spool.last_seq  #: up to here it was an earlier process; 0: all that is over
        self._left: dict[MetaCallId, CallRecord] = {}  #: its calls, of which the database knew nothing
        self._over: set[MetaCallId] = set()

    async def run(self) -> None:
        """Wait for deliveries and for the database, and bring them together."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe())
            while True:
                await self._spool.until_some()
                if not self._store.up or not await self._turn():
                    await asyncio.sleep(AGAIN_S)

    async def _probe(self) -> None:
        """Look now and then whether a spool that takes nothing does so again."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self._spool.problem is not None:
                await self._spool.try_again()

    async def _turn(self) -> bool:
        """Hand in those that are next in line; return whether any has left it."""
        try:
            batch = await self._spool.oldest(BATCH, BATCH_BYTES)
            if batch and batch[0].seq <= self._left_until:
                batch = [delivery for delivery in batch if delivery.seq <= self._left_until]
                await self._look_for_calls(batch)
            kept = await self._hand_in(batch)
            await self._spool.remove(kept)
            if self._left_until:
                following = await self._spool.oldest(1, 0)
                if not following or following[0].seq > self._left_until:
                    self._close_calls()
        except (StoreDown, SpoolDown) as error:
            log.debug("unspool_waits", detail=str(error))
            return False
        except Exception:  # whatever it is, what waits must not wait for ever
            log.exception("unspool_broken")
            return False
        return bool(kept)

    async def _hand_in(self, batch: Sequence[Delivery]) -> list[Delivery]:
        """Return those that need the spool no longer."""
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(self._hand_in_one(delivery)) for delivery in batch]
        return [delivery for delivery, end in zip(batch, ends, strict=True) if end.result()]

    async def _hand_in_one(self, delivery: Delivery) -> bool:
        try:
            await self._inbox.deliver(read_delivery(delivery.body), received_at=delivery.received_at)
        except StoreDown:
            return False
        except StoreError as error:
            await self._refuse(delivery, str(error))
            return False
        except Exception as error:
            log.exception("delivery_broken")
            await self._refuse(delivery, f"a fault of the gateway: {type(error).__name__}")
            return False
        return True

    async def _refuse(self, delivery: Delivery, reason: str) -> None:
        """Set a delivery apart; if that fails, it stays in line and comes up again."""
        with suppress(SpoolDown):
            await self._spool.refuse(delivery, reason)
            self._metrics.spool_refused_total.inc()
            log.error("delivery_refused", detail=reason)

    # --- what an earlier process left ----------------------------------------------------------------

    async def _look_for_calls(self, batch: Sequence[Delivery]) -> None:
        """Remember the calls in `batch` as ended, before anybody could ring for them. Raises: StoreDown"""
        for delivery in batch:
            for event in read_delivery(delivery.body):
                if isinstance(event, CallTerminated):
                    self._over.add(event.meta_call_id)
                elif isinstance(event, CallOffered):
                    await self._adopt(event)

    async def _adopt(self, event: CallOffered) -> None:
        """The record and the mark that its end is owed are one transaction: another crash loses neither.

        A call that the database will never take is ended all the same. Raises: StoreDown
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

    def _close_calls(self) -> None:
        """Nothing of the earlier process is left in the spool: what is not over by now, only Meta can end."""
        for meta_call_id, record in self._left.items():
            if meta_call_id in self._over:
                self._store.write_soon(EndOwed(call_id=record.call_id, owed=False, meta_call_id=meta_call_id))
            else:
                self._owed_hangups.keep_trying(record.phone_number_id, meta_call_id, record.call_id)
        log.info("spool_calls_closed", calls=len(self._left))
        self._left_until = 0
        self._left.clear()
        self._over.clear()
