"""The generator's HTTP client: what it takes for an answer, which connections it keeps, and how it fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from loadtest.measure.stack import free_port
from loadtest.net import http_client
from loadtest.net.http_client import Answer, HttpClient, read_answer
from tests.loadtest.helpers import callback, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (OK, Answer(200, b"hi")),
        (b"HTTP/1.1 500 \r\ncontent-length:0\r\nX: y\r\n\r\n", Answer(500, b"")),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Answer(200, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204, b"")),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Answer(304, b"")),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx", Answer(200, b"x", kept=False)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", Answer(200, b"x", kept=False)),
        (b"HTTP/1.1 200 OK\r\nX: Content-Length: 9\r\nContent-Length: 1\r\n\r\nx", Answer(200, b"x")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Answer(200, b"")),
        (
            b"HTTP/1.1 200\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0\r\n\r\n67890\r\n0\r\nT:\r\n\r\n",
            Answer(200, b"abc0\r\n\r\n67890"),
        ),
    ],
)
def test_an_answer_is_read_once_all_of_it_is_there(data: bytes, expected: Answer) -> None:
    assert read_answer(data) == expected
    assert [read_answer(data[:length]) for length in range(len(data))] == [None] * len(data)


def test_an_answer_without_a_length_lasts_until_the_connection_ends() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nhalf a "
    assert read_answer(data) is None
    assert read_answer(data + b"page", ended=True) == Answer(200, b"half a page", kept=False)


def test_half_an_answer_stays_half_when_the_connection_ends() -> None:
    assert read_answer(OK[:-1], ended=True) is None
    assert read_answer(b"", ended=True) is None


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        OK + b"x",
        OK + OK,
        b"HTTP/1.1 204 No Content\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    ],
)
def test_what_is_no_answer_is_not_taken_for_one(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"HTTP|response|chunk|unexpected status"):
        read_answer(data)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1:80", "http:///hook", "/hook", ""])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"http|URL"):
        HttpClient(url, timeout_s=1)


# --- against a server ------------------------------------------------------------------------------

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Reads requests whole and lets `handle` answer them."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self.requests: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.ended = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._handle(self.requests[-1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended += 1
        finally:
            writer.close()


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[Server]:
    server = Server(handle)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hook?x=1"
    try:
        yield server
    finally:
        listener.close()
        await until(lambda: all(writer.is_closing() for writer in server.writers))


async def hi(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def nothing(request: bytes, writer: asyncio.StreamWriter) -> None:
    pass


async def test_a_connection_is_used_again() -> None:
    async with serving(hi) as server, HttpClient(server.url, timeout_s=5) as client:
        for body in (b"one", b"", b"three"):
            assert await client.request("POST", {"X-Sent": "yes"}, body) == Answer(200, b"hi")
        assert len(server.writers) == 1
        assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [b"one", b"", b"three"]
        assert server.requests[0].startswith(b"POST /hook?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nX-Sent: yes\r\n" in server.requests[0]


async def test_a_query_is_added_and_quoted() -> None:
    async with callback() as server, HttpClient(server.url, timeout_s=5) as client:
        query = {"hub.mode": "subscribe", "hub.verify_token": "simulated-verify-token", "hub.challenge": "a b&c"}
        assert await client.request("GET", {}, query=query) == Answer(200, b"a b&c")


async def test_requests_at_once_have_a_connection_each_up_to_the_limit() -> None:
    asked = 0

    async def slow(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.02)
        writer.write(OK)

    async with serving(slow) as server, HttpClient(server.url, timeout_s=5, limit=3) as client:
        answers = await asyncio.gather(*(client.request("POST", {}) for _ in range(9)))
        assert answers == [Answer(200, b"hi")] * 9
        assert (len(server.writers), asked) == (3, 9)


async def test_an_answer_may_come_in_pieces() -> None:
    async def dripping(request: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in OK:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.001)

    async with serving(dripping) as server, HttpClient(server.url, timeout_s=5) as client:
        assert await client.request("POST", {}) == Answer(200, b"hi")


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    async def closing(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))

    async with serving(closing) as server, HttpClient(server.url, timeout_s=5) as client:
        for _ in range(2):
            assert (await client.request("POST", {})).status == 200
        assert len(server.writers) == 2
        await until(lambda: server.ended == 2)


async def test_an_idle_connection_that_is_lost_is_replaced() -> None:
    async with serving(hi) as server, HttpClient(server.url, timeout_s=5) as client:
        await client.request("POST", {})
        server.writers[0].close()
        await until(lambda: not client._open)
        assert (await client.request("POST", {})).status == 200
        assert len(server.writers) == 2


async def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async with serving(hi) as server, HttpClient(server.url, timeout_s=5) as client:
        await client.request("POST", {})
        server.writers[0].write(OK)
        await until(lambda: server.ended == 1)
        assert (await client.request("POST", {})).status == 200


async def test_no_answer_in_time_is_a_timeout_and_costs_the_connection() -> None:
    async with serving(nothing) as server, HttpClient(server.url, timeout_s=0.05) as client:
        with pytest.raises(TimeoutError):
            await client.request("POST", {})
        await until(lambda: server.ended == 1)


async def test_waiting_for_a_connection_counts_as_time() -> None:
    async with serving(nothing) as server, HttpClient(server.url, timeout_s=0.05, limit=1) as client:
        assert client._places is not None
        async with client._places:  # another request that ended no sooner would have it
            with pytest.raises(TimeoutError):
                await client.request("POST", {})
        assert not server.requests


@pytest.mark.parametrize("said", [b"", OK[:-1], b"nonsense\r\n\r\n", OK + b"more", b"x" * ((1 << 20) + 1)])
async def test_what_is_no_answer_is_a_connection_error(said: bytes) -> None:
    async def broken(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async with serving(broken) as server, HttpClient(server.url, timeout_s=5) as client:
        with pytest.raises(ConnectionError):
            await client.request("POST", {})


async def test_an_answer_may_end_with_its_connection() -> None:
    async def old(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nolder than lengths")
        writer.close()

    async with serving(old) as server, HttpClient(server.url, timeout_s=5) as client:
        assert (await client.request("POST", {})).body == b"older than lengths"


async def test_nobody_listening_is_an_os_error() -> None:
    async with HttpClient(f"http://127.0.0.1:{free_port()}/", timeout_s=5) as client:
        with pytest.raises(ConnectionRefusedError):
            await client.request("POST", {})


async def test_a_request_that_is_cancelled_leaves_no_connection() -> None:
    async with serving(nothing) as server, HttpClient(server.url, timeout_s=5) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.request("POST", {})
        await until(lambda: server.ended == 1 and not client._open)


async def test_what_was_not_used_for_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_IDLE_S", 0.05)
    async with serving(hi) as server, HttpClient(server.url, timeout_s=5) as client:
        await asyncio.gather(client.request("POST", {}), client.request("POST", {}))
        await until(lambda: server.ended == 2)
        assert not client._open
        assert (await client.request("POST", {})).status == 200


async def test_what_is_used_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_IDLE_S", 0.2)
    async with serving(hi) as server, HttpClient(server.url, timeout_s=5) as client:
        for _ in range(25):
            await client.request("POST", {})
            await asyncio.sleep(0.02)
        assert len(server.writers) == 1


async def test_closing_closes_all_and_may_be_repeated() -> None:
    async with serving(hi) as server:
        client = HttpClient(server.url, timeout_s=5)
        await asyncio.gather(*(client.request("POST", {}) for _ in range(4)))
        await client.close()
        await client.close()
        await until(lambda: server.ended == 4)
        assert (await client.request("POST", {})).status == 200  # anew
        await client.close()


async def test_a_usual_server_is_understood() -> None:
    async def chunks(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(status=201)
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for part in (b"a" * 1_000, b"", b"b" * 70_000):
            await answer.write(part)
        await answer.write_eof()
        return answer

    app = web.Application()
    app.add_routes([web.post("/", chunks)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with HttpClient(f"http://127.0.0.1:{runner.addresses[0][1]}/", timeout_s=5) as client:
        for _ in range(2):
            assert await client.request("POST", {}, b"{}") == Answer(201, b"a" * 1_000 + b"b" * 70_000)
        assert len(client._open) == 1
    await runner.cleanup()
