"""The wall clock of the simulator and the load suite; only this module reads it.

Timers use the event loop's time. Everything counted in hours or days, and every timestamp in a webhook, is UNIX seconds
from a `Clock`, so that a test can skip a day.
"""

import time
from collections.abc import Callable
from typing import TypeAlias

#: Returns UNIX time in seconds.
Clock: TypeAlias = Callable[[], float]


def instant() -> float:
    """Return seconds of a monotonic clock, for measuring.

    Not `loop.time()`: uvloop rounds it to whole milliseconds and updates it once per loop iteration.
    """
    return time.perf_counter()


def wall_clock() -> float:
    """Return UNIX time in seconds."""
    return time.time()  # noqa: TID251  the only reader on this side; gateway/common/clock.py must not be shared
