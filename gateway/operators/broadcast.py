"""Tells all phones the same, a few of them in each turn of the event loop.

Two thousand phones at once would hold every call up for some 30 ms. What is told first arrives first, at each phone;
what one phone alone is told meanwhile may overtake it. Not responsible for what is said, nor how often.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from gateway.operators.phone import Phone

#: Phones in one turn: under a millisecond.
AT_ONCE: Final = 50
#: Frames that may be under way; of more the oldest is sent out at once, so that a flood holds up whoever makes it.
MOST_WAITING: Final = 20


class Broadcast:
    """One for all phones."""

    def __init__(self) -> None:
        self._left: deque[tuple[bytes, Iterator[Phone]]] = deque()  #: whom each frame has not reached yet
        self._turn: asyncio.Handle | None = None

    def send(self, frame: bytes, phones: Iterable[Phone]) -> None:
        """Send to those who are there now: the first few at once, if nothing else is being told."""
        self._left.append((frame, iter(tuple(phones))))
        while len(self._left) > MOST_WAITING:
            oldest, rest = self._left.popleft()
            for phone in rest:
                phone.send(oldest)
        if self._turn is None:
            self._go_on()

    def _go_on(self) -> None:
        self._turn, room = None, AT_ONCE
        while self._left:
            frame, phones = self._left[0]
            told = list(islice(phones, room))
            for phone in told:
                phone.send(frame)
            room -= len(told)
            if not room:
                self._turn = asyncio.get_running_loop().call_soon(self._go_on)
                return
            self._left.popleft()
