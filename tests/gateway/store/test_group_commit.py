"""Group commit against a scripted link: batching, order, repair, and who is told what."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from gateway.common.errors import StoreDown, StoreError
from gateway.store.group_commit import Writer, WriterLimits
from gateway.store.records import CallRecord, Change, EventRecord
from tests.support.generators import records as make

LIMITS = WriterLimits(
    batch_groups=4,
    batch_wait_s=0.03,
    timeout_s=0.2,
    queue_groups=10,
    retry_s=0.02,
    heartbeat_s=0.1,
    flush_s=0.5,
)
PATIENT = WriterLimits(batch_groups=4, batch_wait_s=0.001, timeout_s=5, retry_s=0.02, heartbeat_s=5)


class FakeLink:
    def __init__(self, database: "FakeDatabase", on_closed: Callable[[], object]) -> None:
        self._database = database
        self._on_closed = on_closed
        self.closed = False

    async def apply(self, groups: Sequence[Sequence[Change]]) -> None:
        self._check()
        self._database.tries += 1
        await self._database.answering.wait()
        await asyncio.sleep(self._database.delay_s)
        self._check()
        for error in self._database.errors[:1]:
            self._database.errors.pop(0)
            raise error
        keys = [[change.dedupe_key for change in group if isinstance(change, EventRecord)] for group in groups]
        if any("poison" in group for group in keys):
            raise StoreError("poison")
        if any("bug" in group for group in keys):
            raise ZeroDivisionError
        if any("fuse" in group for group in keys) and len(keys) == 1 and self._database.fuse:
            self._database.fuse = False
            self.lose()
            self._check()
        self._database.batches.append(keys)
        records = [change for group in groups for change in group if isinstance(change, CallRecord)]
        self._database.calls += [(record.call_id, record.version) for record in records]

    async def ping(self) -> None:
        self._check()
        self._database.pings += 1
        await self._database.answering.wait()

    def lose(self) -> None:
        """The connection breaks."""
        self.closed = True
        self._on_closed()

    def terminate(self) -> None:
        self.closed = True

    async def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if self.closed:
            raise StoreDown("lost")


class FakeDatabase:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []  #: committed records: call and version
        self.batches: list[list[list[str]]] = []  #: committed: batch, group, key
        self.errors: list[Exception] = []  #: raised by the next applies, one each
        self.connect_error: Exception | None = None
        self.answering = asyncio.Event()
        self.answering.set()
        self.delay_s = 0.0  #: of each apply
        self.fuse = False  #: a group with the key "fuse" that comes alone breaks the connection, once
        self.links: list[FakeLink] = []
        self.tries = 0
        self.pings = 0

    @property
    def keys(self) -> list[str]:
        return [key for batch in self.batches for group in batch for key in group]

    async def connect(self, on_closed: Callable[[], object]) -> FakeLink:
        if self.connect_error is not None:
            raise self.connect_error
        self.links.append(FakeLink(self, on_closed))
        return self.links[-1]


@asynccontextmanager
async def running(database: FakeDatabase, limits: WriterLimits = LIMITS) -> AsyncIterator[Writer]:
    writer = Writer(database.connect, limits)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.run())
        await writer.until_up()
        yield writer
        database.answering.set()
        writer.close()


def event(key: str) -> list[Change]:
    return [make.event(key)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(3):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


async def test_a_full_batch_does_not_wait() -> None:
    database = FakeDatabase()
    loop = asyncio.get_running_loop()
    async with running(database, WriterLimits(batch_groups=4, batch_wait_s=2)) as writer:
        started = loop.time()
        await asyncio.gather(*(writer.write(event(f"k{n}")) for n in range(8)))
        assert loop.time() - started < 0.5
    assert [len(batch) for batch in database.batches] == [4, 4]
    assert database.keys == [f"k{n}" for n in range(8)]


async def test_a_batch_waits_for_company_from_its_first_group_on() -> None:
    database = FakeDatabase()
    loop = asyncio.get_running_loop()
    async with running(database) as writer:
        started = loop.time()
        writer.write_soon(event("a"))
        await asyncio.sleep(LIMITS.batch_wait_s / 2)
        await writer.write(event("b"))
        assert LIMITS.batch_wait_s * 0.9 < loop.time() - started < LIMITS.batch_wait_s * 3
    assert database.batches == [[["a"], ["b"]]]


async def test_what_queued_up_during_a_commit_does_not_wait_again() -> None:
    database = FakeDatabase()
    async with running(database, WriterLimits(batch_groups=4, batch_wait_s=0.05)) as writer:
        database.answering.clear()
        writer.write_soon(event("a"))
        await until(lambda: database.tries == 1)
        writer.write_soon(event("b"))
        await asyncio.sleep(0.06)
        loop = asyncio.get_running_loop()
        started = loop.time()
        database.answering.set()
        await until(lambda: database.tries == 2)
        assert loop.time() - started < 0.03


async def test_order_holds_between_write_and_write_soon() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        writer.write_soon(event("a"))
        await writer.write(event("b"))
        writer.write_soon(event("c"))
        await writer.write(event("d"))
    assert database.keys == ["a", "b", "c", "d"]


async def test_one_lost_connection_is_repaired_unseen() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        database.links[-1].lose()
        await writer.write(event("a"))
        database.errors = [StoreDown("lost")]
        await writer.write(event("b"))
        assert writer.up
    assert database.keys == ["a", "b"]


async def test_a_second_loss_in_a_row_is_down_and_tells_who_waits() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        database.errors = [StoreDown("lost")] * 2
        writer.write_soon(event("stays"))
        with pytest.raises(StoreDown):
            await writer.write(event("told"))
        assert not writer.up
        with pytest.raises(StoreDown):
            await writer.write(event("refused"))
        await until(lambda: writer.up)
        await writer.write(event("after"))
    assert database.keys == ["stays", "after"]


async def test_a_server_that_connects_but_takes_nothing_is_not_hammered() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        database.errors = [StoreDown("disk full")] * 1000
        writer.write_soon(event("stays"))
        await asyncio.sleep(0.2)
        assert not writer.up
        assert database.tries <= 0.2 / LIMITS.retry_s + 3
        database.errors.clear()
        await until(lambda: writer.up)
    assert database.keys == ["stays"]


async def test_silence_is_down_after_the_time_limit() -> None:
    database = FakeDatabase()
    loop = asyncio.get_running_loop()
    async with running(database) as writer:
        database.answering.clear()
        started = loop.time()
        with pytest.raises(StoreDown):
            await writer.write(event("told"))
        assert loop.time() - started < LIMITS.timeout_s + 0.1
        await until(lambda: not writer.up)
        database.answering.set()
        await until(lambda: writer.up)


async def test_an_idle_writer_looks_after_its_connection() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        await until(lambda: database.pings >= 2)
        database.connect_error = OSError("gone")
        database.links[-1].lose()
        await until(lambda: not writer.up)
        database.connect_error = None
        await until(lambda: writer.up)


async def test_a_connect_that_fails_in_an_unknown_way_does_not_end_the_writer() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        database.connect_error = ZeroDivisionError()
        database.links[-1].lose()
        await until(lambda: not writer.up)
        database.connect_error = None
        await until(lambda: writer.up)
        await writer.write(event("a"))
    assert database.keys == ["a"]


@pytest.mark.parametrize(("key", "error"), [("poison", StoreError), ("bug", ZeroDivisionError)])
async def test_bad_data_meets_its_own_caller_only(key: str, error: type[Exception]) -> None:
    database = FakeDatabase()
    async with running(database, PATIENT) as writer:
        with capture_logs() as logs:
            results = await asyncio.gather(
                *(writer.write(event(name)) for name in ("a", key, "b")), return_exceptions=True
            )
        assert [type(result) for result in results] == [type(None), error, type(None)]
        assert [entry["event"] for entry in logs] == ["store_change_refused"]
        assert writer.up
    assert database.keys == ["a", "b"]


async def test_bad_data_alone_is_tried_once() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        with pytest.raises(StoreError):
            await writer.write(event("poison"))
        assert database.tries == 1
        writer.write_soon(event("poison"))
        await until(lambda: writer.dropped == 1)


async def test_a_connection_lost_while_bad_data_is_looked_for_repeats_the_rest_in_order() -> None:
    database = FakeDatabase()
    database.fuse = True
    async with running(database, PATIENT) as writer:
        results = await asyncio.gather(
            *(writer.write(event(name)) for name in ("a", "poison", "fuse", "b")), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), StoreError, type(None), type(None)]
    assert database.keys == ["a", "fuse", "b"]


async def test_a_group_whose_caller_was_told_down_is_not_written_later() -> None:
    database = FakeDatabase()
    slow = WriterLimits(batch_groups=1, batch_wait_s=0, timeout_s=0.1, retry_s=0.02)
    writer = Writer(database.connect, slow)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.run())
        await writer.until_up()
        database.answering.clear()
        writer.write_soon(event("in flight"))
        await until(lambda: database.tries == 1)
        with pytest.raises(StoreDown):
            await writer.write(event("told"))
        database.answering.set()
        await until(lambda: writer.up and "in flight" in database.keys)
        await writer.write(event("after"))
        writer.close()
    assert database.keys == ["in flight", "after"]


async def test_a_database_that_is_only_slow_does_not_write_what_was_refused() -> None:
    database = FakeDatabase()
    slow = WriterLimits(batch_groups=1, batch_wait_s=0, timeout_s=0.2)
    async with running(database, slow) as writer:
        database.delay_s = 0.12
        results = await asyncio.gather(
            *(writer.write(event(name)) for name in ("a", "in flight", "told")), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), StoreDown, StoreDown]
        assert writer.up
        await until(lambda: "in flight" in database.keys)
        database.delay_s = 0.0
        await writer.write(event("after"))
    assert database.keys == ["a", "in flight", "after"]


async def test_a_group_whose_caller_was_cancelled_is_written() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(writer.write(event("a")))
            await asyncio.sleep(0)
            writing.cancel()
        await writer.write(event("b"))
    assert database.keys == ["a", "b"]


async def test_a_full_queue_refuses_at_once_and_says_so_once() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        database.connect_error = StoreDown("gone")
        database.links[-1].lose()
        await until(lambda: not writer.up)
        with capture_logs() as logs:
            for n in range(15):
                writer.write_soon(event(f"k{n}"))
        assert (writer.backlog, writer.dropped) == (10, 5)
        assert [entry["event"] for entry in logs] == ["store_queue_full"]
        database.connect_error = None
        await until(lambda: writer.up)
    assert database.keys == [f"k{n}" for n in range(10)]


@asynccontextmanager
async def away(database: FakeDatabase, limits: WriterLimits = LIMITS) -> AsyncIterator[Writer]:
    """Run a writer whose database is away until the block ends."""
    async with running(database, limits) as writer:
        database.connect_error = StoreDown("gone")
        database.links[-1].lose()
        await until(lambda: not writer.up)
        yield writer
        database.connect_error = None
        await until(lambda: writer.up and not writer.backlog)


async def test_of_a_call_only_the_newest_record_waits_for_the_database() -> None:
    database = FakeDatabase()
    first, second = make.call(), make.call()
    async with away(database) as writer:
        for version in range(1, 30):
            writer.write_soon([structs.replace(first, version=version)])
            writer.write_soon([structs.replace(second, version=version)])
        writer.write_soon(event("last"))
        assert (writer.backlog, writer.dropped) == (3, 0)
    assert database.calls == [(first.call_id, 29), (second.call_id, 29)]
    assert database.keys == ["last"]


async def test_while_the_database_answers_every_record_is_written() -> None:
    database, call = FakeDatabase(), make.call()
    async with running(database) as writer:
        for version in (1, 2, 3):
            writer.write_soon([structs.replace(call, version=version)])
        await until(lambda: not writer.backlog)
    assert database.calls == [(call.call_id, version) for version in (1, 2, 3)]


async def test_a_record_that_is_just_being_written_is_not_changed_under_way() -> None:
    """The newer one would be lost if that write succeeds."""
    database, call = FakeDatabase(), make.call()
    async with away(database) as writer:
        writer.write_soon([structs.replace(call, version=1)])
        database.delay_s = 0.05
        database.connect_error = None
        tries = database.tries
        await until(lambda: database.tries > tries)
        assert not writer.up
        writer.write_soon([structs.replace(call, version=2)])
    assert database.calls == [(call.call_id, 1), (call.call_id, 2)]


async def test_a_record_that_comes_with_something_else_is_left_alone() -> None:
    database, call = FakeDatabase(), make.call()
    async with away(database) as writer:
        writer.write_soon([structs.replace(call, version=1), *event("with it")])
        writer.write_soon([structs.replace(call, version=2)])
        assert writer.backlog == 2
    assert (database.calls, database.keys) == ([(call.call_id, 1), (call.call_id, 2)], ["with it"])


async def test_decisions_leave_room_for_calls_and_facts() -> None:
    database = FakeDatabase()
    async with away(database, replace(LIMITS, queue_decisions=4)) as writer:
        for _ in range(20):
            writer.write_soon([make.decision()])
        assert (writer.backlog, writer.dropped) == (4, 16)
        writer.write_soon([make.fact("c" * 32), make.decision()])
        for _ in range(20):
            writer.write_soon([make.call()])
        assert (writer.backlog, writer.dropped) == (10, 31)


def test_half_a_minute_of_200_calls_a_second_fits() -> None:
    """Each call is one record, whatever befell it, and one decision."""
    limits = WriterLimits()
    assert limits.queue_decisions >= 30 * 200
    assert limits.queue_groups >= 30 * 200 + limits.queue_decisions


async def test_a_full_queue_refuses_a_writer_that_would_wait() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        database.answering.clear()
        writer.write_soon(event("in flight"))
        await until(lambda: database.tries == 1)
        for n in range(10):
            writer.write_soon(event(f"k{n}"))
        with pytest.raises(StoreDown, match="full"):
            await writer.write(event("refused"))
        database.answering.set()
        await until(lambda: writer.backlog == 0)


async def test_closing_empties_the_queue_and_takes_no_more() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        for n in range(9):
            writer.write_soon(event(f"k{n}"))
        writer.close()
        writer.write_soon(event("late"))
        with pytest.raises(StoreDown):
            await writer.write(event("late"))
    assert database.keys == [f"k{n}" for n in range(9)]
    assert writer.dropped == 1
    assert database.links[-1].closed
    assert not writer.up


async def test_a_cancelled_writer_tells_who_waits_and_counts_what_is_lost() -> None:
    database = FakeDatabase()
    writer = Writer(database.connect, PATIENT)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(writer.run())
        await writer.until_up()
        database.answering.clear()
        writer.write_soon(event("in flight"))
        await until(lambda: database.tries == 1)
        writer.write_soon(event("lost"))
        waiting = asyncio.gather(writer.write(event("told")), return_exceptions=True)
        await asyncio.sleep(0)
        run.cancel()
        assert isinstance((await waiting)[0], StoreDown)
    assert database.links[-1].closed
    assert writer.dropped == 2


async def test_nothing_is_nothing() -> None:
    database = FakeDatabase()
    async with running(database) as writer:
        await writer.write([])
        writer.write_soon([])
        assert writer.backlog == 0
    assert database.tries == 0


#: Windows alone close a batch.
WINDOWS = WriterLimits(batch_groups=1_000, batch_wait_s=0.005, patience_s=0.03)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_what_nobody_waits_for_waits_longer_for_company() -> None:
    database = FakeDatabase()
    async with running(database, WINDOWS) as writer:
        writer.write_soon(event("a"))
        await asyncio.sleep(0.02)
        writer.write_soon(event("b"))
        await asyncio.sleep(0.009)
        assert database.batches == []
        await asyncio.sleep(0.002)
        assert database.batches == [[["a"], ["b"]]]
        writer.close()


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_what_somebody_waits_for_takes_along_what_came_before() -> None:
    database, loop = FakeDatabase(), asyncio.get_running_loop()
    async with running(database, WINDOWS) as writer, asyncio.TaskGroup() as tasks:
        for turn in range(2):  # the second batch is as the first
            began_at = loop.time()
            writer.write_soon(event(f"a{turn}"))
            await asyncio.sleep(0.01)
            tasks.create_task(writer.write(event(f"b{turn}")))
            await asyncio.sleep(0.002)
            writer.write_soon(event(f"c{turn}"))
            await writer.write(event(f"d{turn}"))
            assert loop.time() - began_at == pytest.approx(0.015)
            assert database.batches[turn] == [[f"{name}{turn}"] for name in "abcd"]
        writer.close()
