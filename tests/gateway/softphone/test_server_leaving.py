"""What becomes of an operator's call when the socket is closed, lost or taken over."""

import asyncio

import pytest

from gateway.callflow.outcome import EndReason, Result
from gateway.common.ids import OperatorId
from gateway.operators.hub import LEAVING_S, RESUME_S
from gateway.wire import messages as msg
from tests.support.harness.doors import doors, gone, talking
from tests.support.harness.world import a_world

ANA = OperatorId("ana")


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
