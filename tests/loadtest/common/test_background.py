"""Owned background tasks: one that fails ends alone, none is left behind."""

import asyncio

import pytest

from loadtest.common.background import Background


async def test_a_failing_task_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    background, done = Background("test"), asyncio.Event()

    async def fail() -> None:
        raise RuntimeError("on purpose")

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    await background.start()
    background.spawn(fail(), "fail")
    background.spawn(work(), "work")
    async with asyncio.timeout(2):
        await done.wait()
    await background.close()
    assert [str(failure) for failure in background.failures] == ["on purpose"]
    assert "fail failed" in caplog.text


async def test_closing_cancels_what_runs_and_drops_what_comes_later() -> None:
    background, cancelled = Background("test"), []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    await background.start()
    background.spawn(wait(), "started")
    background.spawn(wait(), "a second")
    await asyncio.sleep(0.01)
    await background.close()
    await background.close()
    background.spawn(wait(), "too late")
    assert cancelled == [True, True]
    assert len(asyncio.all_tasks()) == 1


async def test_who_is_cancelled_while_starting_can_close() -> None:
    background = Background("test")
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(background.start())
        await asyncio.sleep(0)  # it has asked for the task that holds the group, which did not run yet
        starting.cancel()
    async with asyncio.timeout(2):
        await background.close()
    assert len(asyncio.all_tasks()) == 1
