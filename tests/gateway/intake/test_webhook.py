"""Nothing unsigned is read; nothing is acknowledged that is not kept."""

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest

from gateway.intake import intake, webhook
from tests.support.harness.doors import Doors, doors, signature
from tests.support.harness.world import APP_SECRET, OLD_SECRET, VERIFY_TOKEN, World, a_world

DATA = Path(__file__).resolve().parents[2] / "data" / "webhooks"
PAYLOADS = {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.json"))}
EMPTY = b'{"object":"whatsapp_business_account","entry":[]}'

#: Computed independently, from the bytes shown and the secret "test_app_secret".
VECTORS = [
    (EMPTY, "dec6a680679a968e7e0319355b23599cbfc54502c0784668e9618baa0c633756"),
    (
        b'{"object": "whatsapp_business_account", "entry": []}',
        "56cbbaf4961c6cfdae48b7f116c047e5eb513d2c931baae63a2bc1afd26f803a",
    ),
    ('{"name":"João"}'.encode(), "32d5397dbff8bbedee87eb4bf5a7a0d313fa8b79c91474115bf46992c3c73dfd"),
    (rb'{"name":"Jo\u00e3o"}', "45a771be8d1660113853f95de824b7bf3a07aea0d4e1373fb104cc8ab84f819b"),
]


def counted(world: World, result: str) -> float:
    return world.metrics.registry.get_sample_value("wacg_webhooks_total", {"result": result}) or 0.0


# --- signature ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "digest"), VECTORS)
async def test_the_signature_is_over_the_raw_bytes(body: bytes, digest: str) -> None:
    async with a_world() as world, doors(world) as opened:
        assert await opened.post(body, **{"X-Hub-Signature-256": f"sha256={digest}"}) == 200
        assert len(world.store.events) == 1


async def test_the_secret_before_the_change_is_still_good() -> None:
    async with a_world() as world, doors(world) as opened:
        for secret in (APP_SECRET, OLD_SECRET):
            assert await opened.post(EMPTY, **{"X-Hub-Signature-256": signature(EMPTY, secret)}) == 200
        assert counted(world, "accepted") == 2


GOOD = signature(EMPTY)
BAD_HEADERS = {
    "missing": [],
    "of another secret": [signature(EMPTY, "another")],
    "of other bytes": [signature(EMPTY + b" ")],
    "twice": [GOOD, GOOD],
    "good and bad": [GOOD, signature(EMPTY, "another")],
    "prefix in capitals": [GOOD.replace("sha256", "SHA256")],
    "digits in capitals": ["sha256=" + GOOD[7:].upper()],
    "too short": [GOOD[:-1]],
    "too long": [GOOD + "0"],
    "no prefix": [GOOD[7:]],
    "empty": [""],
    "prefix only": ["sha256="],
    "sha1": [GOOD.replace("sha256", "sha1")],
    "no ASCII": ["sha256=" + "é" * 32],
}


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS)
async def test_what_is_not_signed_is_not_read(headers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(intake, "read_delivery", read.append)
    async with a_world() as world, doors(world) as opened:
        named = [("X-Hub-Signature-256", header) for header in headers]
        async with opened.client.post("/webhooks/meta", data=EMPTY, headers=named) as response:
            assert (response.status, await response.read()) == (401, b"")
        assert not read
        assert not world.store.written
        assert counted(world, "bad_signature") == 1


async def test_a_header_of_stray_bytes_is_a_wrong_signature() -> None:
    async with a_world() as world, doors(world) as opened:
        head = b"POST /webhooks/meta HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n"
        answer = await raw(opened, head + b"X-Hub-Signature-256: sha256=\xff\xfe\r\n\r\n{}")
        assert answer.startswith(b"HTTP/1.1 401")


# --- body --------------------------------------------------------------------------------------------


async def raw(opened: Doors, *parts: bytes) -> bytes:
    """Send bytes as they are and return everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", opened.server.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(5):
            return await reader.read(4_096)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_body_that_says_it_is_too_large_is_not_waited_for() -> None:
    async with a_world() as world, doors(world) as opened:
        size = webhook.MAX_BODY_BYTES + 1
        head = f"POST /webhooks/meta HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
        assert (await raw(opened, head)).startswith(b"HTTP/1.1 413")
        assert counted(world, "too_large") == 1


async def test_a_body_that_only_turns_out_too_large_is_cut() -> None:
    async with a_world() as world, doors(world) as opened:

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(33):
                yield b"x" * 100_000

        async with opened.client.post("/webhooks/meta", data=parts()) as response:
            assert response.status == 413


async def test_the_largest_delivery_of_metas_is_taken() -> None:
    async with a_world() as world, doors(world) as opened:
        body = EMPTY[:-1] + b" " * (3_000_000 - len(EMPTY)) + b"}"
        headers = {"X-Hub-Signature-256": signature(body)}
        async with opened.client.post("/webhooks/meta", data=BytesIO(body), headers=headers) as response:
            assert response.status == 200


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with a_world() as world, doors(world, body_s=0.05) as opened:
        head = b"POST /webhooks/meta HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        assert (await raw(opened, head, b"{")).startswith(b"HTTP/1.1 408")
        assert counted(world, "slow_body") == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x", ""])
async def test_a_compressed_body_is_not_unpacked(encoding: str) -> None:
    """What is signed are the bytes that come; and nobody makes us unpack a gigabyte out of a megabyte."""
    async with a_world() as world, doors(world) as opened:
        assert await opened.post(EMPTY, **{"Content-Encoding": encoding}) == 415
        assert not world.store.events
        assert await opened.post(EMPTY, **{"Content-Encoding": "identity"}) == 200


@pytest.mark.parametrize("path", ["/webhooks/meta", "/v1/tickets"])
async def test_a_body_in_broken_chunks_holds_nobody_up(path: str) -> None:
    """The server's parser gives up in silence then: the handler would wait for ever."""
    async with a_world() as world, doors(world, body_s=0.05) as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.server.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        async with asyncio.timeout(5):
            writer.write(head.encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")  # it waits for the body now
            writer.write(b"2\r\n{}\r\nno chunk\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408")
        writer.close()
        await writer.wait_closed()
        assert not world.store.written


async def test_nonsense_that_is_signed_is_kept() -> None:
    async with a_world() as world, doors(world) as opened:
        assert await opened.post(b"[" * 100_000) == 200
        assert [event.kind for event in world.store.events] == ["malformed"]


# --- keeping -----------------------------------------------------------------------------------------


async def test_without_a_store_meta_is_asked_to_come_again() -> None:
    async with a_world() as world, doors(world) as opened:
        world.store.fail_with()
        headers = {"X-Hub-Signature-256": signature(EMPTY)}
        async with opened.client.post("/webhooks/meta", data=EMPTY, headers=headers) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
        world.store.heal()
        assert await opened.post(EMPTY) == 200
        assert len(world.store.events) == 1


async def test_every_call_of_one_delivery_rings() -> None:
    async with a_world() as world, doors(world) as opened:
        now = str(int(world.clock.now().timestamp())).encode()
        body = PAYLOADS["batch"].replace(b"1790000000", now)
        assert await opened.post(body) == 200
        assert sorted(str(driver.call.meta_call_id) for driver in world.registry) == [
            "wacid.EXAMPLEUIC0001=",
            "wacid.EXAMPLEUIC0002",
        ]
        assert len(world.store.events) == 4


@pytest.mark.parametrize("name", PAYLOADS)
async def test_every_payload_of_metas_is_kept_and_acknowledged(name: str) -> None:
    async with a_world() as world, doors(world) as opened:
        assert await opened.post(PAYLOADS[name]) == 200
        kept = len(world.store.events)
        assert kept
        assert await opened.post(PAYLOADS[name]) == 200  # once more, as Meta does
        assert len(world.store.events) == kept


# --- the subscription check --------------------------------------------------------------------------


async def verified(opened: Doors, query: str) -> tuple[int, bytes]:
    async with opened.client.get(f"/webhooks/meta?{query}") as response:
        return response.status, await response.read()


@pytest.mark.parametrize(
    ("challenge", "echo"),
    [("0012345", b"0012345"), ("a%20b%3Ci%3E", b"a b<i>"), ("%C3%A3", "ã".encode()), ("", b"")],
)
async def test_the_challenge_is_echoed_as_it_came(challenge: str, echo: bytes) -> None:
    async with a_world() as world, doors(world) as opened:
        query = f"hub.mode=subscribe&hub.challenge={challenge}&hub.verify_token={VERIFY_TOKEN}"
        async with opened.client.get(f"/webhooks/meta?{query}") as response:
            assert (response.status, response.content_type) == (200, "text/plain")
            assert await response.read() == echo


@pytest.mark.parametrize(
    "query",
    [
        "hub.mode=subscribe&hub.challenge=1&hub.verify_token=wrong",
        "hub.mode=subscribe&hub.challenge=1&hub.verify_token=choose-me%00",
        "hub.mode=subscribe&hub.challenge=1&hub.verify_token=%C3%A9",
        "hub.mode=subscribe&hub.challenge=1&hub.verify_token=%ED%A0%80",
        "hub.mode=subscribe&hub.challenge=1",
        f"hub.mode=unsubscribe&hub.challenge=1&hub.verify_token={VERIFY_TOKEN}",
        f"hub.challenge=1&hub.verify_token={VERIFY_TOKEN}",
        "",
    ],
)
async def test_who_does_not_know_the_word_hears_nothing(query: str) -> None:
    async with a_world() as world, doors(world) as opened:
        assert await verified(opened, query) == (403, b"")
        assert counted(world, "verify_refused") == 1
