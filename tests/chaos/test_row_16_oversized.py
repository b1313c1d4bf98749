"""Input that is too large or too deep gets a clean no from every door, and costs no memory."""

import asyncio
import json
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from loadtest.measure.stack import Stack, StackConfig
from loadtest.simulator.payloads import signature
from tests.support.harness.chaos import Chaos

PROMISE = "413 or 400 for what is too large or too deep, never a 500, and no memory is kept"
MB: Final = 1_000_000
DEEP: Final = b"[" * 100_000 + b"]" * 100_000
DEEP_OBJECTS: Final = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
#: 4 GB of zeros in 4 MB.
BOMB: Final = zlib.compress(bytes(64 * MB), 9) * 64
#: What a connection that was closed without an answer counts as.
CLOSED: Final = -1

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"])]

Attack = Callable[["Target"], Awaitable[int]]


class Target:
    """The doors of one server, and the keys to them."""

    def __init__(self, http: aiohttp.ClientSession, port: int, *, secret: str = "", api_key: str = "") -> None:
        self.http, self.port = http, port
        self.url = f"http://127.0.0.1:{port}"
        self.secret, self.api_key = secret, api_key
        self.ticket: dict[str, str] = {}

    async def post(self, path: str, body: bytes, **headers: str) -> int:
        """Post and return the status; a server that has heard enough may close before all is sent."""
        signed = {"X-Hub-Signature-256": signature(body, self.secret), "Authorization": f"Bearer {self.api_key}"}
        try:
            async with self.http.post(self.url + path, data=BytesIO(body), headers=signed | headers) as response:
                return response.status
        except (aiohttp.ClientError, OSError):
            return CLOSED

    async def chunked(self, path: str, body: bytes) -> int:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 65_536):
                yield body[at : at + 65_536]

        try:
            async with self.http.post(self.url + path, data=pieces()) as response:
                return response.status
        except (aiohttp.ClientError, OSError):
            return CLOSED

    async def raw(self, head: bytes) -> int:
        """Send these bytes and return the status of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with suppress(ConnectionError):
                writer.write(head)
                async with asyncio.timeout(10):
                    line = await reader.readline()
                return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else CLOSED
            return CLOSED
        finally:
            writer.transport.abort()

    async def frame(self, payload: bytes, *, compressed: bool = False) -> int:
        """Log in, send one WebSocket message, and return the code of the close, or 1000 if it was answered."""
        async with self.http.post(f"{self.url}/v1/tickets", json=self.ticket) as response:
            ticket = (await response.json())["ticket"]
        async with self.http.ws_connect(f"{self.url}/v1/softphone", protocols=["calls.v1"]) as ws:
            await ws.send_json({"type": "hello", "id": 1, "ticket": ticket})
            await ws.receive(timeout=5)
            with suppress(ConnectionError):
                # A compressed frame that nobody agreed on, as a hostile client would send it.
                await ws._writer.send_frame(payload, aiohttp.WSMsgType.TEXT, compress=15 if compressed else None)
            for _ in range(50):
                message = await ws.receive(timeout=10)
                if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                    return ws.close_code or CLOSED
                if message.type is aiohttp.WSMsgType.TEXT and '"bad_message"' in message.data:
                    return 1000
            raise AssertionError("neither closed nor answered")


HEAD: Final = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n"
TICKETS, DIAL, HOOK = "/v1/tickets", "/v1/numbers/200000000000002/calls", "/webhooks/meta"
#: Every attack, and the answers that are clean.
ATTACKS: Final[dict[str, tuple[Attack, set[int]]]] = {
    "4 MB to the webhook": (lambda at: at.post(HOOK, bytes(4 * MB)), {413, CLOSED}),
    "4 MB to the webhook in chunks": (lambda at: at.chunked(HOOK, bytes(4 * MB)), {413, CLOSED}),
    "4 MB to the tickets": (lambda at: at.post(TICKETS, bytes(4 * MB)), {413, CLOSED}),
    "4 MB to the tickets in chunks": (lambda at: at.chunked(TICKETS, bytes(4 * MB)), {413, CLOSED}),
    "4 MB to a dial": (lambda at: at.post(DIAL, bytes(4 * MB)), {413, CLOSED}),
    # Meta's own signature is on it: kept as it came, and nobody has to read it.
    "100,000 levels, signed": (lambda at: at.post(HOOK, DEEP), {200}),
    "100,000 levels, not signed": (lambda at: at.post(HOOK, DEEP, **{"X-Hub-Signature-256": "sha256=0"}), {401}),
    "100,000 levels to the tickets": (lambda at: at.post(TICKETS, DEEP[50_000:150_000][:60_000]), {400}),
    "nested objects to a dial": (lambda at: at.post(DIAL, DEEP_OBJECTS[:60_000]), {400}),
    "a bomb to the webhook": (
        lambda at: at.post(HOOK, BOMB[: 3 * MB], **{"Content-Encoding": "deflate"}),
        {415, CLOSED},
    ),
    "a bomb to the tickets": (lambda at: at.post(TICKETS, BOMB[:60_000], **{"Content-Encoding": "deflate"}), {415}),
    "a header of 1 MB": (lambda at: at.raw(HEAD + b"X: " + b"x" * MB + b"\r\n\r\n"), {400, 431, CLOSED}),
    "20,000 headers": (lambda at: at.raw(HEAD + b"X: y\r\n" * 20_000 + b"\r\n"), {400, 431, CLOSED}),
    "a path of 1 MB": (lambda at: at.raw(b"GET /" + b"x" * MB + b" HTTP/1.1\r\n\r\n"), {400, 414, CLOSED}),
    "a frame of 5 MB": (lambda at: at.frame(b"x" * 5 * MB), {1009, CLOSED, 1006}),
    "a compressed frame of 5 MB": (lambda at: at.frame(b"x" * 5 * MB, compressed=True), {1002, 1009, CLOSED, 1006}),
    "60,000 levels in a frame": (lambda at: at.frame(b"[" * 60_000), {1000}),
}


async def attack(target: Target, rounds: int) -> tuple[Counter[str], Counter[str]]:
    """Try everything so often; return what was answered wrongly, and with a server error."""
    wrong, broken = Counter[str](), Counter[str]()
    for _ in range(rounds):
        for name, (work, clean) in ATTACKS.items():
            answer = await work(target)
            wrong[f"{name}: {answer}"] += answer not in clean
            broken[name] += 500 <= answer < 600
    return +wrong, +broken


@asynccontextmanager
async def a_target(port: int, **keys: Any) -> AsyncIterator[Target]:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as http:
        yield Target(http, port, **keys)


@pytest.mark.row(16, PROMISE)
@pytest.mark.timeout(60)
async def test_oversized_and_deep_input(chaos: Chaos, database: str, tmp_path: Path) -> None:
    rounds = chaos.size(test=1, short=15, long=100)
    environment = {"GATEWAY_DATABASE_URL": database, "GATEWAY_LOG_LEVEL": "warning"}
    config = StackConfig(port=0, admin_port=0, sim_port=0, data_dir=tmp_path, null_media=True, environment=environment)
    async with (
        Stack(config) as stack,
        a_target(stack.port, secret=stack.sim.config.app_secret, api_key=config.api_key) as target,
    ):
        (name, key), *_ = config.operators.items()
        target.ticket = {"operator": name, "key": key}
        await attack(target, chaos.size(test=1, short=5, long=5))  # what is allocated once
        before = (await stack.metrics())["process_resident_memory_bytes"]
        wrong, broken = await attack(target, rounds)
        grown = (await stack.metrics())["process_resident_memory_bytes"] - before
        log = [line for line in stack.log if '"error"' in line]
    chaos.note("attacks", rounds * len(ATTACKS))
    chaos.promise("answered with a 500", sum(broken.values()), at_most=0)
    chaos.promise("answered otherwise than promised", sum(wrong.values()), at_most=0)
    chaos.promise("errors in the log", len(log), at_most=0)
    chaos.promise("memory grown", grown / MB, at_most=20, unit="MB")
    assert not wrong, (wrong, log[:3])


async def test_a_server_that_reads_everything_would_be_seen() -> None:
    async def read(request: web.Request) -> web.Response:
        json.loads(await request.read())
        return web.Response()

    app = web.Application(client_max_size=64 * MB)
    app.router.add_post("/{path:.*}", read)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with a_target(runner.addresses[0][1]) as target:
            for name in ("4 MB to the tickets", "100,000 levels to the tickets"):
                work, clean = ATTACKS[name]
                answer = await work(target)
                assert answer not in clean
                assert answer == 500
    finally:
        await runner.cleanup()
