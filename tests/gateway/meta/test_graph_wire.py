"""Odd answers, secrets in errors, and the life of `GraphClient`'s connections."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable

import pytest
from aiohttp import web

from gateway.common.errors import GraphError, GraphUnreachable
from gateway.meta.graph_http import MAX_ANSWER_BYTES
from tests.support.fakes.graph_server import (
    ACCEPT,
    CONNECT,
    EVERY,
    REJECT,
    SDP,
    SUCCESS,
    TOKEN,
    Answer,
    Cut,
    Method,
    Server,
    a_server,
    client_of,
    hang,
    no,
    ok,
)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with a_server() as server:
        yield server


async def endless(request: web.BaseRequest) -> web.Response:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for _ in range(10_000):
        await response.write(b" " * 16_384)
    raise AssertionError("read to the end")


@pytest.mark.parametrize("answer", [endless, web.Response(body=b" " * (MAX_ANSWER_BYTES + 1))])
async def test_an_answer_without_end_is_not_read_to_its_end(server: Server, answer: Answer) -> None:
    server.answers = [answer]
    async with client_of(server.url) as client:
        with pytest.raises(GraphUnreachable, match="too large") as caught:
            await CONNECT(client)
    assert caught.value.maybe_sent


async def test_an_answer_that_breaks_off_is_a_cut(server: Server) -> None:
    async def half(request: web.BaseRequest) -> web.Response:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.answers = [half]
    async with client_of(server.url) as client:
        with pytest.raises(GraphUnreachable) as caught:
            await CONNECT(client)
    assert caught.value.maybe_sent


async def test_no_redirect_is_followed(server: Server) -> None:
    server.answers = [web.Response(status=307, headers={"Location": "/elsewhere"})]
    async with client_of(server.url) as client:
        with pytest.raises(GraphUnreachable):
            await CONNECT(client)
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", EVERY)
async def test_neither_token_nor_sdp_nor_number_is_in_any_error(server: Server, method: Method) -> None:
    server.answers = [no(100, f"{TOKEN} for 5511900000001: {SDP}")]
    async with client_of(server.url) as client:
        for answer in (server.answers[0], no(131000, f"{TOKEN}: {SDP}", 500), Cut()):
            server.answers = [answer]
            with pytest.raises(GraphError) as caught:
                await method(client)
            text = "".join(traceback.format_exception(caught.value)) + caught.value.public
            assert [canary for canary in ("CanaryToken", "CanaryIce", "900000001") if canary in text] == []


# --- life ----------------------------------------------------------------------------------------


async def test_a_closed_client_says_so() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        pass
    await client.aclose()
    with pytest.raises(GraphUnreachable, match="closed") as caught:
        await CONNECT(client)
    assert not caught.value.maybe_sent


async def test_closing_cuts_what_is_under_way_and_leaves_nothing(server: Server) -> None:
    server.answers = [hang]
    before = asyncio.all_tasks()
    async with client_of(server.url) as client, asyncio.TaskGroup() as group:
        task = group.create_task(_caught(CONNECT(client)))
        await server.arrived.wait()
        await client.aclose()
    assert isinstance(task.result(), GraphUnreachable)
    assert task.result().maybe_sent
    assert {task for task in asyncio.all_tasks() - before if "handle" not in repr(task)} == set()


async def _caught(awaitable: Awaitable[object]) -> GraphUnreachable:
    with pytest.raises(GraphUnreachable) as caught:
        await awaitable
    return caught.value


async def test_a_cancelled_request_stays_cancelled(server: Server) -> None:
    server.answers = [hang]
    async with client_of(server.url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ACCEPT(client)
    assert len(server.seen) == 1


async def test_a_connection_is_used_again(server: Server) -> None:
    server.answers = [ok(SUCCESS)]
    ports = set()

    async def note(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return ok(SUCCESS)

    server.answers = [note]
    async with client_of(server.url) as client:
        for _ in range(3):
            await REJECT(client)
    assert len(ports) == 1
