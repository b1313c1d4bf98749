"""`GraphClient` against a small server on the loopback: what goes out, what is repeated, what comes back."""

import asyncio
import inspect
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from gateway.errors import GraphError, GraphRefused, GraphUnreachable
from gateway.graph import Graph, GraphClient
from gateway.graph_answers import NumberCallingSettings, PermissionStatus
from gateway.graph_http import MAX_ANSWER_BYTES, Retries
from gateway.ids import MetaCallId, PhoneNumberId, UserRef
from policy.number import CallingStatus
from tests.support.fake_clock import START, FakeClock
from tests.support.fake_graph import FakeGraph, refused, unreachable

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


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v26.0"
    yield server
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


# --- what goes out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        (
            CONNECT,
            "calls",
            {
                "to": "5511900000001",
                "action": "connect",
                "session": {"sdp_type": "offer", "sdp": SDP},
                "biz_opaque_callback_data": "trace-1",
            },
        ),
        (
            PRE_ACCEPT,
            "calls",
            {"call_id": CALL, "action": "pre_accept", "session": {"sdp_type": "answer", "sdp": SDP}},
        ),
        (
            ACCEPT,
            "calls",
            {
                "call_id": CALL,
                "action": "accept",
                "session": {"sdp_type": "answer", "sdp": SDP},
                "biz_opaque_callback_data": "trace-1",
            },
        ),
        (REJECT, "calls", {"call_id": CALL, "action": "reject"}),
        (TERMINATE, "calls", {"call_id": CALL, "action": "terminate"}),
        (
            FREE_FORM,
            "messages",
            {
                "recipient_type": "individual",
                "to": "5511900000001",
                "type": "interactive",
                "interactive": {
                    "type": "call_permission_request",
                    "action": {"name": "call_permission_request"},
                    "body": {"text": "May we call?"},
                },
            },
        ),
        (
            TEMPLATE,
            "messages",
            {
                "recipient_type": "individual",
                "to": "5511900000001",
                "type": "template",
                "template": {
                    "name": "ask",
                    "language": {"code": "pt_BR"},
                    "components": [{"type": "body", "parameters": [{"type": "text", "text": "42"}]}],
                },
            },
        ),
    ],
)
async def test_a_request_is_what_metas_page_shows(
    server: Server, method: Method, path: str, body: dict[str, Any]
) -> None:
    server.answers = [ok(SUCCESS | {"calls": [{"id": "wacid.A"}], "messages": [{"id": "wamid.A"}]})]
    async with client_of(server.url) as client:
        await method(client)
    sent = {"messaging_product": "whatsapp", **body}
    assert server.seen == [("POST", f"/v26.0/{NUMBER}/{path}", {}, sent)]
    assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert server.headers[0]["Content-Type"] == "application/json"


async def test_a_template_without_parameters_has_no_components(server: Server) -> None:
    server.answers = [ok({"messages": [{"id": "wamid.A"}]})]
    async with client_of(server.url) as client:
        await client.request_permission_template(NUMBER, USER, "ask", "en", [])
    assert server.seen[0][3]["template"] == {"name": "ask", "language": {"code": "en"}}


async def test_a_user_without_a_number_is_addressed_by_bsuid(server: Server) -> None:
    server.answers = [ok({"calls": [{"id": "wacid.A"}], "permission": {"status": "permanent"}})]
    async with client_of(server.url) as client:
        await client.connect(NUMBER, NAMELESS, SDP, "t")
        await client.call_permissions(NUMBER, NAMELESS)
    assert server.seen[0][3]["recipient"] == NAMELESS.user_id
    assert "to" not in server.seen[0][3]
    assert server.seen[1][2] == {"recipient": NAMELESS.user_id}


