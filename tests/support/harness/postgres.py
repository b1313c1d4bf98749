"""A PostgreSQL server for the whole test run, and an empty migrated database for each test.

The server is the one that comes with the gateway, or the one that TEST_POSTGRES_URL names: of any version from 14 on,
with a role that may create databases, e.g. `TEST_POSTGRES_URL=postgresql://postgres@127.0.0.1:5432/postgres make test`.
Several test processes may share it, and all that they make there is dropped. What is tested of the server that comes
along (`tests/gateway/store/test_embedded.py` for example) has that one all the same.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import pytest
import pytest_asyncio

from gateway.store.embedded import EmbeddedServer
from gateway.store.migrations import migrate
from gateway.store.postgres import driver

EXTERNAL: Final = "TEST_POSTGRES_URL"
#: Nothing here has to survive the machine. (What must survive a killed server does so without fsync.)
FAST = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_wal_size": "1GB"}

_names = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server where databases can be made."""

    dsn_of: Callable[[str], str]
    #: A database with all migrations, to copy. Each session of each folder's tests has its own.
    template: str = field(default_factory=lambda: f"template_{os.getpid()}_{next(_names)}")


def _external(url: str) -> Server:
    return Server(dsn_of=lambda database: urlsplit(url)._replace(path=f"/{quote(database, safe='')}").geturl())


async def execute(dsn: str, sql: str, *args: object) -> Any:
    """Run one query on a connection of its own."""
    connection = await driver.connect(dsn, timeout=10)
    try:
        return await connection.fetch(sql, *args)
    finally:
        await connection.close(timeout=10)


async def _make_template(server: Server) -> None:
    await execute(server.dsn_of("postgres"), f"create database {server.template}")
    await migrate(server.dsn_of(server.template))
    # Nobody may be connected to a template while it is copied.
    await execute(server.dsn_of("postgres"), f"alter database {server.template} allow_connections false")


async def _drop_template(server: Server) -> None:
    await execute(server.dsn_of("postgres"), f"drop database if exists {server.template} with (force)")


@asynccontextmanager
async def temporary_database(server: Server, *, template: str | None = None) -> AsyncIterator[str]:
    """Yield the DSN of a new database, dropped afterwards with whoever is connected."""
    name = f"test_{os.getpid()}_{next(_names)}"
    # By file: with fsync off that is faster than through the log. PostgreSQL 14 knows no other way, nor the word.
    ((version,),) = await execute(server.dsn_of("postgres"), "select current_setting('server_version_num')::int")
    by_file = "strategy file_copy" if version >= 150_000 else ""
    await execute(server.dsn_of("postgres"), f"create database {name} template {template or server.template} {by_file}")
    try:
        yield server.dsn_of(name)
    finally:
        await execute(server.dsn_of("postgres"), f"drop database {name} with (force)")


@contextmanager
def _running(folder: Path) -> Iterator[Server]:
    if url := os.environ.get(EXTERNAL):
        yield _external(url)
        return
    embedded = EmbeddedServer(folder, settings=FAST)
    try:
        embedded.start()
        yield Server(dsn_of=embedded.dsn_of)
    finally:
        embedded.stop()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server; one that came along is stopped with the session."""
    try:
        with _running(tmp_path_factory.mktemp("pg")) as server:
            asyncio.run(_make_template(server))
            yield server
            asyncio.run(_drop_template(server))
    finally:
        asyncio.set_event_loop(None)


@pytest_asyncio.fixture
async def database(postgres_server: Server) -> AsyncIterator[str]:
    """The DSN of an empty, migrated database."""
    async with temporary_database(postgres_server) as dsn:
        yield dsn
