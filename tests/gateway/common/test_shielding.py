"""A cancellation is passed on, what only looks like one is a failure, and no broken step keeps the next from going."""

import asyncio

import pytest

from gateway.common.shielding import safely, was_cancelled


async def test_a_task_that_somebody_cancelled_knows_it() -> None:
    found: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            found.append(was_cancelled(error))
            raise

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
    assert found == [True]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError()])
async def test_what_was_raised_without_anybody_cancelling_is_a_failure(error: BaseException) -> None:
    assert not was_cancelled(error)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError(), None])
def test_a_step_that_breaks_stays_its_own(error: BaseException | None) -> None:
    done: list[int] = []

    def step() -> None:
        done.append(1)
        if error is not None:
            raise error

    safely(step)
    safely(step)
    assert done == [1, 1]


def test_the_end_of_the_process_is_not_held_up() -> None:
    def step() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        safely(step)
