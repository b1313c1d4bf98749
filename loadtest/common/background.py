"""Tasks that outlive the coroutine that asked for them, in one owned TaskGroup.

A component that lives longer than one coroutine keeps its tasks in a `Background`. A task that fails ends
alone: the failure is kept in `failures` for tests and the state page, the other tasks go on.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Background:
    """Owns a TaskGroup between `start()` and `close()`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._group: asyncio.TaskGroup | None = None
        self._root: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[Exception] = []

    async def start(self) -> None:
        """Open the group. Call once, before the first `spawn()`."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._stopped = asyncio.Event()
        # The single task that is in no group, because it holds the group.
        self._root = loop.create_task(self._hold(ready), name=self._name)
        await ready

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            if not ready.done():  # else whoever started this was cancelled, and is about to close it
                ready.set_result(None)
            await self._stopped.wait()
            self._group = None
            for task in self._tasks:
                task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` until it ends or the group is closed; after `close()` it is dropped."""
        if self._group is None:
            work.close()
            return
        task = self._group.create_task(self._guarded(work, name), name=f"{self._name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Cancelled before its first step, a task never gets to start (or close) the work.
        task.add_done_callback(lambda _: work.close())

    async def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception as failure:
            self.failures.append(failure)
            log.exception("background task %s failed", name)

    async def close(self) -> None:
        """Cancel what still runs and wait for it. Safe to call twice."""
        if self._root is None:
            return
        self._stopped.set()
        await self._root
