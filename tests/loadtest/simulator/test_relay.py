"""The relay answers good checks, learns addresses from them and drops everything else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aioice import stun

from loadtest.simulator.relay import Relay, RelayLeg

PASSWORD = "ExamplePwdBusiness01234567"


class Peer(asyncio.DatagramProtocol):
    """A socket of the business."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.put_nowait(data)

    async def answer(self) -> stun.Message:
        async with asyncio.timeout(2):
            return stun.parse_message(await self.got.get())


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    relay = await Relay.open("127.0.0.1")
    yield relay
    await relay.close()


@pytest.fixture
async def peer(relay: Relay) -> AsyncIterator[Peer]:
    loop = asyncio.get_running_loop()
    transport, peer = await loop.create_datagram_endpoint(Peer, remote_addr=(relay.host, relay.port))
    yield peer
    transport.close()
    await asyncio.sleep(0)


def check(
    leg: RelayLeg,
    *,
    password: str | None = None,
    name: str | None = None,
    attributes: dict[str, Any] | None = None,
) -> bytes:
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    request.attributes["USERNAME"] = name or f"{leg.ufrag}:bizU"
    request.attributes["PRIORITY"] = 1
    request.attributes.update(attributes or {"ICE-CONTROLLING": 5})
    request.add_message_integrity((password or leg.password).encode())
    return bytes(request)


async def test_a_nominating_check_is_answered_and_names_the_peer(relay: Relay, peer: Peer) -> None:
    leg = relay.leg()
    leg.expect("bizU")
    peer.transport.sendto(check(leg, attributes={"ICE-CONTROLLING": 5, "USE-CANDIDATE": None}))
    answer = await peer.answer()
    assert answer.message_class is stun.Class.RESPONSE
    assert answer.attributes["XOR-MAPPED-ADDRESS"] == peer.transport.get_extra_info("sockname")
    assert answer.check_message_integrity(leg.password.encode())
    assert leg.nominated.is_set()
    leg.send_now(b"\x80hello")
    assert await peer.got.get() == b"\x80hello"


async def test_without_nomination_nothing_is_sent(relay: Relay, peer: Peer) -> None:
    leg = relay.leg()
    leg.expect("bizU")
    peer.transport.sendto(check(leg))
    await peer.answer()
    leg.send_now(b"\x80hello")
    await asyncio.sleep(0.02)
    assert peer.got.empty()


async def test_a_check_before_the_answer_waits_for_it(relay: Relay, peer: Peer) -> None:
    leg = relay.leg()
    peer.transport.sendto(check(leg))
    await asyncio.sleep(0.03)
    assert peer.got.empty()
    leg.expect("bizU")
    assert (await peer.answer()).message_class is stun.Class.RESPONSE


@pytest.mark.parametrize("wrong", [{"password": PASSWORD}, {"name": "{}:other"}])
async def test_wrong_credentials_are_refused(relay: Relay, peer: Peer, wrong: dict[str, str]) -> None:
    leg = relay.leg()
    leg.expect("bizU")
    name = wrong["name"].format(leg.ufrag) if "name" in wrong else None
    peer.transport.sendto(check(leg, password=wrong.get("password"), name=name))
    assert (await peer.answer()).error_code == 401
    assert not leg.addresses


async def test_the_relay_never_takes_the_controlling_role(relay: Relay, peer: Peer) -> None:
    leg = relay.leg()
    leg.expect("bizU")
    peer.transport.sendto(check(leg, attributes={"ICE-CONTROLLED": 5}))
    assert (await peer.answer()).error_code == 487


async def test_what_no_check_vouched_for_is_dropped(relay: Relay, peer: Peer) -> None:
    leg = relay.leg()
    leg.expect("bizU")
    for data in (b"", b"\x16hello", b"\x80rtp", b"\x00short", check(relay.leg(), name="nobody:x")):
        peer.transport.sendto(data)
    peer.transport.sendto(check(leg))
    await peer.answer()
    assert relay.dropped >= 4
    assert leg._queue.empty()


async def test_two_legs_from_one_address_are_noticed(relay: Relay, peer: Peer) -> None:
    noticed: list[RelayLeg] = []
    relay.on_shared_address = noticed.append
    first, second = relay.leg(), relay.leg()
    for leg in (first, second):
        leg.expect("bizU")
        peer.transport.sendto(check(leg))
        await peer.answer()
    assert noticed == [second]
    second.close()
    first.close()
    assert not relay._by_ufrag
    assert not relay._by_address


async def test_a_closed_leg_ends_its_reader(relay: Relay) -> None:
    leg = relay.leg()
    leg.close()
    leg.close()
    with pytest.raises(ConnectionError):
        await leg._recv()
