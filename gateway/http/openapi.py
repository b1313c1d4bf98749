"""Describe the HTTP API: the types of its bodies, and `/openapi.json`, made from them and a table of the routes.

A test compares the table with the routes of `api`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec

from gateway.wire import messages as msg

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]

# --- bodies ------------------------------------------------------------------------------------------


class TicketRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for a ticket. `key` is the operator's access key; without it the request needs the API key.

    `device`: the value from an earlier reply. With it, this operator need not wait because of a stranger's wrong keys.
    """

    operator: Name
    key: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    device: Annotated[str, msgspec.Meta(max_length=128)] | None = None


class TicketReply(msgspec.Struct, frozen=True):
    """A ticket for the `hello` message of `/v1/softphone`; valid once."""

    ticket: str
    expires_in_s: int
    device: str | None = None  #: for the next request from this device; set if the operator's own key was sent


class DialRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Call a contact for an operator who is logged in at a softphone."""

    to: Name
    operator: Name


class PermissionRequestReply(msgspec.Struct, frozen=True):
    form: str  #: free_form or template
    message_id: str


class DriftView(msgspec.Struct, frozen=True):
    """A contradiction between Meta's records and ours. Meta's value counts from now on."""

    rule: str
    ours: str
    metas: str


class ReconcileReply(msgspec.Struct, frozen=True):
    contact: msg.ContactView
    drift: list[DriftView]  #: empty: Meta agrees


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """An RFC 9457 problem. `code` is stable: branch on it."""

    type: str
    title: str
    status: int
    code: str
    detail: str | None = None
    refusal: msg.RefusalView | None = None


# --- routes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. An answer is a type, a media type as text, or None for an empty body."""

    method: str
    path: str
    summary: str
    answers: Mapping[int, Any]
    body: type[msgspec.Struct] | None = None
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    keyed: bool = False  #: needs the API key
    idempotent: bool = False  #: takes an Idempotency-Key


def _keyed(method: str, path: str, summary: str, answers: Mapping[int, Any], *problems: int, **more: Any) -> Operation:
    statuses = tuple(dict.fromkeys((401, *problems, 429, 503)))
    return Operation(method=method, path=path, summary=summary, answers=answers, problems=statuses, keyed=True, **more)


