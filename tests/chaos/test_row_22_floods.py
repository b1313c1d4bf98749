"""What one peer sends too much of, or sends broken, costs nobody else anything (ASVS 5.0, 17.2.3 to 17.2.5)."""

import asyncio
import logging
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aioice import stun

from loadtest.measure.process import rss_bytes
from media import ice
from media.engine import WorkerPool
from media.ice import Address, Budget, Link
from media.model import LegConnected, LegId, MediaEvent
from tests.loopback.peers import CONFIG, Peer, Stage, until
from tests.support.generators.hostile import gather_on_loopback
from tests.support.harness.chaos import Chaos

PROMISE = "a leg flooded with 5,000 packets a second by its own peer costs the others less than 1 % of their frames"
FLOOD_PER_S = 5_000


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


class Calls:
    """Pairs of legs in a worker process, and the peers who talk through them."""

    def __init__(self) -> None:
        self.events: list[MediaEvent] = []
        self.pool = WorkerPool(CONFIG)
        self.peers: list[Peer] = []

    async def __aenter__(self) -> "Calls":
        await self.pool.start(self.events.append)
        return self

    async def __aexit__(self, *error: object) -> None:
        for peer in self.peers:
            await peer.close()
        await self.pool.aclose()

    async def pair(self, name: str) -> tuple[Peer, Peer]:
        """Return an operator and a user who hear each other."""
        legs, worker = (LegId(f"{name} browser"), LegId(f"{name} meta")), self.pool.pick_worker()
        operator, user = Peer(), Peer()
        self.peers += (operator, user)
        await operator.answered(await self.pool.answer_browser(legs[0], worker, await operator.offer()))
        await user.answered(await self.pool.answer_meta(legs[1], worker, await user.offer(lite=True)))
        await until(lambda: all(LegConnected(leg) in self.events for leg in legs))
        await until(lambda: all(peer.pc.connectionState == "connected" for peer in (operator, user)))
        await self.pool.join(*legs)
        return operator, user

    @property
    def memory_mib(self) -> float:
        """Return what the worker process holds."""
        (pid,) = self.pool.pids().values()
        return rss_bytes(pid) / 2**20


async def flood(peer: Peer, *, seconds: float) -> int:
    """Send as an authenticated peer may, only far too much; return how many packets."""
    (pair,) = peer.dtls.transport._connection._nominated.values()
    transport, address = pair.protocol.transport, pair.remote_addr
    loop, sent, payload = asyncio.get_running_loop(), 0, bytes(80)
    began_at = loop.time()
    while (passed_s := loop.time() - began_at) < seconds:
        while sent < passed_s * FLOOD_PER_S:
            head = struct.pack("!BBHLL", 0x80, peer.payloads.opus, sent & 0xFFFF, sent * 960, peer.ssrc)
            transport.sendto(peer.dtls._tx_srtp.protect(head + payload), address)
            sent += 1
        await asyncio.sleep(0.002)
    return sent


async def talk(peer: Peer, listener: Peer, *, seconds: float) -> tuple[int, int]:
    """Say something every 20 ms; return how many frames were said and how many heard."""
    before, said = len(listener.heard), round(seconds * 50)
    await peer.say("x", times=said, pace_s=0.02)
    await asyncio.sleep(0.1)
    return said, len(listener.heard) - before


@pytest.mark.row(22, PROMISE)
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_flood_on_one_leg_costs_the_others_nothing(chaos: Chaos) -> None:
    seconds = chaos.size(test=1.0, short=5.0, long=10.0)
    async with Calls() as calls:
        flooder, victim = await calls.pair("flooded")
        others = [await calls.pair(f"other {n}") for n in range(chaos.size(test=2, short=4, long=8))]
        before = calls.memory_mib
        async with asyncio.TaskGroup() as group:
            flooding = group.create_task(flood(flooder, seconds=seconds))
            talking = [
                group.create_task(talk(one, other, seconds=seconds))
                for pair in others
                for one, other in (pair, pair[::-1])
            ]
        after = calls.memory_mib
        stats = await calls.pool.stats(LegId("flooded browser"))
        failed = [event for event in calls.events if not isinstance(event, LegConnected)][1:]

    assert stats is not None
    said, heard = (sum(column) for column in zip(*(task.result() for task in talking), strict=True))
    rate = CONFIG.packet_budget_per_s
    chaos.note("packets of the flood", flooding.result())
    chaos.note("of these dropped over the leg's budget", stats.dropped_over_budget)
    chaos.note("frames that the others said", said)
    chaos.promise("frames that the others lost", 100 * (said - heard) / said, at_most=1, unit="%", timed=True)
    chaos.promise("growth of the worker's memory", after - before, at_most=20, unit="MiB")
    chaos.promise("packets passed on from the flood", len(victim.heard), at_most=rate * (seconds + 2))
    chaos.promise("legs failed", len(failed), at_most=0)


