"""What `GraphClient` sends again, how often and how late, and what it leaves in doubt."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from gateway.common.errors import GraphRefused, GraphUnreachable
from gateway.meta.graph_http import Retries
from tests.support.fakes.clock import START, FakeClock
from tests.support.fakes.graph_server import (
    ACCEPT,
    CONNECT,
    MESSAGES,
    PERMISSIONS,
    REPEATABLE,
    SUCCESS,
    Answer,
    Cut,
    Method,
    Observed,
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


FAILURES = [
    Cut(),
    hang,
    ok({}, 500),
    ok({}, 502),
    no(131000, status=500),
    no(1, status=500),
    web.Response(text="<html>"),
]


@pytest.mark.parametrize("failure", FAILURES)
async def test_connect_is_sent_once_and_its_fate_is_left_open(server: Server, failure: Answer) -> None:
    server.answers = [failure]
    async with client_of(server.url, timeout_s=0.2) as client:
        with pytest.raises(GraphUnreachable) as caught:
            await CONNECT(client)
        assert caught.value.maybe_sent
        assert not caught.value.definite
        await asyncio.sleep(0.05)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_connect_is_not_repeated_after_a_definite_no_either(server: Server, status: int) -> None:
    server.answers = [no(138005, status=status)]
    async with client_of(server.url) as client:
        with pytest.raises(GraphRefused):
            await CONNECT(client)
    assert len(server.seen) == 1


async def test_connect_to_a_closed_port_was_certainly_not_sent(unused_tcp_port: int) -> None:
    async with client_of(f"http://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(GraphUnreachable) as caught:
            await CONNECT(client)
    assert not caught.value.maybe_sent
    assert caught.value.status == "not_connected"


@pytest.mark.parametrize(
    "error",
    [aiohttp.ClientConnectorDNSError, aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError],
)
def test_what_fails_before_there_is_a_connection_is_caught_as_not_connected(error: type[Exception]) -> None:
    assert issubclass(error, aiohttp.ClientConnectorError)


@pytest.mark.parametrize("method", REPEATABLE)
@pytest.mark.parametrize("failure", [*FAILURES[:5], no(131057, status=500), no(130429, status=400), ok({}, 429)])
async def test_others_are_repeated_until_they_succeed(server: Server, method: Method, failure: Answer) -> None:
    server.answers = [failure, failure, ok(SUCCESS)]
    async with client_of(server.url, timeout_s=0.3) as client:
        await method(client)
    assert len(server.seen) == 3


@pytest.mark.parametrize("method", REPEATABLE)
async def test_others_give_up_after_three_tries(server: Server, method: Method) -> None:
    observed: Observed = []
    server.answers = [Cut()]
    async with client_of(server.url, observed) as client:
        with pytest.raises(GraphUnreachable):
            await method(client)
    assert [status for _, status in observed] == ["cut"] * 3  # aiohttp itself may have sent a GET twice


async def test_others_give_up_when_their_time_is_over(server: Server) -> None:
    server.answers = [hang]
    retries = Retries(first_wait_s=0.001, jitter_s=0, within_s=0.05)
    async with client_of(server.url, timeout_s=0.2, retries=retries) as client:
        with pytest.raises(GraphUnreachable) as caught:
            await ACCEPT(client)
    assert caught.value.status == "timeout"
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", MESSAGES)
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_permission_request_that_may_have_arrived_is_not_sent_again(
    server: Server, method: Method, failure: Answer
) -> None:
    server.answers = [failure]
    async with client_of(server.url, timeout_s=0.2) as client:
        with pytest.raises(GraphUnreachable):
            await method(client)
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", MESSAGES)
async def test_a_permission_request_that_meta_had_no_time_for_is_sent_again(server: Server, method: Method) -> None:
    server.answers = [no(130429), ok({"messages": [{"id": "wamid.A"}]})]
    async with client_of(server.url) as client:
        assert await method(client) == "wamid.A"


async def test_a_short_wait_that_meta_asks_for_is_kept(server: Server) -> None:
    retries = Retries(max_wait_s=1.5, first_wait_s=30.0, jitter_s=0)
    server.answers = [no(613, status=429, **{"Retry-After": "1"}), ok({})]
    async with client_of(server.url, retries=retries) as client:
        started = asyncio.get_running_loop().time()
        await PERMISSIONS(client)
        assert 0.9 < asyncio.get_running_loop().time() - started < 2.5


async def test_a_long_wait_that_meta_asks_for_is_the_callers_business(server: Server) -> None:
    server.answers = [no(613, status=429, **{"Retry-After": "60"})]
    clock = FakeClock()
    async with client_of(server.url, clock=clock) as client:
        with pytest.raises(GraphRefused) as caught:
            await PERMISSIONS(client)
    assert caught.value.retry_at is not None
    assert (caught.value.retry_at - START).total_seconds() == 60
    assert len(server.seen) == 1


async def test_every_try_is_counted_with_its_status(server: Server) -> None:
    observed: Observed = []
    server.answers = [ok({}, 503), Cut(), hang]
    async with client_of(server.url, observed, timeout_s=0.3) as client:
        with pytest.raises(GraphUnreachable):
            await ACCEPT(client)
    assert observed == [("accept", "503"), ("accept", "cut"), ("accept", "timeout")]


async def test_a_refusal_is_counted_with_its_status(server: Server) -> None:
    observed: Observed = []
    server.answers = [no(138006, status=401)]
    async with client_of(server.url, observed) as client:
        with pytest.raises(GraphRefused):
            await CONNECT(client)
    assert observed == [("connect", "401")]
