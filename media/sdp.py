"""Read, check and write the SDP of one audio stream. Pure text work: no sockets, no aiortc.

This module enforces every limit on a peer's SDP (size, lines, repetitions, characters), raises one clear `SdpRefused`
for any mistake, filters Meta's candidates, and writes our own offers and answers. What to answer is decided in
`negotiation.py`.

The supported subset is narrow on purpose: one audio section, ICE, DTLS-SRTP with one SHA-256 certificate fingerprint,
RTP and RTCP on one port, Opus and `telephone-event`. `parse` is total: any input gives a `Description` or an
`SdpRefused`, in time proportional to its length.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from media.errors import NoCommonCodec, SdpRefused

MAX_BYTES: Final = 16_384
MAX_LINES: Final = 400
#: Most lines of one kind (`a=rtpmap`, `c=`).
MAX_OF_A_KIND: Final = 64
#: Source: Meta's calling FAQ lists two; sixteen leaves room for more.
MAX_CANDIDATES: Final = 16

#: Payload types in our offers; the same numbers as in Meta's own samples.
OPUS_PAYLOAD_TYPE: Final = 111
DTMF_PAYLOAD_TYPE: Final = 126
#: For Meta: 20 ms packets only, with forward error correction.
OPUS_TO_META: Final = "minptime=20;useinbandfec=1"
#: For browsers: also the limits from Meta's offers, because we forward what the browser encodes.
OPUS_TO_BROWSER: Final = "minptime=20;useinbandfec=1;maxplaybackrate=16000;maxaveragebitrate=20000"

_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}")
# RFC 8839 §5.4 allows letters, digits, + and /; Meta's passwords are base64 and end in =.
_ICE_UFRAG: Final = re.compile(r"[A-Za-z0-9+/=_-]{4,256}")
_ICE_PWD: Final = re.compile(r"[A-Za-z0-9+/=_-]{22,256}")
_SHA_256: Final = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}")
_PROFILES: Final = frozenset({"UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "RTP/SAVPF"})
# RFC 5761 §4: with RTP and RTCP on one port, these payload types look like RTCP.
_RTCP_LOOKALIKES: Final = range(64, 96)
# An IPv6 address in here reaches an IPv4 address of the sender's choice.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Setup(StrEnum):
    """Which side opens the DTLS connection (RFC 8842 §5)."""

    ACTIVE = "active"
    PASSIVE = "passive"
    ACTPASS = "actpass"


class Direction(StrEnum):
    """Direction of the audio, from the point of view of the description's author."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One `a=candidate` line; the address is text, and may be a host name."""

    foundation: str
    component: int
    transport: str
    priority: int
    address: str
    port: int
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Payloads:
    """RTP payload types; `dtmf` is `telephone-event` at 8 kHz, or None if the peer does not support it."""

    opus: int
    dtmf: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A peer's offer or answer, checked."""

    mid: str | None
    setup: Setup
    direction: Direction
    ice_ufrag: str
    ice_pwd: str
    ice_lite: bool
    #: SHA-256 of the peer's certificate: upper-case hex with colons.
    fingerprint: str
    payloads: Payloads
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDescription:
    """Contents of our own offer or answer."""

    mid: str | None
    setup: Setup
    direction: Direction
    ice_ufrag: str
    ice_pwd: str
    fingerprint: str
    payloads: Payloads
    opus_parameters: str
    #: The announced address and the local port: our one host candidate.
    address: str
    port: int
    ssrc: int
    #: Name of stream, track and RTCP source (CNAME); letters and digits.
    cname: str
    session_id: int


def parse(text: str | bytes) -> Description:
    """Parse an offer or answer. Raises: SdpRefused, NoCommonCodec."""
    session, media = _sections(_lines(text))
    formats = _formats(media[0])
    attributes = _attributes(media[1:])
    inherited = _attributes(session)
    if "rtcp-mux" not in attributes:
        raise SdpRefused("no a=rtcp-mux")

    def one(name: str) -> str:
        return _one(name, attributes.get(name) or inherited.get(name, []))

    return Description(
        mid=_mid(attributes),
        setup=_setup(one("setup")),
        direction=_direction(attributes, inherited),
        ice_ufrag=_matching(_ICE_UFRAG, one("ice-ufrag"), "a=ice-ufrag"),
        ice_pwd=_matching(_ICE_PWD, one("ice-pwd"), "a=ice-pwd"),
        ice_lite="ice-lite" in inherited or "ice-lite" in attributes,
        fingerprint=_fingerprint(attributes.get("fingerprint") or inherited.get("fingerprint", [])),
        payloads=_payloads(formats, attributes.get("rtpmap", [])),
        candidates=tuple(_candidate(value) for value in attributes.get("candidate", [])),
    )


