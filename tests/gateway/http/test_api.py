"""The HTTP API: every route with and without its key, every no as a problem, every dial once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse

from gateway.callflow.outcome import EndReason
from gateway.common.errors import StoreDown, StoreError
from gateway.common.ids import OperatorId
from gateway.softphone.tickets import MAX_OPEN
from gateway.store.records import FactRecord
from tests.support.fakes.graph import refused, unreachable
from tests.support.harness.doors import KEYED, Doors, doors
from tests.support.harness.world import ANA, API_KEY, NUMBER_ID, World, a_world

TO = "+5511900000001"
CALLS = f"/v1/numbers/{NUMBER_ID}/calls"
CONTACT = f"/v1/numbers/{NUMBER_ID}/contacts/{TO}"
ASK = CONTACT + "/permission-requests"
DECISIONS = f"/v1/numbers/{NUMBER_ID}/decisions"
DIAL = {"to": TO, "operator": "ana"}

KEYED_ROUTES = [
    ("GET", "/v1/numbers"),
    ("POST", CALLS),
    ("GET", CONTACT),
    ("POST", ASK),
    ("GET", DECISIONS),
    ("GET", "/v1/calls"),
    ("GET", "/v1/calls/" + "0" * 32),
    ("DELETE", "/v1/calls/" + "0" * 32),
]


class Answer:
    """One response, read."""

    def __init__(self, response: ClientResponse, text: str, body: Any) -> None:
        self.status = response.status
        self.headers = response.headers
        self.type = response.content_type
        self.text = text
        self.body = body


async def ask(opened: Doors, method: str, path: str, *, key: bool = True, **more: Any) -> Answer:
    headers = {**(KEYED if key else {}), **more.pop("headers", {})}
    async with opened.client.request(method, path, headers=headers, **more) as response:
        body = await response.json(content_type=None) if "json" in response.content_type else None
        return Answer(response, await response.text(), body)


def is_problem(answer: Answer, status: int, code: str) -> None:
    """Hold an answer against RFC 9457."""
    assert (answer.status, answer.body["code"], answer.type) == (status, code, "application/problem+json"), answer.text
    assert answer.body["status"] == status
    assert answer.body["type"] == "about:blank"
    assert answer.body["title"]


async def ready(world: World) -> None:
    """An operator with a leg, and a contact who may be called."""
    await world.login()
    await world.allow_calls()


# --- keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), KEYED_ROUTES)
async def test_without_the_key_nothing_is_told(method: str, path: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, method, path, key=False)
        is_problem(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "key",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {API_KEY}", API_KEY, f"Bearer {API_KEY}x", "Bearer é"],
)
async def test_a_wrong_key_opens_nothing(key: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, "GET", "/v1/numbers", key=False, headers={"Authorization": key})
        is_problem(answer, 401, "unauthorized")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_the_key_opens(scheme: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, "GET", "/v1/numbers", headers={"Authorization": f"{scheme} {API_KEY}"})
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"


async def test_a_key_of_stray_bytes_is_a_wrong_key() -> None:
    async with a_world() as world, doors(world) as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.server.port)
        writer.write(b"GET /v1/numbers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 401")
        writer.close()
        await writer.wait_closed()


# --- tickets -----------------------------------------------------------------------------------------


async def test_an_operator_gets_a_ticket_for_their_key() -> None:
    async with a_world() as world, doors(world) as opened:
        wanted = {"operator": "ana", "key": "key-of-ana"}
        answer = await ask(opened, "POST", "/v1/tickets", key=False, json=wanted)
        assert (answer.status, answer.body["expires_in_s"]) == (201, 30)
        now = asyncio.get_running_loop().time()
        assert opened.tickets.use(answer.body["ticket"], now=now) == "ana"


async def test_who_has_the_api_key_needs_none_of_the_operators() -> None:
    async with a_world() as world, doors(world) as opened:
        assert (await ask(opened, "POST", "/v1/tickets", json={"operator": "bia"})).status == 201


@pytest.mark.parametrize(
    ("wanted", "authorization"),
    [
        ({"operator": "ana", "key": "key-of-bia"}, ""),
        ({"operator": "ana", "key": ""}, ""),
        ({"operator": "ana", "key": "wrong"}, f"Bearer {API_KEY}"),
        ({"operator": "nobody", "key": "key-of-ana"}, ""),
        ({"operator": "ana"}, ""),
        ({"operator": "ana"}, f"Basic {API_KEY}"),
    ],
)
async def test_a_wrong_key_gets_no_ticket(wanted: dict[str, str], authorization: str) -> None:
    async with a_world() as world, doors(world) as opened:
        headers = {"Authorization": authorization}
        is_problem(await ask(opened, "POST", "/v1/tickets", headers=headers, json=wanted), 401, "unauthorized")


async def test_too_many_open_tickets_are_refused() -> None:
    async with a_world() as world, doors(world) as opened:
        now = asyncio.get_running_loop().time()
        for _ in range(MAX_OPEN):
            opened.tickets.issue(OperatorId("ana"), now=now)
        answer = await ask(opened, "POST", "/v1/tickets", json={"operator": "ana"})
        is_problem(answer, 429, "too_many")
        assert answer.headers["Retry-After"] == "30"


# --- bodies and addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/tickets", CALLS])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_json"),
        (b"{", 400, "bad_json"),
        (b"[" * 100_000, 413, "too_large"),
        (b"[" * 10_000, 400, "bad_json"),
        (b"\xff", 400, "bad_json"),
        (b'{"operator": NaN}', 400, "bad_json"),
        (b"[]", 422, "bad_request"),
        (b"{}", 422, "bad_request"),
        (b'{"operator": 5}', 422, "bad_request"),
        (b'{"operator": ""}', 422, "bad_request"),
        (b'{"to": "1", "operator": "ana", "more": 1}', 422, "bad_request"),
        (b'{"operator": "' + b"x" * 65 + b'"}', 422, "bad_request"),
        (b" " * 65_537, 413, "too_large"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_body_that_does_not_fit_is_a_problem(path: str, body: bytes, status: int, code: str) -> None:
    async with a_world() as world, doors(world) as opened:
        is_problem(await ask(opened, "POST", path, data=body), status, code)


@pytest.mark.parametrize("path", ["/v1/tickets", CALLS])
async def test_a_compressed_body_is_not_unpacked(path: str) -> None:
    async with a_world() as world, doors(world) as opened:
        headers = {"Content-Encoding": "gzip"}
        is_problem(await ask(opened, "POST", path, data=b"{}", headers=headers), 415, "unsupported_encoding")


async def test_a_body_that_never_ends_is_a_problem() -> None:
    async with a_world() as world, doors(world, body_s=0.05) as opened:

        async def parts() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(1)

        is_problem(await ask(opened, "POST", "/v1/tickets", data=parts()), 408, "slow_body")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/numbers/", "/v1/calls/1/2", "/webhooks/meta/"])
async def test_an_unknown_address_is_a_problem(path: str) -> None:
    async with a_world() as world, doors(world) as opened:
        is_problem(await ask(opened, "GET", path), 404, "not_found")


async def test_an_unknown_method_is_told_which_there_are() -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, "PATCH", "/webhooks/meta")
        is_problem(answer, 405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize("call_id", ["x", "0" * 32, "0" * 31, "A" * 32, "%00", "x" * 4_000, "..%2f"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_call_that_does_not_exist_is_not_found(method: str, call_id: str) -> None:
    async with a_world() as world, doors(world) as opened:
        is_problem(await ask(opened, method, f"/v1/calls/{call_id}"), 404, "unknown_call")


@pytest.mark.parametrize("limit", ["0", "501", "-1", "x", "", "1.5", "٣", "9" * 5_000])
async def test_a_limit_out_of_bounds_is_a_problem(limit: str) -> None:
    async with a_world() as world, doors(world) as opened:
        for path in ("/v1/calls", DECISIONS):
            is_problem(await ask(opened, "GET", path, params={"limit": limit}), 400, "bad_request")


# --- numbers, contacts, decisions ---------------------------------------------------------------------


async def test_the_numbers_show_their_slots() -> None:
    async with a_world() as world, doors(world) as opened:
        await world.ringing()
        (number,) = (await ask(opened, "GET", "/v1/numbers")).body
        assert (number["number_id"], number["incoming"]) == (NUMBER_ID, {"used": 1, "limit": 10})


async def test_a_contact_is_shown_with_what_the_gate_would_say() -> None:
    async with a_world() as world, doors(world) as opened:
        await world.allow_calls()
        answer = await ask(opened, "GET", CONTACT)
        assert (answer.body["user"]["number"], answer.body["decision"]["allowed"]) == (TO, True)
        assert not await world.store.decisions(NUMBER_ID)  # nothing was decided


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v1/numbers/9/contacts/{TO}", 404, "unknown_number"),
        (f"/v1/numbers/{NUMBER_ID}/contacts/ana", 422, "invalid_user"),
        (f"/v1/numbers/{NUMBER_ID}/contacts/%00", 422, "invalid_user"),
    ],
)
async def test_nobody_is_no_contact(path: str, status: int, code: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, "GET", path)
        is_problem(answer, status, code)
        assert answer.body["refusal"]["remedy"] == "fix_input"


async def test_decisions_are_listed_latest_first() -> None:
    async with a_world() as world, doors(world) as opened:
        await ask(opened, "POST", CALLS, json=DIAL)
        await world.login()
        for user in (TO, "+5511900000002"):
            await ask(opened, "POST", CALLS, json={**DIAL, "to": user})
            world.clock.advance(1)
        found = (await ask(opened, "GET", DECISIONS)).body
        assert [decision["user_key"] for decision in found] == ["5511900000002", "5511900000001"]
        assert (found[0]["allowed"], found[0]["refusal"]["reason"]) == (False, "no_permission")
        assert found[0]["refusal"]["title"] == "The contact has not given permission to be called."
        assert found[0]["refusal"]["source"] == "guide R2, R6, R10, R11"
        assert len((await ask(opened, "GET", DECISIONS, params={"limit": "1"})).body) == 1


async def test_a_contacts_decisions_are_found_by_number_also_after_the_bsuid_is_known() -> None:
    async with a_world() as world, doors(world) as opened:
        await world.login()
        await ask(opened, "POST", CALLS, json=DIAL)
        world.clock.advance(1)
        await world.allow_calls()  # names the BSUID
        assert (await ask(opened, "POST", CALLS, json=DIAL)).status == 201
        await ask(opened, "POST", CALLS, json={**DIAL, "to": "+5511900000002"})
        found = (await ask(opened, "GET", DECISIONS, params={"user": TO})).body
        assert [decision["user_key"] for decision in found] == [ANA.user_id, ANA.wa_id]


async def test_decisions_about_nobody_are_not_everybodys() -> None:
    async with a_world() as world, doors(world) as opened:
        is_problem(await ask(opened, "GET", DECISIONS, params={"user": "x"}), 422, "invalid_user")
        is_problem(await ask(opened, "GET", "/v1/numbers/9/decisions"), 404, "unknown_number")


# --- calls -------------------------------------------------------------------------------------------


async def test_a_dial_rings_the_contact() -> None:
    async with a_world() as world, doors(world) as opened:
        await ready(world)
        answer = await ask(opened, "POST", CALLS, json=DIAL)
        assert (answer.status, answer.body["operator"]) == (201, "ana")
        await world.graph.arrival("connect")
        shown = (await ask(opened, "GET", f"/v1/calls/{answer.body['call_id']}")).body
        assert shown["direction"] == "BUSINESS_INITIATED"


async def test_a_dial_that_the_gate_refuses_says_why() -> None:
    async with a_world() as world, doors(world) as opened:
        await world.login()
        answer = await ask(opened, "POST", CALLS, json=DIAL)
        is_problem(answer, 403, "no_permission")
        assert answer.body["refusal"]["remedy"] == "ask_template"
        assert "Retry-After" not in answer.headers


@pytest.mark.parametrize(("leg", "code"), [(None, "gone"), (False, "no_leg")])
async def test_a_dial_needs_an_operator_with_an_audio_path(leg: bool | None, code: str) -> None:
    async with a_world() as world, doors(world) as opened:
        await world.allow_calls()
        if leg is not None:
            await world.login(leg=leg)
        is_problem(await ask(opened, "POST", CALLS, json=DIAL), 409, code)


async def test_a_full_number_says_when_to_come_again() -> None:
    async with a_world(outgoing_slots=0) as world, doors(world) as opened:
        await ready(world)
        answer = await ask(opened, "POST", CALLS, json=DIAL)
        is_problem(answer, 429, "number_busy")
        assert answer.headers["Retry-After"] == "5"
        assert answer.body["refusal"]["limit"] == 0


async def test_a_gateway_without_its_store_says_when_to_come_again() -> None:
    async with a_world() as world, doors(world) as opened:
        world.store.fail_with()
        for method, path in (("GET", "/v1/calls"), ("GET", CONTACT)):
            answer = await ask(opened, method, path)
            is_problem(answer, 503, "store_down")
            assert answer.headers["Retry-After"] == "5"
        is_problem(await ask(opened, "POST", CALLS, json=DIAL), 503, "store_down")


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("the secret"), "internal"), (StoreError("the secret"), "store")]
)
async def test_what_breaks_inside_is_shown_without_its_text(error: Exception, code: str) -> None:
    async with a_world() as world, doors(world) as opened:
        world.store.fail_with(error)
        answer = await ask(opened, "GET", "/v1/calls")
        is_problem(answer, 500, code)
        assert "secret" not in answer.text


async def test_calls_are_listed_and_shown_after_their_end() -> None:
    async with a_world() as world, doors(world) as opened:
        driver = await world.ringing()
        await world.meta_terminates()
        await world.ended(driver)
        (call,) = (await ask(opened, "GET", "/v1/calls", params={"limit": "5"})).body
        assert (call["state"], call["outcome"]["reason"]) == ("ended", "cancelled")
        assert (await ask(opened, "GET", f"/v1/calls/{call['call_id']}")).body == call


@pytest.mark.parametrize("answered", [False, True])
async def test_a_call_is_ended_whether_or_not_somebody_has_it(answered: bool) -> None:
    async with a_world() as world, doors(world) as opened:
        phone, _ = await world.login()
        driver = await world.ringing()
        if answered:
            assert driver.claim(phone.operator)
            await world.until(lambda: driver.call.state.value == "active")
        assert (await ask(opened, "DELETE", f"/v1/calls/{driver.call.call_id}")).status == 202
        await world.graph.arrival("terminate")
        await world.meta_terminates()
        wanted = EndReason.HUNG_UP_BY_OPERATOR if answered else EndReason.DECLINED
        assert (await world.ended(driver)).reason is wanted
        is_problem(await ask(opened, "DELETE", f"/v1/calls/{driver.call.call_id}"), 404, "unknown_call")


# --- permission requests -----------------------------------------------------------------------------


async def test_permission_is_asked_for_in_the_form_that_the_window_allows() -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, "POST", ASK)
        assert (answer.status, answer.body["form"]) == (201, "template")
        assert world.graph.ops() == ["request_permission_template"]
        is_problem(await ask(opened, "POST", ASK), 429, "request_limit")


async def test_the_second_request_is_told_the_second_from_which_it_may_be_made() -> None:
    async with a_world() as world, doors(world) as opened:
        await ask(opened, "POST", ASK)
        world.clock.advance(3_600)
        answer = await ask(opened, "POST", ASK)
        assert answer.headers["Retry-After"] == str(23 * 3_600)


async def test_facts_of_an_asked_permission_are_kept() -> None:
    async with a_world() as world, doors(world) as opened:
        await ask(opened, "POST", ASK)
        assert any(isinstance(row, FactRecord) for group in world.store.written for row in group)


@pytest.mark.parametrize("error", [refused("request_permission", 138009, "Limit reached"), unreachable("x")])
async def test_metas_no_is_a_bad_gateway(error: Any) -> None:
    async with a_world() as world, doors(world) as opened:
        world.graph.fail("request_permission_template", error)
        is_problem(await ask(opened, "POST", ASK), 502, "graph_error")


async def test_where_meta_knew_better_the_gates_own_no_comes_along() -> None:
    async with a_world() as world, doors(world) as opened:
        world.graph.fail("request_permission_template", refused("request_permission", 138009, "Limit reached"))
        answer = await ask(opened, "POST", ASK)
        is_problem(answer, 502, "graph_error")
        assert "Limit reached" in answer.body["title"]
        assert answer.body["refusal"]["reason"] == "request_limit"
        assert answer.body["refusal"]["retry_at"]


# --- Idempotency-Key ---------------------------------------------------------------------------------

ONCE = {"Idempotency-Key": "order-42"}


async def test_the_same_dial_again_rings_once_and_gets_the_same_answer() -> None:
    async with a_world() as world, doors(world) as opened:
        await ready(world)
        answers = [await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE) for _ in range(2)]
        assert (answers[0].status, answers[0].body) == (answers[1].status, answers[1].body)
        await world.graph.arrival("connect")
        assert len(world.drivers) == 1


async def test_the_same_key_for_another_request_is_a_conflict() -> None:
    async with a_world() as world, doors(world) as opened:
        await ready(world)
        await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE)
        other = await ask(opened, "POST", CALLS, json={**DIAL, "to": "+5511900000002"}, headers=ONCE)
        is_problem(other, 422, "idempotency_conflict")
        is_problem(await ask(opened, "POST", ASK, headers=ONCE), 422, "idempotency_conflict")


async def test_a_request_under_way_is_not_made_a_second_time() -> None:
    async with a_world() as world, doors(world) as opened:
        held = world.graph.hold("request_permission_template")
        first = world.tasks.create_task(ask(opened, "POST", ASK, headers=ONCE))
        await world.graph.arrival("request_permission_template")
        is_problem(await ask(opened, "POST", ASK, headers=ONCE), 409, "in_progress")
        held.set()
        assert (await first).status == 201
        assert (await ask(opened, "POST", ASK, headers=ONCE)).body == (await first).body
        assert len(world.graph.sent) == 1


async def test_a_request_that_another_process_left_unanswered_is_not_made_again() -> None:
    async with a_world() as world, doors(world) as opened:
        world.graph.fail("request_permission_template", unreachable("request_permission"))
        is_problem(await ask(opened, "POST", ASK, headers=ONCE), 502, "graph_error")
        is_problem(await ask(opened, "POST", ASK, headers=ONCE), 409, "outcome_unknown")  # Meta may have sent it
        assert len(world.graph.sent) == 1


async def test_a_refusal_is_not_kept() -> None:
    async with a_world() as world, doors(world) as opened:
        is_problem(await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE), 409, "gone")
        await world.login()
        is_problem(await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE), 403, "no_permission")
        await world.allow_calls()
        first = await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE)
        assert first.status == 201
        assert (await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE)).body == first.body


async def test_a_refusal_by_meta_is_not_kept() -> None:
    async with a_world() as world, doors(world) as opened:
        world.graph.fail("request_permission_template", refused("request_permission", 131056, "Too fast"))
        is_problem(await ask(opened, "POST", ASK, headers=ONCE), 502, "graph_error")
        assert (await ask(opened, "POST", ASK, headers=ONCE)).status == 201


async def test_of_two_who_try_again_at_once_one_does() -> None:
    async with a_world() as world, doors(world) as opened:
        world.graph.fail("request_permission_template", refused("request_permission", 131056, "Too fast"))
        await ask(opened, "POST", ASK, headers=ONCE)
        held = world.graph.hold("request_permission_template")
        first = world.tasks.create_task(ask(opened, "POST", ASK, headers=ONCE))
        await world.graph.arrival("request_permission_template", count=2)
        is_problem(await ask(opened, "POST", ASK, headers=ONCE), 409, "in_progress")
        held.set()
        assert (await first).status == 201


async def test_a_dial_whose_answer_cannot_be_kept_is_answered_all_the_same() -> None:
    async with a_world() as world, doors(world) as opened:
        await ready(world)

        async def away(key: str, fingerprint: str, response: Any) -> None:
            raise StoreDown

        world.store.save_idempotent = away  # type: ignore[method-assign]
        assert (await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE)).status == 201
        is_problem(await ask(opened, "POST", CALLS, json=DIAL, headers=ONCE), 409, "in_progress")


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "é"])
async def test_a_key_that_cannot_be_kept_is_refused(key: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, "POST", CALLS, json=DIAL, headers={"Idempotency-Key": key})
        is_problem(answer, 400, "bad_request")


# --- the page ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/style.css"])
async def test_the_page_runs_nothing_but_its_own_files(path: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answer = await ask(opened, "GET", path, key=False)
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")],
)
async def test_files_carry_their_type(name: str, kind: str) -> None:
    async with a_world() as world, doors(world) as opened:
        assert (await ask(opened, "GET", f"/static/{name}", key=False)).type in (kind, "application/javascript")


@pytest.mark.parametrize(
    "name", ["..", ".", "..%2fapi.py", "%2e%2e%2fapi.py", "nothing.js", "%00", "..%5capi.py", "x" * 3_000, ".hidden"]
)
async def test_nothing_beside_the_pages_files_is_served(name: str) -> None:
    async with a_world() as world, doors(world) as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.server.port)
        writer.write(f"GET /static/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 404")
        assert b"import" not in answer
