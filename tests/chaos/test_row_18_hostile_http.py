"""Row 18: whatever is asked of the API and of the softphone's socket, the answer is one that their documents describe.

Cases are made from the served documents themselves, `/openapi.json` and `/v1/softphone.schema.json`: every operation
with right and wrong paths, queries, keys, methods, types of content and bodies; every message, whole and spoiled.
"""

import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from aiohttp import ClientResponse, WSMsgType
from structlog.testing import capture_logs
from yarl import URL

from gateway.http.api import Api
from gateway.softphone.server import SoftphoneServer
from tests.support.generators.json_schema import NONSENSE, faults, made, spoiled
from tests.support.harness.chaos import Chaos
from tests.support.harness.doors import Doors, SocketClient, doors, signature
from tests.support.harness.world import API_KEY, NUMBER_ID, World, a_world

#: What our code logs when a request meets a bug of ours.
BUGS = {"request_broken", "softphone_request_broken", "softphone_broken", "task_broken", "call_broken"}
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND"]
TYPES = [
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "",
    "é",
]
KEYS = [f"Bearer {API_KEY}"] * 12 + [
    "",
    "Bearer",
    "Bearer wrong",
    f"Basic {API_KEY}",
    "Bearer é",
    "Bearer " + "x" * 5_000,
]


@dataclass(kw_only=True)
class Case:
    """One request."""

    method: str
    path: str
    described: str | None  #: the path in the document, if it is one of its
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


