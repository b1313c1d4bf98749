"""The gateway's doors on 127.0.0.1, with a whole gateway in memory behind them."""

import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiohttp import ClientWebSocketResponse, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.calls.driver import CallDriver
from gateway.common.ids import OperatorId
from gateway.intake.spool import Spool
from gateway.wiring import wire_doors
from tests.support.harness.world import API_KEY, APP_SECRET, OPERATORS, World

TO = "+5511900000001"  #: a user, as an operator types it
KEYED = {"Authorization": f"Bearer {API_KEY}"}

Client = TestClient[web.Request, web.Application]


def signature(body: bytes, secret: str = APP_SECRET) -> str:
    return "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()


class SocketClient:
    """A softphone that says what a test tells it, and remembers what it hears."""

    def __init__(self, ws: ClientWebSocketResponse) -> None:
        self.ws = ws
        self.heard: list[dict[str, Any]] = []  #: everything, in order
        self._id = 0

    async def send(self, kind: str, **fields: Any) -> int:
        self._id += 1
        await self.ws.send_json({"type": kind, "id": self._id, **fields})
        return self._id

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its answer, `ok` or `error`."""
        return await self.answer(await self.send(kind, **fields))

    async def answer(self, request_id: int | None) -> dict[str, Any]:
        return await self.until(lambda message: message["type"] in ("ok", "error") and message["id"] == request_id)

    async def push(self, kind: str) -> dict[str, Any]:
        """Return the first push of a type, heard already or awaited."""
        return await self.until(lambda message: message["type"] == kind)

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message that fits, heard already or awaited."""
        found = next(filter(condition, self.heard), None)
        while found is None:
            frame = await self.ws.receive(timeout=5.0)
            assert frame.type is WSMsgType.TEXT, (frame, self.ws.close_code, self.heard)
            self.heard.append(orjson.loads(frame.data))
            found = next(filter(condition, self.heard[-1:]), None)
        return found

    async def closed(self) -> int | None:
        """Read on until the gateway has closed the socket; return the code that it gave."""
        while not self.ws.closed:
            frame = await self.ws.receive(timeout=5.0)
            if frame.type is WSMsgType.TEXT:
                self.heard.append(orjson.loads(frame.data))
            elif frame.type is WSMsgType.CLOSE:
                return int(frame.data)  # `close_code` says 1006 where the gateway did not wait for our answer
        return self.ws.close_code


class _Server(TestServer):
    """As in `gateway.app`: a handler goes on when its client has left. aiohttp's own test server would cancel it."""

    async def _make_runner(self, **kwargs: Any) -> web.BaseRunner:
        return await super()._make_runner(**{**kwargs, "handler_cancellation": False, "auto_decompress": False})


class Doors:
    """The public port of a world."""

    def __init__(
        self, world: World, *, origins: Sequence[str], body_s: float, hello_s: float, spool: Spool | None = None
    ) -> None:
        self.world = world
        settings = world.settings.model_copy(update={"public_origins": tuple(origins)})
        made = wire_doors(settings, world.ports, world.parts, spool or Spool(Path("none"), max_bytes=0))
        self._made, self.softphones, self.tickets = made, made.softphones, made.tickets
        made.softphones.hello_s, made.api.body_s, made.webhook.body_s = hello_s, body_s, body_s
        self.app = self.app_again()
        self.server = _Server(self.app, host="127.0.0.1")
        self.client: Client = TestClient(self.server)

    def app_again(self) -> web.Application:
        """Return another application: each has one server."""
        return self._made.api.app(self._made.webhook, self.softphones)

    async def post(self, body: bytes, **headers: str) -> int:
        """Deliver a webhook, signed unless told otherwise; return the status."""
        async with self.client.post(
            "/webhooks/meta", data=body, headers={"X-Hub-Signature-256": signature(body), **headers}
        ) as response:
            return response.status

    async def ticket(self, operator: str = "ana") -> str:
        wanted = {"operator": operator, "key": OPERATORS[operator]}
        async with self.client.post("/v1/tickets", json=wanted) as response:
            assert response.status == 201, await response.text()
            return str((await response.json())["ticket"])

    async def socket(self, **headers: str) -> SocketClient:
        """Open a WebSocket and say nothing."""
        return SocketClient(await self.client.ws_connect("/v1/softphone", protocols=["calls.v1"], headers=headers))

    async def login(self, operator: str = "ana", *, leg: bool = True) -> tuple[SocketClient, dict[str, Any]]:
        """Log an operator in, with a warm leg; return the socket and the welcome."""
        socket = await self.socket()
        welcome = (await socket.ask("hello", ticket=await self.ticket(operator)))["data"]
        if leg:
            await socket.ask("leg", worker=0, sdp="v=0 offer")
            phone = next(phone for phone in self.world.hub if phone.operator == operator)
            for made in phone.legs.values():
                self.world.media.connect(made)
        return socket, welcome


@asynccontextmanager
async def doors(
    world: World,
    *,
    origins: Sequence[str] = (),
    body_s: float = 5.0,
    hello_s: float = 5.0,
    spool: Spool | None = None,
) -> AsyncIterator[Doors]:
    """Serve a world until the block ends; the client and its sockets are closed with it.

    Without a spool that is open, webhooks need the database.
    """
    opened = Doors(world, origins=origins, body_s=body_s, hello_s=hello_s, spool=spool)
    async with opened.client:
        yield opened
        opened.softphones.close_all()


async def talking(world: World, socket: SocketClient) -> CallDriver:
    """A user's call that this softphone has picked up."""
    driver = await world.ringing()
    assert (await socket.ask("accept", call_id=driver.call.call_id))["type"] == "ok"
    await world.until(lambda: driver.call.state.value == "active")
    return driver


async def gone(world: World, operator: str = "ana") -> None:
    """Wait until the gateway has noticed that a socket is lost."""
    await world.until(lambda: (phone := world.hub.phone(OperatorId(operator))) is None or phone.line is None)
