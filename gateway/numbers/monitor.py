"""Keeps what is known of the business numbers: loads it, asks Meta, stores it, shows it.

Responsible for when Meta is asked (at the start, when its word is in doubt, by hand) and for telling store, metrics
and softphones what changed, also where time alone changes it: a restriction that ends, hours that begin. Not
responsible for what the facts mean (see `number_facts`).

Theory of operation. One task for each number looks every few seconds whether Meta is to be asked and whether what is
shown has changed. Looking is cheap, knows no timers that a clock put back could mislead, and the gate does not depend
on it: it judges by the instant.
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

#: How often it is looked whether something changed.
LOOK_S: Final = 5.0
#: When Meta is asked again after failures.
AGAIN: Final = Backoff((5.0, 15.0, 60.0, 300.0))
#: While Meta seems to be away, or refuses the token, it is found out so often whether it still does.
TROUBLE_S: Final = 30.0
#: While something rules all calls out that no webhook may take back, Meta is asked so often.
DOUBT_S: Final = 900.0


class _Watch:
    """What the keeper remembers of one number between two looks."""

    def __init__(self) -> None:
        self.ask_at: float | None = 0.0  #: loop time; None: no need
        self.failures = 0
        self.shown: msg.NumberStatusView | None = None  #: as of the last look
        self.wake = asyncio.Event()


class NumberMonitor:
    """Looks after every number of this gateway. A `NumberListener`."""

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
        """Take over what an earlier process knew of the numbers and placed from them. Raises: StoreDown."""
        for saved in await self._store.numbers():
            number = numbers.get(saved.phone_number_id)
            if number is None:
                continue
            try:
                number.learn(facts_from_json(saved.state))
            except FactsError as error:  # Meta tells it again
                log.warning("number_facts_unreadable", number_id=number.id, detail=str(error))
        placed = await self._store.placed_calls(numbers.ids, self._clock.now() - DAY)
        for number in numbers:
            number.placed.preload(placed[number.id])
            self._look(number)

    async def run(self, numbers: Numbers) -> None:
        """Look after all numbers until cancelled."""
        count = len(numbers.ids)
        async with asyncio.TaskGroup() as tasks:
            for place, number in enumerate(numbers, start=1):  # not all at once: hundreds would hold the loop
                tasks.create_task(self._watch(number, self.look_s * place / count))

    def in_doubt(self, number: Number) -> None:
        """Ask Meta about a number without anybody waiting for it."""
        watch = self._watch_of(number)
        watch.ask_at, watch.failures = asyncio.get_running_loop().time(), 0
        watch.wake.set()

    async def refresh(self, number: Number) -> None:
        """Ask Meta now, for somebody who has mended something. Raises: GraphError."""
        await number.read_from_meta(self._graph, now=self._clock.now(), by_hand=True)
        log.info("number_read", number_id=number.id, calling=number.state.calling.value, by_hand=True)

    def status_of(self, number: Number) -> msg.NumberStatusView:
        """Return what softphones are shown of a number: to make it anew for each who logs in would hold the loop."""
        return self._watch_of(number).shown or status_view(number, now=self._clock.now())

    # --- one number --------------------------------------------------------------------------------

    def _watch_of(self, number: Number) -> _Watch:
        return self._watches.setdefault(number.id, _Watch())

    async def _watch(self, number: Number, first_s: float) -> None:
        """Look now, after `first_s`, and then every few seconds."""
        watch, loop, pause_s = self._watch_of(number), asyncio.get_running_loop(), first_s
        while True:
            watch.wake.clear()
            try:
                if watch.ask_at is None and self._in_trouble(number.id):
                    watch.ask_at = loop.time()
                if watch.ask_at is not None and loop.time() >= watch.ask_at:
                    await self._ask(number, watch)
                self._look(number)
            except Exception:  # a bug must not leave the number unwatched
                log.exception("number_watch_broken", number_id=number.id)
            try:
                async with asyncio.timeout(pause_s):
                    await watch.wake.wait()
            except TimeoutError:
                pass
            pause_s = self.look_s

    async def _ask(self, number: Number, watch: _Watch) -> None:
        watch.ask_at = None  # whoever doubts from here on, doubts the answer too
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
        """Keep and show new facts."""
        now = self._clock.now()
        state = facts_to_json(number.facts)
        self._store.write_soon(NumberSaved(phone_number_id=number.id, state=state, updated_at=now))
        self._look(number)

    def _look(self, number: Number) -> None:
        """Show a number whose state changed, by news or by time."""
        watch, now = self._watch_of(number), self._clock.now()
        status = status_view(number, now=now)
        shown, watch.shown = watch.shown, status
        if shown is not None and status == msgspec.structs.replace(shown, read_at=status.read_at):
            return  # to be asked alone is no news
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
    """Tell whether calls are ruled out by something whose end nobody announces."""
    off = state.calling not in (CallingStatus.ENABLED, CallingStatus.UNKNOWN)
    endless = any(restriction.expires_at is None for restriction in state.restrictions)
    return off or endless or state.sip_enabled or state.coexistence or state.eligibility_refused
