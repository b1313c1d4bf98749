"""The request to stop the gateway: the first one drains it, the second one ends it at once.

`app` does what is asked.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Stop:
    """The state of the shutdown: set by signals, read by `Gateway.run`."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._now = asyncio.Event()

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask to drain; the second call asks to end at once, however soon it comes."""
        if self._asked.is_set():
            self._now.set()
        self._asked.set()

    def at_once(self) -> None:
        """Ask to end at once, without waiting for active calls."""
        self._asked.set()
        self._now.set()

    async def asked(self) -> None:
        """Wait until a stop of either kind is asked for."""
        await self._asked.wait()

    async def now_or(self, done: Coroutine[Any, Any, None]) -> None:
        """Wait until the immediate end is asked for, or until `done` returns."""
        async with asyncio.TaskGroup() as tasks:
            waits = {tasks.create_task(self.now()), tasks.create_task(done)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def now(self) -> None:
        """Wait until the immediate end is asked for."""
        await self._now.wait()
