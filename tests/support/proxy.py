"""A Unix socket between the store and its server, to cut, to refuse and to silence."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Passes bytes on, until told otherwise. `connections` counts those accepted so far."""

    def __init__(self, server_dir: Path, own_dir: Path, database: str) -> None:
        self.dsn = f"postgresql://postgres@/{database}?host={own_dir}&port=5432"
        self.connections = 0
        self._target, self._own = server_dir / _SOCKET, own_dir / _SOCKET
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing, self._answering = asyncio.Event(), asyncio.Event()
        self._last_words = self._cutting_words = b""
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self) -> None:
        """Take connections."""
        self.speak()
        self._server = await asyncio.start_unix_server(self._serve, self._own)

    async def refuse(self) -> None:
        """Take no more connections, and cut those there are: the server is gone."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._own.unlink(missing_ok=True)
        self.cut()

    def cut(self) -> None:
        """Cut all connections; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Keep the connections, pass nothing on: the machine hangs."""
        self._flowing.clear()
        self._answering.clear()

    def silence_answer_to(self, words: bytes) -> None:
        """Once `words` were asked, keep back whatever is answered, that answer included."""
        self._last_words = words

    def cut_at(self, words: bytes) -> None:
        """Cut all connections once, when `words` are asked."""
        self._cutting_words = words

    def speak(self) -> None:
        self._flowing.set()
        self._answering.set()
        self._last_words = b""

    async def close(self) -> None:
        await self.refuse()
        self.speak()
        async with asyncio.timeout(5):
            await self._idle.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        self._idle.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, far_writer, self._flowing))
                tasks.create_task(self._pump(far_reader, writer, self._answering))
        finally:
            self._writers -= pair
            if not self._writers:
                self._idle.set()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await gate.wait()
                if gate is self._flowing and self._last_words and self._last_words in data:
                    self._answering.clear()
                if gate is self._flowing and self._cutting_words and self._cutting_words in data:
                    self._cutting_words = b""
                    self.cut()
                writer.write(data)
                await writer.drain()
        writer.transport.abort() if reader.exception() else writer.close()


@asynccontextmanager
async def proxy_to(dsn: str) -> AsyncIterator[Proxy]:
    """Yield an open proxy to the database of `dsn` (on a Unix socket)."""
    head, _, query = dsn.partition("?host=")
    own_dir = Path(tempfile.mkdtemp(prefix="proxy-"))
    proxy = Proxy(Path(query.partition("&")[0]), own_dir, head.rpartition("/")[2])
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
        shutil.rmtree(own_dir, ignore_errors=True)
