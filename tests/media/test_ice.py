"""What we know of aioice and aiortc is of these versions; and the parts of the guard that need no peer."""

from importlib.metadata import version

import pytest
from aioice import stun
from hypothesis import given
from hypothesis import strategies as st

from media import ice
from media.ice import Budget, LegIce, request_ufrag


def test_the_libraries_are_those_that_this_was_written_for() -> None:
    """A new version: read its ice.py and rtcdtlstransport.py against ours, run tests/loopback, then change this."""
    assert version("aioice") == ice.WRITTEN_FOR_AIOICE
    assert version("aiortc") == ice.WRITTEN_FOR_AIORTC


def test_a_budget_allows_so_many_a_second() -> None:
    budget = Budget(3)

    assert [budget.take(now) for now in (0.0, 0.1, 0.2, 0.3, 0.9)] == [True, True, True, False, False]
    assert [budget.take(now) for now in (1.0, 1.0, 1.0, 1.0)] == [True, True, True, False]


def message(kind: stun.Class = stun.Class.REQUEST, username: str | None = "ours:theirs") -> bytes:
    one = stun.Message(message_method=stun.Method.BINDING, message_class=kind, transaction_id=bytes(12))
    if username is not None:
        one.attributes["USERNAME"] = username
    return bytes(one)


@pytest.mark.parametrize(
    ("data", "ufrag"),
    [
        (message(), "ours"),
        (message(username="ours"), "ours"),
        (message(username=None), ""),
        (message(stun.Class.RESPONSE), None),
        (message(stun.Class.INDICATION), None),
        (message()[:-1], None),
        (b"", None),
        # An attribute of the wrong length: aioice raises struct.error here.
        (b"\0\1\0\6\x21\x12\xa4\x42" + bytes(12) + b"\0\x24\0\2ab", None),
    ],
)
def test_a_request_names_the_leg_that_it_is_for(data: bytes, ufrag: str | None) -> None:
    assert request_ufrag(data) == ufrag


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: message()[:20] + rest))
def test_any_bytes_are_a_request_or_none(data: bytes) -> None:
    assert request_ufrag(data) is None or isinstance(request_ufrag(data), str)


async def test_each_leg_has_credentials_of_its_own_and_no_server() -> None:
    one, other = (LegIce(controlling=True, packet_budget=1) for _ in range(2))

    # With the four characters that aioice chooses, some hundred legs on one port would soon share one.
    assert one.ufrag != other.ufrag
    assert len(one.ufrag) >= 16
    assert len(one.pwd) >= 22
    assert one.link.receiver.stun_server is None
    assert one.link.receiver.turn_server is None


async def test_strangers_and_odd_bytes_are_counted() -> None:
    link = LegIce(controlling=True, packet_budget=2).link
    heard: list[bytes] = []
    link.on_media = heard.append
    link.checked.add(("192.0.2.1", 5))
    link.datagram_received(b"\x80media", ("192.0.2.9", 5))
    link.datagram_received(b"", ("192.0.2.9", 5))
    link.datagram_received(b"\x80media", ("192.0.2.1", 5))
    link.datagram_received(b"\x10odd", ("192.0.2.1", 5))
    link.datagram_received(b"\x80too much", ("192.0.2.1", 5))
    link.datagram_received(b"\x01\x01", ("192.0.2.1", 5))

    assert heard == [b"\x80media"]
    assert (link.drops.from_stranger, link.drops.malformed, link.drops.over_budget) == (2, 2, 1)


async def test_handshake_datagrams_do_not_pile_up() -> None:
    link = LegIce(controlling=True, packet_budget=1000).link
    link.checked.add(("2001:db8::1", 5))
    for _ in range(ice.MAX_WAITING + 10):
        link.datagram_received(b"\x16dtls", ("2001:db8::1", 5, 0, 0))

    assert link.receiver._queue.qsize() == ice.MAX_WAITING
    assert link.drops.malformed == 10


async def test_checks_have_a_budget_of_their_own() -> None:
    one = LegIce(controlling=True, packet_budget=1)
    for _ in range(ice.STUN_BUDGET_PER_S + 5):
        one.link.datagram_received(message(username=f"{one.ufrag}:theirs"), ("192.0.2.9", 5))

    assert one.link.drops.over_budget == 5


async def test_junk_of_strangers_uses_up_nobodys_budget() -> None:
    """Else a hundred datagrams a second from anywhere keep a leg from connecting, or end it."""
    one = LegIce(controlling=True, packet_budget=1)
    one.link.checked.add(("192.0.2.1", 5))
    junk = (b"\x00", message(), message(stun.Class.RESPONSE), b"\x01\x01" + bytes(30))
    for n in range(3 * ice.STUN_BUDGET_PER_S):
        one.link.datagram_received(junk[n % 4], ("192.0.2.9", 5))
        one.link.datagram_received(junk[n % 4], ("192.0.2.1", 5))  # a forged source

    assert one.link.drops.over_budget == 0
    assert (one.link.drops.from_stranger, one.link.drops.malformed) == (300, 300)
    for address in (("192.0.2.9", 5), ("192.0.2.1", 5)):
        before = one.link.drops.from_stranger
        one.link.datagram_received(message(username=f"{one.ufrag}:theirs"), address)
        assert one.link.drops.from_stranger == before + 1, "it was looked at, and refused for its credentials"


async def test_who_knows_our_name_does_not_use_up_the_budget_of_who_passed_a_check() -> None:
    one = LegIce(controlling=True, packet_budget=1)
    one.link.checked.add(("192.0.2.1", 5))
    request = message(username=f"{one.ufrag}:theirs")
    for _ in range(ice.STUN_BUDGET_PER_S + 1):
        one.link.datagram_received(request, ("192.0.2.9", 5))
    assert one.link.drops.over_budget == 1
    one.link.datagram_received(request, ("192.0.2.1", 5))

    assert one.link.drops.over_budget == 1
