"""A phone that does not read holds up nobody and fills no memory."""

import asyncio
from typing import Any, cast

import orjson
from aiohttp import WSMsgType, web

from gateway import messages as msg
from gateway.softphone_line import SoftphoneLine
from tests.support.doors import doors
from tests.support.world import a_world


class FakeSocket:
    """Takes frames as fast as `open_` lets it; is also the transport beneath."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[Any] = []
        self.closed_with: int | None = None
        self.aborted = False
        self.open_ = asyncio.Event()
        self.error = error

    async def send_frame(self, message: bytes, opcode: WSMsgType) -> None:
        await self.open_.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(orjson.loads(message))

    async def close(self, *, code: int) -> None:
        self.closed_with = code

    def abort(self) -> None:
        self.aborted = True


def notice(number: int) -> msg.Notice:
    return msg.Notice(level="info", code=str(number))


def a_line(socket: FakeSocket, **limits: Any) -> SoftphoneLine:
    return SoftphoneLine(cast(web.WebSocketResponse, socket), cast(asyncio.Transport, socket), **limits)


async def test_what_is_pushed_goes_out_in_order_and_before_the_closing() -> None:
    socket = FakeSocket()
    socket.open_.set()
    line = a_line(socket)
    for number in range(3):
        line.push(notice(number))
    line.push_first(msg.Ok(id=1))
    line.hang_up(4409)
    line.hang_up(1000)
    line.push(notice(9))
    await line.write()
    assert [message.get("code", "welcome") for message in socket.sent] == ["welcome", "0", "1", "2"]
    assert socket.closed_with == 4409


async def test_a_push_wakes_the_writer() -> None:
    socket = FakeSocket()
    socket.open_.set()
    line = a_line(socket)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        tasks.create_task(line.write())
        await asyncio.sleep(0)
        line.push(notice(1))
        await asyncio.sleep(0)
        line.hang_up(1000)
    assert [message["code"] for message in socket.sent] == ["1"]


async def test_a_backlog_that_is_full_is_dropped_and_the_line_closed() -> None:
    socket = FakeSocket()
    line = a_line(socket, max_backlog=3)
    for number in range(100):
        line.push(notice(number))
    socket.open_.set()
    await line.write()
    assert (socket.sent, socket.closed_with) == ([], msg.CLOSE_TOO_MANY)


async def test_a_connection_that_is_stuck_is_cut() -> None:
    socket = FakeSocket()
    line = a_line(socket, send_s=0.01)
    line.push(notice(1))
    await line.write()
    assert socket.aborted


async def test_without_a_transport_there_is_nothing_to_cut() -> None:
    socket = FakeSocket()
    line = SoftphoneLine(cast(web.WebSocketResponse, socket), None, send_s=0.01)
    line.push(notice(1))
    await line.write()
    assert not socket.aborted


async def test_a_peer_that_is_gone_ends_the_writing() -> None:
    for error in (ConnectionResetError(), RuntimeError("closed")):
        socket = FakeSocket(error)
        socket.open_.set()
        line = a_line(socket)
        line.push(notice(1))
        await line.write()
        assert not socket.aborted


async def test_a_softphone_that_is_flooded_is_told_so() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        for number in range(600):
            world.hub.tell(None, notice(number))
        assert await socket.closed() == msg.CLOSE_TOO_MANY
        await world.until(lambda: world.hub.connected == 0)
