"""Show operators how many slots of each number are in use, as often as a person can read.

Every call changes a slot twice, and every softphone is told: at 100 calls a second and 200 phones that would be 40,000
messages a second. So there are at most `MESSAGES_PER_S`, however many calls, numbers and phones there are. The number
whose change has waited longest is shown first. The slots are in `numbers.slots`.
"""

import asyncio
from itertools import islice
from typing import Final, Protocol

from gateway.common.ids import PhoneNumberId
from gateway.numbers.number import Number
from gateway.numbers.views import slots_view
from gateway.wire import messages as msg

#: The first change is shown at once, the following ones together after this time.
EVERY_S: Final = 0.25
#: About 1.5 % of the event loop's time. A number is always shown to all phones; the more phones, the later the next.
MESSAGES_PER_S: Final = 2_000


class Audience(Protocol):
    """The phones that are shown slots. Implemented by `hub.Hub`."""

    @property
    def connected(self) -> int: ...
    def tell_all(self, notice: msg.Push) -> None: ...


class SlotFeed:
    """Shows slots; one instance for all numbers. Call `close` before the loop ends."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._waiting: dict[PhoneNumberId, Number] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def changed(self, number: Number) -> None:
        """Note that a slot of this number was taken or released. Call it in the event loop."""
        if self._closed:
            return
        if self._timer is not None:
            self._waiting.setdefault(number.id, number)
            return
        self._schedule_next(1)
        self._show_number(number)

    def close(self) -> None:
        """Stop showing changes."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _show_waiting(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        turn = list(islice(self._waiting, max(1, int(MESSAGES_PER_S * EVERY_S) // max(1, self._audience.connected))))
        self._schedule_next(len(turn))
        for number_id in turn:
            self._show_number(self._waiting.pop(number_id))

    def _schedule_next(self, shown: int) -> None:
        pause_s = max(EVERY_S, shown * self._audience.connected / MESSAGES_PER_S)
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._show_waiting)

    def _show_number(self, number: Number) -> None:
        self._audience.tell_all(
            msg.SlotsChanged(
                number_id=number.id,
                incoming=slots_view(number.incoming),
                outgoing=slots_view(number.outgoing),
            )
        )
