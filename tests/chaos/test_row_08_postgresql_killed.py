"""Row 8: the gateway's own PostgreSQL is killed under load, again and again."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from loadtest.chaos.kills import moments
from loadtest.loads.generator import open_loop, percentile
from loadtest.measure.stack import Stack
from tests.support.harness.chaos import Chaos
from tests.support.harness.outage import a_gateway, as_it_should_be, broken, seconds_until, spool_empty

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(60)]

#: Nobody looks after the server.
UNWATCHED = """
from gateway.store.embedded import EmbeddedServer

EmbeddedServer._watch = lambda self: None
"""


def pid_file(folder: Path) -> list[str]:
    return (folder / "data" / "postgres" / "postmaster.pid").read_text().splitlines()


def kill_database(folder: Path) -> None:
    """Kill the server's first process; its children notice and go."""
    os.kill(int(pid_file(folder)[0]), signal.SIGKILL)


def dsn_of(folder: Path) -> str:
    return f"postgresql://postgres@/gateway?host={pid_file(folder)[4].strip()}&port=5432"


async def restarts(stack: Stack) -> float:
    return (await stack.metrics())["wacg_database_restarts_total"]


async def serves_again(stack: Stack, number: int, *, timeout_s: float = 30.0) -> float:
    """Wait until the server was started again and the gateway writes to it; return how long that took."""

    async def serves() -> bool:
        return await restarts(stack) >= number and await as_it_should_be(stack)

    return await seconds_until(serves, timeout_s=timeout_s)


@pytest.mark.row(8, "PostgreSQL killed -9: started again by itself, serving in 5 s, no acknowledged row lost")
async def test_the_database_is_killed(chaos: Chaos, tmp_path: Path) -> None:
    kills, rate_per_s = chaos.size(test=1, short=5, long=20), chaos.size(test=50, short=100, long=200)
    away: list[float] = []
    statuses: list[int] = []
    async with a_gateway(None, tmp_path, chaos.seed, calls=False) as (stack, ledger):

        async def until_stopped(stop: asyncio.Event) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                shots = await open_loop(ledger.post, rate_per_s=rate_per_s, count=rate_per_s, seed=chaos.seed + turn)
                statuses.extend(shot.status for shot in shots)

        async with asyncio.TaskGroup() as tasks:
            stop = asyncio.Event()
            tasks.create_task(until_stopped(stop))
            lives = moments(rounds=kills, seed=chaos.seed, least_s=0.3, most_s=1.5)
            for number, lives_s in enumerate(lives, 1):
                await asyncio.sleep(lives_s)
                kill_database(tmp_path)
                away.append(await serves_again(stack, number))
            stop.set()
        drained_s = await spool_empty(stack)
        await ledger.post_pending()
        verdict = await ledger.check(dsn_of(tmp_path))
        counted = await restarts(stack)
        refused = (await stack.metrics())["wacg_spool_refused_total"]
    chaos.note("kills", kills)
    chaos.note("acknowledged", len(ledger.acknowledged), unit="events")
    chaos.promise("longest until it served again", max(away), at_most=5.0, unit="s", timed=True)
    chaos.note("median until it served again", percentile(away, 0.5), unit="s")
    chaos.promise("webhooks answered otherwise than 200", sum(status != 200 for status in statuses), at_most=0)
    chaos.promise("acknowledged events lost", len(verdict.lost), at_most=0)
    chaos.promise("facts lost", len(verdict.lost_facts), at_most=0)
    chaos.promise("deliveries that the database refused", refused, at_most=0)
    chaos.promise("events applied twice", len(verdict.doubled), at_most=0)
    chaos.promise("contacts whose state is not what their facts say", verdict.differing, at_most=0)
    chaos.promise("spool empty after", drained_s, at_most=10, unit="s", timed=True)
    assert counted == kills


async def test_a_server_that_nobody_starts_again_would_be_seen(tmp_path: Path) -> None:
    async with a_gateway(None, tmp_path, 1, environment=broken(tmp_path, UNWATCHED)) as (stack, _):
        kill_database(tmp_path)
        with pytest.raises(TimeoutError):
            await serves_again(stack, 1, timeout_s=1.5)
