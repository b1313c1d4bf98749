"""Handle Ctrl-C: a stopped run cleans up and still reports what it has measured."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Exit code of a run stopped by a signal.
STOPPED: Final = 130


@contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM cancel this task; later ones are ignored, because clean-up is under way."""
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
    """Undo a cancellation, so that the report can still be written."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
