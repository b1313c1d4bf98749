"""After a start: the calls that an earlier process left are closed here and ended at Meta.

Responsible for what a crash left, until Meta has confirmed it (see `owed_hangups`). Not responsible for calls of this
process.

A left-over call keeps its contact busy and takes one of its number's slots, because until its end Meta counts it
(guide R14), but no longer than a live call would be waited for: nobody can talk on it, its media died with its process.
Its record is closed at once. One whose `connect` had no answer yet may have been carried out: it counts as placed.
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
#: A call that no webhook has told of in this time was never placed.
EXPECTED_FOR: Final = timedelta(seconds=EXPECT_S)
RESTARTED: Final = "The gateway was restarted during this call."


class Held:
    """What a left-over call keeps from new ones, given back once: its contact is busy, and a slot is taken."""

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


class LeftOver:
    """Calls without a process."""

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
        """`hold_s`: how long at most a left-over call counts against new ones."""
        self._store = store
        self._owed_hangups = owed_hangups
        self._registry = registry
        self._engagements = engagements
        self._numbers = numbers
        self._clock = clock
        self._hold_s = hold_s
        self._calls: list[tuple[CallRecord, Held]] = []

    async def find(self) -> None:
        """Read what was left and remember it as ended, so that none of it rings again. Raises: StoreDown."""
        for call in await self._store.unfinished_calls():
            held = Held(call, self._engagements, await self._slot(call))
            self._calls.append((call, held))
            if call.meta_call_id is not None:
                self._registry.bury(call.meta_call_id, _known(call))
        if self._calls:
            log.warning("left_over_calls_found", calls=len(self._calls))

    async def _slot(self, call: CallRecord) -> Lease | None:
        """Take the slot that Meta still counts; with fewer slots than before there may be none."""
        number = self._numbers.get(call.phone_number_id)
        if number is None:
            return None
        slot = await _slots(number, call.direction).try_acquire()
        return None if isinstance(slot, Refusal) else slot

    def close(self) -> None:
        """Close the records and have every call ended; nothing here waits for Meta."""
        loop = asyncio.get_running_loop()
        for call, held in self._calls:
            loop.call_later(self._hold_s, held.release)
            self._end_at_meta(call, held)
        for first in range(0, len(self._calls), CHUNK):
            self._store.write_soon(*self._closed(call for call, _ in self._calls[first : first + CHUNK]))
        self._calls.clear()

    def _end_at_meta(self, call: CallRecord, held: Held) -> None:
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

    def _closed(self, calls: Iterable[CallRecord]) -> list[Change]:
        now = self._clock.now()
        return [
            replace(
                call,
                version=call.version + 1,
                state=CallState.ENDED.value,
                ended_at=now,
                result=call.result or _result(call),
                reason=call.reason or EndReason.INTERNAL,
                detail=call.detail or RESTARTED,
            )
            for call in calls
            if call.state != CallState.ENDED.value
        ]


def _slots(number: Number, direction: Direction) -> Slots:
    return number.incoming if direction is Direction.USER_INITIATED else number.outgoing


def _result(call: CallRecord) -> Result:
    """A call that Meta never named may have been placed all the same."""
    return Result.INDETERMINATE if call.meta_call_id is None else Result.GATEWAY


def _known(call: CallRecord) -> KnownCall:
    return KnownCall(user=call.user, direction=call.direction)
