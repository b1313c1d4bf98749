"""A small Graph API on the loopback that records requests and answers as a test says, and clients of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from gateway.common.ids import MetaCallId, PhoneNumberId, UserRef
from gateway.meta.graph import Graph, GraphClient
from gateway.meta.graph_http import Retries
from tests.support.fakes.clock import FakeClock

NUMBER = PhoneNumberId("200000000000002")
CALL = MetaCallId("wacid.EXAMPLE0001")
USER = UserRef(wa_id="5511900000001", user_id="BR.13491208655302741918")
NAMELESS = UserRef(user_id="BR.13491208655302741918")
TOKEN = "CanaryToken0123456789"
SDP = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\na=ice-pwd:CanaryIcePassword\r\n"
FAST = Retries(first_wait_s=0.001, max_wait_s=0.05, jitter_s=0.001, within_s=2.0)

Answer = web.Response | BaseException | Callable[[web.BaseRequest], Awaitable[web.Response]]


def ok(body: object, status: int = 200, **headers: str) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def no(code: int, details: str = "told", status: int = 400, **headers: str) -> web.Response:
    error = {"message": f"(#{code}) x", "code": code, "error_data": {"details": details}}
    return ok({"error": error}, status, **headers)


SUCCESS = {"messaging_product": "whatsapp", "success": True}


class Cut(Exception):
    """Close the connection without an answer."""


async def hang(request: web.BaseRequest) -> web.Response:
    await asyncio.sleep(5)
    return ok(SUCCESS)


class Server:
    """Records requests and gives scripted answers; the last one again and again."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Answer] = []
        self.arrived = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        self.seen.append((request.method, request.path, dict(request.query), orjson.loads(raw) if raw else None))
        self.headers.append(dict(request.headers))
        self.arrived.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Cut):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(answer, web.Response):
            return web.Response(body=answer.body, status=answer.status, headers=answer.headers)
        assert callable(answer)
        return await answer(request)


@asynccontextmanager
async def a_server() -> AsyncIterator[Server]:
    server = Server()
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v26.0"
        yield server
    finally:
        await runner.cleanup()


Observed = list[tuple[str, str]]


@asynccontextmanager
async def client_of(url: str, observed: Observed | None = None, **more: Any) -> AsyncIterator[GraphClient]:
    def observe(op: str, status: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        if observed is not None:
            observed.append((op, status))

    options: dict[str, Any] = {"timeout_s": 5.0, "retries": FAST, "clock": FakeClock()} | more
    async with GraphClient(base_url=url, token_for=lambda number: TOKEN, observe=observe, **options) as client:
        yield client


Method = Callable[[Graph], Awaitable[object]]

CONNECT: Method = lambda graph: graph.connect(NUMBER, USER, SDP, "trace-1")  # noqa: E731
PRE_ACCEPT: Method = lambda graph: graph.pre_accept(NUMBER, CALL, SDP)  # noqa: E731
ACCEPT: Method = lambda graph: graph.accept(NUMBER, CALL, SDP, "trace-1")  # noqa: E731
REJECT: Method = lambda graph: graph.reject(NUMBER, CALL)  # noqa: E731
TERMINATE: Method = lambda graph: graph.terminate(NUMBER, CALL)  # noqa: E731
PERMISSIONS: Method = lambda graph: graph.call_permissions(NUMBER, USER)  # noqa: E731
FREE_FORM: Method = lambda graph: graph.request_permission_free_form(NUMBER, USER, "May we call?")  # noqa: E731
TEMPLATE: Method = lambda graph: graph.request_permission_template(NUMBER, USER, "ask", "pt_BR", ["42"])  # noqa: E731
SETTINGS: Method = lambda graph: graph.settings(NUMBER)  # noqa: E731
INFO: Method = lambda graph: graph.number_info(NUMBER)  # noqa: E731

EVERY = [CONNECT, PRE_ACCEPT, ACCEPT, REJECT, TERMINATE, PERMISSIONS, FREE_FORM, TEMPLATE, SETTINGS, INFO]
REPEATABLE = [PRE_ACCEPT, ACCEPT, REJECT, TERMINATE, PERMISSIONS, SETTINGS, INFO]
MESSAGES = [FREE_FORM, TEMPLATE]
