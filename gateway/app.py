"""Run one gateway: open its ports, serve, drain, and close everything.

The parts are made and connected in `wiring`.
"""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

from gateway.admission.overload import Overload
from gateway.common.background import Background
from gateway.common.clock import Clock, MetaClock, SystemClock
from gateway.common.errors import GatewayError
from gateway.common.ids import PhoneNumberId
from gateway.common.metrics import LoopLag, Metrics
from gateway.config.settings import Settings
from gateway.http.admin import admin_app
from gateway.intake.inbox import REMEMBERED
from gateway.intake.spool import Spool
from gateway.meta.graph import GraphClient
from gateway.meta.health import MetaHealth
from gateway.numbers.number import preload_numbering_plans
from gateway.shutdown import Stop
from gateway.store.embedded import embedded_postgres
from gateway.store.retention import Retention
from gateway.store.store import PostgresStore
from gateway.wire import messages as msg
from gateway.wiring import Doors, Parts, Ports, wire, wire_doors, wire_replay
from media.engine import MediaEngine, NullEngine, WorkerPool

log = structlog.get_logger()

#: Idle connections are closed after this; with an AppRunner, aiohttp's default is an hour.
KEEPALIVE_S: Final = 15.0
#: How long the rest of a refused body is still read before its connection is closed.
LINGER_S: Final = 2.0
#: How long live calls may take to be ended at Meta when the gateway stops.
STOP_S: Final = 5.0


