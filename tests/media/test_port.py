"""The shared socket: whose datagram is it?"""

from collections.abc import AsyncIterator

import pytest
from aioice import stun

from media.ice import LegIce
from media.port import SharedPort

ADDRESS = ("192.0.2.1", 50_000)


@pytest.fixture
async def port() -> AsyncIterator[SharedPort]:
    shared = await SharedPort.open("127.0.0.1", 0)
    yield shared
    await shared.close()


def leg(port: SharedPort) -> LegIce:
    ice = LegIce(controlling=False, packet_budget=100)
    port.attach(ice.ufrag, ice.link)
    return ice


def request(ufrag: str) -> bytes:
    """Return a request without credentials, which its leg counts as a stranger's."""
    message = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    message.attributes["USERNAME"] = f"{ufrag}:theirs"
    return bytes(message)


async def test_a_request_goes_to_the_leg_that_it_names_even_from_the_address_of_another(
    port: SharedPort,
) -> None:
    old, new = leg(port), leg(port)
    old.link.on_checked(ADDRESS)
    port.datagram_received(request(new.ufrag), ADDRESS)

    assert (old.link.drops.from_stranger, new.link.drops.from_stranger) == (0, 1)


async def test_media_goes_to_the_last_leg_that_passed_a_check_from_there(port: SharedPort) -> None:
    old, new = leg(port), leg(port)
    heard: list[bytes] = []
    new.link.on_media = heard.append
    for one in (old, new):
        one.link.checked.add(ADDRESS)
        one.link.on_checked(ADDRESS)
    port.datagram_received(b"\x80audio", ADDRESS)
    await old.close()
    port.datagram_received(b"\x80audio", ADDRESS)
    assert heard == [b"\x80audio"] * 2

    await new.close()
    port.datagram_received(b"\x80audio", ADDRESS)
    assert heard == [b"\x80audio"] * 2
    assert (port.legs, port.dropped_from_stranger) == (0, 1)


async def test_a_datagram_for_nobody_is_dropped_and_counted(port: SharedPort) -> None:
    for data in (b"", b"\x80audio", b"\x16dtls", b"\x00", request("nobody")):
        port.datagram_received(data, ADDRESS)

    assert port.dropped_from_stranger == 5
