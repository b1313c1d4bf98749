"""Row 32: calls by the thousand leave nothing behind: no memory, no socket, no task, no slot; and every record."""

import asyncio
from pathlib import Path

import pytest

from loadtest.loads.soak import Sample, Soak, bytes_per_call, look, soak, soak_users
from loadtest.measure.process import total
from loadtest.measure.stack import Stack, StackConfig, operators
from loadtest.operators.signalling_bot import Crew, Policy
from loadtest.simulator.config import NumberSpec, Profile, Timers
from tests.support.harness.chaos import Chaos
from tests.support.harness.postgres import execute

ROOT = Path(__file__).resolve().parent.parent.parent
#: Two, since one number may place 10,000 calls in 24 hours.
NUMBERS = (NumberSpec(), NumberSpec(phone_number_id="200000000000003", display_phone_number="551155550101"))
QUICK = Timers(answer_after_s=0.0, ringing_after_s=0.0, business_initiated_ring_s=10.0)
#: A connection that nobody uses is closed after 15 s.
IDLE_S = 20.0

#: Put before everything else on the path of a gateway: it keeps a quarter of a MiB of each call.
LEAK = """
from gateway.calls.registry import Registry

kept, remove = [], Registry.remove

def leak(self, driver):
    kept.append(b"x" * (1 << 18))
    remove(self, driver)

Registry.remove = leak
"""


def config(database: str, calls: int, lanes: int, **environment: str) -> StackConfig:
    return StackConfig(
        port=0,
        admin_port=0,
        sim_port=0,
        null_media=True,
        operators=operators(lanes + 1),
        # The smallest cache: what is in it fills up with contacts at first, and is no leak.
        environment={"GATEWAY_DATABASE_URL": database, "GATEWAY_CONTACT_CACHE": "1000", **environment},
        sim={
            "numbers": NUMBERS,
            "users": soak_users(calls, lanes),
            "profile": Profile.GUIDE,
            "timers": QUICK,
            "history": 4 * lanes,
        },
    )


async def run(stack: Stack, calls: int, seed: int, *, idle_s: float) -> tuple[Sample, Soak, Sample]:
    """Make the calls; return what the process was before, what was done, and what the process was afterwards."""
    async with Crew(stack.url, stack.config.operators, policy=Policy(talk_s=0.0)) as crew:
        before = await look(stack, 0)
        for wa_id in stack.sim.world.users:
            for number in stack.sim.world.numbers.values():
                stack.sim.user(wa_id).grant(number=number)
        await stack.sim.until(lambda: stack.sim.webhooks.pending == 0, timeout_s=120)
        await settled(stack, before, 0, idle_s)
        done = await soak(stack, crew, calls=calls, lanes=len(crew.bots) - 1, seed=seed)
        await stack.sim.until(lambda: stack.sim.webhooks.pending == 0, timeout_s=30)
        return before, done, await settled(stack, before, calls, idle_s)


async def settled(stack: Stack, before: Sample, calls: int, idle_s: float) -> Sample:
    """Look again until idle connections are closed, or would have been."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + idle_s
    while True:
        after = await look(stack, calls)
        if (after.live == 0 and after.tasks <= before.tasks) or loop.time() > give_up_at:
            return after
        await asyncio.sleep(0.2)


async def records(database: str, call_ids: list[str]) -> int:
    """Return how many of these calls have one finished record; the last ones may take a moment to be written."""
    found = 0
    for _ in range(100):
        rows = await execute(
            database,
            "select count(*) as n from calls where meta_call_id = any($1) and ended_at is not null",
            call_ids,
        )
        found = rows[0]["n"]
        if found >= len(call_ids):
            break
        await asyncio.sleep(0.1)
    return int(found)


@pytest.mark.row(32, "flat over 20,000 calls: memory, sockets, tasks, slots; every call has its record")
@pytest.mark.asyncio(loop_factories=["uvloop"])  # of the test; the gateway is a process of its own
async def test_a_soak_leaves_nothing_behind(chaos: Chaos, database: str) -> None:
    calls, lanes = chaos.size(test=(20, 5), short=(1_000, 20), long=(20_000, 20))
    async with Stack(config(database, calls, lanes)) as stack:
        idle_s = chaos.size(test=0.5, short=IDLE_S, long=IDLE_S)
        before, done, after = await run(stack, calls, chaos.seed, idle_s=idle_s)
        figures = await stack.metrics()
        violations = stack.sim.world.violations
    for kind, count in sorted((done.ended + done.refused).items()):
        chaos.note(kind, count, unit="calls")
    half = len(done.samples) // 2
    # With the pools to Meta and to the database, which keep their connections for minutes.
    most = max(sample.descriptors for sample in done.samples[half // 2 : half + 1])
    chaos.note("memory before and after", f"{before.own_bytes >> 10} and {after.own_bytes >> 10}", unit="KiB")
    # The heap grows by the MiB: over 500 calls that alone is more than 1 KiB a call.
    limit = chaos.size(test=1_024, short=16_384, long=1_024)
    slope = bytes_per_call(done.samples[half:])
    chaos.promise("memory slope in the second half", slope, at_most=limit, unit="B a call", timed=True)
    chaos.promise("calls refused", done.refused.total(), at_most=0)
    chaos.promise("finished records missing", len(done.call_ids) - await records(database, done.call_ids), at_most=0)
    chaos.promise("calls left", total(figures, "wacg_calls_active"), at_most=0)
    chaos.promise("slots left", total(figures, "wacg_slots_in_use"), at_most=0)
    # At size `test` nobody waits until idle connections, each of which has a task, are closed.
    chaos.promise("tasks more than before", after.tasks - before.tasks, at_most=0, timed=True)
    chaos.promise("descriptors more than in the second quarter", after.descriptors - most, at_most=0, timed=True)
    chaos.promise("violations seen by Meta", len(violations), at_most=0)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_leaking_gateway_would_be_seen(database: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAK, encoding="utf-8")
    async with Stack(config(database, 20, 5, PYTHONPATH=f"{tmp_path}:{ROOT}")) as stack:
        _, done, _ = await run(stack, 20, 1, idle_s=0.0)
    assert bytes_per_call(done.samples) > 1 << 17
