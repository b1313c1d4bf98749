"""What operators do with calls over their sockets, and what they are told when they may not."""

from typing import Any

import pytest

from gateway.callflow.outcome import EndReason
from gateway.common.ids import OperatorId
from gateway.wire import messages as msg
from media.errors import SdpRefused, WorkerGone
from tests.support.fakes.graph import refused
from tests.support.harness.doors import TO, doors, talking
from tests.support.harness.world import NUMBER_ID, a_world

ANA = OperatorId("ana")


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
        driver = await world.ringing()
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
        driver = await world.ringing()
        socket, welcome = await opened.login(leg=False)
        assert [call["call_id"] for call in welcome["calls"]] == [driver.call.call_id]
        await socket.push("incoming")
        assert [message["type"] for message in socket.heard[:2]] == ["ok", "incoming"]


# --- calls -------------------------------------------------------------------------------------------


async def test_without_an_audio_path_nobody_picks_up() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        driver = await world.ringing()
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
        driver = await world.ringing()
        assert (await ana.ask("reject", call_id=driver.call.call_id))["type"] == "ok"
        assert (await ana.push("gone"))["reason"] == "declined"
        assert (await ana.ask("reject", call_id=driver.call.call_id))["code"] == "gone"
        assert (await bia.ask("accept", call_id=driver.call.call_id))["type"] == "ok"


async def test_who_picks_up_a_moment_after_the_end_is_free_for_the_next_call() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        driver = await world.ringing()
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
        driver = await world.ringing()
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
        driver = await world.ringing()
        (call,) = (await socket.ask("recent", limit=5))["data"]
        assert call["call_id"] == driver.call.call_id
