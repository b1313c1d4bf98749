"""Operators without audio: what they do by their policy, and that they do not race for a call."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from loadtest.operators.signalling_bot import Answer, Crew, NobodyFree, Policy, SignallingBot
from loadtest.operators.softphone_wire import RequestFailed, SoftphoneWire
from tests.loadtest.helpers import until

Json = dict[str, Any]


class Desk:
    """The gateway's side of the wire: keeps what is asked, answers as told, pushes on demand."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, Json]] = []  #: operator and request, in order
        self.sockets: dict[str, web.WebSocketResponse] = {}
        #: Codes to refuse the next requests of a kind with.
        self.refuse: dict[str, list[str]] = {}
        #: Kinds of requests that are never answered.
        self.silent: set[str] = set()
        #: Pushed together with the next answer to a request of a kind.
        self.along: dict[str, Json] = {}
        self.workers, self.calls, self.resumable = [0], list[Json](), True
        self._ids = itertools.count(1)
        self._tickets: dict[str, str] = {}

    def kinds(self, operator: str) -> list[str]:
        return [request["type"] for who, request in self.asked if who == operator]

    def all(self, kind: str) -> list[tuple[str, Json]]:
        return [(who, request) for who, request in self.asked if request["type"] == kind]

    async def push(self, operator: str, kind: str, **fields: Any) -> None:
        await self.sockets[operator].send_str(json.dumps({"type": kind, **fields}, separators=(",", ":")))

    async def ring(self, *operators: str, call_id: str = "c1") -> None:
        for operator in operators:
            await self.push(operator, "incoming", call=view(call_id, "connecting"))

    async def ticket(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        if wanted["key"] != "key":
            return web.json_response({"code": "unauthorized", "title": "no"}, status=401)
        ticket = f"t{next(self._ids)}"
        self._tickets[ticket] = wanted["operator"]
        return web.json_response({"ticket": ticket}, status=201)

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=["calls.v1"])
        await ws.prepare(request)
        operator = ""
        async for frame in ws:
            assert frame.type is WSMsgType.TEXT
            asked = json.loads(frame.data)
            if asked["type"] == "hello":
                resumed = "resume" in asked
                operator = asked["resume"] if resumed else self._tickets.pop(asked["ticket"])
                if resumed and not self.resumable:
                    await ws.send_json({"type": "error", "id": asked["id"], "code": "unauthorized", "title": "no"})
                    await ws.close(code=4401)
                    break
                self.sockets[operator] = ws
                data: Any = {"resume": operator, "resumed": resumed, "workers": self.workers, "calls": self.calls}
            else:
                data = view("c9", "connecting", operator) if asked["type"] == "dial" else None
            self.asked.append((operator, asked))
            codes = self.refuse.get(asked["type"])
            if asked["type"] in self.silent:
                continue
            if codes:
                await ws.send_json({"type": "error", "id": asked["id"], "code": codes.pop(0), "title": "no"})
            else:
                await ws.send_json({"type": "ok", "id": asked["id"], "data": data})
            if asked["type"] in self.along:
                await ws.send_json(self.along.pop(asked["type"]))
        return ws


def view(call_id: str, state: str, operator: str | None = None, reason: str = "hung_up_by_user") -> Json:
    outcome = {"reason": reason} if state == "ended" else None
    return {"call_id": call_id, "state": state, "operator": operator, "outcome": outcome}


