"""A PostgreSQL server for the whole test run, and an empty migrated database for each test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.store.embedded import EmbeddedServer
from gateway.store.migrations import migrate
from gateway.store.postgres import driver

TEMPLATE = "template_migrated"
#: Nothing here has to survive the machine. (What must survive a killed server does so without fsync.)
FAST = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_wal_size": "1GB"}

_names = count(1)


async def execute(dsn: str, sql: str, *args: object) -> Any:
    """Run one query on a connection of its own."""
    connection = await driver.connect(dsn, timeout=10)
    try:
        return await connection.fetch(sql, *args)
    finally:
        await connection.close(timeout=10)


async def _make_template(server: EmbeddedServer) -> None:
    await execute(server.dsn_of("postgres"), f"create database {TEMPLATE}")
    await migrate(server.dsn_of(TEMPLATE))
    # Nobody may be connected to a template while it is copied.
    await execute(server.dsn_of("postgres"), f"alter database {TEMPLATE} allow_connections false")


@asynccontextmanager
async def temporary_database(server: EmbeddedServer, *, template: str = TEMPLATE) -> AsyncIterator[str]:
    """Yield the DSN of a new database, dropped afterwards with whoever is connected."""
    name = f"test_{next(_names)}"
    # The copy is by file: with fsync off that is faster than through the log.
    await execute(server.dsn_of("postgres"), f"create database {name} template {template} strategy file_copy")
    try:
        yield server.dsn_of(name)
    finally:
        await execute(server.dsn_of("postgres"), f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The server, stopped with the session."""
    server = EmbeddedServer(Path(tmp_path_factory.mktemp("pg")), settings=FAST)
    try:
        server.start()
        asyncio.run(_make_template(server))
        yield server
    finally:
        server.stop()
        asyncio.set_event_loop(None)


@pytest_asyncio.fixture
async def database(postgres_server: EmbeddedServer) -> AsyncIterator[str]:
    """The DSN of an empty, migrated database."""
    async with temporary_database(postgres_server) as dsn:
        yield dsn