async def test_reads_are_gets(server: Server) -> None:
    server.answers = [ok({})]
    async with client_of(server.url + "/") as client:
        await client.call_permissions(NUMBER, USER)
        await client.settings(NUMBER)
    assert server.seen == [
        ("GET", f"/v26.0/{NUMBER}/call_permissions", {"user_wa_id": "5511900000001"}, None),
        ("GET", f"/v26.0/{NUMBER}/settings", {}, None),
    ]


async def test_each_number_has_its_own_token(server: Server) -> None:
    server.answers = [ok(SUCCESS)]
    client = GraphClient(base_url=server.url, token_for=lambda number: f"token-of-{number}", clock=FakeClock())
    async with client:
        await client.reject(PhoneNumberId("1"), CALL)
        await client.reject(PhoneNumberId("2"), CALL)
    assert [each["Authorization"] for each in server.headers] == ["Bearer token-of-1", "Bearer token-of-2"]


async def test_our_own_trace_fits_or_is_a_bug(server: Server) -> None:
    async with client_of(server.url) as client:
        with pytest.raises(ValueError, match="512"):
            await client.connect(NUMBER, USER, SDP, "x" * 513)


# --- what comes back -----------------------------------------------------------------------------


async def test_connect_returns_metas_id_of_the_call(server: Server) -> None:
    server.answers = [ok({"messaging_product": "whatsapp", "calls": [{"id": "wacid.NEW"}]})]
    async with client_of(server.url) as client:
        assert await client.connect(NUMBER, USER, SDP, "t") == "wacid.NEW"


async def test_a_permission_request_returns_the_messages_id(server: Server) -> None:
    server.answers = [ok({"messages": [{"id": "wamid.NEW"}]})]
    async with client_of(server.url) as client:
        assert await client.request_permission_free_form(NUMBER, USER, "?") == "wamid.NEW"


async def test_permissions_and_settings_come_typed(server: Server) -> None:
    server.answers = [ok({"permission": {"status": "permanent"}, "calling": {"status": "ENABLED"}})]
    async with client_of(server.url) as client:
        assert (await client.call_permissions(NUMBER, USER)).status is PermissionStatus.PERMANENT
        assert (await client.settings(NUMBER)).calling is CallingStatus.ENABLED


@pytest.mark.parametrize("body", [{}, {"calls": []}, {"success": True}])
async def test_a_success_without_an_id_leaves_the_request_in_doubt(server: Server, body: object) -> None:
    server.answers = [ok(body)]
    async with client_of(server.url) as client:
        for method in (CONNECT, FREE_FORM):
            with pytest.raises(GraphUnreachable) as caught:
                await method(client)
            assert caught.value.maybe_sent
    assert len(server.seen) == 2


async def test_a_field_that_meta_does_not_know_is_not_asked_again(server: Server) -> None:
    number = {"display_phone_number": "+55 11 5555-0100", "messaging_limit_tier": "TIER_2K"}
    server.answers = [no(100, "Tried accessing nonexisting field"), ok(number)]
    async with client_of(server.url) as client:
        info = await client.number_info(NUMBER)
    assert (info.display_number, info.messaging_limit) == ("551155550100", 2_000)
    assert "messaging_limit_tier" in server.seen[1][2]["fields"]


async def test_a_number_that_tells_no_limit_is_read_without(server: Server) -> None:
    server.answers = [no(100), no(100), ok({"verified_name": "Loja"})]
    async with client_of(server.url) as client:
        assert (await client.number_info(NUMBER)).verified_name == "Loja"
    assert "limit" not in server.seen[2][2]["fields"]


