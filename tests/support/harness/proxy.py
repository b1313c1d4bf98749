"""A proxy on a Unix socket between the store and its server, to cut, to refuse, to slow down and to silence."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from loadtest.net.tcp_chaos import TcpChaos

_SOCKET: Final = ".s.PGSQL.5432"


class Proxy(TcpChaos):
    """`TcpChaos` before a PostgreSQL server, with the DSN to go through it."""

    def __init__(self, server_dir: Path, own_dir: Path, database: str) -> None:
        super().__init__(server_dir / _SOCKET, listen=own_dir / _SOCKET)
        self.dsn = f"postgresql://postgres@/{database}?host={own_dir}&port=5432"


@asynccontextmanager
async def proxy_to(dsn: str) -> AsyncIterator[Proxy]:
    """Yield an open proxy to the database of `dsn` (on a Unix socket)."""
    head, _, query = dsn.partition("?host=")
    own_dir = Path(tempfile.mkdtemp(prefix="proxy-"))
    try:
        async with Proxy(Path(query.partition("&")[0]), own_dir, head.rpartition("/")[2]) as proxy:
            yield proxy
    finally:
        shutil.rmtree(own_dir, ignore_errors=True)
