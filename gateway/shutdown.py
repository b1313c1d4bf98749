"""How a gateway is asked to stop: once to take nothing new, once more to end at once.

Responsible for telling the two apart. Not responsible for what happens then (see `app`).
"""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Stop:
    """Set by signals, read by `Gateway.run`."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._now = asyncio.Event()

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """Drain; asked again, however soon: end at once."""
        if self._asked.is_set():
            self._now.set()
        self._asked.set()

    def at_once(self) -> None:
        """Do not wait for calls that live (any more)."""
        self._asked.set()
        self._now.set()

    async def asked(self) -> None:
        await self._asked.wait()

    async def now_or(self, done: Coroutine[Any, Any, None]) -> None:
        """Wait until the end is asked for, or until `done` is."""
        async with asyncio.TaskGroup() as tasks:
            waits = {tasks.create_task(self.now()), tasks.create_task(done)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def now(self) -> None:
        """Wait until the end is asked for."""
        await self._now.wait()
