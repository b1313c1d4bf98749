"""The UDP relay: what it loses, delays, repeats and reorders, and that a seed repeats it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from loadtest.net.udp_chaos import Passage, UdpChaos, UdpFaults, Way, udp_chaos
from tests.support.harness.waiting import until


class Ear(asyncio.DatagramProtocol):
    """A socket that remembers what it heard, and answers in capitals if it is the target."""

    def __init__(self, *, answers: bool = False) -> None:
        self.heard: list[bytes] = []
        self.senders: set[tuple[str, int]] = set()
        self._answers = answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.append(data)
        self.senders.add(addr)
        if self._answers:
            self.transport.sendto(data.upper(), addr)

    def say(self, *texts: str, to: tuple[str, int]) -> None:
        for text in texts:
            self.transport.sendto(text.encode(), to)


@asynccontextmanager
async def ears(*, seed: int = 1, callers: int = 1) -> AsyncIterator[tuple[UdpChaos, Ear, list[Ear]]]:
    """Yield a relay, its target, and those who send to it."""
    loop = asyncio.get_running_loop()
    open_ones = [
        await loop.create_datagram_endpoint(lambda n=n: Ear(answers=n == 0), local_addr=("127.0.0.1", 0))  # type: ignore[misc]
        for n in range(callers + 1)
    ]
    target = open_ones[0][0].get_extra_info("sockname")
    try:
        async with udp_chaos(target, seed=seed) as relay:
            yield relay, open_ones[0][1], [protocol for _, protocol in open_ones[1:]]
    finally:
        for transport, _ in open_ones:
            transport.close()
        await asyncio.sleep(0)


NUMBERS = [str(n) for n in range(200)]


async def test_without_faults_all_pass_both_ways_and_senders_stay_apart() -> None:
    async with ears(callers=2) as (relay, target, (one, other)):
        one.say("a", to=relay.address)
        other.say("b", to=relay.address)
        await until(lambda: one.heard == [b"A"] and other.heard == [b"B"])

        assert sorted(target.heard) == [b"a", b"b"]
        assert len(target.senders) == 2
        assert relay.ways[Way.OUT].passed == 2


async def test_a_cut_is_a_cut_in_one_way_or_both() -> None:
    async with ears() as (relay, target, (one,)):
        relay.cut(Way.OUT)
        one.say("a", to=relay.address)
        await until(lambda: relay.ways[Way.OUT].dropped == 1)
        assert (target.heard, one.heard) == ([b"a"], [])
        relay.cut()
        one.say("b", to=relay.address)
        await until(lambda: relay.ways[Way.IN].dropped == 1)
        relay.set(UdpFaults())
        one.say("c", to=relay.address)
        await until(lambda: one.heard == [b"C"])

        assert target.heard == [b"a", b"c"]


async def test_a_cut_loses_what_is_on_its_way() -> None:
    async with ears() as (relay, target, (one,)):
        relay.set(UdpFaults(delay_s=0.05))
        one.say("a", to=relay.address)
        await until(lambda: bool(relay._timers))
        relay.cut()
        relay.set(UdpFaults())
        await asyncio.sleep(0.1)

        assert target.heard == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_seed_says_which_are_lost(seed: int) -> None:
    lost = []
    for _ in range(2):
        async with ears(seed=seed) as (relay, target, (one,)):
            relay.set(UdpFaults(drop=0.25), Way.IN)
            one.say(*NUMBERS, to=relay.address)
            passage = relay.ways[Way.IN]
            await until(lambda passage=passage: passage.passed + passage.dropped == 200)  # type: ignore[misc]
            await until(lambda target=target, passage=passage: len(target.heard) == passage.passed)  # type: ignore[misc]
            lost.append(set(NUMBERS) - {data.decode() for data in target.heard})

    assert lost[0] == lost[1]
    assert 20 < len(lost[0]) < 90


async def test_what_is_held_back_is_overtaken_and_copies_come_twice() -> None:
    async with ears() as (relay, target, (one,)):
        relay.set(UdpFaults(reorder=0.2, held_s=0.03, duplicate=0.1), Way.IN)
        one.say(*NUMBERS, to=relay.address)
        passage = relay.ways[Way.IN]
        await until(lambda: len(target.heard) == 200 + passage.duplicated)

        order = [int(data) for data in target.heard]
        assert order != sorted(order)
        assert set(order) == set(range(200))
        assert passage.duplicated > 5
        assert passage.held > 10


def test_one_fault_does_not_change_what_another_hits() -> None:
    def lost(faults: UdpFaults) -> list[int]:
        passage = Passage(rng=random.Random(7), faults=faults)
        return [n for n in range(500) if not passage.delays()]

    assert lost(UdpFaults(drop=0.1)) == lost(UdpFaults(drop=0.1, duplicate=0.5, jitter_s=1.0, reorder=0.5))


def test_a_delay_is_kept() -> None:
    passage = Passage(rng=random.Random(7), faults=UdpFaults(delay_s=0.1, jitter_s=0.05))
    delays = [passage.delays()[0] for _ in range(500)]

    assert 0.1 <= min(delays) < 0.11
    assert 0.14 < max(delays) <= 0.15
