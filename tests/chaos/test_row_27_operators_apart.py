"""Row 27: a call that rings is everybody's, one that was taken is its operator's: nobody else hears or moves it.

Operators do at random what a softphone can ask, with every call's id; a ledger of who took which call says what each
may hear and do. Shared on purpose: ringing calls, the list of recent calls, slots, and what the gate says of contacts.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gateway.calls.registry import LiveCall
from gateway.common.ids import OperatorId
from gateway.operators.hub import Hub
from gateway.softphone.server import SoftphoneServer
from gateway.wire import messages as msg
from tests.support.harness.chaos import Chaos
from tests.support.harness.doors import KEYED, Doors, SocketClient, doors
from tests.support.harness.world import NUMBER_ID, OPERATORS, World, a_world

NAMES = ("ana", "bia", "caio")
NO_CALL = "0" * 32


class Office:
    """Operators at softphones, calls, and the ledger. `leaks` counts what should not have been heard or done."""

    def __init__(self, world: World, opened: Doors, seed: int) -> None:
        self.world = world
        self.opened = opened
        self.rng = random.Random(seed)
        self.sockets: dict[str, SocketClient] = {}
        self.resume: dict[str, str] = {}
        self.owner: dict[str, str] = {}  #: call -> who took it
        self.read = Counter[str]()  #: how much of what each has heard was looked at
        self.leaks = Counter[str]()
        self.done = Counter[str]()
        self._calls = 0

    async def open(self) -> None:
        for name in NAMES:
            await self.log_in(name)

    async def log_in(self, name: str) -> None:
        socket = self.sockets[name] = await self.opened.socket()
        ticket = self.opened.tickets.issue(OperatorId(name), now=asyncio.get_running_loop().time())
        welcome = (await socket.ask("hello", ticket=ticket))["data"]
        await self._seated(name, socket, welcome)

    async def come_back(self, name: str) -> None:
        """Lose the socket and resume; the welcome must show no call of another's."""
        await self.sockets[name].ws.close()
        socket = self.sockets[name] = await self.opened.socket()
        welcome = (await socket.ask("hello", resume=self.resume[name]))["data"]
        await self._seated(name, socket, welcome)

    async def _seated(self, name: str, socket: SocketClient, welcome: dict[str, Any]) -> None:
        self.read[name] = 0
        self.resume[name] = welcome["resume"]
        self.leaks["welcome"] += sum(self._is_anothers(call["call_id"], name) for call in welcome["calls"])
        phone = self.world.hub.phone(OperatorId(name))
        assert phone is not None
        if not phone.connected:
            await socket.ask("leg", worker=0, sdp="v=0 offer")
            for leg in phone.legs.values():
                self.world.media.connect(leg)

    def _is_anothers(self, call_id: str, name: str) -> bool:
        return self.owner.get(call_id, name) != name

    # --- steps -------------------------------------------------------------------------------------

    async def step(self) -> None:
        """One thing happens; then everything that was heard is held against the ledger."""
        live = list(self.world.registry)
        kind = self.rng.choices(["call", "verb", "digit", "end", "back", "rest"], [20, 60, 6, 6, 5, 3])[0]
        self.done[kind] += 1
        if kind == "call" and len(live) < 4:
            await self._user_calls()
        elif kind == "verb":
            await self._verb(self.rng.choice(NAMES), live)
        elif kind == "digit" and live:
            self.world.hub.digit(self.rng.choice(live).call.call_id, "5")
        elif kind == "end" and live:
            await self._user_hangs_up(self.rng.choice(live))
        elif kind == "back":
            await self.come_back(self.rng.choice(NAMES))
        elif kind == "rest":
            await self._rest(self.rng.choice(NAMES), live)
        await self._settled()
        self._hear()

    async def _user_calls(self) -> None:
        self._calls += 1
        user: dict[str, Any] = {"from": f"55119{self._calls:08d}", "from_user_id": f"BR.{self._calls:020d}"}
        driver = await self.world.user_calls(f"wacid.N{self._calls}", **user)
        if driver is not None:
            await self.world.until(lambda: driver.call.state.value in ("ringing", "ended"))

    async def _verb(self, name: str, live: list[LiveCall]) -> None:
        """An operator asks something of some call, with the id of any."""
        ids = [driver.call.call_id for driver in live] + [*list(self.owner)[-2:], NO_CALL]
        call_id, kind = self.rng.choice(ids), self.rng.choice(["accept", "reject", "hangup", "hold"])
        more = {"on": self.rng.random() < 0.5} if kind == "hold" else {}
        driver = next((driver for driver in live if driver.call.call_id == call_id), None)
        before = _seen(driver)
        answer = await self.sockets[name].ask(kind, call_id=call_id, **more)
        if kind == "accept" and answer["type"] == "ok" and call_id not in self.owner:
            self.owner[call_id] = name
            return
        may = self.owner.get(call_id) == name or (kind == "reject" and call_id not in self.owner)
        if not may:
            await self._settled()
            self.leaks["did"] += answer["type"] == "ok" or _seen(driver) != before

    async def _user_hangs_up(self, driver: LiveCall) -> None:
        talked = driver.view().accepted_at is not None
        await self.world.meta_terminates(str(driver.call.meta_call_id), talked_s=1 if talked else None)
        await self.world.until(lambda: driver.is_over)

    async def _rest(self, name: str, live: list[LiveCall]) -> None:
        """What an operator has in hand opens nothing of the API, which shows and ends every call."""
        call_id = self.rng.choice(live).call.call_id if live else NO_CALL
        for held in (self.resume[name], OPERATORS.get(name, "key-of-caio")):
            for method, path in (
                ("GET", "/v1/calls"),
                ("GET", f"/v1/calls/{call_id}"),
                ("DELETE", f"/v1/calls/{call_id}"),
            ):
                headers = {"Authorization": f"Bearer {held}"}
                async with self.opened.client.request(method, path, headers=headers) as response:
                    self.leaks["rest"] += response.status not in (401, 429)

    async def _settled(self) -> None:
        """Wait until no call is on its way to another state by itself, and Meta has ended what was hung up."""
        for driver in list(self.world.registry):
            await self.world.until(lambda driver=driver: driver.call.state.value in _RESTING or driver.is_over)  # type: ignore[misc]
            if driver.call.state.value == "ending":
                await self._user_hangs_up(driver)
        for name in NAMES:  # whatever was pushed before this answer has been heard now
            await self.sockets[name].ask("status", available=True)

    def _hear(self) -> None:
        for name, socket in self.sockets.items():
            for message in socket.heard[self.read[name] :]:
                self.leaks[message["type"]] += self._is_leak(name, message)
            self.read[name] = len(socket.heard)
        for pair in self.world.media.joined:
            call_id, owner = _ends(pair)
            self.leaks["audio"] += self.owner.get(call_id) != owner

    def _is_leak(self, name: str, message: dict[str, Any]) -> bool:
        match message["type"]:
            case "call":
                return self._is_anothers(message["call"]["call_id"], name) or message["call"]["operator"] != name
            case "incoming":
                return message["call"]["operator"] is not None
            case "digit":
                return self.owner.get(message["call_id"]) != name
            case _:
                return False


