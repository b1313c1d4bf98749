"""Shows operators how many slots of each number are taken, as often as a person can read.

Every call changes a slot twice, and every softphone is told: at 100 calls a second and 200 phones that would be 40,000
messages a second. Not responsible for slots themselves (see `slots`).
"""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway import messages as msg
from gateway import views
from gateway.ids import PhoneNumberId
from gateway.numbers import Number

#: A change is shown at once, the next ones together after this.
EVERY_S: Final = 0.25


class SlotsShown:
    """One for all numbers. `close` before the loop ends."""

    def __init__(self, tell: Callable[[msg.Push], None]) -> None:
        self._tell = tell
        self._waiting: dict[PhoneNumberId, Number] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def changed(self, number: Number) -> None:
        """A slot was taken or given back. Called in the loop."""
        if self._closed:
            return
        if self._timer is not None:
            self._waiting[number.id] = number
            return
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._show_waiting)
        self._show(number)

    def close(self) -> None:
        """Show nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _show_waiting(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._show_waiting)
        for number in waiting.values():
            self._show(number)

    def _show(self, number: Number) -> None:
        self._tell(
            msg.SlotsChanged(
                number_id=number.id,
                incoming=views.slots_view(number.incoming),
                outgoing=views.slots_view(number.outgoing),
            )
        )
