"""Ctrl-C: a run that is stopped cleans up and reports what it has. Not responsible for what is cleaned up."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: The exit code of a run that was stopped.
STOPPED: Final = 130


@contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM cancel this task; the next ones do nothing: it is being cleaned up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    names = (signal.SIGINT, signal.SIGTERM)
    said = False

    def stop() -> None:
        nonlocal said
        if not said:
            said = True
            task.cancel()

    for name in names:
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)


def take_back_cancellation() -> None:
    """Go on after a cancellation: the report is still to be written."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
