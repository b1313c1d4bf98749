"""Waiting for a condition, bounded: never for a time."""

import asyncio
from collections.abc import Callable
from typing import Final

#: A loop's clock is rounded (uvloop's to a millisecond): what waited for so long may seem to have waited this less.
LOOP_GRAIN_S: Final = 0.005


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0, every_s: float = 0.02) -> None:
    """Wait until a condition holds. Raises: TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - anything may make it true
            await asyncio.sleep(every_s)
