"""A whole signalling gateway in memory: real calls, real gate, real hub; Meta, media and database are fakes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import msgspec
import orjson

from gateway.admission.overload import Overload
from gateway.calls.driver import CallDriver
from gateway.calls.recovery import CrashRecovery
from gateway.common.ids import CallId, MetaCallId, OperatorId, PhoneNumberId, UserRef
from gateway.common.metrics import Metrics
from gateway.config.loading import load
from gateway.config.settings import NumberSettings, Settings
from gateway.meta.events import read_delivery
from gateway.meta.health import MetaHealth
from gateway.operators.phone import Phone
from gateway.store.records import CallRecord
from gateway.wire import messages as msg
from gateway.wiring import Ports, wire
from media.engine import WorkerId
from policy.facts import CallConnected, Direction, PermissionGranted
from policy.pack import Pack, load_pack
from tests.support.fakes.clock import FakeClock
from tests.support.fakes.graph import FakeGraph
from tests.support.fakes.media import FakeMedia
from tests.support.fakes.memory_store import MemoryStore
from tests.support.harness.waiting import until

NUMBER_ID = PhoneNumberId("200000000000002")
ANA = UserRef(wa_id="5511900000001", user_id="BR.00000000005511900000")
WACID = MetaCallId("wacid.TEST1")
APP_SECRET = "test_app_secret"
OLD_SECRET = "secret-before"
VERIFY_TOKEN = "choose-me"
API_KEY = "key-of-the-api"
OPERATORS = {"ana": "key-of-ana", "bia": "key-of-bia"}
CONNECTED_LIMIT = 5  #: connected calls with one contact in 24 hours, pack `guide`


class FakeLine:
    """An operator's WebSocket as far as the hub sees it."""

    def __init__(self) -> None:
        self.pushes: list[msg.Push] = []
        self.closed_with: int | None = None

    def send(self, frame: bytes) -> None:
        self.pushes.append(msgspec.json.decode(frame, type=msg.Push))

    def hang_up(self, code: int) -> None:
        self.closed_with = code

    def of_type(self, kind: type[Any]) -> list[Any]:
        return [push for push in self.pushes if isinstance(push, kind)]

    @property
    def states(self) -> list[str]:
        """The states that the operator's calls were shown in."""
        return [push.call.state for push in self.of_type(msg.CallChanged)]


class Spooled:
    """Whether something waits in the spool, as a test says."""

    is_empty = True


@cache
def world_settings() -> Settings:
    """Return the settings of every world; the doors use keys and secrets of them."""
    return load(
        environ={
            "GATEWAY_APP_SECRET": APP_SECRET,
            "GATEWAY_APP_SECRET_PREVIOUS": OLD_SECRET,
            "GATEWAY_VERIFY_TOKEN": VERIFY_TOKEN,
            "GATEWAY_ACCESS_TOKEN": "token",
            "GATEWAY_PHONE_NUMBER_ID": NUMBER_ID,
            "GATEWAY_PHONE_NUMBER": "+551155550100",
            "GATEWAY_OPERATORS": json.dumps(OPERATORS),
            "GATEWAY_API_KEY": API_KEY,
        }
    )


