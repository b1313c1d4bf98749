"""What the simulated Meta accepts and refuses as SDP, and how its own looks."""

import pytest

from loadtest.simulator.errors import GraphError
from loadtest.simulator.sdp import BusinessSdp, MetaMedia, Setup, read_business_sdp, write_answer, write_offer
from loadtest.webrtc.rtp import Payloads
from tests.loadtest.helpers import FINGERPRINT, answer_sdp, offer_sdp

MEDIA = MetaMedia(
    host="127.0.0.1",
    port=3484,
    ufrag="ExampleUfragMeta",
    password="ExamplePwdMeta012345==",
    fingerprint=FINGERPRINT,
    ssrc=1_000_000_001,
    session_id=1_790_000_000_123,
)


def read_answer(sdp: str) -> BusinessSdp:
    return read_business_sdp(sdp, is_offer=False, mid="audio", opus=111)


def test_a_good_answer_is_read() -> None:
    sdp = read_answer(answer_sdp())
    assert (sdp.ufrag, sdp.setup, sdp.mid, sdp.sendrecv) == ("bizU", Setup.ACTIVE, "audio", True)
    assert sdp.payloads == Payloads(opus=111, dtmf=126)
    assert sdp.fingerprint == FINGERPRINT
    assert sdp.ssrc == 2_000_000_002


def test_a_good_offer_is_read() -> None:
    assert read_business_sdp(offer_sdp(), is_offer=True).setup is Setup.ACTPASS


@pytest.mark.parametrize(
    ("find", "put", "code", "says"),
    [
        ("a=setup:active", "a=setup:actpass", 100, "a=setup"),
        ("a=setup:active", "a=setup:holdconn", 100, "a=setup"),
        ("a=setup:active\r\n", "", 100, "a=setup"),
        ("a=mid:audio", "a=mid:0", 100, "a=mid"),
        ("a=mid:audio\r\n", "", 100, "a=mid"),
        ("opus/48000/2", "PCMU/8000", 100, "opus"),
        ("SAVPF 111 126", "SAVPF 0 126", 100, "opus"),
        ("UDP/TLS/RTP/SAVPF", "RTP/AVP", 100, "profile"),
        ("m=audio 9", "m=audio 0", 100, "port 0"),
        ("m=audio", "m=video", 100, "m=audio"),
        ("a=rtcp-mux\r\n", "", 100, "rtcp-mux"),
        ("a=ptime:20", "a=ptime:60", 100, "ptime"),
        ("a=mid:audio", "a=mid:audio\r\na=ice-lite", 100, "ice-lite"),
        ("a=ice-ufrag:bizU\r\n", "", 100, "ice-ufrag"),
        ("a=ice-pwd:ExamplePwdBusiness01234567\r\n", "", 100, "ice-pwd"),
        ("a=ice-pwd:ExamplePwdBusiness01234567", "a=ice-pwd:short", 100, "malformed"),
        (f"a=fingerprint:sha-256 {FINGERPRINT}\r\n", "", 100, "No fingerprint found in SDP"),
        ("a=fingerprint:sha-256 ", "a=fingerprint:sha-512 ", 138008, "sha-256"),
        (":1F", ":XY", 138008, "sha-256"),
        ("a=setup", f"a=fingerprint:sha-256 {FINGERPRINT}\r\na=setup", 138008, "more than one"),
        ("a=ptime", "a=ssrc:7 cname:other\r\na=ptime", 100, "more than one SSRC"),
        ("a=ssrc:2000000002", "a=ssrc:x", 100, "malformed a=ssrc"),
        ("a=sendrecv", "a=sendrecv\r\na=recvonly", 100, "directions"),
        ("s=-\r\n", "s=-\n", 100, "line feeds"),
        ("s=-", "s=\x07", 100, "control"),
        ("s=-", "nonsense", 100, "form"),
        ("v=0\r\n", "", 100, "v=0"),
        ("cname:bizGatewayAudio\r\n", "cname:bizGatewayAudio", 100, "CRLF"),
        ("s=-", "s=" + "x" * 70_000, 100, "too long"),
        ("t=0 0", "t=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111", 100, "exactly one"),
    ],
)
def test_what_meta_refuses_is_refused(find: str, put: str, code: int, says: str) -> None:
    sdp = answer_sdp().replace(find, put)
    with pytest.raises(GraphError, match="SDP Validation error") as refused:
        read_answer(sdp)
    assert (refused.value.code, says in refused.value.details) == (code, True), refused.value.details


@pytest.mark.parametrize("setup", ["active", "passive", "holdconn"])
def test_an_offer_must_leave_the_role_open(setup: str) -> None:
    with pytest.raises(GraphError, match="a=setup must be actpass"):
        read_business_sdp(offer_sdp().replace("actpass", setup), is_offer=True)


def test_an_answer_may_be_passive_or_recvonly() -> None:
    sdp = read_answer(answer_sdp().replace("setup:active", "setup:passive").replace("sendrecv", "recvonly"))
    assert (sdp.setup, sdp.sendrecv) == (Setup.PASSIVE, False)


def test_an_answer_keeps_the_offered_payload_type() -> None:
    with pytest.raises(GraphError, match="111"):
        read_answer(answer_sdp().replace("111", "96"))


def test_without_telephone_event_meta_uses_126_anyway() -> None:
    sdp = answer_sdp().replace("a=rtpmap:126 telephone-event/8000\r\n", "").replace(" 126", "")
    assert read_answer(sdp).payloads.dtmf == 126


@pytest.mark.parametrize("text", ["", "\r\n", "v=0\r\n", "v=0\r\nm=\r\n", "v=0\r\nm=audio\r\n", "x" * 100])
def test_rubbish_is_refused_cleanly(text: str) -> None:
    with pytest.raises(GraphError):
        read_answer(text)


def test_the_offer_looks_like_metas() -> None:
    offer = write_offer(MEDIA)
    lines = offer.split("\r\n")
    assert offer.endswith("\r\n")
    for line in (
        "a=ice-lite",
        "a=setup:actpass",
        "a=mid:audio",
        "m=audio 3484 UDP/TLS/RTP/SAVPF 111 126",
        "a=rtpmap:126 telephone-event/8000",
        "a=ptime:20",
        "a=ssrc:1000000001 cname:WhatsAppAudioStream1",
    ):
        assert line in lines
    assert sum(line.startswith("a=candidate:") for line in lines) == 1
    assert sum(line.startswith("a=fingerprint:") for line in lines) == 1


@pytest.mark.parametrize("setup", [Setup.ACTIVE, Setup.PASSIVE])
def test_the_answer_keeps_the_offers_mid_and_payload_types(setup: Setup) -> None:
    offer = read_business_sdp(offer_sdp().replace("111", "96"), is_offer=True)
    lines = write_answer(MEDIA, offer, setup).split("\r\n")
    assert f"a=setup:{setup}" in lines
    assert "a=mid:0" in lines
    assert "a=rtpmap:96 opus/48000/2" in lines
    assert "m=audio 3484 UDP/TLS/RTP/SAVPF 96 126" in lines