async def test_another_refusal_of_number_info_is_told(server: Server) -> None:
    server.answers = [no(190, status=401)]
    async with client_of(server.url) as client:
        with pytest.raises(GraphRefused, match="190"):
            await client.number_info(NUMBER)
    assert len(server.seen) == 1


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
async def test_a_definite_no_is_told_and_not_asked_again(server: Server, method: Method) -> None:
    server.answers = [no(138000, "Calling is not enabled", 401)]
    async with client_of(server.url) as client:
        with pytest.raises(GraphRefused) as caught:
            await method(client)
    assert caught.value.public == "Meta refused: (138000) Calling is not enabled"
    assert not caught.value.maybe_sent
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", [REJECT, TERMINATE])
async def test_ending_a_call_that_is_over_is_success(server: Server, method: Method) -> None:
    server.answers = [no(100, "The call has already been terminated")]
    async with client_of(server.url) as client:
        await method(client)
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", [ACCEPT, PRE_ACCEPT])
async def test_an_accept_refused_as_already_accepted_at_the_first_try_is_an_error(
    server: Server, method: Method
) -> None:
    server.answers = [no(100, "The call is already in progress")]
    async with client_of(server.url) as client:
        with pytest.raises(GraphRefused):
            await method(client)


@pytest.mark.parametrize("method", [ACCEPT, PRE_ACCEPT])
@pytest.mark.parametrize("first", [Cut(), no(131000, status=500), ok({}, 502)])
async def test_an_accept_refused_because_its_first_try_was_heard_is_success(
    server: Server, method: Method, first: Answer
) -> None:
    server.answers = [first, no(100, "The call is already in progress")]
    async with client_of(server.url) as client:
        await method(client)
    assert len(server.seen) == 2


# --- tries ---------------------------------------------------------------------------------------


async def hang(request: web.BaseRequest) -> web.Response:
    await asyncio.sleep(5)
    return ok(SUCCESS)


FAILURES = [
    Cut(),
    hang,
    ok({}, 500),
    ok({}, 502),
    no(131000, status=500),
    no(1, status=500),
    web.Response(text="<html>"),
]


@pytest.mark.parametrize("failure", FAILURES)
async def test_connect_is_sent_once_and_its_fate_is_left_open(server: Server, failure: Answer) -> None:
    server.answers = [failure]
    async with client_of(server.url, timeout_s=0.2) as client:
        with pytest.raises(GraphUnreachable) as caught:
            await CONNECT(client)
        assert caught.value.maybe_sent
        assert not caught.value.definite
        await asyncio.sleep(0.05)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_connect_is_not_repeated_after_a_definite_no_either(server: Server, status: int) -> None:
    server.answers = [no(138005, status=status)]
    async with client_of(server.url) as client:
        with pytest.raises(GraphRefused):
            await CONNECT(client)
    assert len(server.seen) == 1


