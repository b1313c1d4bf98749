"""The wall clock of the simulated world, and its only reader.

Timers use the event loop's time. What is counted in hours or days, and what webhooks carry as a
timestamp, is UNIX seconds from a `Clock`, so that a test can jump over a day.
"""

import time
from collections.abc import Callable
from typing import TypeAlias

#: Returns UNIX time in seconds.
Clock: TypeAlias = Callable[[], float]


def instant() -> float:
    """Return seconds of a clock that only goes forward, for measuring.

    Not `loop.time()`: uvloop's is in whole milliseconds, and of when the loop last looked.
    """
    return time.perf_counter()


def wall_clock() -> float:
    """Return UNIX time in seconds."""
    return time.time()  # noqa: TID251  the one reader on this side; gateway/common/clock.py is not shared
