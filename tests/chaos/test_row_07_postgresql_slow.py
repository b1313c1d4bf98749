"""Row 7: PostgreSQL answers two seconds late."""

import asyncio
from pathlib import Path

import pytest

from loadtest.loads.generator import open_loop, percentile
from loadtest.measure.process import own_bytes
from loadtest.measure.stack import Stack
from tests.support.harness.chaos import Chaos
from tests.support.harness.outage import a_gateway, as_it_should_be, broken, dial, seconds_until, spool_empty
from tests.support.harness.proxy import proxy_to

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(60)]

#: A gateway that waits for its database as long as that takes.
PATIENT = """
from gateway.store.store import StoreLimits
from gateway.store.group_commit import WriterLimits

StoreLimits.__init__.__kwdefaults__.update(timeout_s=10.0, writer=WriterLimits(timeout_s=10.0))
"""


async def dials(stack: Stack, count: int, rate_per_s: float, seed: int) -> tuple[list[float], list[tuple[int, bool]]]:
    """Dial users whom the gateway does not know; return how long each took, and statuses with Retry-After or not."""
    answers: list[tuple[int, bool]] = []

    async def send(index: int) -> int:
        status, retry_after, _ = await dial(stack, "op0", f"55119777{index:05d}")
        answers.append((status, retry_after is not None))
        return status

    shots = await open_loop(send, rate_per_s=rate_per_s, count=count, seed=seed)
    return [shot.took_s for shot in shots], answers


@pytest.mark.row(7, "PostgreSQL slow by 2 s: refused within 1.2 s with 503 and Retry-After, webhooks 200, no pile-up")
async def test_postgresql_is_two_seconds_late(chaos: Chaos, database: str, tmp_path: Path) -> None:
    seconds, rate_per_s = chaos.size(test=1.5, short=10.0, long=30.0), chaos.size(test=50, short=200, long=200)
    async with proxy_to(database) as proxy, a_gateway(proxy.dsn, tmp_path, chaos.seed, calls=False) as (stack, ledger):
        await open_loop(ledger.post, rate_per_s=rate_per_s, count=int(rate_per_s), seed=chaos.seed)
        before = own_bytes(stack.gateway_pid)
        proxy.delay_s = 2.0
        async with asyncio.TaskGroup() as tasks:
            count = int(rate_per_s * seconds)
            posting = tasks.create_task(open_loop(ledger.post, rate_per_s=rate_per_s, count=count, seed=chaos.seed))
            dialling = tasks.create_task(dials(stack, int(10 * seconds), 10, chaos.seed))
        took, answers = dialling.result()
        shots = posting.result()
        grown = own_bytes(stack.gateway_pid) - before
        proxy.delay_s = 0.0
        back_s = await seconds_until(lambda: as_it_should_be(stack))
        drained_s = await spool_empty(stack)
        await ledger.post_pending()
        verdict = await ledger.check(database)
    chaos.note("dials", len(answers))
    chaos.promise(
        "dials answered otherwise than 503 with Retry-After", sum(a != (503, True) for a in answers), at_most=0
    )
    chaos.promise("p99 of refusals", percentile(took, 0.99), at_most=1.2, unit="s", timed=True)
    chaos.promise("webhooks answered otherwise than 200", sum(shot.status != 200 for shot in shots), at_most=0)
    p99_s = percentile([shot.took_s for shot in shots], 0.99)
    chaos.promise("p99 of the acknowledgement", p99_s, at_most=1.0, unit="s", timed=True)
    chaos.promise("memory growth", grown / 1e6, at_most=20, unit="MB", timed=True)
    chaos.note("ready without reserve after", back_s, unit="s")
    chaos.promise("spool empty after", drained_s, at_most=10, unit="s", timed=True)
    chaos.promise("acknowledged events lost", len(verdict.lost), at_most=0)
    chaos.promise("facts lost", len(verdict.lost_facts), at_most=0)
    chaos.promise("events applied twice", len(verdict.doubled), at_most=0)


async def test_a_gateway_without_limits_would_be_seen(database: str, tmp_path: Path) -> None:
    async with (
        proxy_to(database) as proxy,
        a_gateway(proxy.dsn, tmp_path, 1, environment=broken(tmp_path, PATIENT)) as (stack, _),
    ):
        proxy.delay_s = 0.8  # a reader has to connect first, and every turn takes twice that
        took, _ = await dials(stack, 2, 10, 1)
        proxy.delay_s = 0.0
        assert max(took) > 1.2