class Fuzzer:
    """Makes requests out of `/openapi.json` and holds the answers against it."""

    def __init__(self, world: World, opened: Doors, document: Mapping[str, Any], seed: int) -> None:
        self.world = world
        self.opened = opened
        self.document = document
        self.rng = random.Random(seed)
        self.statuses = Counter[int]()
        self.broken: list[str] = []  #: what was wrong, with its case
        self.operations = [(path, method) for path, item in document["paths"].items() for method in item]

    # --- making ------------------------------------------------------------------------------------

    def case(self) -> Case:
        path, method = self.rng.choice(self.operations)
        operation = self.document["paths"][path][method]
        case = Case(method=method.upper(), path=self._filled(path), described=path)
        if self.rng.random() < 0.03:
            case.path, case.described = case.path + self.rng.choice(["/", "/x", "//", "/../.."]), None
        query = self._query(operation)
        case.path += f"?{query}" if query else ""
        case.headers = self._headers(operation)
        if "requestBody" in operation or self.rng.random() < 0.1:
            case.body = self._body(operation)
            case.headers["Content-Type"] = self.rng.choice([TYPES[0], *TYPES])
        if path == "/webhooks/meta" and method == "post":
            self._webhook(case)
        if self.rng.random() < 0.1:
            case.method = self.rng.choice(METHODS)
        return case

    def _filled(self, path: str) -> str:
        calls = [driver.call.call_id for driver in self.world.registry]
        good: dict[str, list[str]] = {
            "number_id": [NUMBER_ID],
            "user": ["+5511900000001", "5511900000002", "BR.00000000005511900000"],
            "call_id": [*calls, "0" * 32],
            "name": ["app.js", "style.css"],
        }
        hostile = [*map(_text, NONSENSE)]

        def value(found: re.Match[str]) -> str:
            pool = good[found[1]] if self.rng.random() < 0.7 else hostile
            return quote(self.rng.choice(pool)[:4_000], safe="") or "%20"

        return re.sub(r"{(\w+)}", value, path)

    def _query(self, operation: Mapping[str, Any]) -> str:
        names = [one["name"] for one in operation["parameters"] if one["in"] == "query"] + ["more"]
        parts = []
        for name in names:
            if self.rng.random() < 0.5:
                value = self.rng.choice(["1", "500", "+5511900000001", *map(_text, NONSENSE)])
                parts.append(f"{quote(name)}={quote(value[:2_000])}")
        return "&".join(parts * self.rng.choice([1, 1, 1, 2]))[:3_000].rstrip("%0123456789ABCDEF")

    def _headers(self, operation: Mapping[str, Any]) -> dict[str, str]:
        headers = {"Authorization": self.rng.choice(KEYS)} if "security" in operation or self.rng.random() < 0.2 else {}
        if self.rng.random() < 0.3:
            headers["Idempotency-Key"] = self.rng.choice(["a", "a", "b", "x" * 128, "x" * 129, "é", " ", ""])
        if self.rng.random() < 0.05:
            headers["Expect"] = self.rng.choice(["100-continue", "200-ok"])
        if self.rng.random() < 0.05:
            headers["Content-Encoding"] = self.rng.choice(["gzip", "deflate", "br", "zstd", "x"])
        return headers

    def _body(self, operation: Mapping[str, Any]) -> bytes:
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        value = made(content, self.document, self.rng)
        if isinstance(value, dict) and self.rng.random() < 0.6:  # what is real goes further
            real = {"to": "+5511900000001", "operator": "ana", "key": "key-of-ana"}
            value = {name: real.get(name, part) for name, part in value.items()}
        if self.rng.random() < 0.5:
            value = spoiled(value, self.rng)
        text = _json(value)
        match self.rng.randrange(12):
            case 0:
                return text[: self.rng.randrange(len(text) + 1)]
            case 1:
                return self.rng.choice(
                    [b"", b"NaN", b"[" * 2_000, b'{"a":' * 2_000, b"\xff\xfe", b"\xef\xbb\xbf" + text]
                )
            case 2:
                return text + self.rng.choice([b"x", b"\x00", b" " * 70_000])
            case _:
                return text

    def _webhook(self, case: Case) -> None:
        value = {
            "object": "whatsapp_business_account",
            "entry": [{"changes": [{"field": "calls", "value": {"calls": [{}]}}]}],
        }
        case.body = _json(spoiled(value, self.rng)) if self.rng.random() < 0.9 else self.rng.randbytes(50)
        if self.rng.random() < 0.7:
            case.headers["X-Hub-Signature-256"] = signature(case.body)

    # --- asking ------------------------------------------------------------------------------------

    async def run(self, count: int) -> None:
        for n in range(count):
            if n % 40 == 39:
                self.world.store.fail_with()
            elif n % 40 == 0:
                self.world.store.heal()
            case = self.case()
            url = URL(f"http://127.0.0.1:{self.opened.server.port}{case.path}", encoded=True)
            async with self.opened.client.session.request(
                case.method, url, headers=case.headers, data=case.body, allow_redirects=False
            ) as response:
                self.statuses[response.status] += 1
                wrong = list(self._wrong(case, response, await response.read(), store_away=n % 40 == 39))
            self.broken += [f"{case.method} {case.path[:200]} {case.body!r:.200}: {text}" for text in wrong]

    def _wrong(self, case: Case, response: ClientResponse, body: bytes, *, store_away: bool) -> Any:
        status = response.status
        if status >= 500 and not (status == 503 and store_away):
            yield f"answered {status}: {body[:200]!r}"
        operation = self.document["paths"].get(case.described, {}).get(case.method.lower())
        if case.method == "HEAD":
            return
        if operation is None:
            if status < 400:
                yield f"answered {status} where nothing is described"
            return
        if status in (400, 417) and response.content_type == "text/plain":
            return  # the HTTP library's own: a line that is too long, an `Expect` that nobody knows
        described = operation["responses"].get(str(status))
        if described is None:
            if status not in (404, 405, 415, 417):
                yield f"answered {status}, which is not described"
            described = {"content": {"application/problem+json": _PROBLEM}}
        yield from self._unlike(described.get("content", {}), response.content_type, body)

    def _unlike(self, content: Mapping[str, Any], kind: str, body: bytes) -> Any:
        if not content:
            if body and kind not in ("text/plain", "application/json", "application/schema+json"):
                yield f"a body of {kind} where none is described"
            return
        fitting = next((content[one] for one in (kind, "*/*") if one in content), None)
        if fitting is None:
            yield f"{kind} is not described: {body[:100]!r}"
        elif "schema" in fitting and kind.endswith("json"):
            yield from faults(orjson.loads(body), fitting["schema"], self.document)


