"""So many a second, and a burst: who comes faster waits, and is read no further meanwhile."""

import asyncio


class Pace:
    """The pace of one sender. Nothing is refused: what waits is held back by TCP, at the sender."""

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._step_s = 1 / per_s
        self._ahead_s = burst * self._step_s
        self._free_at = 0.0

    async def turn(self) -> None:
        """Return when the next may be taken."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + self._step_s
        wait_s = self._free_at - now - self._ahead_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)
