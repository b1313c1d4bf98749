"""`GraphClient` against a small server on the loopback: what goes out, what comes back, what Meta refuses."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.common.errors import GraphRefused, GraphUnreachable
from gateway.common.ids import PhoneNumberId
from gateway.meta.answers import NumberInfo, ReportedPermission
from gateway.meta.graph import GraphClient
from policy.number import CallingStatus
from tests.support.fakes.clock import FakeClock
from tests.support.fakes.graph_server import (
    ACCEPT,
    CALL,
    CONNECT,
    EVERY,
    FREE_FORM,
    NAMELESS,
    NUMBER,
    PRE_ACCEPT,
    REJECT,
    SDP,
    SUCCESS,
    TEMPLATE,
    TERMINATE,
    TOKEN,
    USER,
    Answer,
    Cut,
    Method,
    Server,
    a_server,
    client_of,
    no,
    ok,
)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with a_server() as server:
        yield server


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
        assert (await client.call_permissions(NUMBER, USER)).status is ReportedPermission.PERMANENT
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
    assert info.messaging_limit == 2_000
    assert "messaging_limit_tier" in server.seen[1][2]["fields"]


async def test_a_number_that_tells_no_limit_is_read_without(server: Server) -> None:
    server.answers = [no(100), no(100), ok({"id": NUMBER})]
    async with client_of(server.url) as client:
        assert await client.number_info(NUMBER) == NumberInfo()
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
