"""Row 30: processes that start together migrate a database once."""

import asyncio
import sys

import pytest

from gateway.store.migrations import bundled, migrate
from tests.support.harness.chaos import Chaos
from tests.support.harness.postgres import Server, execute, temporary_database


async def start_one(dsn: str) -> tuple[int, str]:
    """Run `gateway migrate` as a process of its own; return its exit code and its words."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "migrate", "--set", f"database_url={dsn}"),
        *("--set", "app_secret=x", "--set", "verify_token=x", "--set", "access_token=x"),
        *("--set", "phone_number_id=200000000000002", "--set", "phone_number=+551155550100"),
        *("--set", 'operators={"ana": "key-of-ana"}'),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@pytest.mark.row(30, "processes that start together on an empty or an old schema migrate it once")
@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("old", [False, True], ids=["empty", "old"])
async def test_processes_that_start_together(chaos: Chaos, postgres_server: Server, old: bool) -> None:
    count = chaos.size(test=3, short=10, long=30)
    async with temporary_database(postgres_server, template="template0") as dsn:
        if old:
            await migrate(dsn, bundled()[:1])
        ended = await asyncio.gather(*(start_one(dsn) for _ in range(count)))
        versions = [row[0] for row in await execute(dsn, "select version from schema_migrations order by version")]
    failed = [said for code, said in ended if code != 0]
    chaos.note("processes", count)
    chaos.promise("processes that failed", len(failed), at_most=0)
    assert not failed, failed[0]
    assert versions == [migration.version for migration in bundled()]