class World:
    """Everything a test needs at hand."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        *,
        incoming_slots: int,
        outgoing_slots: int,
        clock: FakeClock | None = None,
        store: MemoryStore | None = None,
        graph: Any = None,
        media: type[FakeMedia] = FakeMedia,
        overload: Overload | None = None,
        pack: Pack | None = None,
        health: MetaHealth | None = None,
    ) -> None:
        self.tasks = tasks
        self.clock = clock or FakeClock()
        self.graph: FakeGraph = graph or FakeGraph()
        self.media = media()
        self.store = store or MemoryStore()
        self.metrics = Metrics()
        self.spooled = Spooled()
        self.overload = overload or Overload()
        self.settings = world_settings().model_copy(
            update={
                "numbers": [
                    NumberSettings(
                        phone_number_id=NUMBER_ID,
                        phone_number="+551155550100",
                        name="Loja Exemplo",
                        incoming_slots=incoming_slots,
                        outgoing_slots=outgoing_slots,
                    )
                ]
            }
        )
        self.ports = Ports(
            graph=self.graph,
            health=health or MetaHealth(token_for=lambda number: "token", clock=self.clock),
            media=self.media,
            store=self.store,
            spooled=self.spooled,
            metrics=self.metrics,
            clock=self.clock,
            start=tasks.create_task,
        )
        self.parts = parts = wire(
            self.settings, self.ports, overload=self.overload, pack_of=lambda number: pack or load_pack("guide")
        )
        self.registry, self.hub, self.numbers, self.contacts = parts.registry, parts.hub, parts.numbers, parts.contacts
        self.gate, self.admission, self.inbox = parts.gate, parts.admission, parts.inbox
        self.engagements = parts.engagements
        self.reconciler, self.monitor, self.owed_hangups = parts.reconciler, parts.monitor, parts.owed_hangups
        (self.number,) = parts.numbers
        self.reconciler.patience_s, self.reconciler.soon_s, self.monitor.look_s = 0.2, 0.0, 0.02
        self.media.on_event = parts.media_events.take
        self.drivers: list[CallDriver] = []  #: every call that ever began
        self._remember_drivers()

    def _remember_drivers(self) -> None:
        calls = self.parts.calls
        run = calls._start_task

        def run_and_remember(driver: CallDriver) -> None:
            before = set(calls._tasks)
            run(driver)
            (task,) = calls._tasks - before
            self._started(driver, task)

        calls._start_task = run_and_remember  # type: ignore[method-assign]

    def _started(self, driver: CallDriver, task: asyncio.Task[None]) -> None:
        self.drivers.append(driver)

    # What happens

    async def deliver(self, **value: Any) -> None:
        """Hand the inbox one signed-and-read webhook of field `calls` (or `messages`)."""
        field = "messages" if "messages" in value else "calls"
        metadata = {"display_phone_number": "551155550100", "phone_number_id": NUMBER_ID}
        change = {"field": field, "value": {"messaging_product": "whatsapp", "metadata": metadata, **value}}
        body = {"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [change]}]}
        await self.inbox.deliver(read_delivery(orjson.dumps(body)))

    async def user_calls(self, call_id: str = WACID, *, age_s: float = 0.0, **more: Any) -> CallDriver | None:
        """A user calls; return the call if one began."""
        before = len(self.drivers)
        await self.deliver(
            contacts=[{"profile": {"name": "Ana"}, "wa_id": ANA.wa_id, "user_id": ANA.user_id}],
            calls=[
                {
                    "id": call_id,
                    "from": ANA.wa_id,
                    "from_user_id": ANA.user_id,
                    "to": "551155550100",
                    "event": "connect",
                    "timestamp": str(int(self.clock.now().timestamp() - age_s)),
                    "direction": "USER_INITIATED",
                    "session": {"sdp_type": "offer", "sdp": "v=0 offer"},
                    **more,
                }
            ],
        )
        return self.drivers[-1] if len(self.drivers) > before else None

    async def ringing(self) -> CallDriver:
        """A user calls; return the call once it rings at the operators."""
        driver = await self.user_calls()
        assert driver is not None
        await self.until(lambda: driver.call.state.value == "ringing")
        return driver

    async def meta_says(self, event: str, call_id: str = WACID, **more: Any) -> None:
        """A status, an SDP answer or a terminate of our own call."""
        at = str(int(self.clock.now().timestamp()))
        if event in ("RINGING", "ACCEPTED", "REJECTED"):
            await self.deliver(statuses=[{"id": call_id, "type": "call", "status": event, "timestamp": at, **more}])
            return
        call: dict[str, Any] = {
            "id": call_id,
            "from": "551155550100",
            "to": ANA.wa_id,
            "event": event,
            "timestamp": at,
        }
        if event == "connect":
            call |= {"direction": "BUSINESS_INITIATED", "session": {"sdp_type": "answer", "sdp": "v=0 answer"}}
        await self.deliver(calls=[call | more])

    async def meta_terminates(
        self, call_id: str = WACID, *, talked_s: int | None = None, direction: str = "USER_INITIATED", **more: Any
    ) -> None:
        now = int(self.clock.now().timestamp())
        ours = direction == "BUSINESS_INITIATED"
        call: dict[str, Any] = {
            "id": call_id,
            "from": "551155550100" if ours else ANA.wa_id,
            "to": ANA.wa_id if ours else "551155550100",
            "event": "terminate",
            "timestamp": str(now),
            "direction": direction,
            "status": "COMPLETED",
        }
        if talked_s is not None:
            call |= {"start_time": str(now - talked_s), "end_time": str(now), "duration": talked_s}
        await self.deliver(calls=[call | more])

    async def login(self, name: str = "ana", *, leg: bool = True) -> tuple[Phone, FakeLine]:
        """An operator logs in, with a warm leg."""
        line = FakeLine()
        phone = self.hub.login(OperatorId(name), line)
        if leg:
            await self.hub.make_leg(phone, WorkerId(0), "offer")
            self.media.connect(phone.legs[WorkerId(0)])
        return phone, line

    def grant(self, user: UserRef = ANA) -> None:
        """The contact has allowed calls."""
        contact = self.contacts.peek(NUMBER_ID, user)
        assert contact is not None, "load the contact first"
        now = self.clock.now()
        self.contacts.apply(contact, PermissionGranted(at=now, key="grant"), seen_at=now)

    async def allow_calls(self, user: UserRef = ANA) -> None:
        await self.contacts.get(self.number, user, "Ana")
        self.grant(user)

    async def had_calls(self, count: int) -> None:
        """The contact has granted permission and picked up so many calls an hour ago."""
        contact = await self.contacts.get(self.number, ANA, "Ana")
        at = self.clock.now() - timedelta(hours=1)
        grant = PermissionGranted(at=at, key="grant")
        calls = [
            CallConnected(at=at, key=f"connected/{n}", direction=Direction.BUSINESS_INITIATED) for n in range(count)
        ]
        await self.store.write(*self.contacts.apply(contact, grant, *calls, seen_at=self.clock.now()))

    async def recovery(self) -> CrashRecovery:
        """Find what an earlier world left in the store, as a start does; `close()` does the rest."""
        found = self.parts.recovery
        await found.find()
        return found

    # Waiting and looking

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, with a fresh look after each turn of the loop."""
        await until(condition, timeout_s=5.0, every_s=0)

    async def ended(self, driver: CallDriver) -> CallRecord:
        """Wait until a call is over and return its record as it was kept."""
        await self.until(lambda: self.registry.get(driver.call.call_id) is None)
        record = await self.store.call(driver.call.call_id)
        assert record is not None
        return record

    async def record(self, call_id: CallId) -> CallRecord:
        record = await self.store.call(call_id)
        assert record is not None
        return record


@asynccontextmanager
async def a_world(
    *,
    incoming_slots: int = 10,
    outgoing_slots: int = 10,
    clock: FakeClock | None = None,
    store: MemoryStore | None = None,
    graph: Any = None,
    overload: Overload | None = None,
    health: MetaHealth | None = None,
) -> AsyncIterator[World]:
    """Yield a world; afterwards every call is cut and every task gone.

    With the clock and the store of another that is over: what a new process finds after a crash.
    """
    async with asyncio.TaskGroup() as tasks:
        world = World(
            tasks,
            incoming_slots=incoming_slots,
            outgoing_slots=outgoing_slots,
            clock=clock,
            store=store,
            graph=graph,
            overload=overload,
            health=health,
        )
        await world.store.start()
        yield world
        world.hub.close()
        world.owed_hangups.close()
        for task in tuple(tasks._tasks):
            task.cancel()
