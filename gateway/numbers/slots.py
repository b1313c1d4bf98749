"""Limit a number's concurrent calls: one `asyncio.Semaphore` per direction, on which no task ever waits.

Without a free slot, a call is refused at once: waiting would turn overload into latency.
"""

import asyncio
from collections.abc import Callable

from policy.decision import Refusal
from policy.facts import Direction
from policy.gate import slot_refusal


class Lease:
    """The right to one of a number's concurrent calls. `release` is idempotent.

    A lease that is lost on the way to its call because of an error releases itself when it is collected.
    """

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        if self._release is not None:
            release, self._release = self._release, None
            release()

    def __del__(self) -> None:
        self.release()


class Slots:
    """The slots of one number in one direction. Source: guide R14, 1,000 incoming and 1,000 outgoing."""

    def __init__(self, direction: Direction, limit: int, on_change: Callable[[], None] = lambda: None) -> None:
        self.direction = direction
        self.limit = limit
        self.in_use = 0
        self._free = asyncio.Semaphore(limit)
        self._on_change = on_change

    async def try_acquire(self) -> Lease | Refusal:
        """Take a slot, or return the refusal. It never suspends, so what was checked before still holds afterwards."""
        if self._free.locked():
            return slot_refusal(self.direction, in_use=self.in_use, limit=self.limit)
        await self._free.acquire()  # returns without waiting: a slot is free and no task is queued
        self.in_use += 1
        lease = Lease(self._release_slot)
        self._on_change()
        return lease

    def _release_slot(self) -> None:
        self._free.release()
        self.in_use -= 1
        self._on_change()
