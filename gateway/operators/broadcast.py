"""Send the same frame to all phones, to a few of them in each turn of the event loop.

Sending to two thousand phones at once would delay every call by about 30 ms. Each phone gets broadcast frames in the
order in which they were sent; a frame that is sent to one phone alone may overtake them.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from gateway.operators.phone import Phone

#: Phones in one turn of the loop: takes under a millisecond.
AT_ONCE: Final = 50
#: Frames that may be in progress. With more, the oldest is sent to all at once, so that a flood slows its own sender.
MOST_WAITING: Final = 20


class Broadcast:
    """Sends frames to many phones; one instance for all phones."""

    def __init__(self) -> None:
        self._left: deque[tuple[bytes, Iterator[Phone]]] = deque()  #: frames, each with the phones it must still reach
        self._turn: asyncio.Handle | None = None

    def send(self, frame: bytes, phones: Iterable[Phone]) -> None:
        """Send to the phones given; to the first few at once, if no other frame is in progress."""
        self._left.append((frame, iter(tuple(phones))))
        while len(self._left) > MOST_WAITING:
            oldest, rest = self._left.popleft()
            for phone in rest:
                phone.send(oldest)
        if self._turn is None:
            self._send_next()

    def _send_next(self) -> None:
        """Send to the next `AT_ONCE` phones, and schedule the rest."""
        self._turn, room = None, AT_ONCE
        while self._left:
            frame, phones = self._left[0]
            told = list(islice(phones, room))
            for phone in told:
                phone.send(frame)
            room -= len(told)
            if not room:
                self._turn = asyncio.get_running_loop().call_soon(self._send_next)
                return
            self._left.popleft()