_NUMBER: Final = "/v1/numbers/{number_id}"
_LIMIT: Final = {"limit": {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}}
_TEXT: Final = {"type": "string"}
_PLACES: Final = (400, 403, 404, 409, 422, 429, 502)  #: the error statuses of a dial and of a permission request

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/tickets",
        summary="Create a one-time ticket to log in at a softphone",
        body=TicketRequest,
        answers={201: TicketReply},
        problems=(400, 401, 408, 413, 415, 422, 429),
    ),
    _keyed("GET", "/v1/numbers", "List the business numbers", {200: list[msg.NumberView]}),
    _keyed("GET", _NUMBER, "Show a business number: slots, restrictions, what it may do", {200: msg.NumberView}, 404),
    _keyed(
        "POST", _NUMBER + "/refresh", "Read a business number from Meta again", {200: msg.NumberView}, 404, 502
    ),
    _keyed(
        "POST",
        _NUMBER + "/calls",
        "Call a contact for an operator at a softphone",
        {201: msg.CallView},
        *(*_PLACES, 408, 413, 415),
        body=DialRequest,
        idempotent=True,
    ),
    _keyed("GET", _NUMBER + "/contacts/{user}", "Show if a contact may be called", {200: msg.ContactView}, 404, 422),
    _keyed(
        "POST",
        _NUMBER + "/contacts/{user}/permission-requests",
        "Ask a contact for permission to call",
        {201: PermissionRequestReply},
        *_PLACES,
        idempotent=True,
    ),
    _keyed(
        "POST",
        _NUMBER + "/contacts/{user}/reconcile",
        "Ask Meta for its record of a contact, and adopt it",
        {200: ReconcileReply},
        *(404, 422, 429, 502),
    ),
    _keyed(
        "GET",
        _NUMBER + "/decisions",
        "List the decisions of the policy gate, latest first",
        {200: list[msg.DecidedView]},
        *(400, 404, 422),
        query={**_LIMIT, "user": _TEXT},
    ),
    _keyed("GET", "/v1/calls", "List calls, latest first", {200: list[msg.CallView]}, 400, query=_LIMIT),
    _keyed("GET", "/v1/calls/{call_id}", "Show a call", {200: msg.CallView}, 404),
    _keyed("DELETE", "/v1/calls/{call_id}", "End a live call", {202: None}, 404),
    Operation(
        method="GET",
        path="/v1/softphone",
        summary="WebSocket of a softphone, subprotocol calls.v1; for its messages see /v1/softphone.schema.json",
        answers={101: None, 403: "text/plain"},
        problems=(400,),
    ),
    Operation(
        method="GET",
        path="/v1/softphone.schema.json",
        summary="JSON Schema of the WebSocket's messages",
        answers={200: "application/schema+json"},
    ),
    Operation(
        method="GET", path="/openapi.json", summary="This document", answers={200: "application/json"}
    ),
    Operation(
        method="GET",
        path="/webhooks/meta",
        summary="Meta's verification of the callback URL",
        answers={200: "text/plain", 403: None},
        query={"hub.mode": _TEXT, "hub.verify_token": _TEXT, "hub.challenge": _TEXT},
    ),
    Operation(
        method="POST",
        path="/webhooks/meta",
        summary="Meta's events, signed with X-Hub-Signature-256; 200 when they are stored",
        answers={200: None, 400: None, 401: None, 408: None, 413: None, 503: None},
    ),
    Operation(method="GET", path="/", summary="The softphone page", answers={200: "text/html"}),
    Operation(
        method="GET", path="/static/{name}", summary="The page's files", answers={200: "*/*"}, problems=(404,)
    ),
)  # fmt: skip

# --- documents ---------------------------------------------------------------------------------------


@cache
def api_document(version: str) -> bytes:
    """Return `/openapi.json`."""
    types = [ProblemBody, *(kind for op in OPERATIONS for kind in (op.body, *op.answers.values()) if _is_type(kind))]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation_object(operation, refs)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "WhatsApp call gateway", "version": version},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


@cache
def wire_document() -> bytes:
    """Return `/v1/softphone.schema.json`: the messages that a softphone may send and receive."""
    types = (msg.Request, msg.Push, msg.Ok, msg.Failed, msg.Welcome, msg.LegAnswer)
    (request, push, ok, failed, _, _), definitions = msgspec.json.schema_components(
        types, ref_template="#/$defs/{name}"
    )
    return msgspec.json.encode(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": msg.SUBPROTOCOL,
            "anyOf": [{"$ref": "#/$defs/Request"}, {"$ref": "#/$defs/Reply"}, {"$ref": "#/$defs/Push"}],
            "$defs": {**definitions, "Request": request, "Reply": {"anyOf": [ok, failed]}, "Push": push},
        }
    )


def _is_type(answer: object) -> bool:
    return answer is not None and not isinstance(answer, str)


def _operation_object(operation: Operation, refs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    responses = {str(status): _answer_object(status, answer, refs) for status, answer in operation.answers.items()}
    for status in operation.problems:
        schema = {"schema": refs[repr(ProblemBody)]}
        responses[str(status)] = _response_object(status, {"application/problem+json": schema})
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": responses,
    }
    if operation.body is not None:
        content = {"application/json": {"schema": refs[repr(operation.body)]}}
        described["requestBody"] = {"required": True, "content": content}
    if operation.keyed:
        described["security"] = [{"apiKey": []}]
    return described


def _answer_object(status: int, answer: Any, refs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if answer is None:
        return _response_object(status)
    if isinstance(answer, str):
        return _response_object(status, {answer: {}})
    return _response_object(status, {"application/json": {"schema": refs[repr(answer)]}})


def _response_object(status: int, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase, **({"content": content} if content else {})}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    found: list[dict[str, Any]] = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in in_path]
    found += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
    if operation.idempotent:
        found.append({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 128}})
    return found
