"""A TCP proxy that can delay, throttle, stall, cut and refuse connections.

Works with TCP and Unix sockets, on this machine only, on plain bytes. Every fault can be switched on and off while
connections are open; random choices come from a seed. For faults in UDP see `udp_chaos.py`.

    async with TcpChaos(("127.0.0.1", 8080)) as proxy:
        ...  # http://127.0.0.1:{proxy.port}
        proxy.delay_s = 2.0  # or: silence(), speak(), cut(), await refuse(), await open(), bytes_per_s, cut_share
"""

import asyncio
import random
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from loadtest.common.guard import check_host

#: Host and port, or the path of a Unix socket.
Place: TypeAlias = tuple[str, int] | Path

_CHUNK_BYTES: Final = 65_536
#: Most chunks queued for one direction of one connection; beyond it, nothing more is read (back-pressure).
_QUEUED: Final = 256
#: Interval at which a throttled direction passes bytes on.
_DRIP_S: Final = 0.02
_CLOSE_S: Final = 5.0
#: Longest time until a delayed chunk notices that its connection is gone.
_LOOK_S: Final = 0.1


class TcpChaos:
    """Forwards bytes and injects faults. An async context manager, or call `open()` and `close()`."""

    def __init__(self, target: Place, *, listen: Place = ("127.0.0.1", 0), seed: int = 1) -> None:
        """Raises: NotLoopback."""
        for place in (target, listen):
            if not isinstance(place, Path):
                check_host(place[0])
        self._target, self._listen = target, listen
        self._random = random.Random(seed)
        #: Connections accepted so far, and how many of them `cut_share` has cut.
        self.connections = self.cuts = 0
        #: Delay of every chunk in each direction, and the most that is added to it at random.
        self.delay_s = self.jitter_s = 0.0
        #: Throughput limit of each direction of each connection; None: no limit.
        self.bytes_per_s: int | None = None
        #: Probability (0 to 1) that a chunk from the client is dropped and its connection cut.
        self.cut_share = 0.0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing, self._answering = asyncio.Event(), asyncio.Event()
        self._last_words = self._cutting_words = b""
        self._idle = asyncio.Event()
        self._idle.set()
        self.speak()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def port(self) -> int:
        """The TCP port of the proxy; it stays the same after `refuse` and `open`."""
        assert not isinstance(self._listen, Path)
        return self._listen[1]

    async def open(self) -> None:
        """Accept connections (again)."""
        if isinstance(self._listen, Path):
            self._server = await asyncio.start_unix_server(self._serve, self._listen)
        else:
            host, port = self._listen
            self._server = await asyncio.start_server(self._serve, host, port)
            self._listen = host, self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Accept no more connections and cut the open ones, like a server that is down."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if isinstance(self._listen, Path):
            self._listen.unlink(missing_ok=True)
        self.cut()

    def cut(self) -> None:
        """Cut all connections; new ones are accepted."""
        _abort(self._writers)

    def silence(self) -> None:
        """Keep the connections but forward nothing, like a machine that hangs."""
        self._flowing.clear()
        self._answering.clear()

    def silence_answer_to(self, words: bytes) -> None:
        """Once the client has sent `words`, hold back all answers, starting with the answer to them."""
        self._last_words = words

    def cut_at(self, words: bytes) -> None:
        """Cut all connections once, when the client sends `words`; they are not forwarded."""
        self._cutting_words = words

    def speak(self) -> None:
        """Forward again after any kind of silence."""
        self._flowing.set()
        self._answering.set()
        self._last_words = b""

    async def close(self) -> None:
        """Refuse connections and return when all are gone. Idempotent."""
        await self.refuse()
        self.speak()
        async with asyncio.timeout(_CLOSE_S):
            await self._idle.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        if self._server is None:  # closed in the meantime
            _abort(pair)
            return
        self._writers |= pair
        self._idle.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass_on(reader, far_writer, pair, asks=True))
                tasks.create_task(self._pass_on(far_reader, writer, pair, asks=False))
        finally:
            self._writers -= pair
            if not self._writers:
                self._idle.set()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: Collection[asyncio.StreamWriter],
        *,
        asks: bool,
    ) -> None:
        """Forward one direction until it ends, and then close the other side's connection too."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_in(reader, queue, pair if asks else ()))
            tasks.create_task(self._let_out(queue, writer, self._flowing if asks else self._answering))
        writer.transport.abort() if reader.exception() else writer.close()

    async def _take_in(
        self,
        reader: asyncio.StreamReader,
        queue: asyncio.Queue[tuple[float, bytes]],
        asking: Collection[asyncio.StreamWriter],
    ) -> None:
        """Queue what the reader gives. `asking`: both ends if this is the direction of the requests, else empty."""
        loop, due_at = asyncio.get_running_loop(), 0.0
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if asking and self._swallows(data, asking):
                    continue
                wait_s = self.delay_s + self._random.uniform(0.0, self.jitter_s)
                due_at = max(due_at, loop.time() + wait_s)  # a chunk must not overtake the one before
                await queue.put((due_at, data))
        await queue.put((due_at, b""))

    def _swallows(self, data: bytes, pair: Collection[asyncio.StreamWriter]) -> bool:
        """Return whether a chunk of a request is to be dropped; cut the connections that the faults call for."""
        if self._last_words and self._last_words in data:
            self._answering.clear()
        if self._cutting_words and self._cutting_words in data:
            self._cutting_words = b""
            self.cut()
            return True
        if self.cut_share and self._random.random() < self.cut_share:
            self.cuts += 1
            _abort(pair)
            return True
        return False

    async def _let_out(
        self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_at, data = await queue.get()
            while (left_s := due_at - loop.time()) > 0 and not writer.is_closing():  # noqa: ASYNC110  no event tells of both
                await asyncio.sleep(min(left_s, _LOOK_S))
            if not data:
                return
            await gate.wait()
            with suppress(OSError):  # the connection is cut: drop the rest
                async for part in self._drops(data):
                    writer.write(part)
                    await writer.drain()

    async def _drops(self, data: bytes) -> AsyncIterator[bytes]:
        """Yield the data at the allowed rate."""
        while data:
            if self.bytes_per_s is None:
                yield data
                return
            step = max(1, int(self.bytes_per_s * _DRIP_S))
            yield data[:step]
            data = data[step:]
            await asyncio.sleep(step / self.bytes_per_s)


def _abort(writers: Collection[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.transport.abort()
