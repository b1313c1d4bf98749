"""Nobody is told that a delivery is kept before it is; many share one fsync; no disk holds the loop."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.common.errors import SpoolDown
from gateway.intake.spool import BATCH, Spool
from gateway.intake.spool_file import Delivery, SpoolFile
from tests.support.harness.waiting import until

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MB = 1_000_000


class Disk:
    """Counts the transactions, and holds them up as long as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        self.turning = threading.Event()
        self.turning.set()
        self.error: Exception | None = None
        self.room = 10**9
        real = SpoolFile.append
        disk = self

        def append(file: SpoolFile, deliveries: list[Delivery]) -> None:
            assert disk.turning.wait(5)
            if disk.error is not None:
                raise disk.error
            if sum(len(each.body) for each in deliveries) > disk.room:
                raise SpoolDown("the disk of the spool is full")
            real(file, deliveries)
            disk.room -= sum(len(each.body) for each in deliveries)
            disk.batches.append(len(deliveries))

        monkeypatch.setattr(SpoolFile, "append", append)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@asynccontextmanager
async def a_spool(folder: Path, *, max_bytes: int = MB, patience_s: float = 5.0) -> AsyncIterator[Spool]:
    spool = Spool(folder, max_bytes=max_bytes, patience_s=patience_s)
    await spool.start()
    try:
        yield spool
    finally:
        await spool.aclose()


def takes_all(spool: Spool) -> bool:
    return spool.problem is None


async def held(spool: Spool) -> list[bytes]:
    return [delivery.body for delivery in await spool.oldest(1_000, 100 * MB)]


async def test_what_was_appended_is_there_and_counted(tmp_path: Path) -> None:
    async with a_spool(tmp_path) as spool:
        assert (spool.problem, spool.is_empty) == (None, True)
        await spool.append(b"1", AT)
        await spool.append(b"22", AT)
        assert (spool.deliveries, spool.bodies_bytes, spool.is_empty) == (2, 3, False)
        assert await held(spool) == [b"1", b"22"]
        await spool.remove(await spool.oldest(1, MB))
        assert (spool.deliveries, spool.bodies_bytes) == (1, 2)


async def test_a_delivery_counts_from_the_moment_it_is_handed_over(tmp_path: Path, disk: Disk) -> None:
    """Else there would be an instant at which a call to a user is allowed that should not be."""
    async with a_spool(tmp_path) as spool, asyncio.TaskGroup() as tasks:
        disk.turning.clear()
        appending = tasks.create_task(spool.append(b"1", AT))
        await asyncio.sleep(0)
        assert (spool.is_empty, spool.deliveries, spool.bodies_bytes) == (False, 1, 1)
        assert not appending.done()
        disk.turning.set()
        await appending
        assert (spool.deliveries, spool.bodies_bytes) == (1, 1)


async def test_many_share_one_fsync_in_their_order(tmp_path: Path, disk: Disk) -> None:
    async with a_spool(tmp_path) as spool:
        disk.turning.clear()
        async with asyncio.TaskGroup() as tasks:
            for n in range(200):
                tasks.create_task(spool.append(b"%03d" % n, AT))
            await asyncio.sleep(0.02)
            disk.turning.set()
        assert disk.batches[1:4] == [BATCH, BATCH, BATCH] or max(disk.batches) == BATCH
        assert len(disk.batches) <= 5
        assert await held(spool) == [b"%03d" % n for n in range(200)]


async def test_the_loop_does_not_wait_for_the_disk(tmp_path: Path, disk: Disk) -> None:
    async with a_spool(tmp_path) as spool, asyncio.TaskGroup() as tasks:
        disk.turning.clear()
        tasks.create_task(spool.append(b"1", AT))
        for _ in range(100):
            await asyncio.sleep(0)
        disk.turning.set()


async def test_whoever_waits_too_long_is_told_so_and_it_is_kept_all_the_same(tmp_path: Path, disk: Disk) -> None:
    async with a_spool(tmp_path, patience_s=0.05) as spool:
        disk.turning.clear()
        with pytest.raises(SpoolDown, match="does not answer"):
            await spool.append(b"1", AT)
        assert spool.problem == "the disk of the spool does not answer"
        disk.turning.set()
        await until(lambda: spool.deliveries == 1 and spool.problem is None)
        assert await held(spool) == [b"1"]


