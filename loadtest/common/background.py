"""Run tasks that outlive the coroutine that spawned them, in one owned TaskGroup.

A component that lives longer than one coroutine keeps its tasks in a `Background`. A failed task does not affect the
others; its exception is kept in `failures` for tests and for the state page.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Background:
    """Own a TaskGroup between `start()` and `close()`."""

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
        # The only task outside a group, because it holds the group.
        self._root = loop.create_task(self._hold(ready), name=self._name)
        await ready

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            if not ready.done():  # else the caller of start() was cancelled and is about to close
                ready.set_result(None)
            await self._stopped.wait()
            self._group = None
            for task in self._tasks:
                task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` until it ends or the group is closed; after `close()` it is discarded."""
        if self._group is None:
            work.close()
            return
        task = self._group.create_task(self._guarded(work, name), name=f"{self._name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before its first step never starts its coroutine, so nobody else would close it.
        task.add_done_callback(lambda _: work.close())

    async def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception as failure:
            self.failures.append(failure)
            log.exception("background task %s failed", name)

    async def close(self) -> None:
        """Cancel the running tasks and wait for them. Idempotent."""
        if self._root is None:
            return
        self._stopped.set()
        await self._root
