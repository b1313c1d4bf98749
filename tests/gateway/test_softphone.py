"""The operators' socket: who gets in, one answer to each request, and what becomes of a call when it is lost."""

import asyncio
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError

from gateway import messages as msg
from gateway import softphone
from gateway.driver import CallDriver
from gateway.hub import LEAVING_S, RESUME_S
from gateway.ids import OperatorId
from gateway.outcome import EndReason, Result
from gateway.records import FactRecord
from media.errors import SdpRefused, WorkerGone
from tests.support.doors import Doors, SocketClient, doors
from tests.support.fake_graph import refused
from tests.support.world import NUMBER_ID, FakeLine, World, a_world

ANA, BIA = OperatorId("ana"), OperatorId("bia")
TO = "+5511900000001"


async def ringing(world: World) -> CallDriver:
    driver = await world.user_calls()
    assert driver is not None
    await world.until(lambda: driver.call.state.value == "ringing")
    return driver


async def talking(world: World, socket: SocketClient) -> CallDriver:
    driver = await ringing(world)
    assert (await socket.ask("accept", call_id=driver.call.call_id))["type"] == "ok"
    await world.until(lambda: driver.call.state.value == "active")
    return driver


async def gone(world: World, operator: OperatorId = ANA) -> None:
    """Wait until the gateway has noticed that a socket is lost."""
    await world.until(lambda: (phone := world.hub.phone(operator)) is None or phone.line is None)


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
        assert (welcome["calls"], welcome["heartbeat_s"]) == ([], softphone.HEARTBEAT_S)


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
        await socket.ws.send_str(" " * (softphone.MAX_MESSAGE_BYTES + 1))
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
    monkeypatch.setattr(softphone, "MESSAGES_PER_S", 100.0)
    monkeypatch.setattr(softphone, "BURST", 10)
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
            for n in range(10, 11 + softphone.MAX_IN_HAND)
        ]
        assert (await socket.answer(sent[-1]))["code"] == "unavailable"
        answer.set()
        assert [(await socket.answer(request_id))["type"] for request_id in sent[:-1]] == ["ok"] * softphone.MAX_IN_HAND


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


# --- more than one -----------------------------------------------------------------------------------


async def test_a_second_login_closes_the_first_and_ends_its_call() -> None:
    async with a_world() as world, doors(world) as opened:
        first, _ = await opened.login()
        driver = await talking(world, first)
        second, welcome = await opened.login()
        assert await first.closed() == msg.CLOSE_REPLACED
        assert welcome["calls"] == []
        await world.graph.arrival("terminate")
        await world.meta_terminates(talked_s=1)
        assert (await world.ended(driver)).reason is EndReason.OPERATOR_GONE
        assert (await second.ask("recent"))["type"] == "ok"


async def test_the_first_of_two_operators_has_the_call() -> None:
    async with a_world() as world, doors(world) as opened:
        (ana, _), (bia, _) = await opened.login("ana"), await opened.login("bia")
        driver = await ringing(world)
        call_id = driver.call.call_id
        assert [(await socket.push("incoming"))["call"]["call_id"] for socket in (ana, bia)] == [call_id] * 2
        sent = [(socket, await socket.send("accept", call_id=call_id)) for socket in (ana, bia)]
        answers = [await socket.answer(request_id) for socket, request_id in sent]
        assert sorted(answer.get("code", "ok") for answer in answers) == ["already_taken", "ok"]
        loser = (ana, bia)[[answer["type"] for answer in answers].index("error")]
        assert (await loser.push("gone"))["reason"] == "answered_elsewhere"
        await world.until(lambda: driver.call.state.value == "active")
        assert world.graph.ops().count("accept") == 1


async def test_the_welcome_comes_before_the_call_that_rings_already() -> None:
    async with a_world() as world, doors(world) as opened:
        driver = await ringing(world)
        socket, welcome = await opened.login(leg=False)
        assert [call["call_id"] for call in welcome["calls"]] == [driver.call.call_id]
        await socket.push("incoming")
        assert [message["type"] for message in socket.heard[:2]] == ["ok", "incoming"]


# --- calls -------------------------------------------------------------------------------------------


async def test_without_an_audio_path_nobody_picks_up() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        driver = await ringing(world)
        assert (await socket.ask("accept", call_id=driver.call.call_id))["code"] == "no_leg"
        assert driver.call.state.value == "ringing"


async def test_who_is_in_a_call_picks_up_no_other() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        await talking(world, socket)
        other = await world.user_calls("wacid.TEST2", from_user_id="BR.2")
        assert other is not None
        assert (await socket.ask("accept", call_id=other.call.call_id))["code"] == "busy"


@pytest.mark.parametrize("kind", ["accept", "reject", "hangup"])
async def test_a_call_that_does_not_exist_is_gone(kind: str) -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        assert (await socket.ask(kind, call_id="0" * 32))["code"] == "gone"


