"""A proxy on a Unix socket between the store and its server, to cut, to refuse, to slow down and to silence."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from loadtest.net.tcp_chaos import Place, TcpChaos

_SOCKET: Final = ".s.PGSQL.5432"


class Proxy(TcpChaos):
    """`TcpChaos` before a PostgreSQL server, with the DSN to go through it."""

    def __init__(self, dsn: str, own_dir: Path) -> None:
        url = urlsplit(dsn)
        folder = parse_qs(url.query).get("host")
        server: Place = Path(folder[0], _SOCKET) if folder else (url.hostname or "127.0.0.1", url.port or 5432)
        super().__init__(server, listen=own_dir / _SOCKET)
        who = url.netloc.rpartition("@")[0] or "postgres"
        self.dsn = f"postgresql://{who}@{url.path}?host={own_dir}&port=5432"


@asynccontextmanager
async def proxy_to(dsn: str) -> AsyncIterator[Proxy]:
    """Yield an open proxy to the database of `dsn`."""
    own_dir = Path(tempfile.mkdtemp(prefix="proxy-"))
    try:
        async with Proxy(dsn, own_dir) as proxy:
            yield proxy
    finally:
        shutil.rmtree(own_dir, ignore_errors=True)
