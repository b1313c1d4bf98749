"""SDP as the simulated Meta reads and writes it. Pure text in, values out.

`read_business_sdp` is as strict as Meta is known (or documented) to be, so that a gateway learns here and not in
production what is wrong with its SDP. Sources: Meta's calling reference, integration patterns and FAQ pages;
RFC 8866 (SDP), RFC 8839 (ICE), RFC 8842 (DTLS).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from loadtest.simulator.errors import GraphError
from loadtest.webrtc.rtp import Payloads

MAX_SDP_CHARACTERS = 65_536
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}")
_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_SDP_VALIDATION_ERROR = 138008  # clients report this for several fingerprints; for other SDP errors Meta uses 100


class Setup(StrEnum):
    """The a=setup values that a business may use."""

    ACTPASS = "actpass"
    ACTIVE = "active"
    PASSIVE = "passive"


@dataclass(frozen=True, slots=True, kw_only=True)
class BusinessSdp:
    """The relevant parts of the business's offer or answer."""

    ufrag: str
    password: str
    fingerprint: str
    setup: Setup
    mid: str
    payloads: Payloads
    #: False: Meta's side sends no audio (real answers with recvonly got none).
    sendrecv: bool
    ssrc: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaMedia:
    """The parameters of Meta's own SDP."""

    host: str
    port: int
    ufrag: str
    password: str
    fingerprint: str
    ssrc: int
    #: Milliseconds since the epoch, as seen in `o=`.
    session_id: int


def _refuse(details: str, code: int = 100) -> GraphError:
    return GraphError(code, f"SDP Validation error: {details}")


class _Lines:
    """The attribute lines of an SDP with one audio section."""

    def __init__(self, sdp: str) -> None:
        self.all = sdp.split("\r\n")[:-1]
        self._values: dict[str, list[str]] = {}
        for line in self.all:
            if line.startswith("a="):
                name, _, value = line[2:].partition(":")
                self._values.setdefault(name, []).append(value)

    def values(self, name: str) -> list[str]:
        """Return what follows `a=name:` (or "" for a flag), in order."""
        return self._values.get(name, [])

    def one(self, name: str) -> str | None:
        """Return the only value; differing values are refused."""
        values = set(self.values(name))
        if len(values) > 1:
            raise _refuse(f"several a={name} lines")
        return values.pop() if values else None


def read_business_sdp(sdp: str, *, is_offer: bool, mid: str | None = None, opus: int | None = None) -> BusinessSdp:
    """Check an SDP of the business; if it is an answer, `mid` and `opus` are those of Meta's offer.

    Raises: GraphError for anything that Meta would not accept.
    """
    _check_text(sdp)
    lines = _Lines(sdp)
    formats = _media_formats(lines)
    if lines.values("ice-lite"):
        raise _refuse("a=ice-lite: Meta is the lite side, the business runs a full agent")
    if lines.one("rtcp-mux") is None:
        raise _refuse("a=rtcp-mux is missing")
    payloads = _payloads(lines, formats)
    if opus is not None and payloads.opus != opus:
        raise _refuse(f"Opus must keep the offered payload type {opus}")
    got_mid = lines.one("mid")
    if got_mid is None or (mid is not None and got_mid != mid):
        raise _refuse(f"a=mid must be {mid!r}" if mid else "a=mid is missing")
    ufrag, password = _credentials(lines)
    return BusinessSdp(
        ufrag=ufrag,
        password=password,
        fingerprint=_fingerprint(lines),
        setup=_setup(lines, is_offer=is_offer),
        mid=got_mid,
        payloads=payloads,
        sendrecv=_direction(lines) == "sendrecv",
        ssrc=_ssrc(lines),
    )


def _check_text(sdp: str) -> None:
    if len(sdp) > MAX_SDP_CHARACTERS:
        raise _refuse("too long")
    if not sdp.startswith("v=0\r\n"):
        raise _refuse("must start with v=0 and use CRLF line ends")
    if not sdp.endswith("\r\n"):
        raise _refuse("the last line has no CRLF")
    if _CONTROL.search(sdp.replace("\r\n", "")):
        raise _refuse("bare line feeds or control characters")
    if any(len(line) < 2 or line[1] != "=" for line in sdp.split("\r\n")[:-1]):
        raise _refuse("a line is not of the form x=...")


def _media_formats(lines: _Lines) -> Sequence[str]:
    media = [line.split() for line in lines.all if line.startswith("m=")]
    if len(media) != 1 or media[0][0] != "m=audio":
        raise _refuse("exactly one m=audio section is needed")
    if len(media[0]) < 4 or media[0][2] != "UDP/TLS/RTP/SAVPF":
        raise _refuse("the profile must be UDP/TLS/RTP/SAVPF")
    if media[0][1] == "0":
        raise _refuse("the audio section is disabled (port 0)")
    return media[0][3:]


def _payloads(lines: _Lines, formats: Sequence[str]) -> Payloads:
    maps = dict(value.split(" ", 1) for value in lines.values("rtpmap") if " " in value)
    named = {number: name.strip().lower() for number, name in maps.items() if number in formats}
    opus = [int(number) for number, name in named.items() if name == "opus/48000/2" and number.isdecimal()]
    if not opus:
        raise _refuse("no opus/48000/2 among the formats")
    dtmf = [int(number) for number, name in named.items() if name == "telephone-event/8000" and number.isdecimal()]
    ptime = lines.one("ptime")
    if ptime not in (None, "20"):
        raise _refuse("a=ptime must be 20")
    return Payloads(opus=opus[0], dtmf=dtmf[0] if dtmf else 126)  # Meta uses 126 at 8 kHz even if unasked


