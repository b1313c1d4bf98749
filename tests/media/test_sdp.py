"""Reading and writing SDP: the samples that Meta's pages show, every refusal, and arbitrary input."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media import sdp
from media.errors import NoCommonCodec, SdpRefused
from media.sdp import Candidate, Direction, LocalDescription, Payloads, Setup

FINGERPRINT = ":".join(f"{17 * n % 256:02X}" for n in range(32))
OTHER_FINGERPRINT = ":".join(f"{(17 * n + 5) % 256:02X}" for n in range(32))


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


# Composed after Meta's page on user-initiated calls (read 2026-11-22); addresses of RFC 5737, invented credentials.
META_OFFER = lines(f"""
    v=0
    o=- 1790000000123 2 IN IP4 127.0.0.1
    s=-
    t=0 0
    a=group:BUNDLE audio
    a=msid-semantic: WMS 11111111-2222-4333-8444-555555555555
    a=ice-lite
    m=audio 3484 UDP/TLS/RTP/SAVPF 111 126
    c=IN IP4 203.0.113.40
    a=rtcp:9 IN IP4 0.0.0.0
    a=candidate:1111111111 1 udp 2122260223 203.0.113.40 3484 typ host generation 0 network-cost 50
    a=candidate:2222222222 1 udp 2122262783 2001:db8:f36b:131::699c 3484 typ host generation 0 network-cost 50
    a=ice-ufrag:ExampleUfragMeta
    a=ice-pwd:ExamplePwdMeta01/234+6789==
    a=fingerprint:sha-256 {FINGERPRINT}
    a=setup:actpass
    a=mid:audio
    a=sendrecv
    a=msid:11111111-2222-4333-8444-555555555555 WhatsAppTrack1
    a=rtcp-mux
    a=rtpmap:111 opus/48000/2
    a=rtcp-fb:111 transport-cc
    a=fmtp:111 maxaveragebitrate=20000;maxplaybackrate=16000;minptime=20;sprop-maxcapturerate=16000;useinbandfec=1
    a=rtpmap:126 telephone-event/8000
    a=maxptime:20
    a=ptime:20
    a=ssrc:1000000001 cname:WhatsAppAudioStream1
""")

# After Meta's page on business-initiated calls: an answer, with header extensions and several a=ssrc.
META_ANSWER = lines(f"""
    v=0
    o=- 1790000009999 2 IN IP4 127.0.0.1
    s=-
    t=0 0
    a=group:BUNDLE 0
    a=msid-semantic: WMS 11111111-2222-4333-8444-555555555555
    a=ice-lite
    m=audio 3482 UDP/TLS/RTP/SAVPF 111 126
    c=IN IP4 203.0.113.41
    a=rtcp:9 IN IP4 0.0.0.0
    a=candidate:1111111111 1 udp 2113937151 203.0.113.41 3482 typ host generation 0 network-cost 50 ufrag Ex
    a=ice-ufrag:ExampleUfragMeta
    a=ice-pwd:ExamplePwdMeta0123456789==
    a=ice-options:trickle
    a=fingerprint:sha-256 {FINGERPRINT}
    a=setup:active
    a=mid:0
    a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
    a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
    a=sendrecv
    a=rtcp-mux
    a=rtpmap:111 opus/48000/2
    a=fmtp:111 minptime=10;useinbandfec=1
    a=rtpmap:126 telephone-event/8000
    a=ssrc:1000000003 cname:ExampleCname0001
    a=ssrc:1000000003 msid:11111111-2222-4333-8444-555555555555 audio#Example0001
    a=ssrc:1000000003 label:audio#Example0001
