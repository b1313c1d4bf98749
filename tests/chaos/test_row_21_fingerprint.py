"""No audio passes between a leg and a peer that cannot prove to be the one of the description (ASVS 5.0, 17.2.8)."""

import asyncio
import re
from collections.abc import Callable

import pytest
from aiortc.rtcdtlstransport import RTCCertificate
from OpenSSL import SSL

from media.dtls import LegDtls
from media.errors import SdpRefused
from media.model import LegConnected, LegFailure, LegId
from tests.loopback.peers import Peer, Stage, until
from tests.support.generators.hostile import gather_on_loopback
from tests.support.harness.chaos import Chaos

PROMISE = "no frame passes without a certificate whose SHA-256 the description announced"
SIDES = ("meta", "browser", "called")


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


def forged(text: str) -> str:
    return re.sub(r"(a=fingerprint:sha-256) .*", r"\1 " + ":".join(["AB"] * 32), text)


def missing(text: str) -> str:
    return re.sub(r"a=fingerprint:.*\r\n", "", text)


def weak(text: str) -> str:
    return missing(text) + "a=fingerprint:sha-1 " + ":".join(["AB"] * 20) + "\r\n"


def md5_and_sha_1(text: str) -> str:
    return weak(text) + "a=fingerprint:md5 " + ":".join(["AB"] * 16) + "\r\n"


def two(text: str) -> str:
    return text + "a=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\n"


async def begin(stage: Stage, side: str, name: str, change: Callable[[str], str]) -> tuple[LegId, Peer]:
    """Set up a leg with a peer whose description is changed. Raises: SdpRefused."""
    leg, peer = LegId(name), stage.peer()
    if side == "called":
        offer = await stage.host.offer_meta(leg)
        await stage.host.accept_meta_answer(leg, await peer.answer(offer, change=change))
    elif side == "meta":
        await peer.answered(await stage.host.answer_meta(leg, await peer.offer(lite=True, change=change)))
    else:
        await peer.answered(await stage.host.answer_browser(leg, await peer.offer(change=change)))
    return leg, peer


async def frames_passed(stage: Stage, listener: tuple[LegId, Peer], side: str, name: str) -> int:
    """Join a leg with a forged fingerprint to a good one, let its peer talk, and return what was heard."""
    leg, peer = await begin(stage, side, name, forged)
    stage.host.join(leg, listener[0])
    heard = len(listener[1].heard)
    await until(lambda: bool(stage.failures(leg)) or LegConnected(leg) in stage.events)
    for _ in range(5):
        if peer.dtls.state == "connected":  # it may think so: it proved nothing, we did
            await peer.say("forged")
    await asyncio.sleep(0.01)
    return len(listener[1].heard) - heard


@pytest.mark.row(21, PROMISE)
async def test_a_certificate_that_was_not_announced_passes_no_frame(chaos: Chaos) -> None:
    count = chaos.size(test=1, short=20, long=100)
    passed, reasons = 0, []
    async with Stage() as stage:
        listener = await stage.browser("listener")
        for n in range(count):
            for side in SIDES:
                passed += await frames_passed(stage, listener, side, f"{side} {n}")
                reasons += stage.failures(LegId(f"{side} {n}"))
                await stage.peers.pop().close()
        assert stage.host.legs == 1

    clean = reasons.count(LegFailure.FINGERPRINT_MISMATCH)
    chaos.note("legs with a forged fingerprint", 3 * count)
    chaos.promise("frames passed", passed, at_most=0)
    chaos.promise("legs that did not fail as a mismatch", 3 * count - clean, at_most=0)


@pytest.mark.row(21, PROMISE)
async def test_a_description_without_one_sha_256_is_refused(chaos: Chaos) -> None:
    count = chaos.size(test=1, short=20, long=100)
    refused = 0
    async with Stage() as stage:
        for change in (missing, weak, md5_and_sha_1, two):
            for side in SIDES:
                for n in range(count):
                    name = f"{change.__name__} {side} {n}"
                    with pytest.raises(SdpRefused, match="fingerprint"):
                        await begin(stage, side, name, change)
                    refused += 1
                    await stage.host.close(LegId(name))
                    await stage.peers.pop().close()
        legs = stage.host.legs

    chaos.promise("descriptions not refused", 4 * 3 * count - refused, at_most=0)
    chaos.promise("legs left", legs, at_most=0)


@pytest.mark.row(21, PROMISE)
@pytest.mark.parametrize("side", SIDES)
async def test_a_peer_without_a_certificate_passes_no_frame(
    chaos: Chaos, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RTCCertificate._create_ssl_context

    def bare(certificate: RTCCertificate, srtp_profiles: list[object]) -> SSL.Context:
        if type(certificate) is not RTCCertificate:
            return made(certificate, srtp_profiles)  # type: ignore[arg-type]
        context = SSL.Context(SSL.DTLS_METHOD)
        context.set_cipher_list(b"ALL:aNULL:@SECLEVEL=0")
        context.set_verify(SSL.VERIFY_NONE, lambda *args: True)
        context.set_tlsext_use_srtp(b"SRTP_AES128_CM_SHA1_80")
        return context

    monkeypatch.setattr(RTCCertificate, "_create_ssl_context", bare)
    async with Stage() as stage:
        leg, _ = await begin(stage, side, side, lambda text: text)
        reason = await stage.failed(leg)
        connected = stage.events.count(LegConnected(leg))

    chaos.promise("legs connected", connected, at_most=0)
    assert reason is LegFailure.DTLS_FAILED


async def test_a_leg_that_does_not_compare_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LegDtls, "_validate_peer_identity", lambda dtls, parameters: None)
    async with Stage() as stage:
        listener = await stage.browser("listener")
        assert await frames_passed(stage, listener, "meta", "meta") > 0
