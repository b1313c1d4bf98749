"""Tell failures from cancellation, and run a step so that its failure does not stop the next one."""

import asyncio
from collections.abc import Callable

import structlog

log = structlog.get_logger()


def was_cancelled(error: BaseException) -> bool:
    """Tell whether `error` is the cancellation of this task, which must be re-raised.

    A CancelledError without a cancellation of this task comes from a failure elsewhere, and is treated as one.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def safely(step: Callable[[], object]) -> None:
    """Run one step of ending a call; log an exception instead of raising it."""
    try:
        step()
    except (Exception, asyncio.CancelledError):
        log.exception("call_end_step_broken")