""")

# What Chromium offers: names instead of addresses, many codecs, fingerprint and setup on the media level.
BROWSER_OFFER = lines(f"""
    v=0
    o=- 4611731400430051336 2 IN IP4 127.0.0.1
    s=-
    t=0 0
    a=group:BUNDLE 0
    a=extmap-allow-mixed
    a=msid-semantic: WMS
    m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126
    c=IN IP4 0.0.0.0
    a=rtcp:9 IN IP4 0.0.0.0
    a=candidate:1 1 udp 2113937151 0c0ffee0-1111-4222-8333-444444444444.local 50123 typ host generation 0
    a=candidate:2 1 tcp 1518280447 192.0.2.7 9 typ host tcptype active generation 0
    a=ice-ufrag:Uf+r
    a=ice-pwd:abcdefghijklmnopqrstuv/+
    a=ice-options:trickle
    a=fingerprint:sha-256 {FINGERPRINT}
    a=setup:actpass
    a=mid:0
    a=sendrecv
    a=rtcp-mux
    a=rtcp-rsize
    a=rtpmap:111 opus/48000/2
    a=rtpmap:63 red/48000/2
    a=rtpmap:9 G722/8000
    a=rtpmap:110 telephone-event/48000
    a=rtpmap:126 telephone-event/8000
