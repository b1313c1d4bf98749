"""`GraphClient` and `MetaHealth` together: what is not sent, what is heard of Meta's clock, how long anybody waits."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from gateway.common.clock import MetaClock
from gateway.common.errors import GraphError, GraphPaused, GraphRefused, GraphUnreachable
from gateway.common.ids import MetaCallId, PhoneNumberId, UserRef
from gateway.config.settings import NumberSettings
from gateway.meta.circuit_breaker import FAILURES
from gateway.meta.graph import GraphClient
from gateway.meta.graph_http import GraphHttp, GraphRequest, RawAnswer
from gateway.meta.health import MetaHealth
from gateway.numbers.number import Number
from policy.pack import load_pack
from tests.support.fakes.clock import START, FakeClock

NUMBER = PhoneNumberId("200000000000002")
CALL = MetaCallId("wacid.EXAMPLE0001")
USER = UserRef(wa_id="5511900000001")
TOKEN = "CanaryToken0123456789"
LONGEST_S = 6.0

Answer = Callable[[GraphRequest, float], Awaitable[RawAnswer]]


def reply(body: object, status: int = 200, **headers: str) -> RawAnswer:
    return RawAnswer(status=status, raw=orjson.dumps(body), headers=headers)


def no(code: int, status: int = 400) -> RawAnswer:
    return reply({"error": {"code": code, "message": "no"}}, status)


class ScriptedHttp(GraphHttp):
    """Meta answers as a test says; nothing leaves the process."""

    def __init__(self, answer: Answer, sent: list[str], **options: Any) -> None:
        super().__init__(**options)
        self._answer, self._sent = answer, sent

    async def start(self) -> None:
        pass

    async def _exchange(self, request: GraphRequest, token: str, timeout: aiohttp.ClientTimeout) -> RawAnswer:
        self._sent.append(request.op)
        assert timeout.total is not None
        return await self._answer(request, timeout.total)


class Scripted:
    """A client whose Meta answers as `answer` says, and what it was sent."""

    def __init__(self, answer: Answer, *, clock: Any = None) -> None:
        self.answer = answer
        self.sent: list[str] = []
        self.clock = clock or FakeClock()
        self.health = MetaHealth(token_for=lambda number: TOKEN, clock=self.clock, rng=random.Random(1))
        self.client = GraphClient(
            base_url="http://meta.invalid",
            token_for=lambda number: TOKEN,
            clock=self.clock,
            health=self.health,
            http=partial(ScriptedHttp, lambda request, limit_s: self.answer(request, limit_s), self.sent),
        )

    async def connect(self) -> None:
        await self.client.connect(NUMBER, USER, "v=0", "trace")


async def works(request: GraphRequest, limit_s: float) -> RawAnswer:
    return reply({"success": True, "calls": [{"id": CALL}], "messages": [{"id": "wamid.1"}]})


async def cut(request: GraphRequest, limit_s: float) -> RawAnswer:
    raise GraphUnreachable("cut", op=request.op, maybe_sent=True, status="cut")


async def hangs(request: GraphRequest, limit_s: float) -> RawAnswer:
    await asyncio.sleep(limit_s)
    raise GraphUnreachable("no answer in time", op=request.op, maybe_sent=True, status="timeout")


async def refuses_token(request: GraphRequest, limit_s: float) -> RawAnswer:
    return no(190, 401)


def a_number() -> Number:
    given = NumberSettings(phone_number_id=NUMBER, phone_number="+551155550100")
    return Number(given, load_pack("guide"))


async def lost(scripted: Scripted) -> None:
    """Let so many `connect`s fail that the breaker opens."""
    for _ in range(FAILURES):
        with pytest.raises(GraphUnreachable):
            await scripted.connect()


# --- what is not sent ------------------------------------------------------------------------------


async def test_a_dial_while_meta_is_away_never_leaves_and_says_so_at_once() -> None:
    scripted = Scripted(cut)
    await lost(scripted)
    with pytest.raises(GraphPaused) as raised:
        await scripted.connect()
    assert scripted.sent == ["connect"] * FAILURES
    assert not raised.value.maybe_sent


async def test_reads_and_permission_requests_are_held_back_too() -> None:
    scripted = Scripted(cut)
    await lost(scripted)
    client = scripted.client
    for asking in (
        client.settings(NUMBER),
        client.number_info(NUMBER),
        client.call_permissions(NUMBER, USER),
        client.request_permission_free_form(NUMBER, USER, "May we call?"),
        client.request_permission_template(NUMBER, USER, "ask", "pt_BR", []),
    ):
        with pytest.raises(GraphPaused):
            await asking
    assert len(scripted.sent) == FAILURES


async def test_a_token_that_may_not_read_settings_is_still_asked_about_the_number() -> None:
    async def calls_alone(request: GraphRequest, limit_s: float) -> RawAnswer:
        return (
            no(10, 403) if request.op == "settings" else reply({"whatsapp_business_manager_messaging_limit": "TIER_2K"})
        )

    scripted = Scripted(calls_alone)
    number = a_number()
    with pytest.raises(GraphRefused):
        await number.read_from_meta(scripted.client, now=START)
    assert number.state.messaging_limit == 2_000


async def test_whoever_reads_a_number_with_a_refused_token_is_told_by_meta() -> None:
    scripted = Scripted(refuses_token)
    number = a_number()
    with pytest.raises(GraphRefused, match="190"):
        await number.read_from_meta(scripted.client, now=START)
    assert scripted.sent == ["settings"]


async def test_calls_that_live_are_answered_and_ended_all_the_same() -> None:
    scripted = Scripted(cut)
    await lost(scripted)
    scripted.answer = works
    await scripted.client.pre_accept(NUMBER, CALL, "v=0")
    assert not scripted.health.is_away(NUMBER)  # and that was the news


async def test_every_try_counts_not_every_request() -> None:
    scripted = Scripted(cut)
    for _ in range(4):
        with pytest.raises(GraphUnreachable):
            await scripted.client.terminate(NUMBER, CALL)
    assert len(scripted.sent) == 12
    assert scripted.health.is_away(NUMBER)


async def test_a_read_is_not_repeated_once_the_breaker_has_opened() -> None:
    scripted = Scripted(cut)
    for _ in range(FAILURES - 1):
        with pytest.raises(GraphUnreachable):
            await scripted.connect()
    with pytest.raises(GraphPaused):
        await scripted.client.settings(NUMBER)
    assert scripted.sent.count("settings") == 1


async def test_a_token_that_was_refused_is_not_sent_again() -> None:
    scripted = Scripted(refuses_token)
    with pytest.raises(GraphRefused):
        await scripted.connect()
    with pytest.raises(GraphPaused):
        await scripted.connect()
    with pytest.raises(GraphRefused):
        await scripted.client.terminate(NUMBER, CALL)
    assert scripted.sent == ["connect", "terminate"]


async def test_a_request_that_is_given_up_leaves_its_probe_to_others() -> None:
    scripted = Scripted(cut)
    await lost(scripted)
    scripted.health._breaker(NUMBER)._until = asyncio.get_running_loop().time()  # its time has come
    scripted.answer = hangs
    probe = asyncio.get_running_loop().create_task(scripted.connect())
    while len(scripted.sent) == FAILURES:  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(GraphPaused):
        await scripted.connect()
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    scripted.answer = works
    await scripted.connect()


# --- how long anybody waits ------------------------------------------------------------------------


def after(first_s: float, rest: Answer) -> Answer:
    """Fail after so long, then go on like `rest`."""
    begun = False

    async def answer(request: GraphRequest, limit_s: float) -> RawAnswer:
        nonlocal begun
        if begun:
            return await rest(request, limit_s)
        begun = True
        await asyncio.sleep(min(first_s, limit_s))
        return no(131016, 500)

    return answer


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("first_s", [0.0, 0.5, 1.2, 2.0, 2.4, 2.5, 3.5, 3.9, 5.0])
@pytest.mark.parametrize("op", ["connect", "accept", "terminate", "settings", "request"])
async def test_whoever_asks_has_an_answer_within_six_seconds(op: str, first_s: float) -> None:
    scripted = Scripted(after(first_s, after(first_s, hangs)))
    client, loop = scripted.client, asyncio.get_running_loop()
    asking: dict[str, Callable[[], Awaitable[object]]] = {
        "connect": scripted.connect,
        "accept": partial(client.accept, NUMBER, CALL, "v=0", "trace"),
        "terminate": partial(client.terminate, NUMBER, CALL),
        "settings": partial(client.settings, NUMBER),
        "request": partial(client.request_permission_free_form, NUMBER, USER, "May we call?"),
    }
    begun = loop.time()
    with pytest.raises(GraphError):
        await asking[op]()
    assert loop.time() - begun <= LONGEST_S
    assert len(scripted.sent) <= 3


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_no_try_begins_after_four_seconds() -> None:
    begun: list[float] = []

    async def late(request: GraphRequest, limit_s: float) -> RawAnswer:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(min(3.8, limit_s))
        return no(131016, 500)

    scripted = Scripted(late)
    with pytest.raises(GraphError):
        await scripted.client.request_permission_free_form(NUMBER, USER, "May we call?")
    assert all(at - begun[0] <= 4.0 for at in begun)


# --- Meta's clock ----------------------------------------------------------------------------------


async def test_the_clock_of_metas_answers_is_listened_to_also_where_they_are_a_no() -> None:
    clock = MetaClock(FakeClock(START - timedelta(hours=1)))

    async def dated(request: GraphRequest, limit_s: float) -> RawAnswer:
        return reply({"error": {"code": 138006}}, 401, Date="Sun, 22 Nov 2026 12:00:00 GMT")

    scripted = Scripted(dated, clock=clock)
    for _ in range(2):
        with pytest.raises(GraphRefused):
            await scripted.connect()
    assert abs((clock.now() - START).total_seconds()) < 1


async def test_the_clock_of_something_in_between_is_not() -> None:
    wall = FakeClock(START - timedelta(hours=1))
    clock = MetaClock(wall)

    async def page(request: GraphRequest, limit_s: float) -> RawAnswer:
        return RawAnswer(status=502, raw=b"<html>", headers={"Date": "Sun, 22 Nov 2026 12:00:00 GMT"})

    scripted = Scripted(page, clock=clock)
    for _ in range(3):
        with pytest.raises(GraphUnreachable):
            await scripted.connect()
    assert clock.now() == wall.now()


async def test_the_date_header_is_read_from_a_real_answer() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        return web.json_response({"calls": [{"id": CALL}]}, headers={"Date": "Sun, 22 Nov 2026 12:00:00 GMT"})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    clock = MetaClock(FakeClock(START - timedelta(hours=1)))
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with GraphClient(base_url=url, token_for=lambda number: TOKEN, clock=clock) as client:
        for _ in range(2):
            await client.connect(NUMBER, USER, "v=0", "trace")
    await runner.cleanup()
    assert abs((clock.now() - START).total_seconds()) < 2
