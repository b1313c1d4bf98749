"""The operators' socket: who gets in, and one answer to each request."""

import asyncio
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError

from gateway.common.ids import OperatorId
from gateway.softphone import server
from gateway.store.records import FactRecord
from gateway.wire import messages as msg
from tests.support.harness.doors import TO, Doors, doors, gone, talking
from tests.support.harness.world import NUMBER_ID, FakeLine, a_world

ANA = OperatorId("ana")


async def refused_login(opened: Doors, **hello: Any) -> tuple[str, int | None]:
    socket = await opened.socket()
    answer = await socket.ask("hello", **hello)
    return answer["code"], await socket.closed()


# --- getting in --------------------------------------------------------------------------------------


async def test_a_login_is_welcomed_with_what_there_is() -> None:
    async with a_world() as world, doors(world) as opened:
        _, welcome = await opened.login()
        assert (welcome["operator"], welcome["resumed"], welcome["workers"]) == ("ana", False, [0])
        assert [number["number_id"] for number in welcome["numbers"]] == [NUMBER_ID]
        assert (welcome["calls"], welcome["heartbeat_s"]) == ([], server.HEARTBEAT_S)


async def test_the_subprotocol_is_agreed() -> None:
    async with a_world() as world, doors(world) as opened:
        assert (await opened.socket()).ws.protocol == "calls.v1"


async def test_a_ticket_is_good_once() -> None:
    async with a_world() as world, doors(world) as opened:
        ticket = await opened.ticket()
        assert (await (await opened.socket()).ask("hello", ticket=ticket))["type"] == "ok"
        assert await refused_login(opened, ticket=ticket) == ("unauthorized", msg.CLOSE_UNAUTHORIZED)


async def test_a_ticket_is_good_for_30_seconds() -> None:
    async with a_world() as world, doors(world) as opened:
        now = asyncio.get_running_loop().time()
        late, in_time = (opened.tickets.issue(ANA, now=now - age) for age in (30.1, 29.0))
        assert await refused_login(opened, ticket=late) == ("unauthorized", msg.CLOSE_UNAUTHORIZED)
        assert (await (await opened.socket()).ask("hello", ticket=in_time))["type"] == "ok"


@pytest.mark.parametrize("hello", [{"ticket": "x"}, {"ticket": "é"}, {"resume": "x"}, {"resume": "é"}])
async def test_a_ticket_or_token_that_nobody_gave_out_is_refused(hello: dict[str, str]) -> None:
    async with a_world() as world, doors(world) as opened:
        await opened.login()
        assert await refused_login(opened, **hello) == ("unauthorized", msg.CLOSE_UNAUTHORIZED)


async def test_a_hello_has_a_ticket_or_a_token() -> None:
    async with a_world() as world, doors(world) as opened:
        both = {"ticket": await opened.ticket(), "resume": "x"}
        assert await refused_login(opened, **both) == ("bad_message", msg.CLOSE_UNAUTHORIZED)
        assert await refused_login(opened) == ("bad_message", msg.CLOSE_UNAUTHORIZED)


@pytest.mark.parametrize("kind", ["bye", "recent"])
async def test_nothing_is_done_before_hello(kind: str) -> None:
    async with a_world() as world, doors(world) as opened:
        socket = await opened.socket()
        answer = await socket.ask(kind)
        assert (answer["code"], await socket.closed()) == ("unauthorized", msg.CLOSE_UNAUTHORIZED)


async def test_a_first_message_that_cannot_be_read_is_the_last() -> None:
    async with a_world() as world, doors(world) as opened:
        socket = await opened.socket()
        await socket.ws.send_str("{")
        assert (await socket.answer(None))["code"] == "bad_message"
        assert await socket.closed() == msg.CLOSE_UNAUTHORIZED


async def test_a_first_message_in_bytes_is_refused() -> None:
    async with a_world() as world, doors(world) as opened:
        socket = await opened.socket()
        await socket.ws.send_bytes(b"{}")
        assert await socket.closed() == 1003


async def test_who_says_nothing_is_shown_out() -> None:
    async with a_world() as world, doors(world, hello_s=0.05) as opened:
        assert await (await opened.socket()).closed() == msg.CLOSE_TIMEOUT


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "https://calls.example.com.evil"])
async def test_a_foreign_page_may_not_open_the_socket(origin: str) -> None:
    async with a_world() as world, doors(world, origins=["https://calls.example.com"]) as opened:
        with pytest.raises(WSServerHandshakeError) as error:
            await opened.socket(Origin=origin)
        assert error.value.status == 403


async def test_the_own_page_and_those_in_the_settings_may_open_the_socket() -> None:
    async with a_world() as world, doors(world, origins=["https://calls.example.com/"]) as opened:
        own = f"http://127.0.0.1:{opened.server.port}"
        for origin in (own, "https://calls.example.com"):
            socket = await opened.socket(Origin=origin)
            assert (await socket.ask("hello", ticket=await opened.ticket()))["type"] == "ok"


