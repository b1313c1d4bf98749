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
