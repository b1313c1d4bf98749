"""Peers and strangers that mean harm, and peers that are gone: each costs its own leg at most."""

import asyncio
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from media.bridge import MAX_DIGITS_PER_S
from media.errors import SdpRefused, TooBusy
from media.ice import MAX_ADDRESSES
from media.model import DtmfReceived, LegFailed, LegFailure, LegId
from tests.loopback.peers import CONFIG, Peer, Stage, until
from tests.support.generators.hostile import binding_request, client_hello, datagrams, media_port, with_candidates


@pytest.fixture
def trap() -> Iterator[socket.socket]:
    """A socket that nobody has a reason to write to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


async def test_strangers_with_a_client_hello_do_not_disturb_a_set_up(trap: socket.socket) -> None:
    async with Stage() as stage:
        done = asyncio.Event()

        async def spray(ports: list[int]) -> None:
            while not done.is_set():
                for port in ports:
                    trap.sendto(client_hello(), ("127.0.0.1", port))
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            for n in range(5):
                user, operator = stage.peer(), stage.peer()
                meta, browser = LegId(f"meta{n}"), LegId(f"browser{n}")
                to_user = await stage.host.answer_meta(meta, await user.offer(lite=True))
                to_operator = await stage.host.answer_browser(browser, await operator.offer())
                spraying = group.create_task(spray([media_port(to_user), stage.host.browser_port]))
                await user.answered(to_user)
                await operator.answered(to_operator)
                await stage.connected(meta, user)
                await stage.connected(browser, operator)
                stats = stage.host.stats(meta)
                assert stats is not None
                assert stats.dropped_from_stranger > 0
                spraying.cancel()


@pytest.mark.parametrize("lite", [True, False])
async def test_addresses_that_metas_sdp_may_not_name_are_never_probed(trap: socket.socket, lite: bool) -> None:
    port = trap.getsockname()[1]

    def hostile(text: str) -> str:
        names = ("127.0.0.1", "localhost", "trap.local", "::ffff:127.0.0.1")
        return with_candidates(text, *(f"{name} {port}" for name in names))

    async with Stage(replace(CONFIG, candidate_networks=(), setup_timeout_s=0.4)) as stage:
        offer = await stage.peer().offer(lite=lite, change=hostile)
        if lite:
            with pytest.raises(SdpRefused, match="no usable candidate"):
                await stage.host.answer_meta(LegId("meta"), offer)
        else:
            await stage.host.answer_meta(LegId("meta"), offer)
            assert await stage.failed(LegId("meta")) is LegFailure.SETUP_TIMEOUT
        assert datagrams(trap) == []


async def test_addresses_that_a_browser_names_are_never_probed(trap: socket.socket) -> None:
    def hostile(text: str) -> str:
        return text + f"a=candidate:9 1 udp 2130706431 127.0.0.1 {trap.getsockname()[1]} typ host\r\n"

    async with Stage() as stage:
        await stage.browser(change=hostile)

        assert datagrams(trap) == []


async def test_a_permitted_address_is_probed(trap: socket.socket) -> None:
    """The other half of the tests above: the trap does see what is sent to it."""

    port = trap.getsockname()[1]

    def trapped(text: str) -> str:
        return with_candidates(text, f"127.0.0.1 {port}")

    async with Stage() as stage:
        await stage.host.answer_meta(LegId("meta"), await stage.peer().offer(lite=True, change=trapped))
        await until(lambda: bool(datagrams(trap)))


@pytest.mark.parametrize("side", ["browser", "meta", "called_meta"])
async def test_a_certificate_that_was_not_announced_lets_no_audio_through(side: str) -> None:
    def forged(text: str) -> str:
        return re.sub(r"(a=fingerprint:sha-256) .*", r"\1 " + ":".join(["AB"] * 32), text)

    async with Stage() as stage:
        leg, peer = LegId(side), stage.peer()
        if side == "browser":
            await peer.answered(await stage.host.answer_browser(leg, await peer.offer(change=forged)))
        elif side == "meta":
            await peer.answered(await stage.host.answer_meta(leg, await peer.offer(lite=True, change=forged)))
        else:
            offer = await stage.host.offer_meta(leg)
            await stage.host.accept_meta_answer(leg, await peer.answer(offer, change=forged))

        assert await stage.failed(leg) is LegFailure.FINGERPRINT_MISMATCH
        assert [type(event) for event in stage.events] == [LegFailed]
        assert stage.host.legs == 0


async def test_an_offer_that_nobody_stands_behind_times_out() -> None:
    async with Stage(replace(CONFIG, setup_timeout_s=0.3)) as stage:
        leg, peer = LegId("meta"), stage.peer()
        await stage.host.answer_meta(leg, await peer.offer(lite=True))
        await peer.close()

        assert await stage.failed(leg) is LegFailure.SETUP_TIMEOUT
        assert stage.failures(leg) == [LegFailure.SETUP_TIMEOUT]


async def test_a_joined_peer_that_vanishes_is_noticed() -> None:
    async with Stage(replace(CONFIG, media_timeout_s=0.3)) as stage:
        meta, user = await stage.meta()
        user.vanish()
        await asyncio.sleep(0.5)
        assert stage.failures(meta) == []  # it may be silent until somebody talks to it

        (a, one), (b, _) = await stage.meta("a"), await stage.meta("b")
        one.vanish()
        stage.host.join(a, b)
        assert await stage.failed(a) is LegFailure.MEDIA_TIMEOUT


async def test_a_browser_that_vanishes_is_noticed_although_it_is_not_joined() -> None:
    async with Stage(replace(CONFIG, media_timeout_s=0.3)) as stage:
        browser, operator = await stage.browser()
        operator.vanish()

        assert await stage.failed(browser) is LegFailure.MEDIA_TIMEOUT


async def test_a_joined_leg_that_talks_is_left_alone() -> None:
    async with Stage(replace(CONFIG, media_timeout_s=0.3)) as stage:
        (a, one), (b, other) = await stage.meta("a"), await stage.meta("b")
        stage.host.join(a, b)
        async with asyncio.TaskGroup() as group:
            group.create_task(one.say("x", times=30, pace_s=0.02))
            group.create_task(other.say("y", times=30, pace_s=0.02))

        assert stage.failures(a) == stage.failures(b) == []


async def test_consent_that_runs_out_is_reported_once() -> None:
    async with Stage() as stage:
        leg, _ = await stage.meta()
        connection = stage.host._legs[leg].ice._connection
        await connection.close()  # what aioice does itself after 30 s without an answer

        assert await stage.failed(leg) is LegFailure.ICE_FAILED
        assert stage.failures(leg) == [LegFailure.ICE_FAILED]


async def test_a_flood_from_a_peer_is_cut_and_the_leg_lives() -> None:
    async with Stage(replace(CONFIG, packet_budget_per_s=50)) as stage:
        browser, operator = await stage.browser()
        await operator.say("flood", times=200)
        await until(lambda: dropped(stage, browser)["over_budget"] >= 100)
        await asyncio.sleep(1.0)  # the next second has a budget of its own
        before = dropped(stage, browser)["received"]
        await operator.say("talk", times=5)
        await until(lambda: dropped(stage, browser)["received"] == before + 5)


def dropped(stage: Stage, leg: LegId) -> dict[str, int]:
    stats = stage.host.stats(leg)
    assert stats is not None
    return {
        "received": stats.rtp_packets_received,
        "over_budget": stats.dropped_over_budget,
        "stranger": stats.dropped_from_stranger,
        "unprotect": stats.dropped_unprotect_failed,
        "malformed": stats.dropped_malformed,
    }


async def raw(peer: Peer, *data: bytes) -> None:
    for one in data:
        await peer.dtls.transport._send(one)


async def test_malformed_packets_are_counted_and_the_leg_lives() -> None:
    async with Stage(replace(CONFIG, packet_budget_per_s=10_000)) as stage:
        browser, operator = await stage.browser()
        bad_rtp = [b"\x80\x6f" + os.urandom(40) for _ in range(10)]
        await raw(operator, *(packet[:8] + b"abcd" + packet[12:] for packet in bad_rtp))
        await raw(operator, b"\x80\xc8" + os.urandom(40), b"\x80\x6f" + bytes(1490), b"\x80", b"\x80" * 11)
        await raw(operator, b"\x80\x6f" + bytes(2000), b"\x17" + os.urandom(30), b"\x45" + os.urandom(30))
        await raw(operator, b"\x00\x01" + os.urandom(30), b"\x01\x01\x00\x00" + os.urandom(16))
        await until(lambda: dropped(stage, browser)["unprotect"] >= 13)
        await operator.say("still here")
        await until(lambda: dropped(stage, browser)["received"] == 1)

        assert dropped(stage, browser)["malformed"] >= 3


async def test_a_peer_may_not_use_up_memory_with_sources() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        for n in range(40):
            operator.ssrc = n
            await operator.say("x")
        await until(lambda: dropped(stage, browser)["malformed"] >= 24)

        assert dropped(stage, browser)["received"] == 16


async def test_a_peer_may_not_use_up_memory_with_sources_of_reports() -> None:
    """libsrtp keeps a context for each of them, as for those of RTP."""
    async with Stage() as stage:
        browser, operator = await stage.browser()
        for n in range(40):
            await raw(operator, operator.dtls._tx_srtp.protect_rtcp(struct.pack("!BBHI", 0x80, 201, 1, n)))
        await until(lambda: dropped(stage, browser)["malformed"] >= 24)

        stats = stage.host.stats(browser)
        assert stats is not None
        assert stats.rtcp_packets_received == 16


async def test_key_presses_are_reported_as_fast_as_anybody_types() -> None:
    async with Stage(replace(CONFIG, packet_budget_per_s=10_000)) as stage:
        browser, operator = await stage.browser()
        for n in range(2 * MAX_DIGITS_PER_S):
            await operator.press(n % 10)
        await operator.say("end")
        await until(lambda: dropped(stage, browser)["received"] == 10 * MAX_DIGITS_PER_S + 1)
        pressed = sum(isinstance(event, DtmfReceived) for event in stage.events)

        # Two seconds' worth, should the second change while they are sent.
        assert MAX_DIGITS_PER_S <= pressed <= 2 * MAX_DIGITS_PER_S - 1


async def test_a_peer_may_not_use_up_memory_with_addresses() -> None:
    async with Stage() as stage:
        leg, _ = await stage.browser()
        link = stage.host._legs[leg].ice.link
        link.checked.update((f"127.0.0.{n}", 1) for n in range(2, 2 + MAX_ADDRESSES))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            before = dropped(stage, leg)["stranger"]
            sock.sendto(binding_request(link.receiver.local_username), ("127.0.0.1", stage.host.browser_port))
            await until(lambda: dropped(stage, leg)["stranger"] == before + 1)
            assert datagrams(sock) == []


async def test_a_request_without_credentials_is_not_answered() -> None:
    async with Stage() as stage:
        leg, _ = await stage.browser()
        link = stage.host._legs[leg].ice.link
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            for ufrag in (link.receiver.local_username, "nobody"):
                sock.sendto(binding_request(ufrag), ("127.0.0.1", stage.host.browser_port))
            await until(lambda: dropped(stage, leg)["stranger"] >= 1)
            await until(lambda: stage.host._shared.dropped_from_stranger >= 1)
            assert datagrams(sock) == []


async def test_a_range_without_a_free_port_is_too_busy() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        taken = 21_341
        sock.bind(("127.0.0.1", taken))
        # The range: a browser port and one Meta port, which somebody else holds.
        config = replace(CONFIG, ports=(taken - 1, taken))
        async with Stage(config) as stage:
            with pytest.raises(TooBusy, match="no free port"):
                await stage.host.offer_meta(LegId("meta"))
            assert stage.host.browser_port == taken - 1


async def test_opening_and_closing_leaves_nothing_behind() -> None:
    async def round_of_calls(stage: Stage, name: str) -> None:
        (a, one), (b, other) = await stage.browser(f"{name} browser"), await stage.meta(f"{name} meta")
        stage.host.join(a, b)
        for leg, peer in ((a, one), (b, other)):
            await stage.host.close(leg)
            await peer.close()
        stage.peers.clear()

    async with Stage() as stage:
        await round_of_calls(stage, "warm-up")
        await settle()
        before = (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")))
        for n in range(10):
            await round_of_calls(stage, str(n))
        await settle()

        assert (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))) == before
        assert stage.host._shared.legs == 0
        assert not stage.host._shared._by_address


async def settle() -> None:
    """Let callbacks that are due run."""
    for _ in range(20):
        await asyncio.sleep(0.002)
