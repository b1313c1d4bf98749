"""Operators see a change of slots at once, and many changes as one."""

import asyncio

import pytest

from gateway.config.settings import NumberSettings
from gateway.numbers.number import Number
from gateway.numbers.slots import Lease
from gateway.operators.slot_feed import EVERY_S, SlotFeed
from gateway.wire import messages as msg
from policy.pack import load_pack

ONE, TWO = "200000000000001", "200000000000002"


class Shown:
    """Numbers whose slots are shown, and what operators saw."""

    def __init__(self, *, phones: int = 1) -> None:
        self.pushes: list[msg.Push] = []
        self.connected = phones
        self.slots = SlotFeed(self)

    def tell_all(self, notice: msg.Push) -> None:
        self.pushes.append(notice)

    def number(self, number_id: str) -> Number:
        settings = NumberSettings(phone_number_id=number_id, phone_number=f"+55115555{number_id[-4:]}")
        return Number(settings, load_pack("guide"), on_slots=self.slots.changed)

    def in_use(self, number_id: str) -> list[int]:
        found = [push for push in self.pushes if isinstance(push, msg.SlotsChanged)]
        return [push.incoming.used for push in found if push.number_id == number_id]


async def taken(number: Number, count: int) -> list[Lease]:
    leases = [await number.incoming.try_acquire() for _ in range(count)]
    return [lease for lease in leases if isinstance(lease, Lease)]


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_change_is_shown_at_once_and_the_next_ones_together() -> None:
    shown = Shown()
    one, two = shown.number(ONE), shown.number(TWO)
    leases = await taken(one, 100)
    assert shown.in_use(ONE) == [1]
    leases += await taken(two, 3)
    await asyncio.sleep(EVERY_S + 0.01)
    assert (shown.in_use(ONE), shown.in_use(TWO)) == ([1, 100], [3])
    for lease in leases:
        lease.release()
    await asyncio.sleep(EVERY_S)
    assert (shown.in_use(ONE), shown.in_use(TWO)) == ([1, 100, 0], [3, 0])
    shown.slots.close()


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_after_a_quiet_while_a_change_is_shown_at_once_again() -> None:
    shown = Shown()
    one = shown.number(ONE)
    leases = await taken(one, 1)
    await asyncio.sleep(3 * EVERY_S)
    leases += await taken(one, 1)
    assert shown.in_use(ONE) == [1, 2]
    leases.clear()
    shown.slots.close()


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize(
    ("phones", "at_a_time", "every_s"), [(0, 5, EVERY_S), (100, 5, EVERY_S), (250, 2, EVERY_S), (5_000, 1, 2.5)]
)
async def test_many_phones_are_shown_a_few_numbers_at_a_time_and_each_number_in_turn(
    phones: int, at_a_time: int, every_s: float
) -> None:
    shown = Shown(phones=phones)
    numbers = [shown.number(f"20000000000000{digit}") for digit in range(6)]
    leases = [lease for number in numbers for lease in await taken(number, 1)]
    leases += await taken(numbers[1], 1)  # keeps its place
    order = [number.id for number in numbers]
    seen = 1  # the first at once
    while seen < len(numbers):
        assert [push.number_id for push in shown.pushes if isinstance(push, msg.SlotsChanged)] == order[:seen]
        await asyncio.sleep(every_s + 0.01)
        seen = min(seen + at_a_time, len(numbers))
    assert shown.in_use(numbers[1].id) == [2]
    leases.clear()
    shown.slots.close()


async def test_closed_it_shows_nothing_and_leaves_no_timer() -> None:
    shown = Shown()
    leases = await taken(shown.number(ONE), 2)
    shown.slots.close()
    leases.clear()
    assert shown.in_use(ONE) == [1]