_RESTING = ("ringing", "active", "ending", "ended")


def _seen(driver: LiveCall | None) -> Any:
    return driver and (driver.call.state, driver.call.held, driver.call.operator)


def _ends(pair: frozenset[Any]) -> tuple[str, str]:
    """Return the call and the operator whose legs are joined."""
    meta = next(leg for leg in pair if leg.endswith("/meta"))
    (browser,) = pair - {meta}
    return meta.split("/")[0], browser.split("/")[0]


async def walk(seed: int, steps: int) -> Office:
    async with a_world() as world, doors(world) as opened:
        office = Office(world, opened, seed)
        await office.open()
        for _ in range(steps):
            await office.step()
        return office


@pytest.mark.row(27, "A taken call is its operator's alone: no other hears it, sees it, moves it or ends it")
async def test_operators_apart(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.softphone.server.MESSAGES_PER_S", 1e6)  # what is said counts here, not how fast
    office = await walk(chaos.seed, chaos.size(test=100, short=3_000, long=20_000))
    chaos.note("steps", office.done.total())
    chaos.note("calls taken", len(office.owner))
    chaos.promise("messages, audio or deeds that were another's", office.leaks.total(), at_most=0)
    assert len(office.owner) > 3, "too few calls were taken to show anything"


#: What a gateway that mixes operators up would do.
BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "verbs": lambda patch: patch.setattr(SoftphoneServer, "_own_call", staticmethod(lambda phone, call: call)),
    "pushes": lambda patch: patch.setattr(
        Hub, "show", lambda self, operator, view: self.tell_all(msg.CallChanged(call=view))
    ),
    "digits": lambda patch: patch.setattr(
        Hub, "digit", lambda self, call_id, digit: self.tell_all(msg.Digit(call_id=call_id, digit=digit))
    ),
    "audio": lambda patch: patch.setattr(Hub, "leg_of", lambda self, operator, worker: next(iter(self._by_leg))),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_gateway_that_mixes_operators_up_would_be_seen(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    BROKEN[broken](monkeypatch)
    office = await walk(7, 80)
    assert office.leaks.total() > 0


@pytest.mark.parametrize("path", ["/v1/calls", "/v1/numbers", f"/v1/numbers/{NUMBER_ID}/decisions"])
async def test_the_api_key_is_nobodys_but_the_apis(path: str) -> None:
    async with a_world() as world, doors(world) as opened:
        async with opened.client.get(path) as response:
            assert response.status == 401
        async with opened.client.get(path, headers=KEYED) as response:
            assert response.status == 200
