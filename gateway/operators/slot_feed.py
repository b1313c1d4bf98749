"""Shows operators how many slots of each number are taken, as often as a person can read.

Every call changes a slot twice, and every softphone is told: at 100 calls a second and 200 phones that would be 40,000
messages a second. So there are at most `MESSAGES_PER_S`, however many calls, numbers and phones there are; the number
whose change has waited longest is shown first. Not responsible for slots themselves (see `slots`).
"""

import asyncio
from itertools import islice
from typing import Final, Protocol

from gateway.common.ids import PhoneNumberId
from gateway.numbers.number import Number
from gateway.numbers.views import slots_view
from gateway.wire import messages as msg

#: A change is shown at once, the next ones together after this.
EVERY_S: Final = 0.25
#: Some 1.5 % of the event loop. One number is shown to however many phones there are, the next one then later.
MESSAGES_PER_S: Final = 2_000


class Audience(Protocol):
    """Who is shown slots. `hub.Hub` is one."""

    @property
    def connected(self) -> int: ...
    def tell_all(self, notice: msg.Push) -> None: ...


class SlotFeed:
    """One for all numbers. `close` before the loop ends."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._waiting: dict[PhoneNumberId, Number] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def changed(self, number: Number) -> None:
        """A slot was taken or given back. Called in the loop."""
        if self._closed:
            return
        if self._timer is not None:
            self._waiting.setdefault(number.id, number)
            return
        self._again_after(1)
        self._show(number)

    def close(self) -> None:
        """Show nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _show_waiting(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        turn = list(islice(self._waiting, max(1, int(MESSAGES_PER_S * EVERY_S) // max(1, self._audience.connected))))
        self._again_after(len(turn))
        for number_id in turn:
            self._show(self._waiting.pop(number_id))

    def _again_after(self, shown: int) -> None:
        pause_s = max(EVERY_S, shown * self._audience.connected / MESSAGES_PER_S)
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._show_waiting)

    def _show(self, number: Number) -> None:
        self._audience.tell_all(
            msg.SlotsChanged(
                number_id=number.id,
                incoming=slots_view(number.incoming),
                outgoing=slots_view(number.outgoing),
            )
        )
