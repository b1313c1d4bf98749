"""A UDP relay that drops, delays, reorders, duplicates and cuts datagrams, from a seed.

It stands in front of one address, for example a media port. Datagrams of each sender are forwarded from a socket of
their own, so that the target can tell senders apart as it could without the relay. Each direction has its own faults,
which can be changed at any time. The same seed and the same order of datagrams give the same faults. The contents of
datagrams are not looked at.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from loadtest.webrtc.rtp import is_rtcp

Address = tuple[str, int]

#: Most senders that one relay forwards for; datagrams of others are dropped.
MAX_FLOWS: Final = 1_024


class Way(StrEnum):
    """A direction, seen from the target."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpFaults:
    """Faults to apply; shares are from 0 to 1."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.0
    #: Random extra delay, uniform from 0; more than the gap between two datagrams reorders them.
    jitter_s: float = 0.0
    #: Share of datagrams held back by `held_s`, so that later ones overtake them.
    reorder: float = 0.0
    held_s: float = 0.05
    #: Forward nothing.
    cut: bool = False


@dataclass(slots=True, kw_only=True)
class Passage:
    """One direction: its faults, its random generator and its counters."""

    rng: random.Random
    faults: UdpFaults = UdpFaults()
    passed: int = 0
    dropped: int = 0
    #: Dropped datagrams that were RTP (RTCP not counted).
    dropped_rtp: int = 0
    duplicated: int = 0
    held: int = 0
    #: Loop time of the last forwarded datagram, and of the last that was RTP or RTCP (RFC 7983 §7).
    last_at: float | None = None
    last_media_at: float | None = None

    def delays(self) -> tuple[float, ...]:
        """Return the delay in seconds of each copy of the next datagram; empty if it is dropped."""
        faults, roll = self.faults, self.rng.random
        # Draw all random numbers for each datagram, so that one fault does not change which datagrams the others hit.
        dropped, doubled, held, late = roll(), roll(), roll(), roll()
        if faults.cut or dropped < faults.drop:
            self.dropped += 1
            return ()
        delay_s = faults.delay_s + late * faults.jitter_s
        if held < faults.reorder:
            self.held += 1
            delay_s += faults.held_s
        if doubled < faults.duplicate:
            self.duplicated += 1
            return (delay_s, delay_s)
        return (delay_s,)


class _Socket(asyncio.DatagramProtocol):
    """Pass every datagram to a function."""

    def __init__(self, received: Callable[[bytes, Address], None]) -> None:
        self._received = received
        self.gone = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._received(data, (addr[0], addr[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


@dataclass(slots=True)
class _Flow:
    """One sender: the socket it is forwarded from, and the datagrams that came before that socket was open."""

    transport: asyncio.DatagramTransport | None = None
    waiting: list[bytes] = field(default_factory=list)


class UdpChaos:
    """A relay in front of `target`, between `open` and `close`."""

    def __init__(self, target: Address | None, *, seed: int, host: str = "127.0.0.1") -> None:
        #: May be set later: the relay's port may have to be announced before the target is known.
        self.target = target
        self._host = host
        self.ways = {way: Passage(rng=random.Random(f"{seed}/{way}")) for way in Way}
        self._flows: dict[Address, _Flow] = {}
        self._sockets: list[tuple[asyncio.DatagramTransport, _Socket]] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self._group = asyncio.TaskGroup()

    async def open(self) -> Self:
        """Bind the relay's socket to any free port."""
        self._loop = asyncio.get_running_loop()
        await self._group.__aenter__()
        self._front = await self._bind(self._from_sender)
        self.address: Address = self._front.get_extra_info("sockname")[:2]
        return self

    @property
    def port(self) -> int:
        """Return the port to announce to senders instead of the target's."""
        return self.address[1]

    def set(self, faults: UdpFaults, *ways: Way) -> None:
        """Set the faults of the given directions; of both if none is given."""
        for way in ways or tuple(Way):
            self.ways[way].faults = faults

    def cut(self, *ways: Way) -> None:
        """Forward nothing from now on, and drop what is delayed."""
        self.set(UdpFaults(cut=True), *ways)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def close(self) -> None:
        """Close all sockets. Idempotent."""
        self.cut()
        await self._group.__aexit__(None, None, None)
        for transport, _ in self._sockets:
            transport.close()
        for _, protocol in self._sockets:
            await protocol.gone.wait()
        self._sockets.clear()

    async def _bind(self, received: Callable[[bytes, Address], None]) -> asyncio.DatagramTransport:
        transport, protocol = await self._loop.create_datagram_endpoint(
            lambda: _Socket(received), local_addr=(self._host, 0)
        )
        self._sockets.append((transport, protocol))
        return transport

    def _from_sender(self, data: bytes, sender: Address) -> None:
        flow = self._flows.get(sender)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                return
            flow = self._flows[sender] = _Flow()
            self._group.create_task(self._open_flow(flow, sender))
        self._pass(Way.IN, data, lambda one: self._to_target(flow, one))

    async def _open_flow(self, flow: _Flow, sender: Address) -> None:
        def answered(data: bytes, _: Address) -> None:
            self._pass(Way.OUT, data, lambda one: self._front.sendto(one, sender))

        flow.transport = await self._bind(answered)
        waiting, flow.waiting = flow.waiting, []
        for data in waiting:
            self._to_target(flow, data)

    def _to_target(self, flow: _Flow, data: bytes) -> None:
        if flow.transport is None:
            flow.waiting.append(data)
        elif self.target is not None:
            flow.transport.sendto(data, self.target)

    def _pass(self, way: Way, data: bytes, send: Callable[[bytes], None]) -> None:
        passage = self.ways[way]

        def now() -> None:
            passage.passed += 1
            passage.last_at = self._loop.time()
            if data and 127 < data[0] < 192:
                passage.last_media_at = passage.last_at
            send(data)

        delays = passage.delays()
        if not delays and data and 127 < data[0] < 192 and not is_rtcp(data):
            passage.dropped_rtp += 1
        for delay_s in delays:
            if delay_s <= 0:
                now()
            else:
                self._later(delay_s, now)

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            action()

        timer = self._loop.call_later(delay_s, run)
        self._timers.add(timer)


@asynccontextmanager
async def udp_chaos(target: Address | None, *, seed: int) -> AsyncIterator[UdpChaos]:
    """Yield an open relay in front of `target`."""
    relay = await UdpChaos(target, seed=seed).open()
    try:
        yield relay
    finally:
        await relay.close()