async def test_nobody_hangs_up_or_holds_somebody_elses_call() -> None:
    async with a_world() as world, doors(world) as opened:
        ana, _ = await opened.login("ana")
        driver = await talking(world, ana)
        bia, _ = await opened.login("bia")
        call_id = driver.call.call_id
        assert (await bia.ask("hangup", call_id=call_id))["code"] == "gone"
        assert (await bia.ask("hold", call_id=call_id, on=True))["code"] == "gone"
        assert (await bia.ask("reject", call_id=call_id))["code"] == "gone"
        assert driver.call.state.value == "active"
        assert not driver.call.held


async def test_a_call_is_held_and_taken_up_again() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        driver = await talking(world, socket)
        for on, shown in ((True, "held"), (False, "active")):
            socket.heard.clear()
            assert (await socket.ask("hold", call_id=driver.call.call_id, on=on))["type"] == "ok"
            changed = await socket.until(lambda message, shown=shown: message.get("call", {}).get("state") == shown)  # type: ignore[misc]
            assert changed["type"] == "call"


async def test_a_hang_up_is_shown_to_its_end() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        driver = await talking(world, socket)
        assert (await socket.ask("hangup", call_id=driver.call.call_id))["type"] == "ok"
        await world.graph.arrival("terminate")
        await world.meta_terminates(talked_s=3)
        ended = await socket.until(lambda message: message.get("call", {}).get("state") == "ended")
        assert ended["call"]["outcome"]["result"] == "completed"
        assert ended["call"]["duration_s"] == 3


async def test_a_declined_call_rings_on_at_the_other() -> None:
    async with a_world() as world, doors(world) as opened:
        (ana, _), (bia, _) = await opened.login("ana"), await opened.login("bia")
        driver = await ringing(world)
        assert (await ana.ask("reject", call_id=driver.call.call_id))["type"] == "ok"
        assert (await ana.push("gone"))["reason"] == "declined"
        assert (await ana.ask("reject", call_id=driver.call.call_id))["code"] == "gone"
        assert (await bia.ask("accept", call_id=driver.call.call_id))["type"] == "ok"


async def test_who_picks_up_a_moment_after_the_end_is_free_for_the_next_call() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        driver = await ringing(world)
        await world.meta_terminates()  # not applied yet: the call takes one input at a time
        phone = world.hub.phone(ANA)
        assert phone is not None
        if driver.claim(ANA):
            world.hub.take(phone, driver.call.call_id)
        await world.ended(driver)
        assert phone.call is None
        assert (await socket.ask("status", available=True))["type"] == "ok"


async def test_an_operator_who_is_not_available_is_not_rung() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        await socket.ask("status", available=False)
        driver = await ringing(world)
        assert not [message for message in socket.heard if message["type"] == "incoming"]
        await socket.ask("status", available=True)
        assert (await socket.push("incoming"))["call"]["call_id"] == driver.call.call_id


async def test_a_dial_is_answered_with_the_call_and_shown_as_it_goes_on() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        await world.allow_calls()
        call = (await socket.ask("dial", number_id=NUMBER_ID, to=TO))["data"]
        assert (call["direction"], call["state"], call["user"]["number"]) == ("BUSINESS_INITIATED", "connecting", TO)
        await world.graph.arrival("connect")
        again = await socket.ask("dial", number_id=NUMBER_ID, to=TO)
        assert again["code"] == "busy"
        assert (await socket.ask("accept", call_id=call["call_id"]))["code"] == "gone"
        assert (await socket.ask("hangup", call_id=call["call_id"]))["type"] == "ok"


# --- no ----------------------------------------------------------------------------------------------


async def test_a_refusal_says_what_why_and_what_to_do() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        answer = await socket.ask("dial", number_id=NUMBER_ID, to=TO)
        assert (answer["code"], answer["refusal"]["reason"]) == ("refused", "no_permission")
        assert answer["refusal"]["remedy"] == "ask_template"
        assert answer["title"]


async def test_a_check_tells_without_dialling() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        checked = (await socket.ask("check", number_id=NUMBER_ID, to=TO))["data"]
        assert (checked["allowed"], checked["ask"], checked["ask_form"]) == (False, None, "template")
        unknown = (await socket.ask("check", number_id="9", to=TO))["data"]
        assert unknown["refusal"]["reason"] == "unknown_number"


async def test_a_permission_request_is_refused_with_its_reason() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        answer = await socket.ask("ask_permission", number_id=NUMBER_ID, to="x")
        assert (answer["code"], answer["refusal"]["reason"]) == ("refused", "invalid_user")