""")


def text(description: list[str]) -> str:
    return "".join(f"{line}\r\n" for line in description)


def without(description: list[str], prefix: str) -> str:
    kept = [line for line in description if not line.startswith(prefix)]
    assert len(kept) < len(description)
    return text(kept)


def changed(description: list[str], old: str, new: str) -> str:
    assert any(old in line for line in description)
    return text([line.replace(old, new) for line in description])


def added(description: list[str], *more: str) -> str:
    return text([*description, *more])


def test_metas_offer_is_read() -> None:
    offer = sdp.parse(text(META_OFFER))

    assert offer.mid == "audio"
    assert offer.setup is Setup.ACTPASS
    assert offer.direction is Direction.SENDRECV
    assert (offer.ice_ufrag, offer.ice_pwd) == ("ExampleUfragMeta", "ExamplePwdMeta01/234+6789==")
    assert offer.ice_lite
    assert offer.fingerprint == FINGERPRINT
    assert offer.payloads == Payloads(opus=111, dtmf=126)
    assert [(c.address, c.port) for c in offer.candidates] == [
        ("203.0.113.40", 3484),
        ("2001:db8:f36b:131::699c", 3484),
    ]


def test_metas_answer_is_read() -> None:
    answer = sdp.parse(text(META_ANSWER))

    assert answer.setup is Setup.ACTIVE
    assert answer.mid == "0"
    assert answer.payloads == Payloads(opus=111, dtmf=126)


def test_a_browsers_offer_is_read() -> None:
    offer = sdp.parse(text(BROWSER_OFFER))

    assert not offer.ice_lite
    assert offer.payloads == Payloads(opus=111, dtmf=126)
    assert offer.candidates[0].address.endswith(".local")
    assert offer.candidates[1].transport == "tcp"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("final", [True, False])
def test_both_line_ends_are_read(end: str, final: bool) -> None:
    given = end.join(META_OFFER) + (end if final else "")

    assert sdp.parse(given) == sdp.parse(text(META_OFFER))
    assert sdp.parse(given.encode()) == sdp.parse(given)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("", "does not start with v=0"),
        ("\r\n", "does not start with v=0"),
        ("v=1\r\n", "does not start with v=0"),
        (without(META_OFFER, "m="), "0 media sections"),
        (added(META_OFFER, "m=video 9 UDP/TLS/RTP/SAVPF 96"), "2 media sections"),
        (changed(META_OFFER, "m=audio", "m=video"), "not audio"),
        (changed(META_OFFER, "m=audio 3484", "m=audio 0"), "audio section is disabled"),
        (changed(META_OFFER, "m=audio 3484", "m=audio 65536"), "the port of m=audio"),
        (changed(META_OFFER, "m=audio 3484", "m=audio -1"), "the port of m=audio"),
        (changed(META_OFFER, "m=audio 3484", "m=audio ٣"), "the port of m=audio"),
        (changed(META_OFFER, " UDP/TLS/RTP/SAVPF 111 126", ""), "not audio"),
        (changed(META_OFFER, "UDP/TLS/RTP/SAVPF", "RTP/AVP"), "not DTLS-SRTP"),
        (changed(META_OFFER, "SAVPF 111 126", "SAVPF 128"), "a payload type of m=audio"),
        (without(META_OFFER, "a=rtcp-mux"), "no a=rtcp-mux"),
        (without(META_OFFER, "a=ice-ufrag"), "no a=ice-ufrag"),
        (without(META_OFFER, "a=ice-pwd"), "no a=ice-pwd"),
        (changed(META_OFFER, "ExampleUfragMeta", "abc"), "a=ice-ufrag is malformed"),
        (changed(META_OFFER, "ExampleUfragMeta", "a b c d"), "a=ice-ufrag is malformed"),
        (changed(META_OFFER, "ExamplePwdMeta01", "short"), "a=ice-pwd is malformed"),
        (added(META_OFFER, "a=ice-ufrag:another"), "several different a=ice-ufrag"),
        (without(META_OFFER, "a=fingerprint"), "no a=fingerprint with sha-256"),
        (changed(META_OFFER, "sha-256", "sha-1"), "no a=fingerprint with sha-256"),
        (changed(META_OFFER, FINGERPRINT, FINGERPRINT[:-3]), "a=fingerprint is malformed"),
        (added(META_OFFER, f"a=fingerprint:sha-256 {OTHER_FINGERPRINT}"), "several different sha-256"),
        (without(META_OFFER, "a=setup"), "no a=setup"),
        (changed(META_OFFER, "actpass", "holdconn"), "a=setup is not"),
        (changed(META_OFFER, "a=mid:audio", "a=mid:"), "a=mid is malformed"),
        (added(META_OFFER, "a=mid:other"), "several different a=mid"),
        (changed(META_OFFER, "a=sendrecv", "a=inactive"), "inactive"),
        (added(META_OFFER, "a=recvonly"), "several different directions"),
        (changed(META_OFFER, "a=rtpmap:111 ", "a=rtpmap:x "), "the payload type of an a=rtpmap"),
        (added(META_OFFER, "a=rtpmap:111 PCMU/8000"), "mapped twice"),
        (added(META_OFFER, "a=candidate:1 1 udp"), "a=candidate is malformed"),
        (added(META_OFFER, "a=candidate:1 1 udp 1 192.0.2.1 1 xyz host"), "a=candidate is malformed"),
        (added(META_OFFER, "a=candidate:? 1 udp 1 192.0.2.1 1 typ host"), "the foundation"),
        (added(META_OFFER, "a=candidate:1 999 udp 1 192.0.2.1 1 typ host"), "the component"),
        (added(META_OFFER, "a=candidate:1 1 udp 4294967296 192.0.2.1 1 typ host"), "the priority"),
        (added(META_OFFER, "a=candidate:1 1 udp 1 192.0.2.1 99999 typ host"), "the port of a candidate"),
        (added(META_OFFER, "a=note:\0"), "control character"),
        (added(META_OFFER, "a=note:\t"), "control character"),
        (added(META_OFFER, "a=note:\x7f"), "control character"),
        (added(META_OFFER, "a=note:\rv=0"), "control character"),
        (added(META_OFFER, ""), "not of the form"),
        (added(META_OFFER, "nonsense"), "not of the form"),
        (added(META_OFFER, *["a=x:1"] * 65), "more than 64 lines of a kind"),
        (added(META_OFFER, *["b=AS:1"] * 65), "more than 64 lines of a kind"),
        (added(META_OFFER, *[f"a=x{n}" for n in range(400)]), "more than 400 lines"),
        (added(META_OFFER, "a=x:" + "y" * 16_384), "longer than 16384 bytes"),
        (added(META_OFFER, "a=x:" + "é" * 8_192), "longer than 16384 bytes"),
        (b"v=0\r\n" + b"x" * 16_384, "longer than 16384 bytes"),
        (b"v=0\r\ns=\xff\r\n", "not UTF-8"),
        ("v=0\r\ns=\ud800\r\n", "not UTF-8"),
    ],
)
def test_every_mistake_is_one_refusal_with_its_reason(given: str | bytes, complaint: str) -> None:
    with pytest.raises(SdpRefused, match=complaint):
        sdp.parse(given)


@pytest.mark.parametrize(
    "given",
    [
        without(META_OFFER, "a=rtpmap:111"),
        changed(META_OFFER, "opus/48000/2", "opus/16000/1"),
        changed(META_OFFER, "SAVPF 111 126", "SAVPF 126"),
        # 72 looks like RTCP when it carries the marker bit (RFC 5761).
        changed(META_OFFER, "111", "72"),
    ],
)
def test_without_opus_there_is_no_common_codec(given: str) -> None:
    with pytest.raises(NoCommonCodec):
        sdp.parse(given)


def test_a_codec_may_be_written_in_any_case() -> None:
    assert sdp.parse(changed(META_OFFER, "opus/48000/2", "OPUS/48000/2")).payloads.opus == 111


def test_without_telephone_event_at_8_khz_there_is_no_keypad() -> None:
    offer = changed(META_OFFER, "telephone-event/8000", "telephone-event/48000")

    assert sdp.parse(offer).payloads == Payloads(opus=111, dtmf=None)


def test_the_peers_preference_decides_between_two_opus_payload_types() -> None:
    offer = [line.replace("SAVPF 111", "SAVPF 112 111") for line in META_OFFER]

    assert sdp.parse(added(offer, "a=rtpmap:112 opus/48000/2")).payloads.opus == 112


def test_other_fingerprints_beside_sha_256_are_ignored() -> None:
    offer = added(META_OFFER, "a=fingerprint:sha-512 00:11", f"a=fingerprint:SHA-256 {FINGERPRINT.lower()}")

    assert sdp.parse(offer).fingerprint == FINGERPRINT


def test_the_session_level_counts_where_the_media_section_says_nothing() -> None:
    moved = [line for line in META_OFFER if line.startswith(("a=fingerprint", "a=setup", "a=ice-ufrag"))]
    rest = [line for line in META_OFFER if line not in moved and line != "a=sendrecv"]
    offer = sdp.parse(text([*rest[:6], *moved, "a=sendonly", *rest[6:]]))

    assert offer.fingerprint == FINGERPRINT
    assert offer.direction is Direction.SENDONLY


def test_the_direction_is_sendrecv_where_nobody_says_so() -> None:
    assert sdp.parse(without(META_OFFER, "a=sendrecv")).direction is Direction.SENDRECV


def test_mid_may_be_missing() -> None:
    assert sdp.parse(without(META_OFFER, "a=mid")).mid is None


def candidate(address: str, **more: object) -> Candidate:
    values: dict[str, object] = {
        "foundation": "1",
        "component": 1,
        "transport": "udp",
        "priority": 1,
        "address": address,
        "port": 3478,
        "type": "host",
    }
    return Candidate(**(values | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_a_global_unicast_candidate_is_usable(address: str) -> None:
    assert sdp.usable_candidates([candidate(address)]) == (candidate(address),)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.1.2.3", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0",
        "2606:4700::1%1", "fc00::1", "ff02::1", "ff0e::1", "::ffff:8.8.8.8", "::ffff:10.0.0.1", "64:ff9b::a00:1",
        "2002:a00:1::1", "2001:0:808:808::1", "host.local", "example.com", "", "8.8.8",
    ],
)  # fmt: skip
def test_any_other_address_is_not(address: str) -> None:
    assert sdp.usable_candidates([candidate(address)]) == ()


@pytest.mark.parametrize(
    "more", [{"transport": "tcp"}, {"component": 2}, {"port": 0}, {"type": "prflx"}, {"type": "other"}]
)
def test_a_candidate_must_be_for_the_one_udp_flow(more: dict[str, object]) -> None:
    assert sdp.usable_candidates([candidate("8.8.8.8", **more)]) == ()


def test_named_networks_are_usable_as_well() -> None:
    networks = sdp.parse_networks(["127.0.0.0/8", "fd00::/8"])
    inside = [candidate("127.0.0.1"), candidate("fd12::1")]

    assert sdp.usable_candidates([*inside, candidate("10.0.0.1")], networks) == tuple(inside)


def test_no_more_than_sixteen_candidates_are_used() -> None:
    many = [candidate("8.8.8.8", port=1000 + n) for n in range(40)]

    assert sdp.usable_candidates(many) == tuple(many[:16])


def local(**more: object) -> LocalDescription:
    values: dict[str, object] = {
        "mid": "audio",
        "setup": Setup.ACTIVE,
        "direction": Direction.SENDRECV,
        "ice_ufrag": "bizUfrag",
        "ice_pwd": "ExamplePwdBusiness01234567",
        "fingerprint": FINGERPRINT,
        "payloads": Payloads(opus=111, dtmf=126),
        "opus_parameters": sdp.OPUS_TO_META,
        "address": "198.51.100.7",
        "port": 38724,
        "ssrc": 2000000002,
        "cname": "00c0ffee",
        "session_id": 4000000001,
    }
    return LocalDescription(**(values | more))  # type: ignore[arg-type]


def test_what_we_write_is_what_metas_pages_ask_for() -> None:
    written = sdp.build(local())

    assert written.endswith("\r\n")
    assert "\n" not in written.replace("\r\n", "")
    assert written.count("a=fingerprint:") == written.count("m=") == written.count("a=ssrc:") == 1
    assert written.count("a=candidate:") == 1
    for line in (
        "a=group:BUNDLE audio",
        "m=audio 38724 UDP/TLS/RTP/SAVPF 111 126",
        "a=setup:active",
        "a=mid:audio",
        "a=rtpmap:111 opus/48000/2",
        "a=rtpmap:126 telephone-event/8000",
        "a=ptime:20",
        "a=sendrecv",
        "a=rtcp-mux",
    ):
        assert line in lines(written)
    assert "ice-lite" not in written


def test_what_we_write_is_what_we_read() -> None:
    read = sdp.parse(sdp.build(local()))

    assert (read.mid, read.setup, read.fingerprint) == ("audio", Setup.ACTIVE, FINGERPRINT)
    assert read.payloads == Payloads(opus=111, dtmf=126)
    assert [(c.address, c.port) for c in read.candidates] == [("198.51.100.7", 38724)]


def test_without_mid_and_keypad_nothing_is_said_of_them() -> None:
    written = sdp.build(local(mid=None, payloads=Payloads(opus=96, dtmf=None), address="2001:db8::7"))

    assert "BUNDLE" not in written
    assert "a=mid" not in written
    assert "telephone-event" not in written
    assert "c=IN IP6 2001:db8::7" in written
    assert sdp.parse(written).payloads == Payloads(opus=96, dtmf=None)


def is_total(given: str | bytes) -> None:
    with contextlib.suppress(SdpRefused):
        sdp.parse(given)


@given(st.binary(max_size=400) | st.text(max_size=400))
def test_any_input_is_read_or_refused(given: str | bytes) -> None:
    is_total(given)


@settings(max_examples=400)
@given(st.integers(0, 2**32), st.sampled_from([META_OFFER, META_ANSWER, BROWSER_OFFER]))
def test_any_damage_to_a_good_description_is_read_or_refused(seed: int, description: list[str]) -> None:
    rng = random.Random(seed)
    data = bytearray(text(description).encode())
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[start] = rng.randrange(256)
            case 1:
                del data[start : start + rng.randint(1, 40)]
            case 2:
                data[start:start] = data[rng.randrange(len(data)) :][: rng.randint(1, 60)]
            case _:
                data[start:start] = rng.choice(
                    [b":", b" ", b"\r\n", b"a=", b"m=audio ", b"99999999999", b"-1", b"\xc3\xa9"]
                )
        data = data or bytearray(b"v")
    is_total(bytes(data))


@given(
    mid=st.none() | st.from_regex(r"[A-Za-z0-9]{1,16}", fullmatch=True),
    setup=st.sampled_from(Setup),
    opus=st.integers(96, 127),
    dtmf=st.none() | st.integers(35, 63),
    port=st.integers(1, 65_535),
)
def test_everything_that_we_may_write_is_read_back(
    mid: str | None, setup: Setup, opus: int, dtmf: int | None, port: int
) -> None:
    payloads = Payloads(opus=opus, dtmf=dtmf)
    read = sdp.parse(sdp.build(local(mid=mid, setup=setup, payloads=payloads, port=port)))

    assert (read.mid, read.setup, read.payloads) == (mid, setup, payloads)
    assert read.candidates[0].port == port
