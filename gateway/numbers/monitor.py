"""Keep the facts of the business numbers up to date: load them, read them from Meta, store them, show changes.

The monitor decides when Meta is asked: at start, when facts may be wrong, and on request. It tells the store, the
metrics and the softphones about changes, including those that only time brings: a restriction ends, calling hours
begin.

Theory of operation. One task per number checks every few seconds whether it is time to ask Meta and whether the shown
status has changed. Polling is cheap and needs no timers that a clock set back could mislead. The gate does not depend
on it: it compares instants itself.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec
import structlog

from gateway.common.backoff import Backoff
from gateway.common.clock import Clock
from gateway.common.errors import GraphError, GraphPaused
from gateway.common.ids import PhoneNumberId
from gateway.common.metrics import Metrics
from gateway.meta.graph import Graph
from gateway.numbers.facts import FactsError, facts_from_json, facts_to_json, live_restrictions
from gateway.numbers.number import Number, Numbers
from gateway.numbers.views import status_view
from gateway.store.records import NumberSaved
from gateway.store.store import Store
from gateway.wire import messages as msg
from policy.number import CallingStatus, NumberState, RestrictionType
from policy.windows import DAY

log = structlog.get_logger()

#: How often each number is checked for changes.
LOOK_S: Final = 5.0
#: The pauses after failures to read a number from Meta.
AGAIN: Final = Backoff((5.0, 15.0, 60.0, 300.0))
#: How often Meta is probed while it does not answer or refuses the token.
TROUBLE_S: Final = 30.0
#: How often Meta is asked while all calls are ruled out by something whose end no webhook may announce.
DOUBT_S: Final = 900.0


class _Watch:
    """The state of the monitor for one number."""

    def __init__(self) -> None:
        self.ask_at: float | None = 0.0  #: when to ask Meta, loop time; None: no need
        self.failures = 0
        self.shown: msg.NumberStatusView | None = None  #: the status that was last shown
        self.wake = asyncio.Event()


class NumberMonitor:
    """Monitors every number of this gateway. A `NumberListener`."""

    def __init__(
        self,
        *,
        graph: Graph,
        store: Store,
        metrics: Metrics,
        clock: Clock,
        tell: Callable[[msg.Push], None],
        in_trouble: Callable[[PhoneNumberId], bool] = lambda number_id: False,
    ) -> None:
        self._graph = graph
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._tell = tell
        self._in_trouble = in_trouble
        self.look_s = LOOK_S
        self._watches: dict[PhoneNumberId, _Watch] = {}

    async def load(self, numbers: Numbers) -> None:
        """Load the facts of the numbers, and the calls placed from them, from the store. Raises: StoreDown."""
        for saved in await self._store.numbers():
            number = numbers.get(saved.phone_number_id)
            if number is None:
                continue
            try:
                number.learn(facts_from_json(saved.state))
            except FactsError as error:  # they will be read from Meta again
                log.warning("number_facts_unreadable", number_id=number.id, detail=str(error))
        placed = await self._store.placed_calls(numbers.ids, self._clock.now() - DAY)
        for number in numbers:
            number.placed.preload(placed[number.id])
            self._show_changes(number)

    async def run(self, numbers: Numbers) -> None:
        """Monitor all numbers until cancelled."""
        count = len(numbers.ids)
        async with asyncio.TaskGroup() as tasks:
            for place, number in enumerate(numbers, start=1):  # not all at once: hundreds would block the loop
                tasks.create_task(self._watch_number(number, self.look_s * place / count))

    def in_doubt(self, number: Number) -> None:
        """Have a number read from Meta soon, in the background."""
        watch = self._watch_of(number)
        watch.ask_at, watch.failures = asyncio.get_running_loop().time(), 0
        watch.wake.set()

    async def refresh(self, number: Number) -> None:
        """Read a number from Meta now, because an administrator asks for it. Raises: GraphError."""
        await number.read_from_meta(self._graph, now=self._clock.now(), by_hand=True)
        log.info("number_read", number_id=number.id, calling=number.state.calling.value, by_hand=True)

    def status_of(self, number: Number) -> msg.NumberStatusView:
        """Return the status that softphones are shown; computing it for each login would block the loop."""
        return self._watch_of(number).shown or status_view(number, now=self._clock.now())

    # --- one number --------------------------------------------------------------------------------

    def _watch_of(self, number: Number) -> _Watch:
        return self._watches.setdefault(number.id, _Watch())

    async def _watch_number(self, number: Number, first_s: float) -> None:
        """Check a number now, after `first_s`, and then every `look_s`, until cancelled."""
        watch, loop, pause_s = self._watch_of(number), asyncio.get_running_loop(), first_s
        while True:
            watch.wake.clear()
            try:
                if watch.ask_at is None and self._in_trouble(number.id):
                    watch.ask_at = loop.time()
                if watch.ask_at is not None and loop.time() >= watch.ask_at:
                    await self._read_from_meta(number, watch)
                self._show_changes(number)
            except Exception:  # a bug must not leave the number unwatched
                log.exception("number_watch_broken", number_id=number.id)
            try:
                async with asyncio.timeout(pause_s):
                    await watch.wake.wait()
            except TimeoutError:
                pass
            pause_s = self.look_s

    async def _read_from_meta(self, number: Number, watch: _Watch) -> None:
        watch.ask_at = None  # a doubt that comes from now on also concerns the answer
        try:
            await number.read_from_meta(self._graph, now=self._clock.now())
        except GraphPaused as error:
            again_s: float | None = _seconds_until(error.refusal.retry_at, now=self._clock.now())
        except GraphError as error:
            again_s = AGAIN.pause_s(watch.failures)
            if self._in_trouble(number.id):
                again_s = min(again_s, TROUBLE_S)
            watch.failures += 1
            log.warning("number_not_read", number_id=number.id, detail=error.public, again_s=again_s)
        else:
            watch.failures = 0
            again_s = DOUBT_S if _is_in_doubt(number.state) else None
            log.info("number_read", number_id=number.id, calling=number.state.calling.value)
        if watch.ask_at is None and again_s is not None:
            watch.ask_at = asyncio.get_running_loop().time() + again_s

    def learned(self, number: Number) -> None:
        """Store and show new facts."""
        now = self._clock.now()
        state = facts_to_json(number.facts)
        self._store.write_soon(NumberSaved(phone_number_id=number.id, state=state, updated_at=now))
        self._show_changes(number)

    def _show_changes(self, number: Number) -> None:
        """Tell metrics and softphones about a number whose status changed, by new facts or by time."""
        watch, now = self._watch_of(number), self._clock.now()
        status = status_view(number, now=now)
        shown, watch.shown = watch.shown, status
        if shown is not None and status == msgspec.structs.replace(shown, read_at=status.read_at):
            return  # only `read_at` changed, which is not worth a push
        live = {restriction.type for restriction in live_restrictions(number.state, now=now)}
        for kind in RestrictionType:
            self._metrics.number_restricted.labels(number=number.id, type=kind.value).set(kind in live)
        if shown is None:
            return
        self._tell(msg.NumberChanged(number_id=number.id, status=status))
        log.info(
            "number_changed",
            number_id=number.id,
            calling=status.calling,
            restrictions=[restriction.type for restriction in status.restrictions],
            place=status.place.reason if status.place else None,
            receive=status.receive.reason if status.receive else None,
        )


def _seconds_until(instant: datetime | None, *, now: datetime) -> float:
    return TROUBLE_S if instant is None else max(0.0, (instant - now).total_seconds())


def _is_in_doubt(state: NumberState) -> bool:
    """Tell whether calls are ruled out by something whose end no webhook may announce."""
    off = state.calling not in (CallingStatus.ENABLED, CallingStatus.UNKNOWN)
    endless = any(restriction.expires_at is None for restriction in state.restrictions)
    return off or endless or state.sip_enabled or state.coexistence or state.eligibility_refused