@asynccontextmanager
async def a_desk() -> AsyncIterator[Desk]:
    desk, app = Desk(), web.Application()
    app.add_routes([web.post("/v1/tickets", desk.ticket), web.get("/v1/softphone", desk.socket)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    desk.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield desk
    finally:
        await runner.cleanup()


@asynccontextmanager
async def a_bot(desk: Desk, **policy: Any) -> AsyncIterator[SignallingBot]:
    bot = SignallingBot(desk.url, operator="ana", key="key", policy=Policy(**policy))
    try:
        await bot.start()
        yield bot
    finally:
        await bot.close()
        await bot.close()


async def test_it_logs_in_and_offers_a_leg_for_each_worker() -> None:
    async with a_desk() as desk:
        desk.workers = [0, 1]
        async with a_bot(desk) as bot:
            assert desk.kinds("ana") == ["hello", "leg", "leg"]
            assert sorted(request["worker"] for _, request in desk.all("leg")) == [0, 1]
            assert bot.idle
            await desk.push("ana", "workers", workers=[1, 2])
            await until(lambda: len(desk.all("leg")) == 3)
            await desk.push("ana", "leg_lost", worker=1, reason="ice_failed")
            await until(lambda: len(desk.all("leg")) == 4)
            assert [request["worker"] for _, request in desk.all("leg")][2:] == [2, 1]


async def test_a_wrong_key_is_said() -> None:
    async with a_desk() as desk:
        bot = SignallingBot(desk.url, operator="ana", key="wrong")
        with pytest.raises(RequestFailed, match="unauthorized"):
            await bot.start()
        await bot.close()


async def test_it_answers_talks_and_hangs_up() -> None:
    async with a_desk() as desk, a_bot(desk, talk_s=0.02) as bot:
        await desk.ring("ana")
        await until(lambda: bot.done["accepted"] == 1 and not bot.idle)
        await desk.push("ana", "call", call=view("c1", "active", "ana"))
        await until(lambda: bot.done["hung_up"] == 1)
        await desk.push("ana", "call", call=view("c1", "ended", "ana"))
        await until(lambda: bot.idle)
        assert bot.ended == {"hung_up_by_user": 1}
        assert desk.kinds("ana") == ["hello", "leg", "accept", "hangup"]


async def test_what_is_not_read_does_not_count_as_a_push() -> None:
    async with a_desk() as desk, a_bot(desk) as bot:
        await desk.push("ana", "slots", number_id="1")
        await desk.push("ana", "gone", call_id="c7", reason="declined")
        await until(lambda: len(bot.pushes) == 1)
        assert bot.pushes[0]["type"] == "gone"


@pytest.mark.parametrize(("answer", "asked"), [(Answer.DECLINE, ["reject"]), (Answer.IGNORE, [])])
async def test_it_can_decline_and_let_ring(answer: Answer, asked: list[str]) -> None:
    async with a_desk() as desk, a_bot(desk, answer=answer) as bot:
        await desk.ring("ana")
        await desk.push("ana", "digit", call_id="c1", digit="1")  # read after the call has rung
        await until(lambda: len(bot.pushes) == 2)
        await until(lambda: desk.kinds("ana")[2:] == asked)
        assert bot.idle


async def test_it_dials_and_is_busy_until_the_call_ends_and_takes_what_rang_meanwhile() -> None:
    async with a_desk() as desk, a_bot(desk) as bot:
        assert (await bot.dial("1", "+5511900000001"))["call_id"] == "c9"
        await until(lambda: not bot.idle)
        await desk.ring("ana")
        await bot.hang_up()
        await desk.ring("ana", call_id="c2")
        await desk.push("ana", "gone", call_id="c2", reason="hung_up_by_user")
        await desk.push("ana", "call", call=view("c9", "ended", "ana"))
        await until(lambda: bot.done["accepted"] == 1)
        assert desk.kinds("ana") == ["hello", "leg", "dial", "hangup", "accept"]
        assert desk.asked[-1][1]["call_id"] == "c1"
        await desk.push("ana", "call", call=view("c1", "ended", "ana"))
        await until(lambda: bot.idle)
        desk.refuse["dial"] = ["refused"]
        with pytest.raises(RequestFailed):
            await bot.dial("1", "+5511900000001")
        assert bot.idle
        assert bot.refused == {"refused": 1}


async def test_a_call_that_ended_before_the_answer_was_read_does_not_stay() -> None:
    """The reply to `accept` and the `gone` of a caller who gave up come in one piece."""
    async with a_desk() as desk, a_bot(desk) as bot:
        pushes: list[Json] = [
            {"type": "gone", "call_id": "c0", "reason": "hung_up_by_user"},
            {"type": "call", "call": view("c1", "ended", "ana")},
        ]
        for done, push in enumerate(pushes, 1):
            desk.along["accept"] = push
            await desk.ring("ana", call_id=f"c{done - 1}")
            await until(lambda done=done: bot.done["accepted"] == done)  # type: ignore[misc]
            await until(lambda: bot.idle)


async def test_a_refused_answer_leaves_the_operator_free() -> None:
    async with a_desk() as desk, a_bot(desk) as bot:
        desk.refuse["accept"] = ["already_taken"]
        await desk.ring("ana")
        await until(lambda: bot.refused["already_taken"] == 1)
        await until(lambda: bot.idle)


async def test_one_of_a_crew_picks_up_and_the_next_call_is_anothers() -> None:
    async with a_desk() as desk:
        names = [f"op{number}" for number in range(5)]
        async with Crew(desk.url, dict.fromkeys(names, "key")) as crew:
            await desk.ring(*names, call_id="c1")
            await desk.ring(*names, call_id="c2")
            await until(lambda: crew.total("done")["accepted"] == 2)
            accepted = desk.all("accept")
            assert {request["call_id"] for _, request in accepted} == {"c1", "c2"}
            assert len({who for who, _ in accepted}) == 2
            assert crew.in_calls == 2
            for _ in range(3):
                await crew.dial("1", "+5511900000001")
            assert crew.free() is None
            with pytest.raises(NobodyFree, match="all 5"):
                await crew.dial("1", "+5511900000001")


async def test_it_finds_a_call_that_rang_before_its_login() -> None:
    async with a_desk() as desk:
        desk.calls = [view("c1", "connecting")]
        async with a_bot(desk) as bot:
            await until(lambda: bot.done["accepted"] == 1)


async def test_a_lost_socket_is_resumed_and_keeps_call_and_legs() -> None:
    async with a_desk() as desk, a_bot(desk, back_after_s=0.01) as bot:
        desk.calls = [view("c1", "active", "ana")]
        await desk.sockets["ana"].close()
        await until(lambda: bot.done["resumed"] == 1)
        assert bot.call is not None
        assert bot.call["call_id"] == "c1"
        assert desk.kinds("ana") == ["hello", "leg", "hello"]


async def test_with_nothing_to_resume_it_logs_in_anew() -> None:
    async with a_desk() as desk, a_bot(desk, back_after_s=0.01) as bot:
        desk.resumable = False
        await desk.sockets["ana"].close()
        await until(lambda: bot.done["logged_in_again"] == 1)
        await until(lambda: bot.done["legs"] == 2)
        assert not await returns_again(desk)
        assert bot.done["resumed"] == 0


async def returns_again(desk: Desk) -> bool:
    """Tell whether somebody logs in who is logged in already, within many times the wait of the policy."""
    hellos = len(desk.all("hello"))
    await asyncio.sleep(0.1)
    return len(desk.all("hello")) > hellos


async def test_a_dropped_socket_is_resumed_on_demand() -> None:
    async with a_desk() as desk, a_bot(desk) as bot:
        await bot.drop()
        await until(lambda: not bot.idle)
        await bot.resume()
        assert bot.idle
        assert bot.close_code is None


async def test_who_waits_for_an_answer_hears_that_the_socket_is_gone() -> None:
    async with a_desk() as desk:
        wire = SoftphoneWire(desk.url, operator="ana", key="key")
        await wire.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(_failure(wire))
                await until(lambda: len(desk.kinds("ana")) == 2)
                await desk.sockets["ana"].close()
            assert isinstance(waiting.result(), ConnectionError)
        finally:
            await wire.close()


async def test_a_request_is_not_waited_for_for_ever() -> None:
    async with a_desk() as desk, a_bot(desk) as bot:
        desk.silent.add("recent")
        with pytest.raises(TimeoutError):
            await bot.request("recent", timeout_s=0.05)
        assert bot._waiting == {}
        await bot.request("bye", timeout_s=5.0)  # the next one is answered as ever


async def _failure(wire: SoftphoneWire) -> Exception | None:
    wire._take = lambda message: None  # type: ignore[method-assign]  # no answer is ever read
    try:
        await wire.request("recent")
    except Exception as failure:
        return failure
    return None


async def test_a_crew_that_logs_out_says_so_and_does_not_come_back() -> None:
    async with a_desk() as desk, Crew(desk.url, {"ana": "key", "bea": "key"}, policy=Policy(back_after_s=0.0)) as crew:
        await crew.log_out()
        assert sorted(who for who, _ in desk.all("bye")) == ["ana", "bea"]
        await desk.sockets["ana"].close()
        await crew.log_out()  # a socket that is gone has nothing to say
        assert len(desk.all("hello")) == 2