async def test_metas_no_is_shown_in_metas_words() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        world.graph.fail("request_permission_template", refused("request_permission", 138009, "Limit reached"))
        answer = await socket.ask("ask_permission", number_id=NUMBER_ID, to=TO)
        assert answer["code"] == "graph_error"
        assert "Limit reached" in answer["title"]
        assert answer["refusal"]["reason"] == "request_limit"  # and what the gate answers from now on


@pytest.mark.parametrize(
    ("error", "code", "title"),
    [
        (SdpRefused("no fingerprint"), "bad_message", "no fingerprint"),
        (WorkerGone(), "unavailable", "worker_gone"),
    ],
)
async def test_a_leg_that_cannot_be_made_says_why(error: Any, code: str, title: str) -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        world.media.fail("answer_browser", error)
        answer = await socket.ask("leg", worker=0, sdp="v=0")
        assert answer["code"] == code
        assert title in answer["title"]
        assert (await socket.ask("leg", worker=1, sdp="v=0"))["code"] == "gone"


async def test_a_dial_without_an_audio_path_is_refused() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        await world.allow_calls()
        assert (await socket.ask("dial", number_id=NUMBER_ID, to=TO))["code"] == "no_leg"


@pytest.mark.parametrize("error", [None, ValueError("a bug")])
async def test_what_breaks_inside_costs_one_answer_and_shows_nothing_of_itself(error: Exception | None) -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        world.store.fail_with(error)
        answer = await socket.ask("recent")
        assert answer["code"] == "unavailable"
        assert "bug" not in answer["title"]
        world.store.heal()
        assert (await socket.ask("recent"))["data"] == []


async def test_recent_calls_are_the_latest_first() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        driver = await ringing(world)
        (call,) = (await socket.ask("recent", limit=5))["data"]
        assert call["call_id"] == driver.call.call_id


# --- leaving -----------------------------------------------------------------------------------------


async def test_bye_is_answered_and_ends_the_call_at_once() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        driver = await talking(world, socket)
        assert (await socket.ask("bye"))["type"] == "ok"
        assert await socket.closed() == 1000
        assert world.hub.phone(ANA) is None
        await world.graph.arrival("terminate")
        await world.meta_terminates(talked_s=1)
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.COMPLETED, EndReason.OPERATOR_GONE)


async def test_a_lost_socket_keeps_its_call_for_15_seconds() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        driver = await talking(world, socket)
        await socket.ws.close()
        await gone(world)
        phone = world.hub.phone(ANA)
        assert phone is not None
        assert phone.lost is not None
        assert phone.lost.when() - asyncio.get_running_loop().time() == pytest.approx(RESUME_S, abs=1)
        assert driver.call.state.value == "active"


async def test_a_page_that_goes_away_keeps_its_call_for_5_seconds() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, welcome = await opened.login()
        driver = await talking(world, socket)
        assert (await socket.ask("leaving"))["type"] == "ok"
        assert await socket.closed() == 1000
        phone = world.hub.phone(ANA)
        assert phone is not None
        assert phone.lost is not None
        assert phone.lost.when() - asyncio.get_running_loop().time() == pytest.approx(LEAVING_S, abs=1)
        assert driver.call.state.value == "active"
        back = await opened.socket()
        again = (await back.ask("hello", resume=welcome["resume"]))["data"]
        assert [call["call_id"] for call in again["calls"]] == [driver.call.call_id]
        assert phone.lost is None


async def test_who_comes_back_has_the_call_and_the_same_leg() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, welcome = await opened.login()
        driver = await talking(world, socket)
        await socket.ws.close()
        await gone(world)
        back = await opened.socket()
        again = (await back.ask("hello", resume=welcome["resume"]))["data"]
        assert (again["resumed"], again["operator"]) == (True, "ana")
        assert [(call["call_id"], call["state"]) for call in again["calls"]] == [(driver.call.call_id, "active")]
        phone = world.hub.phone(ANA)
        assert phone is not None
        assert phone.lost is None
        assert len(world.media.joined) == 1
        assert (await back.ask("hangup", call_id=driver.call.call_id))["type"] == "ok"


async def test_who_comes_back_before_the_loss_was_noticed_takes_the_place() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, welcome = await opened.login()
        driver = await talking(world, socket)
        back = await opened.socket()
        assert (await back.ask("hello", resume=welcome["resume"]))["data"]["resumed"]
        assert await socket.closed() == msg.CLOSE_REPLACED
        assert driver.call.state.value == "active"
        assert (await back.ask("recent"))["type"] == "ok"


async def test_the_gateway_says_that_it_goes_away() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        opened.softphones.close_all()
        assert await socket.closed() == 1001


async def test_a_bug_while_welcoming_closes_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world, doors(world) as opened:
        ticket = await opened.ticket()
        monkeypatch.setattr(world.hub, "login", None)
        socket = await opened.socket()
        await socket.send("hello", ticket=ticket)
        assert await socket.closed() == 1011
