"""After a start: the calls that an earlier process left unfinished are ended at Meta and their records closed.

Responsible for what a crash left. Not responsible for calls of this process.
"""

import asyncio
from dataclasses import replace
from typing import Final

import structlog

from gateway.call import CallState
from gateway.clock import Clock
from gateway.errors import GraphError
from gateway.event_facts import KnownCall
from gateway.graph import Graph
from gateway.outcome import EndReason, Result
from gateway.records import CallRecord
from gateway.registry import LeftOverCall, Registry, contact_keys
from gateway.store import Store

log = structlog.get_logger()

#: Requests to Meta under way at once: a thousand calls are closed within seconds, and new ones find room beside them.
AT_A_TIME: Final = 16


class LeftOver:
    """Calls without a process."""

    def __init__(self, store: Store, graph: Graph, clock: Clock) -> None:
        self._store = store
        self._graph = graph
        self._clock = clock
        self._registry = Registry()
        self._calls: list[tuple[CallRecord, LeftOverCall]] = []

    async def find(self, registry: Registry) -> None:
        """Read what was left and remember it as ended, so that none of it rings again. Raises: StoreDown."""
        self._registry = registry
        self._calls = [(call, LeftOverCall(direction=call.direction)) for call in await self._store.unfinished_calls()]
        for call, what in self._calls:
            registry.engage(contact_keys(call.phone_number_id, call.user), what)
            if call.meta_call_id is not None:
                registry.bury(call.meta_call_id, KnownCall(user=call.user, direction=call.direction))

    async def close(self) -> None:
        """End each at Meta, which may still think it alive, and close its record; some at a time."""
        turns = asyncio.Semaphore(AT_A_TIME)
        async with asyncio.TaskGroup() as tasks:
            for call, what in self._calls:
                tasks.create_task(self._close_one(call, what, turns))

    async def _close_one(self, call: CallRecord, what: LeftOverCall, turns: asyncio.Semaphore) -> None:
        """End one. Its contact is busy until then; whether or not Meta heard, nothing stays reserved for good."""
        try:
            async with turns:
                await self._end_at_meta(call)
        finally:
            self._registry.release(contact_keys(call.phone_number_id, call.user), what)
        self._store.write_soon(
            replace(
                call,
                version=call.version + 1,
                state=CallState.ENDED.value,
                ended_at=self._clock.now(),
                result=call.result or Result.GATEWAY,
                reason=call.reason or EndReason.INTERNAL,
                detail=call.detail or "The gateway was restarted during this call.",
            )
        )
        log.info("left_over_call_closed", call_id=call.call_id)

    async def _end_at_meta(self, call: CallRecord) -> None:
        if call.meta_call_id is None:
            return
        try:
            await self._graph.terminate(call.phone_number_id, call.meta_call_id)
        except GraphError as error:
            log.warning("left_over_call_not_ended", call_id=call.call_id, detail=error.public)
