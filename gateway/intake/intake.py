"""Keeps webhook deliveries: in the database, and while that does not take them, in the spool.

Theory of operation. Meta asks for an answer in 250 ms and repeats whatever was not answered with 200. So the database
has a moment; then the body goes to the spool as it came, and 200 is true once it is on the disk there. One that went
both ways does no harm: each event is kept once. Only when neither takes it, Meta is asked to come again.

Not responsible for the door (see `webhook`) nor for what is in a delivery (see `inbox`).
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
    """Where a delivery is; the metric's label."""

    ACCEPTED = "accepted"  #: in the database
    SPOOLED = "spooled"
    REFUSED = "refused"  #: the database will never take some of it: that is set apart in the spool


class Intake:
    """One for all numbers."""

    def __init__(
        self, inbox: Inbox, spool: Spool, metrics: Metrics, clock: Clock, *, database_s: float = DATABASE_S
    ) -> None:
        self._inbox = inbox
        self._spool = spool
        self._metrics = metrics
        self._clock = clock
        self._database_s = database_s

    async def keep(self, body: bytes) -> Kept:
        """Let a delivery take effect and return when it is durable. Raises: SpoolDown: it is not"""
        received_at = self._clock.now()
        try:
            await self._inbox.deliver(read_delivery(body), within_s=self._database_s)
        except StoreDown:
            await self._spool.append(body, received_at)
            self._metrics.spooled_total.inc()
            return Kept.SPOOLED
        except StoreError as error:
            # To Meta that is no reason to bring the same bytes again for seven days.
            await self._spool.refuse(Delivery(received_at=received_at, body=body), str(error))
            self._metrics.spool_refused_total.inc()
            log.error("delivery_refused", detail=str(error))
            return Kept.REFUSED
        return Kept.ACCEPTED
