"""After a start: close the calls that an earlier process left, and have them ended at Meta (see `owed_hangups`).

A left-over call keeps its contact busy and takes a slot of its number, because Meta counts it until its end (guide
R14). It does so no longer than we would wait for a live call: its media died with its process, so no one can talk on
it. Its record is closed at once. A call whose `connect` had no answer yet may have been placed, so it counts as placed.
"""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import structlog
from msgspec.structs import replace

from gateway.callflow.call import CallState
from gateway.callflow.outcome import EndReason, Result
from gateway.calls.owed_hangups import EXPECT_S, OwedHangups
from gateway.calls.registry import Registry
from gateway.common.clock import Clock
from gateway.contacts.engagements import Engagements, contact_keys
from gateway.contacts.webhook_facts import KnownCall
from gateway.numbers.number import Number, Numbers
from gateway.numbers.slots import Lease, Slots
from gateway.store.records import CallRecord, Change, EndOwed
from gateway.store.store import Store
from policy.decision import Refusal
from policy.facts import Direction

log = structlog.get_logger()

#: Records in one transaction.
CHUNK: Final = 64
#: If no webhook about a call comes in this time, it was never placed.
EXPECTED_FOR: Final = timedelta(seconds=EXPECT_S)
RESTARTED: Final = "The gateway was restarted during this call."


class Occupied:
    """What a left-over call keeps occupied until `release`: its contact, and a slot if one was free."""

    def __init__(self, call: CallRecord, engagements: Engagements, lease: Lease | None) -> None:
        #: Until Meta has been told to end the call, it may still be picked up.
        self.may_connect = call.direction is Direction.BUSINESS_INITIATED
        self._keys = contact_keys(call.phone_number_id, call.user)
        self._engagements = engagements
        self._lease = lease
        engagements.engage(self._keys, self)

    def release(self) -> None:
        self._engagements.release(self._keys, self)
        if self._lease is not None:
            self._lease.release()


class CrashRecovery:
    """The calls that an earlier process left."""

    def __init__(
        self,
        *,
        store: Store,
        owed_hangups: OwedHangups,
        registry: Registry,
        engagements: Engagements,
        numbers: Numbers,
        clock: Clock,
        hold_s: float,
    ) -> None:
        """`hold_s`: how long at most a left-over call occupies its contact and its slot."""
        self._store = store
        self._owed_hangups = owed_hangups
        self._registry = registry
        self._engagements = engagements
        self._numbers = numbers
        self._clock = clock
        self._hold_s = hold_s
        self._calls: list[tuple[CallRecord, Occupied]] = []

    async def find(self) -> None:
        """Read the calls that were left and remember them as ended, so that none rings again. Raises: StoreDown."""
        for call in await self._store.unfinished_calls():
            held = Occupied(call, self._engagements, await self._take_slot(call))
            self._calls.append((call, held))
            if call.meta_call_id is not None:
                self._registry.bury(call.meta_call_id, _known(call))
        if self._calls:
            log.warning("left_over_calls_found", calls=len(self._calls))

    async def _take_slot(self, call: CallRecord) -> Lease | None:
        """Take the slot that Meta still counts; None if none is free (fewer slots than before the restart)."""
        number = self._numbers.get(call.phone_number_id)
        if number is None:
            return None
        slot = await _slots_for(number, call.direction).try_acquire()
        return None if isinstance(slot, Refusal) else slot

    def close(self) -> None:
        """Close the records and have every call ended at Meta, without waiting for Meta."""
        loop = asyncio.get_running_loop()
        for call, held in self._calls:
            loop.call_later(self._hold_s, held.release)
            self._end_at_meta(call, held)
        for first in range(0, len(self._calls), CHUNK):
            self._store.write_soon(*self._closed_records(call for call, _ in self._calls[first : first + CHUNK]))
        self._calls.clear()

    def _end_at_meta(self, call: CallRecord, held: Occupied) -> None:
        if self._numbers.get(call.phone_number_id) is None:
            log.error("left_over_call_of_no_number", call_id=call.call_id, number_id=call.phone_number_id)
            held.release()
        elif call.meta_call_id is None and self._clock.now() - call.created_at > EXPECTED_FOR:
            self._store.write_soon(EndOwed(call_id=call.call_id, owed=False))
            held.release()
        elif call.meta_call_id is None:
            self._owed_hangups.expect(call.phone_number_id, call.call_id, _known(call), then=held.release)
        else:
            self._owed_hangups.keep_trying(call.phone_number_id, call.meta_call_id, call.call_id, then=held.release)

    def _closed_records(self, calls: Iterable[CallRecord]) -> list[Change]:
        now = self._clock.now()
        return [
            replace(
                call,
                version=call.version + 1,
                state=CallState.ENDED.value,
                ended_at=now,
                result=call.result or _result_of(call),
                reason=call.reason or EndReason.INTERNAL,
                detail=call.detail or RESTARTED,
            )
            for call in calls
            if call.state != CallState.ENDED.value
        ]


def _slots_for(number: Number, direction: Direction) -> Slots:
    return number.incoming if direction is Direction.USER_INITIATED else number.outgoing


def _result_of(call: CallRecord) -> Result:
    """Return INDETERMINATE for a call without Meta's id: Meta may have placed it."""
    return Result.INDETERMINATE if call.meta_call_id is None else Result.GATEWAY


def _known(call: CallRecord) -> KnownCall:
    return KnownCall(user=call.user, direction=call.direction)
