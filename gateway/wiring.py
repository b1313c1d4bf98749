"""Make the parts of a gateway and connect them. Nothing else happens here.

The program (`app`) and the tests use the same wiring; they differ only in their `Ports`. Parts are made from the bottom
up, so that each is complete when it is made: nothing is set on a part afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.admission.admission import Admission
from gateway.admission.decision_log import DecisionLog
from gateway.admission.gate import Gate, Spooled
from gateway.admission.overload import Overload
from gateway.admission.permission_requests import PermissionRequests
from gateway.callflow.call import Timeouts
from gateway.calls.context import CallContext
from gateway.calls.overflow import Overflow
from gateway.calls.owed_hangups import OwedHangups
from gateway.calls.recovery import CrashRecovery
from gateway.calls.refusals import MetaRefusals
from gateway.calls.registry import Registry
from gateway.calls.starter import CallStarter
from gateway.common.background import Start
from gateway.common.clock import Clock
from gateway.common.metrics import Metrics
from gateway.config.settings import NumberSettings, Settings
from gateway.contacts.directory import Contacts
from gateway.contacts.engagements import Engagements
from gateway.contacts.reconciler import Reconciler
from gateway.http.api import Api
from gateway.intake.inbox import Inbox
from gateway.intake.intake import Intake
from gateway.intake.replay import Replay
from gateway.intake.spool import Spool
from gateway.intake.webhook import Webhook
from gateway.meta.graph import Graph
from gateway.meta.health import MetaHealth
from gateway.numbers.monitor import NumberMonitor
from gateway.numbers.number import Number, Numbers
from gateway.operators.hub import Hub
from gateway.operators.media_events import MediaEvents
from gateway.operators.slot_feed import SlotFeed
from gateway.softphone.server import SoftphoneServer
from gateway.softphone.tickets import Tickets
from gateway.store.store import Store
from media.engine import MediaEngine
from policy.pack import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a gateway needs from outside: real in the program, fakes in the tests."""

    graph: Graph
    health: MetaHealth
    media: MediaEngine
    store: Store
    spooled: Spooled
    metrics: Metrics
    clock: Clock
    start: Start


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a gateway, from the bottom up."""

    engagements: Engagements
    registry: Registry
    hub: Hub
    slot_feed: SlotFeed
    monitor: NumberMonitor
    numbers: Numbers
    contacts: Contacts
    gate: Gate
    reconciler: Reconciler
    owed_hangups: OwedHangups
    calls: CallStarter
    overflow: Overflow
    requests: PermissionRequests
    admission: Admission
    inbox: Inbox
    media_events: MediaEvents
    recovery: CrashRecovery


def wire(
    settings: Settings, ports: Ports, *, overload: Overload, pack_of: Callable[[NumberSettings], Pack] | None = None
) -> Parts:
    """Make all parts except `Doors`. `pack_of` reads a number's rules; by default they are read as its settings say."""
    graph, health, media, store = ports.graph, ports.health, ports.media, ports.store
    metrics, clock, start = ports.metrics, ports.clock, ports.start
    timeouts = Timeouts(ring_s=settings.outgoing_ring_timeout_s)
    engagements = Engagements()
    registry = Registry(engagements)
    hub = Hub(media=media, registry=registry, metrics=metrics, start=start)
    slot_feed = SlotFeed(hub)
    monitor = NumberMonitor(
        graph=graph, store=store, metrics=metrics, clock=clock, tell=hub.tell_all, in_trouble=health.in_trouble
    )
    read_pack = pack_of or NumberSettings.pack_loaded
    numbers = Numbers(
        Number(number, read_pack(number), listener=monitor, on_slots=slot_feed.changed) for number in settings.numbers
    )
    contacts = Contacts(store, cache_size=settings.contact_cache)
    gate = Gate(
        engagements=engagements,
        store=store,
        spool=ports.spooled,
        meta_pauses=health.pauses,
        clock=clock,
        tell=hub.tell_all,
    )
    reconciler = Reconciler(
        graph=graph,
        contacts=contacts,
        engagements=engagements,
        listener=gate,
        store=store,
        metrics=metrics,
        clock=clock,
        start=start,
    )
    owed_hangups = OwedHangups(graph=graph, store=store, registry=registry, metrics=metrics, start=start)
    refusals = MetaRefusals(contacts=contacts, reconciler=reconciler, store=store, metrics=metrics, clock=clock)
    context = CallContext(
        graph=graph,
        media=media,
        phones=hub,
        store=store,
        contacts=contacts,
        registry=registry,
        owed_hangups=owed_hangups,
        refusals=refusals,
        contact_listener=gate,
        metrics=metrics,
        clock=clock,
        timeouts=timeouts,
    )
    calls = CallStarter(context, start)
    overflow = Overflow(graph=graph, store=store, registry=registry, metrics=metrics, clock=clock, start=start)
    requests = PermissionRequests(
        graph=graph,
        store=store,
        contacts=contacts,
        engagements=engagements,
        refusals=refusals,
        clock=clock,
        start=start,
    )
    admission = Admission(
        gate=gate,
        decisions=DecisionLog(store, metrics),
        overload=overload,
        numbers=numbers,
        contacts=contacts,
        reconciler=reconciler,
        requests=requests,
        calls=calls,
        overflow=overflow,
        hub=hub,
        media=media,
        clock=clock,
        ring_timeout_s=settings.ring_timeout_s,
    )
    inbox = Inbox(
        admission=admission,
        numbers=numbers,
        contacts=contacts,
        contact_listener=gate,
        registry=registry,
        owed_hangups=owed_hangups,
        store=store,
        metrics=metrics,
        clock=clock,
    )
    recovery = CrashRecovery(
        store=store,
        owed_hangups=owed_hangups,
        registry=registry,
        engagements=engagements,
        numbers=numbers,
        clock=clock,
        hold_s=timeouts.unconfirmed_s,
    )
    return Parts(
        engagements=engagements,
        registry=registry,
        hub=hub,
        slot_feed=slot_feed,
        monitor=monitor,
        numbers=numbers,
        contacts=contacts,
        gate=gate,
        reconciler=reconciler,
        owed_hangups=owed_hangups,
        calls=calls,
        overflow=overflow,
        requests=requests,
        admission=admission,
        inbox=inbox,
        media_events=MediaEvents(registry=registry, hub=hub, metrics=metrics),
        recovery=recovery,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """The parts that serve requests from outside."""

    tickets: Tickets
    webhook: Webhook
    softphones: SoftphoneServer
    api: Api


def wire_doors(settings: Settings, ports: Ports, parts: Parts, spool: Spool) -> Doors:
    """Make the handlers of the public port."""
    tickets = Tickets(operators=settings.operator_keys(), api_key=settings.api_key_text())
    webhook = Webhook(
        Intake(parts.inbox, spool, ports.metrics, ports.clock),
        ports.metrics,
        app_secrets=settings.app_secret_texts(),
        verify_token=settings.verify_token_text(),
    )
    softphones = SoftphoneServer(
        hub=parts.hub,
        gate=parts.gate,
        admission=parts.admission,
        tickets=tickets,
        numbers=parts.numbers,
        status_of=parts.monitor.status_of,
        registry=parts.registry,
        store=ports.store,
        media=ports.media,
        clock=ports.clock,
        origins=settings.public_origins,
    )
    api = Api(
        admission=parts.admission,
        tickets=tickets,
        numbers=parts.numbers,
        registry=parts.registry,
        store=ports.store,
        clock=ports.clock,
        metrics=ports.metrics,
        refresh=parts.monitor.refresh,
    )
    return Doors(tickets=tickets, webhook=webhook, softphones=softphones, api=api)


def wire_replay(ports: Ports, parts: Parts, spool: Spool) -> Replay:
    """Make the replay, which delivers the spool to the inbox."""
    return Replay(
        spool=spool,
        inbox=parts.inbox,
        registry=parts.registry,
        owed_hangups=parts.owed_hangups,
        store=ports.store,
        metrics=ports.metrics,
        clock=ports.clock,
    )
