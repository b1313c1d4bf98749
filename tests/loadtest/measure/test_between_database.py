"""A proxy takes the place of a running PostgreSQL's socket, and gives it back."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.store.embedded import EmbeddedServer
from gateway.store.postgres import driver
from loadtest.measure.between_database import between
from tests.loadtest.helpers import running
from tests.support.harness.postgres import FAST, execute
from tests.support.harness.waiting import LOOP_GRAIN_S, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
CALM = {"wacg_store_up": 1.0, "wacg_spool_deliveries": 0.0, "wacg_store_backlog": 0.0}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[EmbeddedServer, Path]]:
    """A server of this module's own, with a table of three events."""
    with tempfile.TemporaryDirectory(prefix="between-") as folder:
        server = EmbeddedServer(Path(folder), settings=FAST)
        try:
            server.start()
            asyncio.run(_fill(server))
            yield server, Path(folder)
        finally:
            server.stop()
            asyncio.set_event_loop(None)


async def _fill(server: EmbeddedServer) -> None:
    await execute(server.dsn_of("postgres"), "create database gateway")
    await execute(server.dsn, "create table events as select generate_series(1, 3) as id")


class Client:
    """A gateway with one connection, which it makes anew when it is lost, as often as it takes."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.lost = 0
        self.connection: Any = None
        self._again: asyncio.Event = asyncio.Event()

    async def run(self) -> None:
        """Be connected until cancelled."""
        while True:
            self._again.clear()
            try:
                self.connection = await driver.connect(self.dsn)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            self.connection.add_termination_listener(self._on_lost)
            await self._again.wait()

    def _on_lost(self, connection: object) -> None:
        self.lost += 1
        self._again.set()

    async def took_s(self) -> float:
        """Ask something, and return how long that took."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        await self.connection.fetchval("select 1")
        return loop.time() - began_at


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Client]:
    client = Client(dsn)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(client.run())
        await until(lambda: client.connection is not None)
        yield client
        task.cancel()
    client.connection.terminate()


@asynccontextmanager
async def a_stack(data_dir: Path) -> AsyncIterator[Any]:
    async def metrics() -> dict[str, float]:
        return CALM

    async with running() as sim:
        yield SimpleNamespace(sim=sim, metrics=metrics, config=SimpleNamespace(data_dir=data_dir))


async def test_what_is_asked_is_late_then_silent_then_as_it_was(server: tuple[EmbeddedServer, Path]) -> None:
    postgres, data_dir = server
    async with a_stack(data_dir) as stack, connected(postgres.dsn) as client:
        async with between(stack) as database:
            assert client.lost == 1
            assert await client.took_s() < 0.2
            database.be_late(0.3)
            assert 0.3 - LOOP_GRAIN_S <= await client.took_s() < 0.6
            database.be_late(0)
            database.be_silent(0.4)
            assert 0.3 <= await client.took_s() < 0.8
            assert await database.events() == 3
        await until(lambda: client.lost == 2)
        assert await execute(postgres.dsn, "select 1")


async def test_the_socket_has_its_name_again_whatever_happens(server: tuple[EmbeddedServer, Path]) -> None:
    postgres, data_dir = server
    with pytest.raises(ExceptionGroup):
        async with a_stack(data_dir) as stack, connected(postgres.dsn), between(stack):
            raise RuntimeError
    assert await execute(postgres.dsn, "select 1")
