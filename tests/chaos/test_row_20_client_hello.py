"""Strangers who spray a media port while calls are set up keep none of them from connecting (ASVS 5.0, 17.2.6)."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from aioice import stun

from media.ice import STUN_BUDGET_PER_S, Address, Link
from media.model import LegConnected, LegFailed, LegId
from tests.loopback.peers import CONFIG, Peer, Stage, until
from tests.support.generators.hostile import (
    Spray,
    binding_request,
    binding_response,
    client_hello,
    gather_on_loopback,
    media_port,
)
from tests.support.harness.chaos import Chaos

PROMISE = "a ClientHello spray on both kinds of ports during set-up fails no call"
#: At 2,000 a second the two ports see each twenty within a handshake.
PER_S = 2_000


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


@pytest.fixture
def hellos() -> Iterator[Spray]:
    with Spray(per_s=PER_S, packets=(client_hello,)) as spray:
        yield spray


def active(text: str) -> str:
    return text.replace("a=setup:actpass", "a=setup:active")


async def sprayed_call(stage: Stage, spray: Spray, n: int) -> bool:
    """Set up a Meta leg and a browser leg under spray; return whether both connected.

    Every other time the peers are the DTLS clients and we the server, for whom a ClientHello is meant.
    """
    change = active if n % 2 else str
    user, operator = Peer(), Peer()
    legs = LegId(f"meta {n}"), LegId(f"browser {n}")
    try:
        offers = await user.offer(lite=True, change=change), await operator.offer(change=change)
        to_user = await stage.host.answer_meta(legs[0], offers[0])
        spray.ports = (media_port(to_user), stage.host.browser_port)
        await user.answered(to_user)
        await operator.answered(await stage.host.answer_browser(legs[1], offers[1]))
        await until(lambda: all(settled(stage, leg, peer) for leg, peer in zip(legs, (user, operator), strict=True)))
        return not any(stage.failures(leg) for leg in legs)
    except TimeoutError:
        return False
    finally:
        spray.ports = ()
        for leg, peer in zip(legs, (user, operator), strict=True):
            await stage.host.close(leg)
            await peer.close()


def settled(stage: Stage, leg: LegId, peer: Peer) -> bool:
    told = [event for event in stage.events if isinstance(event, LegConnected | LegFailed) and event.leg == leg]
    return any(isinstance(e, LegFailed) for e in told) or (bool(told) and peer.pc.connectionState == "connected")


async def failed_calls(stage: Stage, spray: Spray, count: int) -> int:
    failed = 0
    for n in range(count):
        failed += not await sprayed_call(stage, spray, n)
        stage.events.clear()
    return failed


@pytest.mark.row(20, PROMISE)
async def test_client_hellos_of_strangers_fail_no_call(chaos: Chaos, hellos: Spray) -> None:
    calls = chaos.size(test=3, short=50, long=1_000)
    async with Stage() as stage:
        failed = await failed_calls(stage, hellos, calls)
        dropped = stage.host._shared.dropped_from_stranger

    chaos.note("calls, both legs sprayed", calls)
    chaos.note("datagrams of the stranger", hellos.sent)
    chaos.promise("calls failed", failed, at_most=0)
    assert dropped > 0, "they did arrive"


async def ringing_call(stage: Stage, spray: Spray, n: int) -> bool:
    """Let strangers at the open port of a leg until they have had their say, then set it up; return whether it did."""
    leg, user = LegId(f"called {n}"), Peer()
    try:
        offer = await stage.host.offer_meta(leg)
        spray.ports = (media_port(offer),)
        await until(lambda: seen_of_strangers(stage, leg) > 2 * STUN_BUDGET_PER_S)
        await stage.host.accept_meta_answer(leg, await user.answer(offer))
        await until(lambda: settled(stage, leg, user))
        return not stage.failures(leg)
    finally:
        spray.ports = ()
        await stage.host.close(leg)
        await user.close()


def seen_of_strangers(stage: Stage, leg: LegId) -> int:
    stats = stage.host.stats(leg)
    assert stats is not None
    return stats.dropped_from_stranger + stats.dropped_over_budget + stats.dropped_malformed


JUNK = (lambda: b"\0", lambda: b"\1\1" + os.urandom(18), binding_response, lambda: binding_request("nobody"))


@pytest.mark.row(20, "junk that looks like STUN at the port of a call that rings keeps it from nothing")
async def test_stun_of_strangers_fails_no_call(chaos: Chaos) -> None:
    """It used to spend the checks of the leg, which then had none left for its peer."""
    calls = chaos.size(test=2, short=20, long=200)
    failed = 0
    with Spray(per_s=2 * PER_S, packets=JUNK) as spray:
        async with Stage() as stage:
            for n in range(calls):
                failed += not await ringing_call(stage, spray, n)

    chaos.note("calls", calls)
    chaos.note("datagrams of the stranger", spray.sent)
    chaos.promise("calls failed", failed, at_most=0)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_leg_that_listens_to_strangers_would_be_seen(monkeypatch: pytest.MonkeyPatch, hellos: Spray) -> None:
    """What the stock stack does: DTLS takes whatever comes."""
    guarded = Link.datagram_received

    def trusting(link: Link, data: bytes, addr: tuple[str, int]) -> None:
        if 19 < data[0] < 64:
            link.receiver.data_received(data, 1)
        else:
            guarded(link, data, addr)

    monkeypatch.setattr(Link, "datagram_received", trusting)
    async with Stage() as stage:
        # Only the Meta leg has a socket of its own, where the link alone decides.
        assert await failed_calls(stage, hellos, 2) > 0


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_leg_whose_checks_strangers_can_use_up_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def spend(link: Link, data: bytes, address: Address) -> None:
        if not link._checks.take(asyncio.get_running_loop().time()):
            link.drops.over_budget += 1
            return
        try:
            link._handle_stun(stun.parse_message(data), address)
        except Exception:
            link.drops.malformed += 1

    monkeypatch.setattr(Link, "_stun_received", spend)
    with Spray(per_s=2 * PER_S, packets=JUNK) as spray:
        async with Stage(replace(CONFIG, setup_timeout_s=0.3)) as stage:
            assert not all([await ringing_call(stage, spray, n) for n in range(2)])
