"""Puts the parts together, runs them, and takes them apart again in order.

The only place where parts are constructed and handed to each other. Not responsible for anything that they do.
"""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

from gateway.admission.admission import Admission
from gateway.admission.overload import Level, Overload
from gateway.callflow.call import CallInput, InputKind, Timeouts
from gateway.calls.context import Services
from gateway.calls.driver import CallDriver
from gateway.calls.overflow import TurnedAway
from gateway.calls.owed_hangups import Endings
from gateway.calls.recovery import LeftOver
from gateway.calls.registry import Registry
from gateway.common.clock import Clock, MetaClock, SystemClock
from gateway.common.errors import GatewayError
from gateway.common.metrics import LoopLag, Metrics
from gateway.config.settings import NumberSettings, Settings
from gateway.contacts.directory import Contacts
from gateway.contacts.reconciler import Reconciler
from gateway.http.admin import admin_app
from gateway.http.api import Api
from gateway.intake.inbox import REMEMBERED, Inbox
from gateway.intake.intake import Intake
from gateway.intake.replay import Unspool
from gateway.intake.spool import Spool
from gateway.intake.webhook import Webhook
from gateway.meta.graph import GraphClient
from gateway.meta.health import MetaHealth
from gateway.numbers.monitor import NumberKeeper
from gateway.numbers.number import Number, Numbers, preload_numbering_plans
from gateway.operators.hub import Hub
from gateway.operators.media_events import MediaEvents
from gateway.operators.slot_feed import SlotsShown
from gateway.shutdown import Stop
from gateway.softphone.server import Softphones
from gateway.softphone.tickets import Tickets
from gateway.store.embedded import embedded_postgres
from gateway.store.retention import Housekeeping
from gateway.store.store import PostgresStore, Store
from gateway.wire import messages as msg
from media.engine import LegId, MediaEngine, MediaEvent, NullEngine, WorkerPool
from media.errors import MediaError

log = structlog.get_logger()

#: Idle connections are closed after this; with a runner, aiohttp's own default is an hour.
KEEPALIVE_S: Final = 15.0
#: How long the rest of a body that nobody wants may still come in before its connection is closed.
LINGER_S: Final = 2.0
#: How long live calls may take to be ended at Meta when the gateway stops.
STOP_S: Final = 5.0


