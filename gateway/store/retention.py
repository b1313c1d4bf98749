"""Delete old journal rows and old idempotency keys.

Both only guard against duplicates, and only for a limited time. Facts, calls and decisions are kept.
"""

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from gateway.common.clock import Clock
from gateway.common.errors import StoreError
from gateway.store.store import IDEMPOTENCY_TTL, Store

log = structlog.get_logger()

#: Meta retries a webhook for up to seven days; one more for clock errors. Source: Meta, "Webhooks", read 2026-11-22.
EVENTS_FOR: Final = timedelta(days=8)
EVERY_S: Final = 3600.0
#: Rows deleted by one statement, and the pause after it: other statements never wait long.
BATCH: Final = 1_000
BREATH_S: Final = 0.1


class Retention:
    """Deletes old rows. Run it in one task with `run`, until cancelled."""

    def __init__(self, store: Store, clock: Clock, *, every_s: float = EVERY_S, batch: int = BATCH) -> None:
        self._store = store
        self._clock = clock
        self._every_s = every_s
        self._batch = batch

    async def run(self) -> None:
        """Delete old rows now and every hour; log an error of the database and go on."""
        while True:
            try:
                gone = await self.clean()
            except StoreError as error:
                log.warning("housekeeping_put_off", detail=error.public)
            else:
                if gone:
                    log.info("housekeeping_done", rows=gone)
            await asyncio.sleep(self._every_s)

    async def clean(self) -> int:
        """Delete all rows that are too old, in batches; return how many. Raises: StoreError."""
        now, total = self._clock.now(), 0
        while True:
            gone = await self._store.forget(
                events_before=now - EVENTS_FOR, keys_before=now - IDEMPOTENCY_TTL, limit=self._batch
            )
            total += gone
            if gone < self._batch:
                return total
            await asyncio.sleep(BREATH_S)