def rtp(rng: random.Random, peer: Peer) -> bytes:
    """Return RTP that is malformed outside, or inside where only its own peer can put it."""
    kind = rng.randrange(4)
    if kind == 0:
        return bytes([rng.randrange(128, 192)]) + rng.randbytes(rng.choice((0, 1, 10, 11, 40, 1_400, 1_900)))
    peer.sequence += 1  # in order, or the receiver would not find the key stream
    first = rng.choice((0x80, 0x81, 0x90, 0x90, 0xA0, 0xA0, 0xB1, 0x80 | rng.randrange(64)))
    second = rng.choice((111, 111, 126, 126, 5, 239, 254))
    head = struct.pack("!BBHLL", first, second, peer.sequence & 0xFFFF, rng.getrandbits(32), peer.ssrc)
    if kind == 1:
        return head + rng.randbytes(rng.randint(10, 60))
    body = rng.randbytes(rng.choice((0, 1, 2, 4, 5, 60, 200)))
    if first & 0x10 and rng.randrange(2):  # an extension whose length may be right
        body = b"\xbe\xde" + struct.pack("!H", rng.randrange(4)) + body
    clear = head + body
    try:
        return bytes(peer.dtls._tx_srtp.protect(clear))
    except Exception:  # libsrtp itself will not send it
        return clear