def _credentials(lines: _Lines) -> tuple[str, str]:
    ufrag, password = lines.one("ice-ufrag"), lines.one("ice-pwd")
    if ufrag is None or password is None:
        raise _refuse("a=ice-ufrag or a=ice-pwd is missing")
    if not _UFRAG.fullmatch(ufrag) or not _PASSWORD.fullmatch(password):
        raise _refuse("a=ice-ufrag or a=ice-pwd is malformed")
    return ufrag, password


def _fingerprint(lines: _Lines) -> str:
    fingerprints = lines.values("fingerprint")
    if not fingerprints:
        raise _refuse("No fingerprint found in SDP")
    if len(fingerprints) > 1:
        raise _refuse("more than one a=fingerprint line", _SDP_VALIDATION_ERROR)
    algorithm, _, value = fingerprints[0].partition(" ")
    if algorithm.lower() != "sha-256" or not _FINGERPRINT.fullmatch(value.strip()):
        raise _refuse("the fingerprint must be one sha-256 value", _SDP_VALIDATION_ERROR)
    return value.strip().upper()


def _setup(lines: _Lines, *, is_offer: bool) -> Setup:
    setup = lines.one("setup")
    allowed = (Setup.ACTPASS,) if is_offer else (Setup.ACTIVE, Setup.PASSIVE)
    if setup is None or setup not in allowed:
        raise _refuse(f"a=setup must be {' or '.join(allowed)} here, not {setup!r}")
    return Setup(setup)


def _direction(lines: _Lines) -> str:
    said = [direction for direction in _DIRECTIONS if lines.values(direction)]
    if len(said) > 1:
        raise _refuse("several directions")
    return said[0] if said else "sendrecv"


def _ssrc(lines: _Lines) -> int | None:
    numbers = {value.split(" ", 1)[0] for value in lines.values("ssrc")}
    if len(numbers) > 1 or lines.values("ssrc-group"):
        raise _refuse("more than one SSRC")
    if not numbers:
        return None
    number = numbers.pop()
    if not number.isdecimal() or int(number) >= 2**32:
        raise _refuse("a malformed a=ssrc line")
    return int(number)


def write_offer(media: MetaMedia) -> str:
    """Return Meta's offer of a user-initiated call, in the form seen in 2025 and 2026."""
    stream = f"{media.session_id:032x}"
    return _join(
        *_session(media, "audio"),
        f"a=msid-semantic: WMS {stream}",
        "a=ice-lite",
        *_section(media, Payloads(), candidate_end="generation 0 network-cost 50"),
        f"a=fingerprint:sha-256 {media.fingerprint}",
        "a=setup:actpass",
        "a=mid:audio",
        "a=sendrecv",
        f"a=msid:{stream} WhatsAppTrack1",
        "a=rtcp-mux",
        "a=rtpmap:111 opus/48000/2",
        "a=rtcp-fb:111 transport-cc",
        "a=fmtp:111 maxaveragebitrate=20000;maxplaybackrate=16000;minptime=20;"
        "sprop-maxcapturerate=16000;useinbandfec=1",
        "a=rtpmap:126 telephone-event/8000",
        "a=maxptime:20",
        "a=ptime:20",
        f"a=ssrc:{media.ssrc} cname:WhatsAppAudioStream1",
    )


def write_answer(media: MetaMedia, offer: BusinessSdp, setup: Setup) -> str:
    """Return Meta's answer of a business-initiated call."""
    stream, opus, dtmf = f"{media.session_id:032x}", offer.payloads.opus, offer.payloads.dtmf
    ssrc = f"a=ssrc:{media.ssrc}"
    return _join(
        *_session(media, offer.mid),
        f"a=msid-semantic: WMS {stream}",
        "a=ice-lite",
        *_section(media, offer.payloads, candidate_end=f"generation 0 network-cost 50 ufrag {media.ufrag}"),
        "a=ice-options:trickle",
        f"a=fingerprint:sha-256 {media.fingerprint}",
        f"a=setup:{setup}",
        f"a=mid:{offer.mid}",
        "a=sendrecv",
        "a=rtcp-mux",
        f"a=rtpmap:{opus} opus/48000/2",
        f"a=rtcp-fb:{opus} transport-cc",
        f"a=fmtp:{opus} minptime=10;useinbandfec=1",
        f"a=rtpmap:{dtmf} telephone-event/8000",
        f"{ssrc} cname:simulated",
        f"{ssrc} msid:{stream} audio#simulated",
        f"{ssrc} mslabel:{stream}",
        f"{ssrc} label:audio#simulated",
    )


def _session(media: MetaMedia, mid: str) -> tuple[str, ...]:
    return ("v=0", f"o=- {media.session_id} 2 IN IP4 127.0.0.1", "s=-", "t=0 0", f"a=group:BUNDLE {mid}")


def _section(media: MetaMedia, payloads: Payloads, *, candidate_end: str) -> tuple[str, ...]:
    candidate = f"1111111111 1 udp 2122260223 {media.host} {media.port} typ host {candidate_end}"
    return (
        f"m=audio {media.port} UDP/TLS/RTP/SAVPF {payloads.opus} {payloads.dtmf}",
        f"c=IN IP4 {media.host}",
        "a=rtcp:9 IN IP4 0.0.0.0",
        f"a=candidate:{candidate}",
        f"a=ice-ufrag:{media.ufrag}",
        f"a=ice-pwd:{media.password}",
    )


def _join(*lines: str) -> str:
    return "".join(f"{line}\r\n" for line in lines)