_PROBLEM = {"schema": {"$ref": "#/components/schemas/ProblemBody"}}


def _text(value: Any) -> str:
    return "9" * 400 if isinstance(value, int) and value > 2**64 else str(value)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@asynccontextmanager
async def a_gateway() -> AsyncIterator[tuple[World, Doors]]:
    async with a_world() as world, doors(world, body_s=1.0) as opened:
        await world.login()
        await world.allow_calls()
        yield world, opened


async def document_at(opened: Doors, path: str) -> Any:
    async with opened.client.get(path) as response:
        return await response.json(content_type=None)


async def fuzzed(world: World, opened: Doors, seed: int, count: int) -> Fuzzer:
    fuzzer = Fuzzer(world, opened, await document_at(opened, "/openapi.json"), seed)
    await fuzzer.run(count)
    return fuzzer


@pytest.mark.row(18, "Whatever the HTTP API is asked, it answers as its OpenAPI document says, and never 500")
async def test_hostile_http(chaos: Chaos) -> None:
    count = chaos.size(test=300, short=3_000, long=10_000)
    with capture_logs() as logged:
        async with a_gateway() as (world, opened):
            fuzzer = await fuzzed(world, opened, chaos.seed, count)
    chaos.note("requests", count)
    chaos.note("answers", ", ".join(f"{status}: {n}" for status, n in sorted(fuzzer.statuses.items())))
    chaos.note("the first that was wrong", fuzzer.broken[0] if fuzzer.broken else "none")
    chaos.promise("answers that are not as described", len(fuzzer.broken), at_most=0)
    bugs = [line for line in logged if line["event"] in BUGS]
    chaos.promise("bugs met", len(bugs), at_most=0)
    assert {200, 201, 401, 404, 405, 422} <= fuzzer.statuses.keys(), "too few kinds of answers to show anything"


# --- the socket --------------------------------------------------------------------------------------


class Talker:
    """Says at random what the wire's schema allows, and what it does not, and reads every answer."""

    def __init__(self, opened: Doors, wire: Mapping[str, Any], seed: int) -> None:
        self.opened = opened
        self.wire = wire
        self.rng = random.Random(seed)
        self.kinds = [
            kind
            for one in wire["$defs"]["Request"]["anyOf"]
            if (kind := one) and "Bye" not in str(kind) and "Leaving" not in str(kind)
        ]
        self.socket: SocketClient | None = None
        self.said = Counter[str]()
        self.broken: list[str] = []

    async def say(self) -> None:
        """Say one thing and hear its one answer."""
        socket = self.socket = self.socket or (await self.opened.login())[0]
        socket.heard.clear()
        text = self._text()
        if self.rng.random() < 0.01:
            await self._unwanted(socket)
            return
        await socket.ws.send_str(text)
        self.said["messages"] += 1
        await socket.ws.send_str('{"type":"recent","id":9007199254740992,"limit":1}')
        await socket.answer(2**53)  # an answer that comes twice has come by now
        await socket.until(_is_other_answer)
        answers = list(filter(_is_other_answer, socket.heard))
        if len(answers) != 1:
            self.broken.append(f"{text[:200]}: {len(answers)} answers")
        for message in socket.heard:
            wrong = list(faults(message, {"anyOf": [_REPLY, _PUSH]}, self.wire))
            self.broken += [f"{text[:200]}: {message}: {one}" for one in wrong]
            self.said[message.get("code", message["type"])] += 1

    def _text(self) -> str:
        value = made(self.rng.choice(self.kinds), self.wire, self.rng)
        value["id"] = self.rng.randrange(1_000_000)
        if self.rng.random() < 0.6:  # what is real goes further
            real = {"number_id": NUMBER_ID, "to": "+5511900000001", "worker": 0}
            value = {name: real.get(name, part) for name, part in value.items()}
        if self.rng.random() < 0.5:
            value = spoiled(value, self.rng)
        text = _json(value).decode("utf-8", "replace")
        if self.rng.random() < 0.1:
            text = text[: self.rng.randrange(len(text))]
        return text

    async def _unwanted(self, socket: SocketClient) -> None:
        """What ends the socket: bytes, or too much."""
        if self.rng.random() < 0.5:
            await socket.ws.send_bytes(self.rng.randbytes(20))
        else:
            await socket.ws.send_str("x" * 70_000)
        code = await socket.closed()
        if code not in (1003, 1009):
            self.broken.append(f"closed with {code}")
        self.socket = None
        self.said[f"closed {code}"] += 1


