"""A number's concurrent calls: one `asyncio.Semaphore` for each direction, on which nobody ever waits.

No free slot means a refusal now: waiting would turn overload into latency. Not responsible for any other rule (see
`policy.gate`).
"""

import asyncio
from collections.abc import Callable

from policy.decision import Refusal
from policy.facts import Direction
from policy.gate import slot_refusal


class Lease:
    """The right to one of a number's concurrent calls; given back once, however often `release` is called.

    One that is dropped on the way to its call, because something there broke, is given back by itself.
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
        """Take a slot or say no, at once: this never suspends, so what was checked before it still holds after it."""
        if self._free.locked():
            return slot_refusal(self.direction, in_use=self.in_use, limit=self.limit)
        await self._free.acquire()  # returns without waiting: a slot is free and nobody queues
        self.in_use += 1
        lease = Lease(self._give_back)
        self._on_change()
        return lease

    def _give_back(self) -> None:
        self._free.release()
        self.in_use -= 1
        self._on_change()
