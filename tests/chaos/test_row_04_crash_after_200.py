"""Row 4: the gateway is killed at random moments under load; what it acknowledged is there, once."""

import asyncio
from pathlib import Path

import pytest

from loadtest.chaos.kills import moments
from loadtest.loads.generator import open_loop
from loadtest.measure.stack import Stack
from tests.support.harness.chaos import Chaos
from tests.support.harness.ledger import Ledger, Verdict
from tests.support.harness.outage import a_gateway, broken, spool_empty
from tests.support.harness.postgres import execute
from tests.support.harness.proxy import proxy_to

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(60)]

#: Put before everything else on the path of a gateway: it acknowledges at once and keeps things in a moment.
HASTY = """
import asyncio
from gateway.intake.intake import Intake, Kept

keep, tasks = Intake.keep, set()

async def later(self, body):
    await asyncio.sleep(0.3)
    await keep(self, body)

async def hasty(self, body):
    tasks.add(asyncio.get_running_loop().create_task(later(self, body)))
    return Kept.ACCEPTED

Intake.keep = hasty
"""


async def one_life(stack: Stack, ledger: Ledger, *, lives_s: float, rate_per_s: float, seed: int) -> None:
    """Post at this rate, and kill the gateway in the middle of it."""
    async with asyncio.TaskGroup() as tasks:
        count = int(rate_per_s * (lives_s + 0.1))
        tasks.create_task(open_loop(ledger.post, rate_per_s=rate_per_s, count=count, seed=seed))
        await asyncio.sleep(lives_s)
        await stack.kill()


def promise(chaos: Chaos, ledger: Ledger, verdict: Verdict) -> None:
    chaos.note("acknowledged", len(ledger.acknowledged), unit="events")
    chaos.note("answers by status", str(dict(sorted(ledger.statuses.items()))))
    chaos.promise("acknowledged events lost", len(verdict.lost), at_most=0)
    chaos.promise("facts lost", len(verdict.lost_facts), at_most=0)
    chaos.promise("events or facts applied twice", len(verdict.doubled), at_most=0)
    chaos.promise("acknowledged calls without a record", verdict.unrecorded, at_most=0)
    chaos.promise("contacts whose state is not what their facts say", verdict.differing, at_most=0)


@pytest.mark.row(4, "200 only for what is durable: kill -9 at any moment loses no acknowledged event and doubles none")
async def test_killed_at_random_under_load(chaos: Chaos, database: str, tmp_path: Path) -> None:
    rounds, rate_per_s = chaos.size(test=1, short=5, long=50), chaos.size(test=200, short=500, long=500)
    async with a_gateway(database, tmp_path, chaos.seed) as (stack, ledger):
        for number, lives_s in enumerate(moments(rounds=rounds, seed=chaos.seed, least_s=0.3, most_s=1.5)):
            await one_life(stack, ledger, lives_s=lives_s, rate_per_s=rate_per_s, seed=chaos.seed + number)
            await stack.restart()
            await ledger.post_pending()
        await spool_empty(stack)
        verdict = await ledger.check(database)
    chaos.note("kills", rounds)
    promise(chaos, ledger, verdict)
    chaos.promise("events that never got through", len(ledger.pending), at_most=0)


@pytest.mark.row(4, "The same while PostgreSQL is away: what is in the spool outlives the gateway")
async def test_killed_while_only_the_spool_takes_anything(chaos: Chaos, database: str, tmp_path: Path) -> None:
    rounds, rate_per_s = chaos.size(test=1, short=3, long=20), chaos.size(test=200, short=500, long=500)
    async with proxy_to(database) as proxy, a_gateway(proxy.dsn, tmp_path, chaos.seed) as (stack, ledger):
        left = 0
        for number, lives_s in enumerate(moments(rounds=rounds, seed=chaos.seed, least_s=0.3, most_s=1.5)):
            await proxy.refuse()
            await one_life(stack, ledger, lives_s=lives_s, rate_per_s=rate_per_s, seed=chaos.seed + number)
            before = len((await ledger.check(database)).lost)
            left += before
            await proxy.open()
            await stack.restart()
            drained_s = await spool_empty(stack)
            chaos.promise("spool empty after the start", drained_s, at_most=10, unit="s", timed=True)
            await ledger.post_pending()
        verdict = await ledger.check(database)
    chaos.note("kills", rounds)
    chaos.note("found in the spool after a kill", left, unit="events")
    promise(chaos, ledger, verdict)
    assert left > 0


async def test_an_acknowledgement_before_it_is_durable_would_be_seen(database: str, tmp_path: Path) -> None:
    async with a_gateway(database, tmp_path, 1, environment=broken(tmp_path, HASTY)) as (stack, ledger):
        await one_life(stack, ledger, lives_s=0.5, rate_per_s=200, seed=1)
    verdict = await ledger.check(database)
    assert len(ledger.acknowledged) > 20
    assert len(verdict.lost) > 10


async def test_an_event_that_counts_twice_would_be_seen(database: str, tmp_path: Path) -> None:
    async with a_gateway(database, tmp_path, 1) as (_, ledger):
        for index in range(5):
            assert await ledger.post(index) == 200
    await execute(
        database,
        "insert into facts (contact_id, key, at, fact) select c.contact_id, f.key, f.at, f.fact"
        " from contacts c, facts f where c.contact_id <> f.contact_id limit 1",
    )
    verdict = await ledger.check(database)
    assert len(verdict.doubled) == 1
    assert verdict.differing == 1