# --- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "request_id"),
    [
        ("{", None),
        ("", None),
        ("null", None),
        ("[]", None),
        ("NaN", None),
        ('{"type":"recent"}', None),
        ('{"type":"recent","id":-1}', None),
        ('{"type":"recent","id":"7"}', None),
        ('{"type":"sing","id":7}', 7),
        ('{"id":7}', 7),
        ('{"type":"recent","id":7,"limit":101}', 7),
        ('{"type":"recent","id":7,"more":1}', 7),
        ('{"type":"accept","id":7,"call_id":""}', 7),
        ('{"type":"leg","id":7,"worker":0,"sdp":"' + "x" * 16_385 + '"}', 7),
        ("[" * 2_000 + "]" * 2_000, None),
        (r'{"type":"accept","id":7,"call_id":"\ud800"}', None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_message_that_cannot_be_read_is_answered_and_the_socket_stays(
    text: str, request_id: int | None
) -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        socket.heard.clear()
        await socket.ws.send_str(text)
        assert (await socket.answer(request_id))["code"] == "bad_message"
        assert (await socket.ask("recent"))["type"] == "ok"


async def test_a_second_hello_is_refused_and_the_socket_stays() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        assert (await socket.ask("hello", ticket="x"))["code"] == "bad_message"
        assert (await socket.ask("recent"))["type"] == "ok"


async def test_bytes_close_the_socket() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        await socket.ws.send_bytes(b"{}")
        assert await socket.closed() == 1003
        await gone(world)
        assert world.hub.phone(ANA) is not None  # it may come back


async def test_more_than_64_kb_closes_the_socket() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        await socket.ws.send_str(" " * (server.MAX_MESSAGE_BYTES + 1))
        assert await socket.closed() == 1009
        await gone(world)


async def test_every_request_is_answered_once_by_its_id() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        socket.heard.clear()
        contact = {"number_id": NUMBER_ID, "to": TO}
        asked: list[tuple[str, dict[str, Any]]] = [
            ("recent", {}),
            ("check", contact),
            ("dial", contact),
            ("ask_permission", contact),
            ("status", {"available": False}),
            ("leg", {"worker": 0, "sdp": "v=0"}),
            ("leg", {"worker": 9, "sdp": "v=0"}),
            *((kind, {"call_id": "x"}) for kind in ("accept", "reject", "hangup")),
            ("hold", {"call_id": "x", "on": True}),
            ("hello", {}),
            ("sing", {}),
        ]
        sent = [await socket.send(kind, **fields) for kind, fields in asked]
        await world.graph.arrival("request_permission_template")
        for request_id in sent:
            await socket.answer(request_id)
        await socket.ask("recent", limit=1)
        answered = [message["id"] for message in socket.heard if message["type"] in ("ok", "error")]
        assert sorted(answered[:-1]) == sent


async def test_a_request_that_waits_for_meta_holds_nothing_up() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        answer = world.graph.hold("request_permission_template")
        waiting = await socket.send("ask_permission", number_id=NUMBER_ID, to=TO)
        await world.graph.arrival("request_permission_template")
        await talking(world, socket)
        assert not [message for message in socket.heard if message.get("id") == waiting]
        answer.set()
        assert (await socket.answer(waiting))["data"] == {"form": "template"}


async def test_a_flood_from_one_softphone_is_read_at_its_pace_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MESSAGES_PER_S", 100.0)
    monkeypatch.setattr(server, "BURST", 10)
    async with a_world() as world, doors(world) as opened:
        (loud, _), (quiet, _) = await opened.login("ana", leg=False), await opened.login("bia", leg=False)
        loop = asyncio.get_running_loop()
        began = loop.time()
        sent = [await loud.send("status", available=n % 2 == 0) for n in range(60)]
        assert (await quiet.ask("recent"))["type"] == "ok"
        assert loop.time() - began < 0.3
        assert {(await loud.answer(request_id))["type"] for request_id in sent} == {"ok"}  # nothing is lost
        assert loop.time() - began >= (60 - 10 - 2) / 100


async def test_too_many_requests_at_once_are_refused() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        answer = world.graph.hold("request_permission_template")
        sent = [
            await socket.send("ask_permission", number_id=NUMBER_ID, to=f"+55119000000{n}")
            for n in range(10, 11 + server.MAX_IN_HAND)
        ]
        assert (await socket.answer(sent[-1]))["code"] == "unavailable"
        answer.set()
        assert [(await socket.answer(request_id))["type"] for request_id in sent[:-1]] == ["ok"] * server.MAX_IN_HAND


async def test_a_socket_that_closes_does_not_take_its_permission_request_back() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        answer = world.graph.hold("request_permission_template")
        await socket.send("ask_permission", number_id=NUMBER_ID, to=TO)
        await world.graph.arrival("request_permission_template")
        await socket.ws.close()
        await gone(world)
        answer.set()
        await world.until(lambda: any(isinstance(row, FactRecord) for group in world.store.written for row in group))


async def test_a_message_of_a_socket_that_lost_its_place_does_nothing() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        phone = world.hub.phone(ANA)
        assert phone is not None
        phone.line = FakeLine()
        assert (await socket.ask("status", available=False))["code"] == "unauthorized"
        assert phone.available
        assert await socket.closed() == 1000