class Gateway:
    """One running gateway. `run` is the whole life; `ready` is called with it once it serves."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or MetaClock(SystemClock())
        self.metrics = Metrics()
        self.registry = Registry()
        self.numbers = Numbers(self._number(number) for number in settings.numbers)
        self.media = _media_engine(settings, lambda event: self._media_events.take(event))
        # Asked for several times a call: the settings look through all numbers.
        token_for = {number.id: settings.access_token_for(number.id) for number in self.numbers}.__getitem__
        self.meta_health = MetaHealth(token_for=token_for, clock=self.clock)
        self.graph = GraphClient(
            base_url=settings.graph_url,
            token_for=token_for,
            clock=self.clock,
            observe=self.metrics.observe_graph,
            timeout_s=settings.graph_timeout_s,
            health=self.meta_health,
        )
        self.meta_health.show_in(self.metrics, self.numbers.ids)
        self.spool = Spool(settings.data_dir, max_bytes=settings.spool_max_mb * 1_000_000)
        self.tickets = Tickets(operators=settings.operator_keys(), api_key=settings.api_key_text())
        self.hub = Hub(media=self.media, registry=self.registry, metrics=self.metrics, later=self._close_legs)
        self._media_events = MediaEvents(registry=self.registry, hub=self.hub, metrics=self.metrics)
        self._slots_shown = SlotsShown(lambda push: self.hub.tell(None, push), phones=lambda: self.hub.connected)
        self.overload = Overload(
            max_setups_per_s=settings.max_setups_per_s,
            max_lag_s=settings.max_loop_lag_ms / 1_000,
            on_level=self._level_changed,
            jitter=random.random,
        )
        self.lag = LoopLag(self.metrics, on_sample=self._lag_sampled)
        self.port = 0
        self.admin_port = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._stop_asked: Stop | None = None
        self._dropped = 0
        self._admission: Admission | None = None

    # --- life --------------------------------------------------------------------------------------

    async def run(self, stop: Stop, ready: Callable[["Gateway"], None] = lambda gateway: None) -> None:
        """Serve until `stop` is asked and the last call has ended, then leave nothing behind. Raises: GatewayError."""
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(self._open_store())
            await self.spool.start()
            stack.push_async_callback(self.spool.aclose)
            await stack.enter_async_context(self.graph)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._tasks = tasks
            stack.callback(self._slots_shown.close)
            lag = tasks.create_task(self.lag.run())
            stack.callback(lag.cancel)
            stack.push_async_callback(self.media.aclose)
            await self.media.start()
            self.metrics.media_workers_alive.set(len(self.media.workers))
            preload_numbering_plans()  # before the ports open: it holds the loop for some 85 ms
            softphones = await self._serve(store, stack)
            if self.settings.media_engine == "null":
                log.warning("no_audio", cause="media_engine=null carries none: only for measuring signalling")
            gc.collect()
            gc.freeze()  # what lives from here on is calls; a full collection need not walk the program
            gc.set_threshold(5_000, 10, 400)  # and nearly all of it dies young, without the collector
            log.info("gateway_ready", port=self.port, admin_port=self.admin_port, numbers=len(self.numbers.ids))
            ready(self)
            await stop.asked()
            await self._drain(stop)
            await self._stop(softphones)

    @asynccontextmanager
    async def _open_store(self) -> AsyncIterator[PostgresStore]:
        async with AsyncExitStack() as stack:
            dsn = self.settings.database_url_text()
            if dsn is None:
                restarted = self.metrics.database_restarts_total.inc
                dsn = await stack.enter_async_context(embedded_postgres(self.settings.data_dir, on_restart=restarted))
            store = PostgresStore(dsn)
            await store.start()
            stack.push_async_callback(store.aclose)
            yield store

    async def _serve(self, store: PostgresStore, stack: AsyncExitStack) -> Softphones:
        """Wire the signalling parts and open both ports."""
        settings, media = self.settings, self.media
        contacts = Contacts(store, cache_size=settings.contact_cache)
        reconciler = Reconciler(
            graph=self.graph,
            contacts=contacts,
            store=store,
            metrics=self.metrics,
            clock=self.clock,
            start=self._spawn,
        )
        stack.callback(reconciler.close)
        endings = Endings(
            graph=self.graph, store=store, registry=self.registry, metrics=self.metrics, start=self._spawn
        )
        stack.callback(endings.close)
        services = Services(
            graph=self.graph,
            media=media,
            phones=self.hub,
            store=store,
            contacts=contacts,
            registry=self.registry,
            endings=endings,
            metrics=self.metrics,
            clock=self.clock,
            timeouts=Timeouts(ring_s=settings.outgoing_ring_timeout_s),
            all_counted=lambda: self.spool.is_empty,
            meta_pauses=self.meta_health.pauses,
            reconcile_soon=reconciler.reconcile_soon,
            contact_changed=lambda number, contact: reconciler.on_changed(number, contact),
        )
        admission = self._open_admission(services, reconciler, stack)
        inbox = await self._open_inbox(services, store, admission, stack)
        keeper = await self._keep_numbers(store, stack)
        softphones = Softphones(
            hub=self.hub,
            admission=admission,
            tickets=self.tickets,
            numbers=self.numbers,
            status_of=keeper.status_of,
            registry=self.registry,
            store=store,
            media=media,
            clock=self.clock,
            origins=settings.public_origins,
        )
        api = Api(
            admission=admission,
            tickets=self.tickets,
            numbers=self.numbers,
            registry=self.registry,
            store=store,
            clock=self.clock,
            metrics=self.metrics,
            refresh=keeper.refresh,
        )
        admin = admin_app(
            metrics=self.metrics,
            store=store,
            media=media,
            lag_s=lambda: self.lag.worst_s,
            degraded=lambda: self.meta_health.degraded(self.numbers.ids),
            calls_left=lambda: len(self._calls) if admission.draining else None,
            spool_problem=lambda: self.spool.problem,
            sample=lambda: self._sample(store),
        )
        self.port = await _listen(stack, api.app(self._webhook(inbox), softphones), settings.host, settings.port)
        self.admin_port = await _listen(stack, admin, settings.admin_host, settings.admin_port)
        return softphones

    @property
    def calls(self) -> int:
        """The calls that live."""
        return len(self._calls)

    async def _drain(self, stop: Stop) -> None:
        """Take no more calls and wait until those that live have ended, or nobody wants to wait any longer."""
        if self._admission is not None:
            self._admission.draining = True
        self.hub.tell(None, msg.Notice(level="warning", code="draining"))
        log.info("gateway_draining", calls=len(self._calls))
        self._stop_asked = stop
        self._end_when_idle()
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s or None):
                await stop.now()
        except TimeoutError:
            log.warning("drain_given_up", calls=len(self._calls))

    def _end_when_idle(self) -> None:
        if self._stop_asked is not None and not self._calls:
            self._stop_asked.at_once()

    async def _stop(self, softphones: Softphones) -> None:
        """End the calls that live, tell the softphones."""
        log.info("gateway_stopping", calls=len(self._calls))
        for driver in self.registry:
            driver.feed(CallInput(kind=InputKind.SHUTDOWN))
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=STOP_S)
            for task in late:
                task.cancel()
        self.hub.close()
        softphones.close_all()

    # --- parts -------------------------------------------------------------------------------------

    def _number(self, settings: NumberSettings) -> Number:
        return Number(settings, settings.pack_loaded(), on_slots=lambda number: self._slots_shown.changed(number))

    def _open_admission(self, services: Services, reconciler: Reconciler, stack: AsyncExitStack) -> Admission:
        turned_away = TurnedAway(services, start=self._spawn)
        stack.push_async_callback(turned_away.aclose)
        self._admission = Admission(
            services,
            self.numbers,
            self.hub,
            reconciler,
            turned_away=turned_away,
            overload=self.overload,
            ring_timeout_s=self.settings.ring_timeout_s,
            start=self._start_call,
        )
        return self._admission

    async def _open_inbox(self, services: Services, store: Store, admission: Admission, stack: AsyncExitStack) -> Inbox:
        """Make the inbox, take over what an earlier process left, and begin to empty the spool into it."""
        inbox = Inbox(services, self.numbers, admission)
        inbox.remember(await store.recent_event_keys(self.clock.now() - REMEMBERED))
        left_over = LeftOver(
            store=store,
            endings=services.endings,
            registry=self.registry,
            numbers=self.numbers,
            clock=self.clock,
            hold_s=services.timeouts.unconfirmed_s,
        )
        await left_over.find()
        left_over.close()
        stack.callback(self._spawn(Housekeeping(store, self.clock).run()).cancel)
        unspool = Unspool(services, self.spool, inbox)
        stack.callback(self._spawn(unspool.run()).cancel)
        return inbox

    def _webhook(self, inbox: Inbox) -> Webhook:
        intake = Intake(inbox, self.spool, self.metrics, self.clock)
        secrets, word = self.settings.app_secret_texts(), self.settings.verify_token_text()
        return Webhook(intake, self.metrics, app_secrets=secrets, verify_token=word)

    async def _keep_numbers(self, store: Store, stack: AsyncExitStack) -> NumberKeeper:
        """Load what is known of each number and begin to look after it; Meta is asked beside all else."""
        keeper = NumberKeeper(
            self.numbers,
            graph=self.graph,
            store=store,
            metrics=self.metrics,
            clock=self.clock,
            tell=lambda push: self.hub.tell(None, push),
            in_trouble=self.meta_health.in_trouble,
        )
        await keeper.load()
        stack.callback(self._spawn(keeper.run()).cancel)
        return keeper

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise RuntimeError("the gateway is not running")
        return self._tasks.create_task(_alone(work))

    def _start_call(self, driver: CallDriver) -> None:
        alive = self.metrics.calls_active.labels(direction=driver.call.direction.value, number=driver.origin.number.id)
        alive.inc()  # what can break comes before the task
        task = self._spawn(driver.run())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        task.add_done_callback(lambda _: alive.dec())
        task.add_done_callback(lambda _: self._end_when_idle())

    def _lag_sampled(self, delay_s: float) -> None:
        self.overload.sampled(delay_s, now=asyncio.get_running_loop().time())

    def _level_changed(self, level: Level) -> None:
        self.metrics.overload_level.set(level)
        log.warning("overload", state=level.name.lower(), loop_lag_s=round(self.lag.worst_s, 3))

    def _sample(self, store: PostgresStore) -> None:
        """Take the figures that nobody tells."""
        metrics = self.metrics
        metrics.store_backlog.set(store.backlog)
        metrics.store_dropped_total.inc(store.dropped - self._dropped)
        self._dropped = store.dropped
        metrics.spool_deliveries.set(self.spool.deliveries)
        metrics.spool_bytes.set(self.spool.bodies_bytes)
        for number in self.numbers:
            for slots in (number.incoming, number.outgoing):
                labels = {"direction": slots.direction.value, "number": number.id}
                metrics.slots_in_use.labels(**labels).set(slots.in_use)
                metrics.slots_limit.labels(**labels).set(slots.limit)

    def _close_legs(self, legs: Iterable[LegId]) -> None:
        self._spawn(self._close_each(tuple(legs)))

    async def _close_each(self, legs: Iterable[LegId]) -> None:
        for leg in legs:
            try:
                await self.media.close(leg)
            except MediaError as error:  # its worker is gone, and the leg with it
                log.debug("leg_gone", detail=error.reason)


def _media_engine(settings: Settings, on_event: Callable[[MediaEvent], None]) -> MediaEngine:
    make = NullEngine if settings.media_engine == "null" else WorkerPool
    return make(settings.media_config(), on_event=on_event)


async def _alone(work: Coroutine[None, None, None]) -> None:
    """Let a bug in one piece of work end that piece only, and not the gateway with all its calls."""
    try:
        await work
    except Exception:
        log.exception("task_broken")


async def _listen(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> int:
    """Serve `app` and return the port, which may have been 0. Raises: GatewayError if it is taken."""
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,  # see `api.problems`
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
