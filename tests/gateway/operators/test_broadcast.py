"""Everybody hears everything in order, and the loop is not held meanwhile."""

import asyncio

import pytest

from gateway.common.ids import OperatorId
from gateway.operators.broadcast import AT_ONCE, MOST_WAITING, Broadcast
from gateway.operators.phone import Phone


class Heard:
    """A line that keeps what it was sent."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)

    def hang_up(self, code: int) -> None:
        raise AssertionError("nobody hangs up")


def crew(count: int) -> tuple[list[Phone], list[Heard]]:
    lines = [Heard() for _ in range(count)]
    return [Phone(operator=OperatorId(f"op{n}"), line=line) for n, line in enumerate(lines)], lines


def reached(lines: list[Heard], frame: bytes) -> int:
    return sum(frame in line.frames for line in lines)


async def test_a_few_hear_it_at_once() -> None:
    phones, lines = crew(AT_ONCE)
    Broadcast().send(b"one", phones)
    assert reached(lines, b"one") == AT_ONCE


async def test_many_hear_it_some_in_each_turn_of_the_loop() -> None:
    phones, lines = crew(3 * AT_ONCE + 1)
    Broadcast().send(b"one", phones)
    seen = [reached(lines, b"one")]
    for _ in range(4):
        await asyncio.sleep(0)
        seen.append(reached(lines, b"one"))
    assert seen == [AT_ONCE, 2 * AT_ONCE, 3 * AT_ONCE, 3 * AT_ONCE + 1, 3 * AT_ONCE + 1]


@pytest.mark.parametrize("count", [1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE, 7 * AT_ONCE])
async def test_what_is_told_first_arrives_first_and_everything_once(count: int) -> None:
    phones, lines = crew(count)
    broadcast = Broadcast()
    for frame in (b"one", b"two", b"three"):
        broadcast.send(frame, phones)
    for _ in range(3 * count // AT_ONCE + 3):
        await asyncio.sleep(0)
    assert all(line.frames == [b"one", b"two", b"three"] for line in lines)
    broadcast.send(b"four", phones[:1])
    assert lines[0].frames[-1] == b"four"


async def test_a_flood_does_not_pile_up_and_stays_in_order() -> None:
    phones, lines = crew(2 * AT_ONCE)
    broadcast, frames = Broadcast(), [str(number).encode() for number in range(3 * MOST_WAITING)]
    for frame in frames:
        broadcast.send(frame, phones)
    assert len(lines[-1].frames) == 2 * MOST_WAITING
    for _ in range(3 * MOST_WAITING):
        await asyncio.sleep(0)
    assert all(line.frames == frames for line in lines)


async def test_who_comes_meanwhile_hears_the_next_one() -> None:
    phones, lines = crew(AT_ONCE + 2)
    late = phones.pop()
    broadcast = Broadcast()
    broadcast.send(b"one", phones)
    broadcast.send(b"two", [*phones, late])
    for _ in range(5):
        await asyncio.sleep(0)
    assert lines[-1].frames == [b"two"]


async def test_nobody_is_told_nothing() -> None:
    broadcast = Broadcast()
    broadcast.send(b"one", [])
    phones, lines = crew(1)
    broadcast.send(b"two", phones)
    assert lines[0].frames == [b"two"]
