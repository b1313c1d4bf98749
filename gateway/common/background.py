"""Run background work that outlives its caller, all of it in one TaskGroup."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Protocol, Self

import structlog

log = structlog.get_logger()


class Start(Protocol):
    """Starts a piece of work that outlives its caller."""

    def __call__(self, work: Coroutine[Any, Any, None], /) -> "asyncio.Task[None]": ...


class Background:
    """An async context manager for background tasks; on exit it waits for all of them, as a TaskGroup does."""

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run `work` in a task. An exception in it is logged and ends only this task, not the gateway."""
        return self._tasks.create_task(_log_exceptions(work))


async def _log_exceptions(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("task_broken")