def _is_other_answer(message: Mapping[str, Any]) -> bool:
    return message["type"] in ("ok", "error") and message["id"] != 2**53


_REPLY, _PUSH = {"$ref": "#/$defs/Reply"}, {"$ref": "#/$defs/Push"}


@pytest.mark.row(
    18, "Whatever a softphone says is answered once, in the shape of the wire, and never breaks the socket"
)
async def test_hostile_messages(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.softphone.server.MESSAGES_PER_S", 1e6)  # what is said counts here, not how fast
    count = chaos.size(test=300, short=3_000, long=10_000)
    with capture_logs() as logged:
        async with a_gateway() as (_, opened):
            talker = Talker(opened, await document_at(opened, "/v1/softphone.schema.json"), chaos.seed)
            for _ in range(count):
                await talker.say()
    chaos.note("messages", talker.said["messages"])
    chaos.note("answers", ", ".join(f"{kind}: {n}" for kind, n in sorted(talker.said.items())))
    chaos.note("the first that was wrong", talker.broken[0] if talker.broken else "none")
    chaos.promise("answers that are not as described", len(talker.broken), at_most=0)
    chaos.promise("bugs met", sum(line["event"] in BUGS for line in logged), at_most=0)
    assert {"ok", "bad_message", "gone"} <= talker.said.keys(), "too few kinds of answers to show anything"


async def test_first_messages_are_answered_and_shown_out(chaos: Chaos) -> None:
    rng = random.Random(chaos.seed)
    async with a_gateway() as (world, opened):
        talker = Talker(opened, await document_at(opened, "/v1/softphone.schema.json"), chaos.seed)
        for _ in range(chaos.size(test=40, short=400, long=2_000)):
            socket = await opened.socket()
            text = talker._text()
            await socket.ws.send_str(text)
            frame = await socket.ws.receive(timeout=5)
            assert frame.type is WSMsgType.TEXT
            assert orjson.loads(frame.data)["code"] in ("unauthorized", "bad_message")
            assert await socket.closed() == 4401
        assert rng
        assert world.hub.connected == 1


# --- shown to catch --------------------------------------------------------------------------------------


async def test_a_route_that_breaks_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Api, request: Any) -> Any:
        raise TypeError("a bug")

    monkeypatch.setattr(Api, "show_call", broken)
    async with a_gateway() as (world, opened):
        fuzzer = await fuzzed(world, opened, 1, 150)
    assert any("answered 500" in text for text in fuzzer.broken)


async def test_an_answer_of_another_shape_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.api.TICKET_S", 0.5)
    monkeypatch.setattr("gateway.http.api.int", str, raising=False)  # `expires_in_s` becomes a text
    async with a_gateway() as (world, opened):
        fuzzer = await fuzzed(world, opened, 1, 300)
    assert any("str is no integer" in text for text in fuzzer.broken)


async def test_a_message_that_is_not_answered_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    do = SoftphoneServer._carry_out

    async def broken(self: SoftphoneServer, phone: Any, request: Any) -> Any:
        if type(request).__name__ == "Hold":
            raise KeyError("a bug")
        return await do(self, phone, request)

    monkeypatch.setattr(SoftphoneServer, "_carry_out", broken)
    with capture_logs() as logged:
        async with a_gateway() as (_, opened):
            talker = Talker(opened, await document_at(opened, "/v1/softphone.schema.json"), 1)
            for _ in range(100):
                await talker.say()
    assert any(line["event"] in BUGS for line in logged)
