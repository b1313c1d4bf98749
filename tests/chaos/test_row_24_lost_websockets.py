"""Row 24: a phone that loses its socket has its call back in time, audio unbroken; out of time the call ends cleanly.

Hundreds of sockets are real, on a clock that runs four times as fast (3.75 s of grace, cuts of 1.25 and 5 s), faster
still for a few, with a media engine that only notes what it is asked. One call with real audio is cut on the real one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from aiohttp import ClientSession, TCPConnector

from gateway.callflow.outcome import EndReason
from gateway.calls.driver import CallDriver
from gateway.common.ids import OperatorId
from gateway.operators.hub import LEAVING_S, RESUME_S, Hub
from gateway.operators.phone import Phone
from gateway.wire import messages as msg
from loadtest.net.tcp_chaos import TcpChaos
from tests.support.harness.chaos import Chaos, Scale, scale_from
from tests.support.harness.doors import Doors, SocketClient, doors
from tests.support.harness.running import running
from tests.support.harness.waiting import until
from tests.support.harness.world import World, a_world

#: How much faster the clock runs where sockets are cut: hundreds need some time to come back at all.
FASTER: Final = 15 if scale_from() is Scale.TEST else 4
#: The same for pages, which have less time.
PAGES_FASTER: Final = 10 if scale_from() is Scale.TEST else 1
SHORT_CUT_S, LONG_CUT_S = 5.0, 20.0
#: Twenty milliseconds a packet: a pause that nobody hears.
GAP_S = 0.2


class Phones:
    """Operators in calls, each at a socket that runs through one cable."""

    def __init__(self, world: World, opened: Doors, cable: TcpChaos, session: ClientSession) -> None:
        self.world = world
        self.opened = opened
        self.session = session
        self.cable = cable
        self.drivers: dict[str, CallDriver] = {}
        self.tokens: dict[str, str] = {}
        self.sockets: dict[str, SocketClient] = {}

    async def take_calls(self, count: int) -> None:
        for n in range(count):
            name = f"operator-{n}"
            welcome = await self._hello(name, ticket=self._ticket(name))
            self.tokens[name] = welcome["resume"]
            await self.sockets[name].ask("leg", worker=0, sdp="v=0 offer")
            phone = self.world.hub.phone(OperatorId(name))
            assert phone is not None
            for leg in phone.legs.values():
                self.world.media.connect(leg)
            await self._answer(name, n)

    def _ticket(self, name: str) -> str:
        ticket = self.opened.tickets.issue(OperatorId(name), now=asyncio.get_running_loop().time())
        assert ticket is not None
        return ticket

    async def _hello(self, name: str, **credential: str) -> dict[str, Any]:
        ws = await self.session.ws_connect(
            f"http://127.0.0.1:{self.cable.port}" + "/v1/softphone", protocols=["calls.v1"]
        )
        socket = self.sockets[name] = SocketClient(ws)
        answer = await socket.ask("hello", **credential)
        return answer.get("data") or {"code": answer["code"]}

    async def _answer(self, name: str, n: int) -> None:
        user: dict[str, Any] = {"from": f"55119{n:08d}", "from_user_id": f"BR.{n:020d}"}
        driver = await self.world.user_calls(f"wacid.N{n}", **user)
        assert driver is not None
        await self.world.until(lambda: driver.call.state.value == "ringing")
        await self.sockets[name].ask("accept", call_id=driver.call.call_id)
        await self.world.until(lambda: len(self.world.media.joined) == n + 1)
        self.drivers[name] = driver

    async def cut_for(self, seconds: float) -> None:
        """Pull the cable out; every phone must have lost its line."""
        await self.cable.refuse()
        await until(lambda: self.world.hub.connected == 0)
        await asyncio.sleep(seconds / FASTER)
        await self.cable.open()

    async def come_back(self) -> Counter[str]:
        """All at once, as pages do; return what they were told: `resumed`, or why not."""
        async with asyncio.TaskGroup() as tasks:
            tried = [tasks.create_task(self._come_back(name)) for name in self.tokens]
        return Counter(task.result() for task in tried)

    async def _come_back(self, name: str) -> str:
        welcome = await self._hello(name, resume=self.tokens[name])
        call_ids = [call["call_id"] for call in welcome.get("calls", ())]
        if call_ids == [self.drivers[name].call.call_id]:
            return "resumed"
        return str(welcome.get("code", "without its call"))

    @property
    def live(self) -> int:
        return sum(driver.call.state.value == "active" for driver in self.drivers.values())

    async def close(self) -> None:
        for socket in self.sockets.values():
            await socket.ws.close()


@asynccontextmanager
async def phones_in_calls(count: int) -> AsyncIterator[Phones]:
    async with (
        a_world(incoming_slots=count) as world,
        doors(world) as opened,
        TcpChaos(("127.0.0.1", int(opened.server.port or 0))) as cable,
        ClientSession(connector=TCPConnector(limit=0)) as session,
    ):
        world.hub.resume_s, world.hub.leaving_s = RESUME_S / FASTER, LEAVING_S / PAGES_FASTER
        phones = Phones(world, opened, cable, session)
        await phones.take_calls(count)
        yield phones
        await phones.close()


async def all_ended(phones: Phones) -> list[EndReason | None]:
    """Let Meta confirm what was ended; return why each call ended."""
    world = phones.world
    await until(lambda: world.graph.ops().count("terminate") >= len(phones.drivers), timeout_s=30)
    for driver in phones.drivers.values():
        await world.meta_terminates(str(driver.call.meta_call_id), talked_s=1)
    return [(await world.ended(driver)).reason for driver in phones.drivers.values()]


@pytest.mark.row(
    24, "A lost WebSocket is resumed within 15 s with its call and audio; after 20 s the call has ended cleanly"
)
async def test_lost_websockets(chaos: Chaos) -> None:
    count = chaos.size(test=4, short=40, long=200)
    async with phones_in_calls(count) as phones:
        world = phones.world
        joined, asked = set(world.media.joined), len(world.media.asked)
        await phones.cut_for(SHORT_CUT_S)
        chaos.note("calls", count)
        chaos.promise("calls lost by a cut of 5 s", count - phones.live, at_most=0)
        back = await phones.come_back()
        chaos.promise("resumed after 5 s", back["resumed"], at_least=count)
        await asyncio.sleep(RESUME_S / FASTER)  # what was to end them is forgotten
        chaos.promise("calls lost after the resume", count - phones.live, at_most=0)
        touched = len(world.media.asked) - asked + len(joined ^ set(world.media.joined))
        chaos.promise("times that audio was touched", touched, at_most=0)

        await phones.cut_for(LONG_CUT_S)
        late = await phones.come_back()
        chaos.promise("resumed after 20 s", late["resumed"], at_most=0)
        reasons = await all_ended(phones)
        chaos.promise("calls ended for their operator", reasons.count(EndReason.OPERATOR_GONE), at_least=count)
        await until(lambda: not world.media.legs)
        left = world.number.incoming.in_use + len(world.registry) + len(world.media.legs) + len(list(world.hub))
        chaos.promise("slots, calls, legs and phones left", left, at_most=0)


@pytest.mark.row(24, "A reload keeps the call; a closed tab ends it in seconds")
async def test_pages_that_go_away(chaos: Chaos) -> None:
    count = chaos.size(test=4, short=40, long=200)
    async with phones_in_calls(count) as phones:
        for socket in phones.sockets.values():
            await socket.ask("leaving")
        await until(lambda: phones.world.hub.connected == 0)
        back = await phones.come_back()
        await asyncio.sleep(LEAVING_S / PAGES_FASTER)
        chaos.promise("reloaded with their call", min(back["resumed"], phones.live), at_least=count)
        began = asyncio.get_running_loop().time()
        for socket in phones.sockets.values():
            await socket.ask("leaving")
        reasons = await all_ended(phones)
        took_s = (asyncio.get_running_loop().time() - began) * PAGES_FASTER
        chaos.promise("ended with their tab", reasons.count(EndReason.OPERATOR_GONE), at_least=count)
        chaos.note("the last of them after", took_s, unit="s")


@pytest.mark.row(24, "Audio is unbroken while the WebSocket is away: real media, real clock")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_audio_of_a_lost_websocket(chaos: Chaos, database: str) -> None:
    cut_s, away_s = chaos.size(test=0.5, short=5.0, long=5.0), chaos.size(test=1.0, short=20.0, long=20.0)
    async with running(database) as run, run.operator("ana") as bot:
        if chaos.scale is Scale.TEST:
            run.gateway.parts.hub.resume_s = 0.8
        call = run.ana.call()
        rung = await bot.wait_push("incoming")
        await bot.request("accept", call_id=rung["call"]["call_id"])
        ears = (call.media.ear, bot.peers[0].ear)
        await until(lambda: all(ear.packets > 25 for ear in ears))
        for ear in ears:
            ear.longest_gap_s = 0.0
        heard = [ear.packets for ear in ears]
        await bot.drop()
        await asyncio.sleep(cut_s)
        await bot.connect(resume=bot.welcome["resume"])
        assert bot.welcome["resumed"]
        packets = min(ear.packets - before for ear, before in zip(ears, heard, strict=True))
        chaos.promise("packets heard by each side", packets, at_least=cut_s * 50 * 0.8)
        chaos.promise("longest silence", max(ear.longest_gap_s for ear in ears), at_most=GAP_S, unit="s", timed=True)
        began = asyncio.get_running_loop().time()
        await bot.drop()
        await until(lambda: run.ana.current_call is None and run.slots == (0, 0), timeout_s=away_s)
        ended_s = asyncio.get_running_loop().time() - began
        chaos.promise("call ended after", ended_s, at_least=min(RESUME_S, away_s) * 0.75, at_most=away_s, unit="s")


async def test_a_hub_that_forgets_at_once_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "_keep_without_line", lambda self, phone, seconds: self.logout(phone))
    async with phones_in_calls(2) as phones:
        await phones.cut_for(SHORT_CUT_S)
        assert (await phones.come_back())["resumed"] == 0
        assert set(await all_ended(phones)) == {EndReason.OPERATOR_GONE}


async def test_a_hub_that_never_forgets_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(self: Hub, phone: Phone, seconds: float) -> None:
        self._set_line(phone, None)

    monkeypatch.setattr(Hub, "_keep_without_line", keep)
    async with phones_in_calls(2) as phones:
        await phones.cut_for(LONG_CUT_S)
        assert (await phones.come_back())["resumed"] == 2
        assert phones.live == 2


async def test_two_pages_of_one_operator_one_has_the_phone() -> None:
    async with phones_in_calls(1) as phones:
        (name,) = phones.tokens
        first = phones.sockets[name]
        assert await phones._come_back(name) == "resumed"
        assert await first.closed() == msg.CLOSE_REPLACED
        assert phones.live == 1
