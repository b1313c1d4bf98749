"""Deliver the simulated Meta's webhooks: signed, in order per call, retried until a 200.

Also verifies the callback URL at start, as Meta does when a callback is configured. The contents of webhooks are in
`payloads.py`, deliberate faults in `faults.py`.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.common.background import Background
from loadtest.common.clock import instant
from loadtest.net.http_client import HttpClient
from loadtest.simulator.config import SimConfig, Timers
from loadtest.simulator.faults import Fate, Faults
from loadtest.simulator.payloads import encoded, envelope, signed_headers

log = logging.getLogger(__name__)

#: Most connections to the callback.
_CONNECTIONS = 100


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One webhook to be delivered."""

    #: Deliveries with the same key stay in order: the call's id, or the message's.
    key: str
    change: dict[str, Any]
    waba_id: str
    attempts: int = 0
    #: HTTP status of the last attempt; None: no response (yet).
    status: int | None = None
    given_up: bool = False
    fate: Fate
    #: When it was sent together with others (value of `instant`); None: it was not batched.
    left_at: float | None = None


@dataclass(slots=True, kw_only=True)
class _Batch:
    """Webhooks collected for one delivery."""

    #: Most webhooks in the batch; None: all that arrive in time.
    most: int | None
    deliveries: list[Delivery] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)


class Webhooks:
    """The queue to the callback. `start()`, `send()` any number of times, `close()`."""

    def __init__(self, config: SimConfig, faults: Faults, background: Background) -> None:
        self._config, self._faults, self._background = config, faults, background
        self.timers: Timers = config.timers
        self._queues: dict[str, deque[Delivery]] = {}
        self._batch: _Batch | None = None
        self._http: HttpClient | None = None
        #: All webhooks, in the order of `send()`.
        self.sent: deque[Delivery] = deque(maxlen=config.history)
        self.delivered = 0
        self.lost = 0
        self.attempts = 0
        self.pending = 0
        self.verified: bool | None = None
        #: Called after every visible change.
        self.on_change: Callable[[], None] = lambda: None
        #: Called for each response with the seconds since sending, and the status.
        self.on_answer: Callable[[float, int], None] = lambda took_s, status: None

    async def start(self) -> None:
        """Start verifying the callback."""
        url = self._config.callback_url
        if url is None:
            return
        self._http = HttpClient(url, timeout_s=self.timers.webhook_timeout_s, limit=_CONNECTIONS)
        self._background.spawn(self._verify(self._http), "callback verification")

    async def let_go(self) -> None:
        """Close the connections to the callback: those it has afterwards are its own. Call when none is in use."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; call after the background tasks have ended."""
        if self._http is not None:
            await self._http.close()

    async def _verify(self, http: HttpClient) -> None:
        """Send the challenge until the callback echoes it; the gateway may still be starting."""
        while not self.verified:
            challenge = str(secrets.randbelow(10**10)).zfill(10)
            query = {
                "hub.mode": "subscribe",
                "hub.challenge": challenge,
                "hub.verify_token": self._config.verify_token,
            }
            try:
                answer = await http.request("GET", {}, query=query)
                self.verified = answer.status == 200 and answer.body == challenge.encode()
            except OSError as failure:
                log.debug("callback not reachable yet: %s", failure)
            self.on_change()
            if not self.verified:
                await asyncio.sleep(self.timers.verification_retry_s)

    def send(self, key: str, change: dict[str, Any], *, waba_id: str) -> None:
        """Queue one webhook."""
        delivery = Delivery(key=key, change=change, waba_id=waba_id, fate=self._faults.fate())
        self.sent.append(delivery)
        if self._http is None:
            return
        if delivery.fate.lost:
            self.lost += 1
            return
        self.pending += 1
        if delivery.fate.overtaken_s is not None:
            self._background.spawn(self._alone(delivery, delivery.fate.overtaken_s), "webhook")
        elif self._faults.webhooks.batch_s:
            self._collect(delivery)
        else:
            self._queue(delivery)

    def _queue(self, delivery: Delivery) -> None:
        queue = self._queues.get(delivery.key)
        if queue is None:
            queue = self._queues[delivery.key] = deque()
            self._background.spawn(self._drain(delivery.key, queue), "webhooks of a call")
        queue.append(delivery)

    async def _drain(self, key: str, queue: deque[Delivery]) -> None:
        """Deliver the webhooks of one call, one after another."""
        try:
            while queue:
                delivery = queue.popleft()
                if delivery.fate.late_s:
                    await asyncio.sleep(delivery.fate.late_s)
                await self._deliver([delivery])
        finally:
            del self._queues[key]

    async def _alone(self, delivery: Delivery, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        await self._deliver([delivery])

    def _collect(self, delivery: Delivery) -> None:
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch(most=self._faults.batch())
            self._background.spawn(self._flush(batch, self._faults.webhooks.batch_s), "webhook batch")
        batch.deliveries.append(delivery)
        if len(batch.deliveries) == batch.most:
            self._batch = None
            batch.full.set()

    async def _flush(self, batch: _Batch, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await batch.full.wait()
        if self._batch is batch:
            self._batch = None
        left_at = instant()
        for delivery in batch.deliveries:
            delivery.left_at = left_at
        await self._deliver(batch.deliveries)

    async def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Post until there is a 200 or the attempts are used up; then schedule the duplicates that faults call for."""
        body = self._body(deliveries)
        for wait_s in (*self.timers.webhook_retry_s, None):
            status = await self._post(body)
            for delivery in deliveries:
                delivery.attempts += 1
                delivery.status = status
            if status == 200 or wait_s is None:
                break
            await asyncio.sleep(wait_s)
        self._settle(deliveries)
        for delivery in deliveries:
            if delivery.fate.again_after_s is not None and delivery.status == 200:
                self._background.spawn(self._repeat(delivery, delivery.fate.again_after_s), "repeated webhook")

    async def _repeat(self, delivery: Delivery, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        await self._post(self._body([delivery]))
        delivery.attempts += 1

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.pending -= 1
            if delivery.status == 200:
                self.delivered += 1
            else:
                delivery.given_up = True
                self.lost += 1
                log.warning("webhook abandoned after %d attempts: %s", delivery.attempts, delivery.status)
        self.on_change()

    def _body(self, deliveries: Sequence[Delivery]) -> bytes:
        by_account: dict[str, list[dict[str, Any]]] = {}
        for delivery in deliveries:
            by_account.setdefault(delivery.waba_id, []).append(delivery.change)
        wrapped = [envelope(changes, waba_id) for waba_id, changes in by_account.items()]
        whole = wrapped[0] | {"entry": [entry for one in wrapped for entry in one["entry"]]}
        return encoded(whole)

    async def _post(self, body: bytes) -> int | None:
        if self._http is None:
            return None
        headers = signed_headers(body, self._config.app_secret)
        self.attempts += 1
        left_at = instant()
        try:
            answer = await self._http.request("POST", headers, body)
        except OSError as failure:
            log.debug("webhook not delivered: %s", failure)
            return None
        self.on_answer(instant() - left_at, answer.status)
        return answer.status
