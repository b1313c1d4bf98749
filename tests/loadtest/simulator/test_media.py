"""Whole calls with real audio on 127.0.0.1: ICE-lite, DTLS-SRTP, Opus, both directions."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from loadtest.simulator.config import UserSpec
from loadtest.simulator.meta_sim import MetaSim
from loadtest.simulator.sdp import Setup
from loadtest.simulator.state import Call, CallState
from loadtest.webrtc.browser_peer import BrowserPeer, PeerFailed
from loadtest.webrtc.rtp import SenderCounts, sender_report
from tests.loadtest.helpers import (
    ANA,
    FINGERPRINT,
    QUICK,
    BusinessPeer,
    Graph,
    answer_sdp,
    closing,
    events_of,
    graph,
    running,
    until,
)


def sdp_of(sim: MetaSim, call_id: str) -> str:
    sdp: str = next(one for one in events_of(sim, call_id) if one.get("event") == "connect")["session"]["sdp"]
    return sdp


async def pre_accepted(sim: MetaSim, api: Graph, peer: BusinessPeer, **answer: Any) -> tuple[Call, str]:
    """Let Ana call and the business bring the media path up; return the call and our SDP."""
    call = sim.user(ANA).call()
    sdp = await peer.answer(**answer)
    assert (await api.answer("pre_accept", call.id, sdp))[0] == 200
    return call, sdp


async def dialled(sim: MetaSim, api: Graph, peer: BrowserPeer) -> Call:
    """Let the business call Ana until her phone rings and the path is up."""
    sim.user(ANA).grant()
    _, body = await api.connect(await peer.offer())
    call = sim.world.calls[body["calls"][0]["id"]]
    await sim.until(lambda: call.state is CallState.RINGING)
    await peer.answer(sdp_of(sim, call.id))
    await peer.connected(timeout_s=5)
    return call


@pytest.mark.parametrize("setup", ["active", "passive"])
async def test_a_users_call_is_heard_both_ways_after_accept_and_not_before(setup: str) -> None:
    async with running() as sim, graph(sim) as api:
        peer = BusinessPeer(tone_hz=1000, setup=setup)
        async with closing(peer):
            call, sdp = await pre_accepted(sim, api, peer)
            await peer.connect(sdp_of(sim, call.id))
            await sim.until(call.media.connected.is_set)
            await asyncio.sleep(0.1)
            assert (peer.ear.packets, call.media.ear.packets) == (0, 0)
            assert (await api.answer("accept", call.id, sdp))[0] == 200
            peer.talker.start()
            await until(lambda: peer.ear.hears_tone(440) and call.media.ear.hears_tone(1000))
            measured = call.media.measured()
            assert (measured["early_packets"], measured["lost"], measured["undecryptable"]) == (0, 0, 0)
            assert 0 <= measured["first_audio_after_accept_s"] < 1
            assert sim.world.violations == []
            sim.user(ANA).hang_up()
            sent = peer.ear.packets
            await asyncio.sleep(0.06)
            assert peer.ear.packets <= sent + 1


async def test_media_may_connect_only_at_accept() -> None:
    async with running() as sim, graph(sim) as api:
        peer = BusinessPeer()
        async with closing(peer):
            call = sim.user(ANA).call()
            sdp = await peer.answer()
            connecting = asyncio.gather(peer.connect(sdp_of(sim, call.id)))
            await asyncio.sleep(0.05)
            assert not call.media.connected.is_set()  # checks converge only after the answer
            await api.answer("accept", call.id, sdp)
            await connecting
            await until(lambda: peer.ear.audio_packets > 3)


@pytest.mark.parametrize("answer_setup", [Setup.ACTIVE, Setup.PASSIVE])
async def test_a_call_of_the_business_is_heard_both_ways_after_the_pick_up(answer_setup: Setup) -> None:
    async with running(answer_setup=answer_setup) as sim, graph(sim) as api:
        peer = BrowserPeer(tone_hz=1300, listen_every_s=0.12)
        async with closing(peer):
            call = await dialled(sim, api, peer)
            await asyncio.sleep(0.1)
            assert peer.ear.packets == 0
            sim.user(ANA).accept()
            peer.speak()
            await until(lambda: peer.ear.hears_tone(440) and call.media.ear.hears_tone(1300))
            assert sim.world.violations == []
            peer.hush()
            heard = call.media.ear.packets
            await asyncio.sleep(0.08)
            assert call.media.ear.packets <= heard + 1


@pytest.mark.parametrize("strict", [False, True])
async def test_media_before_the_pick_up_is_a_violation(strict: bool) -> None:
    async with running(strict_media=strict) as sim, graph(sim) as api:
        peer = BrowserPeer()
        async with closing(peer):
            call = await dialled(sim, api, peer)
            peer.speak()
            await sim.until(lambda: bool(sim.world.violations))
            assert [one.kind for one in sim.world.violations] == ["media_before_accept"]
            assert call.live is not strict
            if strict:
                assert events_of(sim, call.id)[-1]["status"] == "FAILED"


async def test_media_before_accept_is_a_violation() -> None:
    async with running() as sim, graph(sim) as api:
        peer = BusinessPeer()
        async with closing(peer):
            call, _ = await pre_accepted(sim, api, peer)
            await peer.connect(sdp_of(sim, call.id))
            peer.talker.start()
            await sim.until(lambda: bool(sim.world.violations))
            assert sim.state()["violations"][0]["kind"] == "media_before_accept"


async def test_a_wrong_fingerprint_fails_the_call() -> None:
    async with running() as sim, graph(sim) as api:
        peer = BusinessPeer()
        async with closing(peer):
            call, _ = await pre_accepted(sim, api, peer, fingerprint=FINGERPRINT)
            await peer.connect(sdp_of(sim, call.id))
            await sim.until(lambda: not call.live)
            assert events_of(sim, call.id)[-1]["errors"][0]["code"] == 138019


async def test_an_echoing_user_repeats_what_it_hears() -> None:
    users = (UserSpec(wa_id=ANA, name="Ana", tone_hz=440, echo=True),)
    async with running(users=users, timers=replace(QUICK, echo_after_s=0.3)) as sim, graph(sim) as api:
        peer = BrowserPeer(tone_hz=1300, listen_every_s=0.12)
        async with closing(peer):
            await dialled(sim, api, peer)
            sim.user(ANA).accept()
            peer.speak()
            await until(lambda: peer.ear.hears_tone(1300))
            assert any(sound.tone_hz and abs(sound.tone_hz - 440) < 15 for _, sound in peer.ear.sounds)


async def test_digits_travel_both_ways() -> None:
    async with running() as sim, graph(sim) as api:
        peer = BrowserPeer()
        async with closing(peer):
            call = await dialled(sim, api, peer)
            with pytest.raises(PeerFailed):
                peer.press("1")
            sim.user(ANA).accept()
            peer.speak()
            peer.press("7")
            await until(lambda: peer.ear.audio_packets > 0)
            sim.user(ANA).dtmf("4")
            await until(lambda: peer.ear.digits == "4" and call.media.ear.digits == "7")


async def test_silence_without_rtcp_later_in_the_call_fails_it() -> None:
    timers = replace(QUICK, no_media_later_s=0.2)
    counts = SenderCounts(ssrc=7, rtp_timestamp=0, packets=0, octets=0)
    async with running(timers=timers) as sim, graph(sim) as api:
        peer = BrowserPeer()
        async with closing(peer):
            call = await dialled(sim, api, peer)
            sim.user(ANA).accept()
            peer.speak()
            await until(lambda: call.media.ear.audio_packets > 3)
            peer.hush()
            for _ in range(5):  # RTCP alone keeps the call alive
                peer.dtls.send_rtcp(sender_report(counts, now=0.0, cname="x"))
                await asyncio.sleep(0.06)
            assert call.live
            await sim.until(lambda: not call.live)
            assert call.error_code == 138021


async def test_a_recvonly_answer_gets_no_audio() -> None:
    async with running() as sim, graph(sim) as api:
        peer = BusinessPeer()
        async with closing(peer):
            call = sim.user(ANA).call()
            sdp = (await peer.answer()).replace("a=sendrecv", "a=recvonly")
            await api.answer("accept", call.id, sdp)
            await peer.connect(sdp_of(sim, call.id))
            await sim.until(call.media.connected.is_set)
            await asyncio.sleep(0.1)
            assert peer.ear.packets == 0


async def test_a_closed_simulator_leaves_live_calls_cleanly() -> None:
    async with running() as sim, graph(sim) as api:
        peer = BusinessPeer()
        async with closing(peer):
            call, _ = await pre_accepted(sim, api, peer)
            assert call.live  # and its media is still waiting for checks


async def test_a_browser_peer_says_why_it_is_not_connected() -> None:
    peer = BrowserPeer()
    async with closing(peer):
        with pytest.raises(PeerFailed):
            await peer.connected()
        offer = await peer.offer()
        assert "a=setup:actpass" in offer
        assert "127.0.0.1" in next(line for line in offer.split("\r\n") if "candidate" in line)
        assert offer.count("a=candidate:") == 1
        with pytest.raises(TimeoutError):
            await peer.connected(timeout_s=0.02)
        for broken in ("", "v=0\r\n", answer_sdp().replace("a=fingerprint", "a=print")):
            with pytest.raises(PeerFailed):
                await peer.answer(broken)
        await peer.answer(answer_sdp())  # without candidates there is nobody to check
        with pytest.raises(PeerFailed):
            await peer.connected(timeout_s=5)
