"""HTTP/1.1 client for load generation: many small requests to one URL over kept-alive connections.

A request is one write; a response is parsed once its bytes are there. This is several times cheaper than a general
client, so that the generator does not limit what it measures. No redirects, cookies, proxies or compression.

    async with HttpClient("http://127.0.0.1:8080/webhooks/meta", timeout_s=20) as client:
        answer = await client.request("POST", {"Content-Type": "application/json"}, b"{}")
"""

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypedDict, cast

from yarl import URL

#: Longest accepted response; the requests here are small.
_MAX_ANSWER_BYTES: Final = 1 << 20
#: Connections idle for longer (up to twice that) are closed: a NAT or proxy on the way may have dropped them.
_IDLE_S: Final = 15.0
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})[ \r]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_BODILESS: Final = (204, 304)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response."""

    status: int
    body: bytes
    #: Whether the connection can be reused.
    kept: bool = True


class Place(TypedDict):
    """Address of a server, as the arguments of `loop.create_connection`."""

    host: str
    port: int
    ssl: ssl.SSLContext | None


def place(url: URL) -> Place:
    """Return the server address of a URL. Raises: ValueError."""
    if url.scheme not in ("http", "https") or not url.host or not url.port:
        raise ValueError(f"{str(url)!r} is not an http or https URL")
    return Place(host=url.host, port=url.port, ssl=ssl.create_default_context() if url.scheme == "https" else None)


def read_answer(data: bytes, *, ended: bool = False) -> Answer | None:
    """Return the response in these bytes, or None if it is incomplete; `ended`: no more bytes will come.

    Raises: ValueError if the bytes are not exactly one response.
    """
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head, body = data[: head_end + 2], data[head_end + 4 :]
    line = _STATUS.match(head)
    if line is None:
        raise ValueError("not HTTP/1.x")
    status, kept = int(line[2]), line[1] == b"1" and _CLOSE.search(head) is None
    if status < 200:
        raise ValueError(f"unexpected status {status}")
    if _CHUNKED.search(head):
        whole = _join_chunks(body)
        return None if whole is None else Answer(status, whole, kept)
    length = _LENGTH.search(head)
    if length is None and status not in _BODILESS:
        return Answer(status, body, kept=False) if ended else None
    missing = (int(length[1]) if length and status not in _BODILESS else 0) - len(body)
    if missing < 0:
        raise ValueError("more than one response")
    return None if missing else Answer(status, body, kept)


def _join_chunks(data: bytes) -> bytes | None:
    """Return the decoded body of a chunked response, or None if it is incomplete. Raises: ValueError."""
    parts: list[bytes] = []
    at = 0
    while size := _CHUNK.match(data, at):
        count, at = int(size[1], 16), size.end()
        if count == 0:  # trailers, if any, also end with an empty line
            return b"".join(parts) if data.endswith(b"\r\n\r\n") else None
        parts.append(data[at : at + count])
        at += count + 2
    if b"\r\n" in data[at:]:
        raise ValueError("malformed chunk")
    return None


class _Connection(asyncio.Protocol):
    """One connection; at most one request is in flight on it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[Answer] | None = None
        #: Set when the connection is closed.
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.used_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    @property
    def usable(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return its response. Raises: ConnectionError."""
        assert self._transport is not None, "not connected"
        self._received, self._answer = b"", self._loop.create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        self._look()

    def connection_lost(self, failure: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._look(ended=True)
        self._fail("the connection was closed before the response")
        self.lost.set_result(None)

    def _look(self, *, ended: bool = False) -> None:
        """Check whether the response is complete."""
        try:
            if self._answer is None:
                raise ValueError("unsolicited response")
            if len(self._received) > _MAX_ANSWER_BYTES:
                raise ValueError("response too long")
            answer = read_answer(self._received, ended=ended)
        except ValueError as mistake:
            self._fail(str(mistake))
            self.close()
        else:
            if answer is not None and not self._answer.done():
                self._answer.set_result(answer)

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(why))

    def close(self) -> None:
        """Close the connection; `lost` is set when that is done."""
        if self._transport is not None:
            self._transport.abort()


class HttpClient:
    """Sends requests to one URL. An async context manager; otherwise call `close()` at the end."""

    def __init__(self, url: str, *, timeout_s: float, limit: int | None = None) -> None:
        """`limit`: most connections at a time; further requests wait, within their time-out. Raises: ValueError."""
        self._url = URL(url)
        self._place = place(self._url)
        self._timeout_s = timeout_s
        self._places = None if limit is None else asyncio.Semaphore(limit)
        self._open: set[_Connection] = set()
        #: In order of last use; the most recent one is used next.
        self._idle: list[_Connection] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def request(
        self, method: str, headers: Mapping[str, str], body: bytes = b"", *, query: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and return its response, whatever its status.

        Raises: OSError (ConnectionError, TimeoutError).
        """
        url = self._url if query is None else self._url.update_query(query)
        lines = [
            f"{method} {url.raw_path_qs} HTTP/1.1",
            f"Host: {url.host_port_subcomponent}",
            "Accept: */*",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        request = "\r\n".join((*lines, "", "")).encode("ascii") + body
        async with asyncio.timeout(self._timeout_s):
            if self._places is None:
                return await self._ask(request)
            async with self._places:
                return await self._ask(request)

    async def _ask(self, request: bytes) -> Answer:
        connection = self._idle_one() or await self._connect()
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        if answer.kept:
            self._keep(connection)
        else:
            connection.close()
        return answer

    def _idle_one(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, **self._place)
        self._open.add(connection)
        connection.lost.add_done_callback(lambda _: self._open.discard(connection))
        return connection

    def _keep(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        connection.used_at = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_IDLE_S, self._sweep)

    def _sweep(self) -> None:
        """Close connections that have been idle for too long."""
        loop = asyncio.get_running_loop()
        old_at = loop.time() - _IDLE_S
        for connection in self._idle:
            if connection.used_at <= old_at:
                connection.close()
        self._idle = [connection for connection in self._idle if connection.usable]
        self._sweeper = loop.call_later(_IDLE_S, self._sweep) if self._idle else None

    async def close(self) -> None:
        """Close all connections, including those in use. The next request opens a new one."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        leaving = list(self._open)
        for connection in leaving:
            connection.close()
        if leaving:
            await asyncio.wait([connection.lost for connection in leaving])
