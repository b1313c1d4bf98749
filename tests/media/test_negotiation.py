"""Offer and answer: the tables are total, and each row is what the RFC says."""

from dataclasses import replace

import pytest

from media import negotiation
from media.errors import SdpRefused
from media.negotiation import DtlsRole, agree, answer_to
from media.sdp import Description, Direction, Payloads, Setup

PEER = Description(
    mid="audio",
    setup=Setup.ACTPASS,
    direction=Direction.SENDRECV,
    ice_ufrag="ufrag",
    ice_pwd="p" * 22,
    ice_lite=True,
    fingerprint="00",
    payloads=Payloads(opus=96, dtmf=97),
    candidates=(),
)


def test_the_tables_are_total() -> None:
    for table in (negotiation.OUR_ANSWER, negotiation.ROLE_AS_ANSWERER, negotiation.ROLE_AS_OFFERER):
        assert set(table) == set(Setup)
    assert set(negotiation.OUR_DIRECTION) == set(Direction)


@pytest.mark.parametrize(
    ("offered", "answered", "role"),
    [
        (Setup.ACTPASS, Setup.ACTIVE, DtlsRole.CLIENT),
        (Setup.PASSIVE, Setup.ACTIVE, DtlsRole.CLIENT),
        (Setup.ACTIVE, Setup.PASSIVE, DtlsRole.SERVER),
    ],
)
def test_our_answer_takes_the_role_that_the_offer_leaves(offered: Setup, answered: Setup, role: DtlsRole) -> None:
    agreement = answer_to(replace(PEER, setup=offered))

    assert (agreement.setup, agreement.role) == (answered, role)


@pytest.mark.parametrize(
    ("answered", "role"),
    [
        (Setup.ACTIVE, DtlsRole.SERVER),
        (Setup.PASSIVE, DtlsRole.CLIENT),
        # Illegal, but seen: read as active.
        (Setup.ACTPASS, DtlsRole.SERVER),
    ],
)
def test_the_peers_answer_decides_our_role(answered: Setup, role: DtlsRole) -> None:
    assert agree(replace(PEER, mid="0", setup=answered)).role is role


def test_an_answer_uses_what_was_offered() -> None:
    agreement = answer_to(PEER)

    assert agreement.mid == "audio"
    assert agreement.send == agreement.receive == Payloads(opus=96, dtmf=97)


def test_we_send_what_the_answer_names_and_receive_what_we_offered() -> None:
    agreement = agree(replace(PEER, mid="0", payloads=Payloads(opus=120, dtmf=None)))

    assert agreement.send == Payloads(opus=120, dtmf=None)
    assert agreement.receive == negotiation.OFFERED_PAYLOADS


@pytest.mark.parametrize("lite", [True, False])
def test_a_full_agent_controls_a_lite_one_and_an_offerer_a_full_one(lite: bool) -> None:
    assert answer_to(replace(PEER, ice_lite=lite)).ice_controlling is lite
    assert agree(replace(PEER, mid="0", ice_lite=lite)).ice_controlling


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (Direction.SENDRECV, Direction.SENDRECV),
        (Direction.SENDONLY, Direction.RECVONLY),
        (Direction.RECVONLY, Direction.SENDONLY),
    ],
)
def test_our_direction_mirrors_theirs(theirs: Direction, ours: Direction) -> None:
    assert answer_to(replace(PEER, direction=theirs)).direction is ours


def test_an_answer_for_another_section_is_refused() -> None:
    with pytest.raises(SdpRefused, match="mid"):
        agree(replace(PEER, mid="1"))


def test_an_answer_without_mid_is_for_our_only_section() -> None:
    assert agree(replace(PEER, mid=None)).mid == "0"
