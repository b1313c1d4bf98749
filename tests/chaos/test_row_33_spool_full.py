"""Row 33: PostgreSQL is away and the spool has no room: said loudly, and nothing half-written."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.loads.generator import open_loop
from tests.support.harness.chaos import Chaos
from tests.support.harness.outage import a_gateway, as_it_should_be, broken, ready, seconds_until, spool_empty
from tests.support.harness.proxy import proxy_to

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(60)]

PROMISE = "Disk or spool full: 503 with Retry-After, readiness down, nothing half-written, 0 acknowledged events lost"
TMPFS_BYTES = 8_000_000

#: Says that it is kept when there was no room.
LYING = """
from gateway.common.errors import SpoolDown
from gateway.intake.spool import Spool

append = Spool.append

async def lie(self, body, received_at):
    try:
        await append(self, body, received_at)
    except SpoolDown:
        pass

Spool.append = lie
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 8 MB; None where it takes root to have one, and we are not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={TMPFS_BYTES}".encode()
    if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) != 0:
        yield None
        return
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH


async def fill(chaos: Chaos, database: str, folder: Path, says: str, environment: dict[str, str]) -> None:
    """Take the database away, fill the spool, bring the database back, and hold everything against the books."""
    async with (
        proxy_to(database) as proxy,
        a_gateway(proxy.dsn, folder, chaos.seed, environment=environment) as (stack, ledger),
    ):
        ledger.text = "x" * 60_000
        rounds = chaos.size(test=1, short=3, long=10)
        refused = 0
        for number in range(rounds):
            await proxy.refuse()
            shots = await open_loop(ledger.post, rate_per_s=150, count=300, seed=chaos.seed + number)
            status, said = await ready(stack)
            refused += sum(shot.status == 503 for shot in shots)
            chaos.promise("answers other than 200 and 503", sum(s.status not in (200, 503) for s in shots), at_most=0)
            chaos.promise("answers of 503", sum(shot.status == 503 for shot in shots), at_least=1)
            assert status == 503, said
            assert any(says in problem for problem in said["problems"]), said
            await proxy.open()
            drained_s = await spool_empty(stack)
            chaos.promise("spool empty after", drained_s, at_most=10, unit="s", timed=True)
            await seconds_until(lambda: as_it_should_be(stack))
            verdict = await ledger.check(database)
            chaos.promise("acknowledged events lost", len(verdict.lost), at_most=0)
            chaos.promise("facts lost", len(verdict.lost_facts), at_most=0)
            chaos.promise("events applied twice", len(verdict.doubled), at_most=0)
            await ledger.post_pending()
            chaos.promise("events that never got through", len(ledger.pending), at_most=0)
    chaos.note("acknowledged", len(ledger.acknowledged), unit="events")
    chaos.note("refused with 503", refused, unit="deliveries")


@pytest.mark.row(33, PROMISE)
async def test_the_spool_is_full(chaos: Chaos, database: str, tmp_path: Path) -> None:
    await fill(chaos, database, tmp_path, "the spool is full", {"GATEWAY_SPOOL_MAX_MB": "2"})


@pytest.mark.row(33, PROMISE)
async def test_the_disk_is_full(chaos: Chaos, database: str, tmp_path: Path, small_disk: Path | None) -> None:
    """Where no disk can be mounted, the spool's own limit stands in for it."""
    chaos.note("a disk of its own", "yes" if small_disk else "no, it takes root")
    if small_disk is None:
        await fill(chaos, database, tmp_path, "the spool is full", {"GATEWAY_SPOOL_MAX_MB": "1"})
    else:
        await fill(chaos, database, small_disk, "the disk of the spool is full", {})


async def test_a_gateway_that_lies_about_room_would_be_seen(database: str, tmp_path: Path) -> None:
    environment = {"GATEWAY_SPOOL_MAX_MB": "1"} | broken(tmp_path, LYING)
    async with (
        proxy_to(database) as proxy,
        a_gateway(proxy.dsn, tmp_path, 1, environment=environment) as (stack, ledger),
    ):
        ledger.text = "x" * 60_000
        await proxy.refuse()
        await open_loop(ledger.post, rate_per_s=100, count=60, seed=1)
        await proxy.open()
        await spool_empty(stack)
        assert (await ledger.check(database)).lost