async def test_full_is_said_before_anything_is_written_and_passes_as_it_drains(tmp_path: Path, disk: Disk) -> None:
    async with a_spool(tmp_path, max_bytes=100_000) as spool:
        await spool.append(bytes(60_000), AT)
        batches = len(disk.batches)
        with pytest.raises(SpoolDown, match="full"):
            await spool.append(bytes(60_000), AT)
        assert len(disk.batches) == batches
        assert takes_all(spool) is False
        await spool.remove(await spool.oldest(1, MB))
        assert takes_all(spool)
        await spool.append(bytes(60_000), AT)


async def test_full_is_said_until_there_is_room_again_for_what_was_refused(tmp_path: Path, disk: Disk) -> None:
    """A small delivery may still fit: that says nothing about the next."""
    async with a_spool(tmp_path) as spool:
        disk.room = 1_000
        with pytest.raises(SpoolDown):
            await spool.append(bytes(5_000), AT)
        await spool.append(bytes(100), AT)
        assert not takes_all(spool)
        disk.room = 100_000
        await spool.append(bytes(5_000), AT)
        assert takes_all(spool)


async def test_where_there_is_no_room_for_all_there_may_be_for_some(tmp_path: Path, disk: Disk) -> None:
    async with a_spool(tmp_path) as spool:
        disk.turning.clear()
        disk.room = 3
        async with asyncio.TaskGroup() as tasks:
            appending = [tasks.create_task(_outcome(spool.append(b"%d" % n, AT))) for n in range(6)]
            await asyncio.sleep(0.02)
            disk.turning.set()
        assert [task.result() for task in appending] == [True, True, True, False, False, False]
        assert await held(spool) == [b"0", b"1", b"2"]
        assert (spool.deliveries, spool.bodies_bytes) == (3, 3)


async def _outcome(appending: object) -> bool:
    try:
        await appending  # type: ignore[misc]
    except SpoolDown:
        return False
    return True


async def test_a_bug_in_the_thread_is_an_error_and_not_its_end(tmp_path: Path, disk: Disk) -> None:
    async with a_spool(tmp_path) as spool:
        disk.error = ZeroDivisionError()
        with pytest.raises(SpoolDown, match="broken: ZeroDivisionError"):
            await spool.append(b"1", AT)
        assert spool.is_empty
        disk.error = None
        await spool.append(b"1", AT)


async def test_it_opens_again_with_what_it_held_and_says_what_is_of_an_earlier_process(tmp_path: Path) -> None:
    async with a_spool(tmp_path) as spool:
        await spool.append(b"1", AT)
        await spool.append(b"2", AT)
        last = (await spool.oldest(9, MB))[-1]
    async with a_spool(tmp_path) as spool:
        assert (spool.deliveries, spool.last_seq) == (2, last.seq)
        async with asyncio.timeout(1):
            await spool.until_some()
        await spool.append(b"3", AT)
        assert (await held(spool), spool.last_seq) == ([b"1", b"2", b"3"], last.seq)


async def test_a_folder_that_cannot_be_used_is_no_reason_not_to_start_and_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.write_text("")
    async with a_spool(folder) as spool:
        assert not takes_all(spool)
        await spool.try_again()
        assert not takes_all(spool)
        with pytest.raises(SpoolDown):
            await spool.append(b"1", AT)
        folder.unlink()
        await spool.try_again()
        assert takes_all(spool)
        await spool.append(b"1", AT)


async def test_closing_finishes_what_was_handed_over(tmp_path: Path, disk: Disk) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with a_spool(tmp_path) as spool:
            disk.turning.clear()
            appending = [tasks.create_task(spool.append(b"%d" % n, AT)) for n in range(10)]
            await asyncio.sleep(0)
            disk.turning.set()
        await asyncio.wait(appending)
    async with a_spool(tmp_path) as again:
        assert again.deliveries == 10


async def test_without_a_start_or_after_the_end_it_takes_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=MB)
    with pytest.raises(SpoolDown, match="not open"):
        await spool.append(b"1", AT)
    assert spool.is_empty
    await spool.aclose()
    assert not os.listdir(tmp_path)


async def test_a_sender_that_leaves_leaves_its_delivery(tmp_path: Path, disk: Disk) -> None:
    async with a_spool(tmp_path) as spool:
        async with asyncio.TaskGroup() as tasks:
            disk.turning.clear()
            appending = tasks.create_task(spool.append(b"1", AT))
            await asyncio.sleep(0)
            appending.cancel()
        disk.turning.set()
        await until(lambda: spool.deliveries == 1)
        assert await held(spool) == [b"1"]
