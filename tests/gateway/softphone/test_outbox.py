"""A phone that does not read holds up nobody and fills no memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
from aiohttp import WSMsgType, web

from gateway.softphone.outbox import ROOM_BYTES, Outbox
from gateway.wire import messages as msg
from tests.support.harness.doors import doors
from tests.support.harness.waiting import until
from tests.support.harness.world import a_world


class FakeSocket:
    """Takes frames as fast as `open_` lets it; is also the transport beneath, which holds `buffered` bytes."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[Any] = []
        self.closed_with: int | None = None
        self.aborted = False
        self.buffered = 0
        self.open_ = asyncio.Event()
        self.error = error

    async def send_frame(self, message: bytes, opcode: WSMsgType) -> None:
        await self.open_.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(orjson.loads(message))

    async def close(self, *, code: int) -> None:
        self.closed_with = code

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def abort(self) -> None:
        self.aborted = True


def notice(number: int) -> msg.Notice:
    return msg.Notice(level="info", code=str(number))


def an_outbox(socket: FakeSocket, **limits: Any) -> Outbox:
    return Outbox(cast(web.WebSocketResponse, socket), cast(asyncio.Transport, socket), **limits)


@asynccontextmanager
async def a_welcomed_outbox(socket: FakeSocket) -> AsyncIterator[Outbox]:
    """Yield an outbox whose welcome is out, and close it."""
    socket.open_.set()
    outbox = an_outbox(socket)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        tasks.create_task(outbox.write())
        outbox.push_first(msg.Ok(id=1))
        await until(lambda: bool(socket.sent), timeout_s=5.0, every_s=0)
        socket.sent.clear()
        yield outbox
        outbox.hang_up(1000)


def codes(socket: FakeSocket) -> list[str]:
    return [message["code"] for message in socket.sent]


async def test_what_is_pushed_goes_out_in_order_and_before_the_closing() -> None:
    socket = FakeSocket()
    socket.open_.set()
    outbox = an_outbox(socket)
    for number in range(3):
        outbox.push(notice(number))
    outbox.push_first(msg.Ok(id=1))
    outbox.hang_up(4409)
    outbox.hang_up(1000)
    outbox.push(notice(9))
    await outbox.write()
    assert [message.get("code", "welcome") for message in socket.sent] == ["welcome", "0", "1", "2"]
    assert socket.closed_with == 4409


async def test_a_push_wakes_the_writer() -> None:
    socket = FakeSocket()
    socket.open_.set()
    outbox = an_outbox(socket)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        tasks.create_task(outbox.write())
        await asyncio.sleep(0)
        outbox.push(notice(1))
        await asyncio.sleep(0)
        outbox.hang_up(1000)
    assert [message["code"] for message in socket.sent] == ["1"]


async def test_what_the_connection_takes_is_out_at_once() -> None:
    socket = FakeSocket()
    async with a_welcomed_outbox(socket) as outbox:
        outbox.push(notice(1))
        outbox.send(msg.encode(notice(2)))
        assert codes(socket) == ["1", "2"]


async def test_nothing_is_sent_before_the_welcome() -> None:
    socket = FakeSocket()
    outbox = an_outbox(socket)
    outbox.push(notice(1))
    assert socket.sent == []


async def test_what_does_not_fit_waits_and_nothing_overtakes_it() -> None:
    socket = FakeSocket()
    async with a_welcomed_outbox(socket) as outbox:
        socket.buffered = ROOM_BYTES
        outbox.push(notice(1))
        socket.buffered = 0
        outbox.push(notice(2))
        assert socket.sent == []
        await asyncio.sleep(0)
        outbox.push(notice(3))
        assert codes(socket) == ["1", "2", "3"]


async def test_nothing_overtakes_what_is_being_sent() -> None:
    socket = FakeSocket()
    async with a_welcomed_outbox(socket) as outbox:
        socket.open_.clear()
        socket.buffered = ROOM_BYTES
        outbox.push(notice(1))
        await asyncio.sleep(0)  # it is in hand now
        socket.buffered = 0
        outbox.push(notice(2))
        socket.open_.set()
        outbox.push(notice(3))
        await until(lambda: len(socket.sent) == 3, timeout_s=5.0, every_s=0)
        assert codes(socket) == ["1", "2", "3"]


async def test_a_message_larger_than_the_room_waits() -> None:
    socket = FakeSocket()
    async with a_welcomed_outbox(socket) as outbox:
        outbox.push(msg.Notice(level="info", code="1", detail="x" * ROOM_BYTES))
        assert socket.sent == []
        outbox.push(notice(2))
        await asyncio.sleep(0)
        assert codes(socket) == ["1", "2"]


async def test_a_peer_that_is_gone_hurts_nobody_who_sends() -> None:
    for error in (ConnectionResetError(), RuntimeError("closed")):
        socket = FakeSocket()
        async with a_welcomed_outbox(socket) as outbox:
            socket.error = error
            outbox.push(notice(1))
            outbox.push(notice(2))
        assert socket.sent == []
        assert socket.closed_with is not None


async def test_a_backlog_that_is_full_is_dropped_and_the_line_closed() -> None:
    socket = FakeSocket()
    outbox = an_outbox(socket, max_backlog=3)
    for number in range(100):
        outbox.push(notice(number))
    socket.open_.set()
    await outbox.write()
    assert (socket.sent, socket.closed_with) == ([], msg.CLOSE_TOO_MANY)


async def test_a_connection_that_is_stuck_is_cut() -> None:
    socket = FakeSocket()
    outbox = an_outbox(socket, send_s=0.01)
    outbox.push(notice(1))
    await outbox.write()
    assert socket.aborted


async def test_without_a_transport_there_is_nothing_to_cut() -> None:
    socket = FakeSocket()
    outbox = Outbox(cast(web.WebSocketResponse, socket), None, send_s=0.01)
    outbox.push(notice(1))
    await outbox.write()
    assert not socket.aborted


async def test_a_peer_that_is_gone_ends_the_writing() -> None:
    for error in (ConnectionResetError(), RuntimeError("closed")):
        socket = FakeSocket(error)
        socket.open_.set()
        outbox = an_outbox(socket)
        outbox.push(notice(1))
        await outbox.write()
        assert not socket.aborted


async def test_a_softphone_that_is_flooded_is_told_so() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login(leg=False)
        for number in range(2_000):  # more than the kernel and the backlog hold
            world.hub.tell_all(msg.Notice(level="info", code=str(number), detail="x" * 20_000))
        assert await socket.closed() == msg.CLOSE_TOO_MANY
        await world.until(lambda: world.hub.connected == 0)