async def test_connect_to_a_closed_port_was_certainly_not_sent(unused_tcp_port: int) -> None:
    async with client_of(f"http://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(GraphUnreachable) as caught:
            await CONNECT(client)
    assert not caught.value.maybe_sent
    assert caught.value.status == "not_connected"


@pytest.mark.parametrize(
    "error",
    [aiohttp.ClientConnectorDNSError, aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError],
)
def test_what_fails_before_there_is_a_connection_is_caught_as_not_connected(error: type[Exception]) -> None:
    assert issubclass(error, aiohttp.ClientConnectorError)


@pytest.mark.parametrize("method", REPEATABLE)
@pytest.mark.parametrize("failure", [*FAILURES[:5], no(131057, status=500), no(130429, status=400), ok({}, 429)])
async def test_others_are_repeated_until_they_succeed(server: Server, method: Method, failure: Answer) -> None:
    server.answers = [failure, failure, ok(SUCCESS)]
    async with client_of(server.url, timeout_s=0.3) as client:
        await method(client)
    assert len(server.seen) == 3


@pytest.mark.parametrize("method", REPEATABLE)
async def test_others_give_up_after_three_tries(server: Server, method: Method) -> None:
    observed: Observed = []
    server.answers = [Cut()]
    async with client_of(server.url, observed) as client:
        with pytest.raises(GraphUnreachable):
            await method(client)
    assert [status for _, status in observed] == ["cut"] * 3  # aiohttp itself may have sent a GET twice


async def test_others_give_up_when_their_time_is_over(server: Server) -> None:
    server.answers = [hang]
    retries = Retries(first_wait_s=0.001, jitter_s=0, within_s=0.05)
    async with client_of(server.url, timeout_s=0.2, retries=retries) as client:
        with pytest.raises(GraphUnreachable) as caught:
            await ACCEPT(client)
    assert caught.value.status == "timeout"
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", MESSAGES)
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_permission_request_that_may_have_arrived_is_not_sent_again(
    server: Server, method: Method, failure: Answer
) -> None:
    server.answers = [failure]
    async with client_of(server.url, timeout_s=0.2) as client:
        with pytest.raises(GraphUnreachable):
            await method(client)
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", MESSAGES)
async def test_a_permission_request_that_meta_had_no_time_for_is_sent_again(server: Server, method: Method) -> None:
    server.answers = [no(130429), ok({"messages": [{"id": "wamid.A"}]})]
    async with client_of(server.url) as client:
        assert await method(client) == "wamid.A"


async def test_a_short_wait_that_meta_asks_for_is_kept(server: Server) -> None:
    retries = Retries(max_wait_s=1.5, first_wait_s=30.0, jitter_s=0)
    server.answers = [no(613, status=429, **{"Retry-After": "1"}), ok({})]
    async with client_of(server.url, retries=retries) as client:
        started = asyncio.get_running_loop().time()
        await PERMISSIONS(client)
        assert 0.9 < asyncio.get_running_loop().time() - started < 2.5


async def test_a_long_wait_that_meta_asks_for_is_the_callers_business(server: Server) -> None:
    server.answers = [no(613, status=429, **{"Retry-After": "60"})]
    clock = FakeClock()
    async with client_of(server.url, clock=clock) as client:
        with pytest.raises(GraphRefused) as caught:
            await PERMISSIONS(client)
    assert caught.value.retry_at is not None
    assert (caught.value.retry_at - START).total_seconds() == 60
    assert len(server.seen) == 1


async def test_every_try_is_counted_with_its_status(server: Server) -> None:
    observed: Observed = []
    server.answers = [ok({}, 503), Cut(), hang]
    async with client_of(server.url, observed, timeout_s=0.3) as client:
        with pytest.raises(GraphUnreachable):
            await ACCEPT(client)
    assert observed == [("accept", "503"), ("accept", "cut"), ("accept", "timeout")]


async def test_a_refusal_is_counted_with_its_status(server: Server) -> None:
    observed: Observed = []
    server.answers = [no(138006, status=401)]
    async with client_of(server.url, observed) as client:
        with pytest.raises(GraphRefused):
            await CONNECT(client)
    assert observed == [("connect", "401")]


# --- odd answers ---------------------------------------------------------------------------------


async def endless(request: web.BaseRequest) -> web.Response:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for _ in range(10_000):
        await response.write(b" " * 16_384)
    raise AssertionError("read to the end")


@pytest.mark.parametrize("answer", [endless, web.Response(body=b" " * (MAX_ANSWER_BYTES + 1))])
async def test_an_answer_without_end_is_not_read_to_its_end(server: Server, answer: Answer) -> None:
    server.answers = [answer]
    async with client_of(server.url) as client:
        with pytest.raises(GraphUnreachable, match="too large") as caught:
            await CONNECT(client)
    assert caught.value.maybe_sent


async def test_an_answer_that_breaks_off_is_a_cut(server: Server) -> None:
    async def half(request: web.BaseRequest) -> web.Response:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.answers = [half]
    async with client_of(server.url) as client:
        with pytest.raises(GraphUnreachable) as caught:
            await CONNECT(client)
    assert caught.value.maybe_sent


async def test_no_redirect_is_followed(server: Server) -> None:
    server.answers = [web.Response(status=307, headers={"Location": "/elsewhere"})]
    async with client_of(server.url) as client:
        with pytest.raises(GraphUnreachable):
            await CONNECT(client)
    assert len(server.seen) == 1


@pytest.mark.parametrize("method", EVERY)
async def test_neither_token_nor_sdp_nor_number_is_in_any_error(server: Server, method: Method) -> None:
    server.answers = [no(100, f"{TOKEN} for 5511900000001: {SDP}")]
    async with client_of(server.url) as client:
        for answer in (server.answers[0], no(131000, f"{TOKEN}: {SDP}", 500), Cut()):
            server.answers = [answer]
            with pytest.raises(GraphError) as caught:
                await method(client)
            text = "".join(traceback.format_exception(caught.value)) + caught.value.public
            assert [canary for canary in ("CanaryToken", "CanaryIce", "900000001") if canary in text] == []


# --- life ----------------------------------------------------------------------------------------


async def test_a_closed_client_says_so() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        pass
    await client.aclose()
    with pytest.raises(GraphUnreachable, match="closed") as caught:
        await CONNECT(client)
    assert not caught.value.maybe_sent


async def test_closing_cuts_what_is_under_way_and_leaves_nothing(server: Server) -> None:
    server.answers = [hang]
    before = asyncio.all_tasks()
    async with client_of(server.url) as client, asyncio.TaskGroup() as group:
        task = group.create_task(_caught(CONNECT(client)))
        await server.arrived.wait()
        await client.aclose()
    assert isinstance(task.result(), GraphUnreachable)
    assert task.result().maybe_sent
    assert {task for task in asyncio.all_tasks() - before if "handle" not in repr(task)} == set()


async def _caught(awaitable: Awaitable[object]) -> GraphUnreachable:
    with pytest.raises(GraphUnreachable) as caught:
        await awaitable
    return caught.value


async def test_a_cancelled_request_stays_cancelled(server: Server) -> None:
    server.answers = [hang]
    async with client_of(server.url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ACCEPT(client)
    assert len(server.seen) == 1


async def test_a_connection_is_used_again(server: Server) -> None:
    server.answers = [ok(SUCCESS)]
    ports = set()

    async def note(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return ok(SUCCESS)

    server.answers = [note]
    async with client_of(server.url) as client:
        for _ in range(3):
            await REJECT(client)
    assert len(ports) == 1


# --- the fake ------------------------------------------------------------------------------------


def test_the_fake_has_every_method_of_the_protocol() -> None:
    graph: Graph = FakeGraph()
    for name, method in inspect.getmembers(Graph, inspect.iscoroutinefunction):
        for real in (GraphClient, FakeGraph):
            assert inspect.signature(getattr(real, name)) == inspect.signature(method), (real, name)
    assert graph is not None


async def test_the_fake_records_what_was_asked_and_answers_well() -> None:
    fake = FakeGraph()
    for method in EVERY:
        await method(fake)
    assert len(fake.ops()) == len(EVERY)
    assert fake.only("accept").args == {"call": CALL, "answer_sdp": SDP, "opaque": "trace-1"}
    assert await fake.connect(NUMBER, USER, SDP, "t") != await fake.connect(NUMBER, USER, SDP, "t")
    assert (await fake.settings(NUMBER)) == NumberCallingSettings(calling=CallingStatus.ENABLED)


async def test_the_fake_fails_as_often_as_told() -> None:
    fake = FakeGraph()
    fake.fail("accept", refused("accept", 138004), unreachable("accept"))
    with pytest.raises(GraphRefused):
        await ACCEPT(fake)
    with pytest.raises(GraphUnreachable):
        await ACCEPT(fake)
    await ACCEPT(fake)
    assert fake.ops() == ["accept"] * 3


async def test_the_fake_holds_a_request_and_says_when_it_arrived() -> None:
    fake = FakeGraph()
    release = fake.hold("accept")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(fake.accept(NUMBER, CALL, SDP, "t"))
        assert (await fake.arrival("accept")).args["opaque"] == "t"
        assert not task.done()
        release.set()
    assert task.done()
