"""Failures that must not spread: telling them from cancellation, and doing a step whatever became of the one before."""

import asyncio
from collections.abc import Callable

import structlog

log = structlog.get_logger()


def was_cancelled(error: BaseException) -> bool:
    """Tell whether `error` is the cancellation of this task: that has to be passed on.

    A CancelledError that nobody asked for came out of something that broke, and is a failure like any other.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def safely(step: Callable[[], object]) -> None:
    """Do one step of an end; what is broken in it is logged and stays its own."""
    try:
        step()
    except (Exception, asyncio.CancelledError):
        log.exception("call_end_step_broken")