def rtcp(rng: random.Random, peer: Peer) -> bytes:
    """Return RTCP that is malformed outside, or inside."""
    kind = rng.choice((192, 199, 200, 201, 202, 203, 204, 205, 206, 207, 223))
    head = struct.pack("!BBHI", 0x80 | rng.randrange(64), kind, rng.randrange(1 << 16), peer.ssrc)
    clear = head + rng.randbytes(4 * rng.choice((0, 1, 2, 5, 6, 12, 100)))
    if rng.randrange(3) == 0:
        return clear + rng.randbytes(rng.randrange(4))
    if rng.randrange(2):  # a length that is right, and a body that is not
        clear = clear[:2] + struct.pack("!H", len(clear) // 4 - 1) + clear[4:]
    try:
        return bytes(peer.dtls._tx_srtp.protect_rtcp(clear))
    except Exception:
        return clear


def stun_message(rng: random.Random, peer: Peer) -> bytes:
    """Return STUN that is malformed, or signed with the leg's password and odd."""
    connection = peer.dtls.transport._connection
    message = stun.Message(
        message_method=stun.Method.BINDING,
        message_class=rng.choice(tuple(stun.Class)),
        transaction_id=rng.randbytes(12),
    )
    message.attributes["USERNAME"] = f"{connection.remote_username}:{connection.local_username}"
    for name, value in (
        ("PRIORITY", rng.getrandbits(32)),
        ("ICE-CONTROLLING", rng.getrandbits(64)),
        ("USE-CANDIDATE", None),
        ("ERROR-CODE", (rng.randrange(300, 700), "odd")),
        ("XOR-MAPPED-ADDRESS", ("192.0.2.1", rng.randrange(65_536))),
    ):
        if rng.randrange(3) == 0:
            message.attributes[name] = value
    if rng.randrange(2):
        message.add_message_integrity((connection.remote_password or "").encode())
    data = bytearray(bytes(message))
    for _ in range(rng.choice((0, 0, 1, 3))):
        data[rng.randrange(1, len(data))] = rng.randrange(256)
    return bytes(data[: rng.choice((len(data), len(data), rng.randrange(1, len(data))))])


def dtls(rng: random.Random, peer: Peer) -> bytes:
    """Return a DTLS record that is malformed, or one that came before."""
    body = rng.randbytes(rng.choice((0, 1, 12, 13, 60, 1_200)))
    length = rng.choice((len(body), 0, 65_535, rng.randrange(1 << 16)))
    version = rng.choice((b"\xfe\xfd", b"\xfe\xff", b"\xfe\xfc", b"\x03\x03"))
    record = bytes([rng.choice((20, 21, 22, 23, 24, 25, 32, 46, 63))]) + version
    epoch = struct.pack("!HHL", rng.choice((0, 1, 2, 3, 65_535)), 0, rng.randrange(1 << 32))
    return record + epoch + struct.pack("!H", length) + body


KINDS: dict[str, Callable[[random.Random, Peer], bytes]] = {
    "RTP": rtp,
    "RTCP": rtcp,
    "STUN": stun_message,
    "DTLS": dtls,
}


@pytest.fixture
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything in, so that each parser sees each packet."""
    monkeypatch.setattr(Budget, "take", lambda budget, now: True)
    monkeypatch.setattr(ice, "MAX_WAITING", 1 << 20)


async def inject(stage: Stage, leg: LegId, packets: Iterator[bytes]) -> Counter[str]:
    """Give a leg packets as from its peer, none lost on the way; return the errors that came out."""
    link: Link = stage.host._legs[leg].ice.link
    address: Address = next(iter(link.checked))
    errors: Counter[str] = Counter()
    loop = asyncio.get_running_loop()

    def unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        errors[repr(context.get("exception") or context["message"])] += 1

    loop.set_exception_handler(unhandled)
    for n, data in enumerate(packets):
        try:
            link.datagram_received(data, address)
        except Exception as error:
            errors[repr(error)] += 1
        if n % 16 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    return errors


@pytest.mark.row(22, "10,000 malformed packets of each kind raise nothing, and the leg goes on talking")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_limits")
async def test_malformed_packets_raise_nothing(chaos: Chaos, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    count = chaos.size(test=300, short=10_000, long=10_000)
    rng = random.Random(f"{chaos.seed}/{kind}")
    caplog.set_level(logging.WARNING)
    async with Stage() as stage:
        (leg, operator), (meta, user) = await stage.browser(), await stage.meta()
        stage.host.join(leg, meta)
        before = stage.host.stats(leg)
        errors = await inject(stage, leg, (KINDS[kind](rng, operator) for _ in range(count)))
        stats = stage.host.stats(leg)
        operator.ssrc += 1  # its numbers begin anew: those of the flood were anything
        await operator.say("still here", times=3)
        await until(
            lambda: {f"still here {n}" for n in range(3)} <= {p.payload.decode(errors="replace") for p in user.heard}
        )
        failed = stage.failures(leg) + stage.failures(meta)

    assert before is not None
    assert stats is not None
    chaos.note(f"malformed {kind}", count)
    chaos.note("dropped as malformed or forged", stats.dropped_malformed + stats.dropped_unprotect_failed)
    chaos.note("RTP and RTCP that was authentic", stats.rtp_packets_received + stats.rtcp_packets_received)
    chaos.promise("exceptions", errors.total() + len(caplog.records), at_most=0)
    chaos.promise("legs failed", len(failed), at_most=0)
    assert not errors
    assert not caplog.records


@pytest.mark.row(22, "packets that nobody signed change nothing: RTP cannot be injected")
async def test_forged_packets_reach_nobody(chaos: Chaos) -> None:
    count = chaos.size(test=200, short=2_000, long=10_000)
    rng = random.Random(chaos.seed)
    async with Stage(replace(CONFIG, packet_budget_per_s=1_000_000)) as stage:
        (leg, operator), (meta, user) = await stage.browser(), await stage.meta()
        stage.host.join(leg, meta)
        await operator.say("real")
        await until(lambda: user.texts == ["real 0"])
        forged = (
            struct.pack("!BBHLL", 0x80, 111, (operator.sequence + n) & 0xFFFF, n * 960, operator.ssrc)
            + rng.randbytes(60)
            for n in range(count)
        )
        await inject(stage, leg, forged)
        await operator.say("real")
        await until(lambda: len(user.heard) >= 2)
        heard = len(user.heard)
        stats = stage.host.stats(leg)

    assert stats is not None
    chaos.promise("forged packets passed on", heard - 2, at_most=0)
    chaos.promise("forged packets seen as such", stats.dropped_unprotect_failed, at_least=count)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_leg_without_a_budget_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "take", lambda budget, now: True)
    async with Stage() as stage:
        (a, flooder), (b, victim) = await stage.browser("a"), await stage.meta("b")
        stage.host.join(a, b)
        await flood(flooder, seconds=0.3)
        await until(lambda: len(victim.heard) > CONFIG.packet_budget_per_s * (0.3 + 2))


async def test_a_parser_that_raises_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(link: Link, data: bytes, address: Address) -> None:
        assert stun.parse_message(data).attributes["PRIORITY"]

    async with Stage() as stage:
        leg, peer = await stage.browser()
        rng = random.Random(1)
        with monkeypatch.context() as patched:
            patched.setattr(Link, "_stun_received", fragile)
            errors = await inject(stage, leg, (stun_message(rng, peer) for _ in range(50)))

    assert errors.total() > 0
