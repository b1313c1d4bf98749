"""The first signal drains, the second one ends."""

import asyncio

from gateway.shutdown import Stop


async def test_asked_once_it_waits_asked_again_it_does_not() -> None:
    stop = Stop()
    before = stop.is_asked
    stop.ask()
    async with asyncio.timeout(1):
        await stop.asked()
    assert (before, stop.is_asked) == (False, True)
    now = asyncio.get_running_loop().create_task(stop.now())
    await asyncio.sleep(0)
    assert not now.done()
    stop.ask()
    async with asyncio.timeout(1):
        await now


async def test_at_once_is_both() -> None:
    stop = Stop()
    stop.at_once()
    async with asyncio.timeout(1):
        await stop.asked()
        await stop.now()


async def test_what_is_done_first_ends_the_wait() -> None:
    stop, done, cut = Stop(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await done.wait()
        finally:
            cut.set()

    async with asyncio.timeout(1):
        done.set()
        await stop.now_or(work())
        done.clear()
        cut.clear()
        stop.at_once()
        await stop.now_or(work())
    assert cut.is_set()
