"""Offer and answer of one leg: DTLS role, payload types, ICE role. Pure.

Theory of operation. A leg has one exchange in its life (Meta has no re-negotiation). Either the peer offered and
`answer_to` gives our answer, or we offered and `agree` gives the result of the peer's answer. Both return the same
`Agreement`.

DTLS roles (RFC 8842 §5.2). The `active` side sends the ClientHello.

    peer offers   we answer   we are      Source for `actpass`: Meta's pages want `active` from the business.
    actpass       active      client
    passive       active      client
    active        passive     server

    we offer      peer answers   we are   Meta's answers have been seen with each of the three; `actpass` is illegal
    actpass       active         server   in an answer. We then wait for the ClientHello, as for `active`.
    actpass       passive        client
    actpass       actpass        server

Payload types (RFC 3264 §5.1, §6.1): we send with those in the peer's description and receive with those in ours; our
answer repeats the peer's. ICE (RFC 8445 §6.1.1): the offerer is controlling, but a full agent controls a lite one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from media.errors import SdpRefused
from media.sdp import (
    DTMF_PAYLOAD_TYPE,
    OPUS_PAYLOAD_TYPE,
    Description,
    Direction,
    Payloads,
    Setup,
)

OFFERED_PAYLOADS: Final = Payloads(opus=OPUS_PAYLOAD_TYPE, dtmf=DTMF_PAYLOAD_TYPE)
OFFERED_MID: Final = "0"


class DtlsRole(StrEnum):
    """Our side of the DTLS handshake; the client sends the first message."""

    CLIENT = "client"
    SERVER = "server"


OUR_ANSWER: Final[Mapping[Setup, Setup]] = MappingProxyType(
    {
        Setup.ACTPASS: Setup.ACTIVE,
        Setup.PASSIVE: Setup.ACTIVE,
        Setup.ACTIVE: Setup.PASSIVE,
    }
)

ROLE_AS_ANSWERER: Final[Mapping[Setup, DtlsRole]] = MappingProxyType(
    {
        Setup.ACTPASS: DtlsRole.CLIENT,
        Setup.PASSIVE: DtlsRole.CLIENT,
        Setup.ACTIVE: DtlsRole.SERVER,
    }
)

ROLE_AS_OFFERER: Final[Mapping[Setup, DtlsRole]] = MappingProxyType(
    {
        Setup.ACTIVE: DtlsRole.SERVER,
        Setup.PASSIVE: DtlsRole.CLIENT,
        Setup.ACTPASS: DtlsRole.SERVER,
    }
)

#: Keyed by the direction in the peer's offer.
OUR_DIRECTION: Final[Mapping[Direction, Direction]] = MappingProxyType(
    {
        Direction.SENDRECV: Direction.SENDRECV,
        Direction.SENDONLY: Direction.RECVONLY,
        Direction.RECVONLY: Direction.SENDONLY,
        Direction.INACTIVE: Direction.INACTIVE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The result of offer and answer for one leg."""

    role: DtlsRole
    #: `a=setup` of our description.
    setup: Setup
    direction: Direction
    mid: str | None
    ice_controlling: bool
    #: Payload types that we send with, and that we receive.
    send: Payloads
    receive: Payloads


#: The terms of our own offers, before the peer's answer.
OFFER: Final = Agreement(
    role=DtlsRole.SERVER,
    setup=Setup.ACTPASS,
    direction=Direction.SENDRECV,
    mid=OFFERED_MID,
    ice_controlling=True,
    send=OFFERED_PAYLOADS,
    receive=OFFERED_PAYLOADS,
)


def answer_to(offer: Description) -> Agreement:
    """Return our answer to a peer's offer."""
    return Agreement(
        role=ROLE_AS_ANSWERER[offer.setup],
        setup=OUR_ANSWER[offer.setup],
        direction=OUR_DIRECTION[offer.direction],
        mid=offer.mid,
        ice_controlling=offer.ice_lite,
        send=offer.payloads,
        receive=offer.payloads,
    )


def agree(answer: Description) -> Agreement:
    """Return the result of a peer's answer to our offer. Raises: SdpRefused."""
    if answer.mid not in (None, OFFERED_MID):
        raise SdpRefused("the a=mid of the answer differs from the offer's")
    return replace(OFFER, role=ROLE_AS_OFFERER[answer.setup], send=answer.payloads)
