"""A proxy between a running gateway and its embedded PostgreSQL that can delay and stall it.

PostgreSQL listens on a Unix socket. The socket is renamed, the proxy takes its place, and existing connections are
ended, so that the gateway reconnects through the proxy.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import asyncpg

from loadtest.measure.process import children, postmaster
from loadtest.measure.stack import Stack
from loadtest.net.tcp_chaos import TcpChaos

#: asyncpg is untyped.
_driver: Any = asyncpg
_SOCKET: Final = ".s.PGSQL.5432"
_DATABASE: Final = "gateway"
_SETTLE_S: Final = 20.0
_LOOK_S: Final = 0.05


class Database:
    """A gateway's PostgreSQL behind a proxy."""

    def __init__(self, stack: Stack, folder: Path, proxy: TcpChaos) -> None:
        self._stack, self._folder, self._proxy = stack, folder, proxy

    def be_late(self, seconds: float) -> None:
        """Delay everything by this many seconds."""
        self._proxy.delay_s = seconds / 2  # half in each direction

    def be_silent(self, seconds: float) -> None:
        """Forward nothing for this many seconds."""
        if seconds:
            self._proxy.silence()
            asyncio.get_running_loop().call_later(seconds, self._proxy.speak)

    async def events(self) -> int:
        """Return the number of events on disk, once the gateway has written all it accepted. Raises: TimeoutError."""
        self.be_late(0)
        self._proxy.speak()
        await _until_written(self._stack)
        connection: Any = await _driver.connect(host=str(self._folder), user="postgres", database=_DATABASE)
        try:
            return int(await connection.fetchval("select count(*) from events"))
        finally:
            await connection.close()


@asynccontextmanager
async def between(stack: Stack) -> AsyncIterator[Database]:
    """Put the proxy in place; remove it at the end. Raises: OSError, TimeoutError."""
    assert stack.config.data_dir is not None
    server = postmaster(stack.config.data_dir)
    assert server is not None, "the gateway must run its embedded PostgreSQL"
    folder = _socket_folder(stack.config.data_dir)
    socket, moved = folder / _SOCKET, folder / f"{_SOCKET}.moved"
    socket.rename(moved)
    try:
        async with TcpChaos(moved, listen=socket) as proxy:
            _end_connections(server)
            await stack.sim.until(lambda: proxy.connections > 0, timeout_s=_SETTLE_S)
            await _until_written(stack)
            yield Database(stack, folder, proxy)
    finally:
        moved.rename(socket)


def _socket_folder(data_dir: Path) -> Path:
    """Return the folder of the server's socket: line 5 of its pid file."""
    return Path((data_dir / "postgres" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[4])


def _end_connections(server: int) -> None:
    for pid in children(server):
        with suppress(OSError):
            if b"[local]" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)


async def _until_written(stack: Stack) -> None:
    """Wait until the gateway is connected to its database and has written everything. Raises: TimeoutError."""
    async with asyncio.timeout(_SETTLE_S):
        while True:
            figures = await stack.metrics()
            if figures["wacg_store_up"] and not figures["wacg_spool_deliveries"] and not figures["wacg_store_backlog"]:
                return
            await asyncio.sleep(_LOOK_S)
