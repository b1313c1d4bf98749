"""Puts the parts together, runs them, and takes them apart again in order.

The only place where parts are constructed and handed to each other. Not responsible for anything that they do.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final

import structlog
from aiohttp import web

from gateway import messages as msg
from gateway import views
from gateway.admin import admin_app
from gateway.admission import Admission
from gateway.api import Api
from gateway.call import CallInput, InputKind, Timeouts
from gateway.clock import Clock, SystemClock
from gateway.contacts import Contacts
from gateway.driver import CallDriver
from gateway.embedded import embedded_postgres
from gateway.errors import GatewayError
from gateway.graph import GraphClient
from gateway.hub import Hub
from gateway.ids import CallId, PhoneNumberId
from gateway.inbox import Inbox
from gateway.metrics import LoopLag, Metrics
from gateway.number_keeper import NumberKeeper
from gateway.numbers import Number, Numbers, preload_numbering_plans
from gateway.outcome import EndReason
from gateway.reconcile import Reconciler
from gateway.recovery import LeftOver
from gateway.registry import Registry
from gateway.services import Services
from gateway.settings import NumberSettings, Settings
from gateway.softphone import Softphones
from gateway.store import PostgresStore, Store
from gateway.tickets import Tickets
from gateway.webhook import Webhook
from media.engine import (
    DtmfReceived,
    LegConnected,
    LegFailed,
    LegFailure,
    LegId,
    MediaEvent,
    WorkerDown,
    WorkerUp,
)
from media.errors import MediaError
from media.pool import WorkerPool

log = structlog.get_logger()

#: Idle connections are closed after this; with a runner, aiohttp's own default is an hour.
KEEPALIVE_S: Final = 15.0
#: How long live calls may take to be ended at Meta when the gateway stops.
STOP_S: Final = 5.0
#: Events that took effect before a restart and may come again.
REMEMBER: Final = timedelta(minutes=10)


class Gateway:
    """One running gateway. `run` is the whole life; `ready` is called with it once it serves."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.registry = Registry()
        self.numbers = Numbers(self._number(number) for number in settings.numbers)
        self.media = WorkerPool(settings.media_config(), on_event=self._on_media)
        self.graph = GraphClient(
            base_url=settings.graph_url,
            token_for=self._token,
            clock=self.clock,
            observe=self.metrics.observe_graph,
            timeout_s=settings.graph_timeout_s,
        )
        self.tickets = Tickets(operators=settings.operator_keys(), api_key=settings.api_key_text())
        self.hub = Hub(media=self.media, registry=self.registry, metrics=self.metrics, later=self._close_legs)
        self.lag = LoopLag(self.metrics)
        self.port = 0
        self.admin_port = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._admission: Admission | None = None

    # --- life --------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, ready: Callable[["Gateway"], None] = lambda gateway: None) -> None:
        """Serve until `stop` is set, then end what lives and leave nothing behind. Raises: GatewayError."""
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(self._open_store())
            await stack.enter_async_context(self.graph)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._tasks = tasks
            lag = tasks.create_task(self.lag.run())
            stack.callback(lag.cancel)
            stack.push_async_callback(self.media.aclose)
            await self.media.start()
            self.metrics.media_workers_alive.set(len(self.media.workers))
            preload_numbering_plans()  # before the ports open: it holds the loop for some 85 ms
            softphones = await self._serve(store, stack)
            gc.collect()
            gc.freeze()  # what lives from here on is calls; a full collection need not walk the program
            log.info("gateway_ready", port=self.port, admin_port=self.admin_port, numbers=len(self.numbers.ids))
            ready(self)
            await stop.wait()
            await self._stop(softphones)

    @asynccontextmanager
    async def _open_store(self) -> AsyncIterator[Store]:
        async with AsyncExitStack() as stack:
            dsn = self.settings.database_url_text()
            if dsn is None:
                dsn = await stack.enter_async_context(embedded_postgres(self.settings.data_dir))
            store = PostgresStore(dsn)
            await store.start()
            stack.push_async_callback(store.aclose)
            yield store

    async def _serve(self, store: Store, stack: AsyncExitStack) -> Softphones:
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
        services = Services(
            graph=self.graph,
            media=media,
            phones=self.hub,
            store=store,
            contacts=contacts,
            registry=self.registry,
            metrics=self.metrics,
            clock=self.clock,
            timeouts=Timeouts(ring_s=settings.outgoing_ring_timeout_s),
            reconcile_soon=reconciler.reconcile_soon,
            contact_changed=lambda number, contact: reconciler.on_changed(number, contact),
        )
        self._admission = admission = Admission(
            services,
            self.numbers,
            self.hub,
            reconciler,
            ring_timeout_s=settings.ring_timeout_s,
            start=self._start_call,
        )
        inbox = Inbox(services, self.numbers, admission)
        inbox.remember(await store.recent_event_keys(self.clock.now() - REMEMBER))
        left_over = LeftOver(store, self.graph, self.clock)
        await left_over.find(self.registry)
        self._spawn(left_over.close())
        keeper = await self._keep_numbers(store, stack)
        softphones = Softphones(
            hub=self.hub,
            admission=admission,
            tickets=self.tickets,
            numbers=self.numbers,
            registry=self.registry,
            store=store,
            media=media,
            clock=self.clock,
            origins=settings.public_origins,
        )
        webhook = Webhook(
            inbox, self.metrics, app_secrets=settings.app_secret_texts(), verify_token=settings.verify_token_text()
        )
        api = Api(
            admission=admission,
            tickets=self.tickets,
            numbers=self.numbers,
            registry=self.registry,
            store=store,
            clock=self.clock,
            refresh=keeper.refresh,
        )
        admin = admin_app(
            metrics=self.metrics,
            store=store,
            media=media,
            lag_s=lambda: self.lag.worst_s,
            draining=lambda: admission.draining,
        )
        self.port = await _listen(stack, api.app(webhook, softphones), settings.host, settings.port)
        self.admin_port = await _listen(stack, admin, settings.admin_host, settings.admin_port)
        return softphones

    async def _stop(self, softphones: Softphones) -> None:
        """Take no more calls, end those that live, tell the softphones."""
        log.info("gateway_stopping", calls=len(self.registry))
        if self._admission is not None:
            self._admission.draining = True
        self.hub.tell(None, msg.Notice(level="warning", code="draining"))
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
        return Number(settings, settings.pack_loaded(), on_slots=self._slots_changed)

    def _token(self, number_id: PhoneNumberId) -> str:
        return self.settings.access_token_for(number_id)

    async def _keep_numbers(self, store: Store, stack: AsyncExitStack) -> NumberKeeper:
        """Load what is known of each number and begin to look after it; Meta is asked beside all else."""
        keeper = NumberKeeper(
            self.numbers,
            graph=self.graph,
            store=store,
            metrics=self.metrics,
            clock=self.clock,
            tell=lambda push: self.hub.tell(None, push),
        )
        await keeper.load()
        stack.callback(self._spawn(keeper.run()).cancel)
        return keeper

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise RuntimeError("the gateway is not running")
        return self._tasks.create_task(_alone(work))

    def _start_call(self, driver: CallDriver) -> None:
        task = self._spawn(driver.run())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        alive = self.metrics.calls_active.labels(direction=driver.call.direction.value, number=driver.origin.number.id)
        alive.inc()
        task.add_done_callback(lambda _: alive.dec())

    def _slots_changed(self, number: Number) -> None:
        for slots in (number.incoming, number.outgoing):
            labels = {"direction": slots.direction.value, "number": number.id}
            self.metrics.slots_in_use.labels(**labels).set(slots.in_use)
            self.metrics.slots_limit.labels(**labels).set(slots.limit)
        self.hub.tell(
            None,
            msg.SlotsChanged(
                number_id=number.id,
                incoming=views.slots_view(number.incoming),
                outgoing=views.slots_view(number.outgoing),
            ),
        )

    def _close_legs(self, legs: Iterable[LegId]) -> None:
        self._spawn(self._close_each(tuple(legs)))

    async def _close_each(self, legs: Iterable[LegId]) -> None:
        for leg in legs:
            try:
                await self.media.close(leg)
            except MediaError as error:  # its worker is gone, and the leg with it
                log.debug("leg_gone", detail=error.reason)

    # --- media events --------------------------------------------------------------------------------

    def _on_media(self, event: MediaEvent) -> None:
        """Hand an event of a leg to its call or its softphone. Called in the loop; must not raise."""
        match event:
            case LegConnected(leg=leg):
                self.hub.leg_connected(leg)
            case LegFailed(leg=leg, reason=reason):
                driver = self._driver_of(leg)
                if driver is not None:
                    driver.feed(_leg_failed(reason))
                else:
                    self.hub.leg_failed(leg, reason.value)
            case DtmfReceived(leg=leg, digit=digit):
                driver = self._driver_of(leg)
                if driver is not None:
                    self.hub.digit(driver.call.call_id, digit)
            case WorkerDown(worker=worker):
                self.metrics.media_worker_restarts_total.inc()
                log.error("media_worker_down", worker=worker)
                self.hub.tell(None, msg.Notice(level="warning", code="media_worker_restarted"))
                self.hub.workers_changed()
            case WorkerUp(worker=worker):
                log.info("media_worker_up", worker=worker)
                self.hub.workers_changed()

    def _driver_of(self, leg: LegId) -> CallDriver | None:
        call_id, _, side = leg.partition("/")
        return self.registry.get(CallId(call_id)) if side == "meta" else None


async def _alone(work: Coroutine[None, None, None]) -> None:
    """Let a bug in one piece of work end that piece only, and not the gateway with all its calls."""
    try:
        await work
    except Exception:
        log.exception("task_broken")


def _leg_failed(reason: LegFailure) -> CallInput:
    if reason is LegFailure.CLOSED_BY_PEER:
        return CallInput(kind=InputKind.META_CLOSING)
    match reason:
        case LegFailure.WORKER_DIED:
            ended = EndReason.WORKER_DIED
        case LegFailure.MEDIA_TIMEOUT:
            ended = EndReason.MEDIA_TIMEOUT
        case _:
            ended = EndReason.MEDIA_FAILED
    return CallInput(kind=InputKind.MEDIA_FAILED, reason=ended, detail=reason.value)


async def _listen(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> int:
    """Serve `app` and return the port, which may have been 0. Raises: GatewayError if it is taken."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise GatewayError(
            public=f"Cannot listen on {host}:{port}: {error.strerror}. Choose another port or address."
        ) from error
    return int(runner.addresses[0][1])
