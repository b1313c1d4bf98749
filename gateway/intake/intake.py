"""Make webhook deliveries durable: in the database or, if that is down, in the spool.

Theory of operation. Meta asks for an answer in 250 ms and repeats every delivery that was not answered with 200. So the
database has `DATABASE_S`; after that the body goes to the spool unchanged, and 200 is sent once it is on disk there. A
delivery that went both ways does no harm, because each event is kept once. Only if both fail is Meta asked to send the
delivery again.
"""

from enum import StrEnum
from typing import Final

import structlog

from gateway.common.clock import Clock
from gateway.common.errors import StoreDown, StoreError
from gateway.common.metrics import Metrics
from gateway.intake.inbox import Inbox
from gateway.intake.spool import Spool
from gateway.intake.spool_file import Delivery
from gateway.meta.events import read_delivery

log = structlog.get_logger()

#: How long the database may take: Meta asks for a median of 250 ms, and less than 1 % above 1 s.
# Source: Meta, "Webhooks", read 2026-11-22.
DATABASE_S: Final = 0.3


class Kept(StrEnum):
    """Where a delivery was kept; a metric label."""

    ACCEPTED = "accepted"  #: in the database
    SPOOLED = "spooled"  #: in the spool, to be replayed
    REFUSED = "refused"  #: the database can never take some of it; set apart in the spool


class Intake:
    """Keeps deliveries; one instance for all numbers."""

    def __init__(
        self, inbox: Inbox, spool: Spool, metrics: Metrics, clock: Clock, *, database_s: float = DATABASE_S
    ) -> None:
        self._inbox = inbox
        self._spool = spool
        self._metrics = metrics
        self._clock = clock
        self._database_s = database_s

    async def keep(self, body: bytes) -> Kept:
        """Apply a delivery and return when it is durable. Raises: SpoolDown if it is not."""
        received_at = self._clock.now()
        try:
            await self._inbox.deliver(read_delivery(body), within_s=self._database_s)
        except StoreDown:
            await self._spool.append(body, received_at)
            self._metrics.spooled_total.inc()
            return Kept.SPOOLED
        except StoreError as error:
            # Answer 200 all the same: otherwise Meta would send the same bytes again for seven days.
            await self._spool.refuse(Delivery(received_at=received_at, body=body), str(error))
            self._metrics.spool_refused_total.inc()
            log.error("delivery_refused", detail=str(error))
            return Kept.REFUSED
        return Kept.ACCEPTED