def check_size(text: str) -> None:
    """Reject a text that is too long or not UTF-8, without parsing it. Raises: SdpRefused."""
    try:
        too_long = len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES
    except UnicodeError:
        raise SdpRefused("not UTF-8 text") from None
    if too_long:
        raise SdpRefused(f"longer than {MAX_BYTES} bytes")


def parse_networks(networks: Iterable[str]) -> tuple[Network, ...]:
    """Return networks from their CIDR text. Raises: ValueError."""
    return tuple(ipaddress.ip_network(network) for network in networks)


def usable_candidates(candidates: Sequence[Candidate], networks: Sequence[Network] = ()) -> tuple[Candidate, ...]:
    """Return the candidates that we are willing to send packets to: at most sixteen.

    UDP, component 1, and an address (never a name) that is global unicast or lies in one of the given networks.
    Anything else could let the author of the SDP make us probe hosts of an internal network.
    """
    return tuple(c for c in candidates if _is_usable(c, networks))[:MAX_CANDIDATES]


def build(local: LocalDescription) -> str:
    """Return the text of our offer or answer: one audio section, one candidate, one fingerprint, CRLF."""
    family = "IP6" if ":" in local.address else "IP4"
    payloads = local.payloads
    formats = f"{payloads.opus}" if payloads.dtmf is None else f"{payloads.opus} {payloads.dtmf}"
    # RFC 8445 §5.1.2.1: type preference 126 (host), local preference 65535, component 1.
    priority = (126 << 24) + (65_535 << 8) + 255
    lines = [
        "v=0",
        f"o=- {local.session_id} 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        *([f"a=group:BUNDLE {local.mid}"] if local.mid else []),
        f"a=msid-semantic: WMS {local.cname}",
        f"m=audio {local.port} UDP/TLS/RTP/SAVPF {formats}",
        f"c=IN {family} {local.address}",
        "a=rtcp:9 IN IP4 0.0.0.0",
        f"a=candidate:1 1 udp {priority} {local.address} {local.port} typ host",
        "a=end-of-candidates",
        f"a=ice-ufrag:{local.ice_ufrag}",
        f"a=ice-pwd:{local.ice_pwd}",
        f"a=fingerprint:sha-256 {local.fingerprint}",
        f"a=setup:{local.setup}",
        *([f"a=mid:{local.mid}"] if local.mid else []),
        f"a={local.direction}",
        f"a=msid:{local.cname} {local.cname}",
        "a=rtcp-mux",
        f"a=rtpmap:{payloads.opus} opus/48000/2",
        f"a=fmtp:{payloads.opus} {local.opus_parameters}",
    ]
    if payloads.dtmf is not None:
        lines += [f"a=rtpmap:{payloads.dtmf} telephone-event/8000", f"a=fmtp:{payloads.dtmf} 0-16"]
    lines += ["a=ptime:20", "a=maxptime:20", f"a=ssrc:{local.ssrc} cname:{local.cname}"]
    return "\r\n".join(lines) + "\r\n"


def _lines(text: str | bytes) -> list[str]:
    """Return the lines without line ends; both CRLF and LF are accepted."""
    if isinstance(text, bytes):
        if len(text) > MAX_BYTES:
            raise SdpRefused(f"longer than {MAX_BYTES} bytes")
        try:
            text = text.decode()
        except UnicodeError:
            raise SdpRefused("not UTF-8 text") from None
    else:
        check_size(text)
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    if len(lines) > MAX_LINES:
        raise SdpRefused(f"more than {MAX_LINES} lines")
    if not lines or lines[0] != "v=0":
        raise SdpRefused("does not start with v=0")
    for line in lines:
        if _CONTROL.search(line):
            raise SdpRefused("contains a control character")
        if len(line) < 2 or line[1] != "=":
            raise SdpRefused("a line is not of the form x=value")
    kinds = Counter(_kind(line) for line in lines)
    if kinds.most_common(1)[0][1] > MAX_OF_A_KIND:
        raise SdpRefused(f"more than {MAX_OF_A_KIND} lines of a kind")
    return lines


def _kind(line: str) -> str:
    return line.partition(":")[0] if line.startswith("a=") else line[:2]