class Gateway:
    """One gateway. `run` is its whole life."""

    ports: Ports  #: set when `run` starts, as is `parts`
    parts: Parts

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or MetaClock(SystemClock())
        self.metrics = Metrics()
        self.media = _media_engine(settings)
        self.background = Background()
        self.overload = Overload(
            max_setups_per_s=settings.max_setups_per_s,
            max_lag_s=settings.max_loop_lag_ms / 1_000,
            jitter=random.random,
        )
        self.lag = LoopLag(self.metrics, on_sample=self._on_lag_sample)
        self.port = 0
        self.admin_port = 0
        self._spool = Spool(settings.data_dir, max_bytes=settings.spool_max_mb * 1_000_000)
        self._dropped = 0

    @property
    def calls(self) -> int:
        """Return the number of live calls."""
        return len(self.parts.calls)

    # --- life --------------------------------------------------------------------------------------

    async def run(self, stop: Stop, ready: Callable[["Gateway"], None] = lambda gateway: None) -> None:
        """Serve until `stop` is asked and the last call has ended, then close everything. Raises: GatewayError.

        `ready` is called with this gateway once it serves.
        """
        async with AsyncExitStack() as stack:
            self.ports = await self._open_ports(stack)
            self.parts = wire(self.settings, self.ports, overload=self.overload)
            self.ports.health.show_in(self.metrics, self.parts.numbers.ids)
            stack.callback(self.parts.slot_feed.close)
            self._start_task(stack, self.lag.run())
            stack.push_async_callback(self.media.aclose)
            await self.media.start(self.parts.media_events.take)
            self.metrics.media_workers_alive.set(len(self.media.workers))
            preload_numbering_plans()  # before the ports open, because it blocks the loop for about 85 ms
            await self._take_over(stack)
            doors = wire_doors(self.settings, self.ports, self.parts, self._spool)
            await self._listen(stack, doors)
            if self.settings.media_engine == "null":
                log.warning("no_audio", cause="media_engine=null carries no audio: use it only to measure signalling")
            gc.collect()
            gc.freeze()  # later objects belong to calls; a full collection need not walk the program's own
            gc.set_threshold(5_000, 10, 400)  # nearly all of them are freed early, by reference counting
            numbers = len(self.parts.numbers.ids)
            log.info("gateway_ready", port=self.port, admin_port=self.admin_port, numbers=numbers)
            ready(self)
            await stop.asked()
            await self._drain(stop)
            log.info("gateway_stopping", calls=self.calls)
            await self.parts.calls.end_all(within_s=STOP_S)
            self.parts.hub.close()
            doors.softphones.close_all()

    async def _open_ports(self, stack: AsyncExitStack) -> Ports:
        """Open the store, the spool, the Graph client and the background tasks."""
        settings = self.settings
        store = await stack.enter_async_context(self._open_store())
        await self._spool.start()
        stack.push_async_callback(self._spool.aclose)
        # Looked up once here, because tokens are needed several times per call and the settings search all numbers.
        ids = [PhoneNumberId(number.phone_number_id) for number in settings.numbers]
        tokens = {number_id: settings.access_token_for(number_id) for number_id in ids}
        health = MetaHealth(token_for=tokens.__getitem__, clock=self.clock)
        graph = GraphClient(
            base_url=settings.graph_url,
            token_for=tokens.__getitem__,
            clock=self.clock,
            observe=self.metrics.observe_graph,
            timeout_s=settings.graph_timeout_s,
            health=health,
        )
        await stack.enter_async_context(graph)
        await stack.enter_async_context(self.background)
        return Ports(
            graph=graph,
            health=health,
            media=self.media,
            store=store,
            spooled=self._spool,
            metrics=self.metrics,
            clock=self.clock,
            start=self.background.start,
        )

    @asynccontextmanager
    async def _open_store(self) -> AsyncIterator[PostgresStore]:
        async with AsyncExitStack() as stack:
            dsn = self.settings.database_url_text()
            if dsn is None:
                restarted = self.metrics.database_restarts_total.inc
                dsn = await stack.enter_async_context(embedded_postgres(self.settings.data_dir, on_restart=restarted))
            self._store = store = PostgresStore(dsn)
            await store.start()
            stack.push_async_callback(store.aclose)
            yield store

    async def _take_over(self, stack: AsyncExitStack) -> None:
        """Take over what an earlier process left, and start the background tasks."""
        ports, parts = self.ports, self.parts
        stack.callback(parts.reconciler.close)
        stack.callback(parts.owed_hangups.close)
        stack.push_async_callback(parts.overflow.aclose)
        parts.inbox.remember(await ports.store.recent_event_keys(self.clock.now() - REMEMBERED))
        await parts.recovery.find()
        parts.recovery.close()
        self._start_task(stack, Retention(ports.store, self.clock).run())
        self._start_task(stack, wire_replay(ports, parts, self._spool).run())
        await parts.monitor.load(parts.numbers)
        self._start_task(stack, parts.monitor.run(parts.numbers))

    def _start_task(self, stack: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
        """Run a task until the stack unwinds."""
        stack.callback(self.background.start(work).cancel)

    async def _listen(self, stack: AsyncExitStack, doors: Doors) -> None:
        """Listen on the public and the private port."""
        settings = self.settings
        admin = admin_app(
            metrics=self.metrics,
            store=self.ports.store,
            media=self.media,
            lag_s=self._lag_s,
            degraded=self._degraded,
            calls_left=self._calls_left,
            spool_problem=self._spool_problem,
            sample=self._sample_metrics,
        )
        public = doors.api.app(doors.webhook, doors.softphones)
        self.port = await _listen(stack, public, settings.host, settings.port)
        self.admin_port = await _listen(stack, admin, settings.admin_host, settings.admin_port)

    async def _drain(self, stop: Stop) -> None:
        """Take no more calls, and wait until all live calls have ended, a second stop is asked, or the time is up."""
        self.parts.gate.draining = True
        self.parts.hub.tell_all(msg.Notice(level="warning", code="draining"))
        log.info("gateway_draining", calls=self.calls)
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s or None):
                await stop.now_or(self.parts.calls.until_none_left())
        except TimeoutError:
            log.warning("drain_given_up", calls=self.calls)

    # --- metrics and health ------------------------------------------------------------------------

    def _on_lag_sample(self, delay_s: float) -> None:
        if self.overload.sampled(delay_s, now=asyncio.get_running_loop().time()):
            level = self.overload.level
            self.metrics.overload_level.set(level)
            log.warning("overload", state=level.name.lower(), loop_lag_s=round(self.lag.worst_s, 3))

    def _lag_s(self) -> float:
        return self.lag.worst_s

    def _degraded(self) -> list[str]:
        return self.ports.health.degraded(self.parts.numbers.ids)

    def _calls_left(self) -> int | None:
        return self.calls if self.parts.gate.draining else None

    def _spool_problem(self) -> str | None:
        return self._spool.problem

    def _sample_metrics(self) -> None:
        """Update the metrics that are not updated where they change."""
        metrics, store = self.metrics, self._store
        metrics.store_backlog.set(store.backlog)
        metrics.store_dropped_total.inc(store.dropped - self._dropped)
        self._dropped = store.dropped
        metrics.spool_deliveries.set(self._spool.deliveries)
        metrics.spool_bytes.set(self._spool.bodies_bytes)
        for number in self.parts.numbers:
            for slots in (number.incoming, number.outgoing):
                labels = {"direction": slots.direction.value, "number": number.id}
                metrics.slots_in_use.labels(**labels).set(slots.in_use)
                metrics.slots_limit.labels(**labels).set(slots.limit)


def _media_engine(settings: Settings) -> MediaEngine:
    make = NullEngine if settings.media_engine == "null" else WorkerPool
    return make(settings.media_config())


async def _listen(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> int:
    """Serve `app` and return its port (a free one if `port` is 0). Raises: GatewayError if the port is in use."""
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,  # see `http.api.problems`
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGER_S,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise GatewayError(
            public=f"Cannot listen on {host}:{port}: {error.strerror}. Choose another port or address."
        ) from error
    return int(runner.addresses[0][1])
