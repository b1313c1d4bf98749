"""A number's slots: never waited on, never given back twice, never more than there are."""

import asyncio
import gc

import pytest

from gateway.numbers.slots import Lease, Slots
from policy.decision import Refusal
from policy.facts import Direction
from policy.reasons import Reason, Remedy


async def take(slots: Slots) -> Lease:
    lease = await slots.try_acquire()
    assert isinstance(lease, Lease)
    return lease


async def test_the_1001st_is_refused_at_once_and_says_the_figures() -> None:
    slots = Slots(Direction.USER_INITIATED, 1_000)
    leases = [await take(slots) for _ in range(1_000)]
    async with asyncio.timeout(1):
        refusal = await slots.try_acquire()
    assert refusal == Refusal(
        reason=Reason.NUMBER_BUSY,
        rule="number/slots_user_initiated",
        observed=1_000,
        limit=1_000,
        remedy=Remedy.FREE_SLOT,
    )
    leases[0].release()
    leases.append(await take(slots))
    assert slots.in_use == 1_000


async def test_a_lease_is_given_back_once() -> None:
    slots = Slots(Direction.BUSINESS_INITIATED, 2)
    first, second = await take(slots), await take(slots)
    first.release()
    first.release()
    assert slots.in_use == 1
    third = await take(slots)
    assert isinstance(await slots.try_acquire(), Refusal)
    second.release()
    assert slots.in_use == 1
    third.release()


async def test_a_lease_that_is_lost_on_its_way_gives_its_slot_back() -> None:
    slots = Slots(Direction.USER_INITIATED, 1)
    lease = await take(slots)
    lease.release()
    lease = await take(slots)
    del lease
    assert slots.in_use == 0
    assert isinstance(await slots.try_acquire(), Lease)


async def test_a_slot_is_given_back_when_nobody_could_be_told_that_it_was_taken() -> None:
    told: list[int] = []

    def tell() -> None:
        told.append(slots.in_use)
        if len(told) == 1:
            raise RuntimeError("nobody listens")

    slots = Slots(Direction.USER_INITIATED, 1, tell)
    with pytest.raises(RuntimeError):
        await slots.try_acquire()
    gc.collect()
    assert (slots.in_use, told) == (0, [1, 0])


async def test_to_take_a_slot_never_suspends() -> None:
    slots = Slots(Direction.USER_INITIATED, 1)
    taken: list[Lease | Refusal] = []
    for _ in range(2):
        with pytest.raises(StopIteration) as said:
            slots.try_acquire().send(None)
        taken.append(said.value.value)
    assert [type(each) for each in taken] == [Lease, Refusal]


async def test_as_many_at_once_as_there_are_slots() -> None:
    slots = Slots(Direction.USER_INITIATED, 10)
    taken = await asyncio.gather(*(slots.try_acquire() for _ in range(50)))
    assert sum(isinstance(lease, Lease) for lease in taken) == slots.in_use == 10


async def test_without_slots_there_are_no_calls() -> None:
    assert isinstance(await Slots(Direction.USER_INITIATED, 0).try_acquire(), Refusal)


async def test_each_change_is_told() -> None:
    seen: list[int] = []
    slots = Slots(Direction.USER_INITIATED, 1, lambda: seen.append(slots.in_use))
    (await take(slots)).release()
    assert seen == [1, 0]