def _sections(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the session's lines and those of the one audio section, with its `m=` line first."""
    starts = [index for index, line in enumerate(lines) if line.startswith("m=")]
    if len(starts) != 1:
        raise SdpRefused(f"{len(starts)} media sections instead of one")
    return lines[: starts[0]], lines[starts[0] :]


def _formats(line: str) -> list[int]:
    """Return the payload types of the `m=` line, in the peer's order of preference."""
    parts = line[2:].split(" ")
    if len(parts) < 4 or parts[0] != "audio":
        raise SdpRefused("the media section is not audio")
    if _number(parts[1], 65_535, "the port of m=audio") == 0:
        raise SdpRefused("the audio section is disabled (port 0)")
    if parts[2] not in _PROFILES:
        raise SdpRefused("the transport is not DTLS-SRTP (UDP/TLS/RTP/SAVPF)")
    return [_number(part, 127, "a payload type of m=audio") for part in parts[3:]]


def _attributes(lines: Iterable[str]) -> dict[str, list[str]]:
    """Return the `a=` lines as name -> values, in order; a flag has the value ""."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("a="):
            name, _, value = line[2:].partition(":")
            found.setdefault(name, []).append(value)
    return found


def _one(name: str, values: list[str]) -> str:
    """Return the value on which all lines of that name agree."""
    if not values:
        raise SdpRefused(f"no a={name}")
    if len(set(values)) > 1:
        raise SdpRefused(f"several different a={name}")
    return values[0]


def _number(text: str, maximum: int, what: str) -> int:
    # str.isdecimal alone accepts digits of other scripts; int() accepts signs, spaces and underscores.
    if not (text.isascii() and text.isdecimal() and len(text) <= 10) or int(text) > maximum:
        raise SdpRefused(f"{what} is not a number from 0 to {maximum}")
    return int(text)


def _matching(pattern: re.Pattern[str], value: str, what: str) -> str:
    if not pattern.fullmatch(value):
        raise SdpRefused(f"{what} is malformed")
    return value


def _mid(attributes: dict[str, list[str]]) -> str | None:
    if "mid" not in attributes:
        return None
    return _matching(_TOKEN, _one("mid", attributes["mid"]), "a=mid")


def _setup(value: str) -> Setup:
    try:
        return Setup(value)
    except ValueError:
        raise SdpRefused("a=setup is not active, passive or actpass") from None


def _direction(attributes: dict[str, list[str]], inherited: dict[str, list[str]]) -> Direction:
    for level in (attributes, inherited):
        named = [direction for direction in Direction if direction in level]
        if len(named) > 1:
            raise SdpRefused("several different directions")
        if named:
            break
    else:
        return Direction.SENDRECV  # RFC 8866 §6.7
    if named[0] is Direction.INACTIVE:
        raise SdpRefused("the audio section is inactive")
    return named[0]


def _fingerprint(values: list[str]) -> str:
    """Return the one SHA-256 fingerprint; other algorithms are ignored, as RFC 8122 §5 allows."""
    found = set()
    for value in values:
        algorithm, _, digest = value.partition(" ")
        if algorithm.lower() == "sha-256":
            found.add(_matching(_SHA_256, digest, "a=fingerprint").upper())
    if not found:
        raise SdpRefused("no a=fingerprint with sha-256")
    if len(found) > 1:
        raise SdpRefused("several different sha-256 fingerprints")
    return found.pop()


def _payloads(formats: list[int], rtpmaps: list[str]) -> Payloads:
    """Return the payload types of Opus and of `telephone-event` at 8 kHz: the first of each."""
    codecs: dict[int, str] = {}
    for value in rtpmaps:
        number, _, codec = value.partition(" ")
        payload_type = _number(number, 127, "the payload type of an a=rtpmap")
        if codecs.setdefault(payload_type, codec.lower()) != codec.lower():
            raise SdpRefused(f"payload type {payload_type} is mapped twice")
    usable = [pt for pt in formats if pt not in _RTCP_LOOKALIKES]
    opus = next((pt for pt in usable if codecs.get(pt) == "opus/48000/2"), None)
    if opus is None:
        raise NoCommonCodec("no opus/48000/2")
    # Source: Meta's page on user-initiated calls: telephone-event at 8000 Hz, never 48000.
    dtmf = next((pt for pt in usable if codecs.get(pt) in ("telephone-event/8000", "telephone-event/8000/1")), None)
    return Payloads(opus=opus, dtmf=dtmf)


def _candidate(value: str) -> Candidate:
    parts = value.split(" ")
    if len(parts) < 8 or parts[6] != "typ":
        raise SdpRefused("a=candidate is malformed")
    return Candidate(
        foundation=_matching(re.compile(r"[A-Za-z0-9+/]{1,32}"), parts[0], "the foundation of a candidate"),
        component=_number(parts[1], 256, "the component of a candidate"),
        transport=parts[2].lower(),
        priority=_number(parts[3], 2**32 - 1, "the priority of a candidate"),
        address=parts[4],
        port=_number(parts[5], 65_535, "the port of a candidate"),
        type=parts[7],
    )


def _is_usable(candidate: Candidate, networks: Sequence[Network]) -> bool:
    if (
        candidate.transport != "udp"
        or candidate.component != 1
        or candidate.port == 0
        or candidate.type not in ("host", "srflx", "relay")
    ):
        return False
    try:
        address = ipaddress.ip_address(candidate.address)
    except ValueError:
        return False  # a host name, `.local` included
    if any(address in network for network in networks):
        return True
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped or address.sixtofour or address.teredo or address in _NAT64 or address.scope_id
    ):
        return False
    return address.is_global and not address.is_multicast
