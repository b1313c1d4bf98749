"""Serve the public port: the HTTP API under `/v1`, the softphone page, and Meta's callback URL.

This module has the routes, checks the API key, and reads and writes bodies. What the answers say comes from `admission`
and `store`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import orjson
import structlog
from aiohttp import hdrs, web

from gateway.admission.admission import Admission
from gateway.admission.gate import Checked
from gateway.admission.overload import Work
from gateway.callflow.call import CallInput, InputKind
from gateway.calls.registry import Registry
from gateway.common.clock import Clock
from gateway.common.errors import CannotDial, GatewayError, GraphError, GraphPaused, GraphRefused, StoreDown
from gateway.common.ids import CallId, OperatorId, UserRef
from gateway.common.log import mask_text
from gateway.common.metrics import Metrics
from gateway.contacts.drift import Drift
from gateway.contacts.reconciler import TooOften
from gateway.http import openapi
from gateway.http.admin import program_version
from gateway.http.auth import Doorkeeper
from gateway.http.idempotency import IdempotencyKeys, Perform
from gateway.http.openapi import (
    DialRequest,
    DriftView,
    PermissionRequestReply,
    ReconcileReply,
    TicketReply,
    TicketRequest,
)
from gateway.http.problems import Problem, refused
from gateway.intake.webhook import BODY_S, Webhook
from gateway.numbers.number import Number, Numbers
from gateway.numbers.views import number_view
from gateway.softphone.server import SoftphoneServer
from gateway.softphone.tickets import TICKET_S, Tickets
from gateway.store.records import DecisionRecord
from gateway.store.store import Store
from gateway.wire import views
from gateway.wire.messages import ContactView
from policy.contact import facts_of
from policy.decision import Refusal
from policy.facts import fact_from_dict
from policy.overview import request_views

log = structlog.get_logger()

MAX_BODY_BYTES: Final = 65_536
CALL_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
#: The detail of a problem if Meta gave no clear answer.
MAYBE_SENT: Final = "Meta may have received the request all the same; a permission request counts as sent."
#: The kinds of facts about permission requests and their replies.
_ABOUT_REQUESTS: Final = frozenset({"permission_requested", "permission_granted", "permission_declined"})
STATIC: Final = Path(str(files("gateway.softphone") / "page"))

#: Answers contain tickets and people's phone numbers.
PRIVATE: Final = {"Cache-Control": "no-store"}
#: The page may load and run only its own files.
PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


class Api:
    """Handlers of the public port."""

    def __init__(
        self,
        *,
        admission: Admission,
        tickets: Tickets,
        numbers: Numbers,
        registry: Registry,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        refresh: Callable[[Number], Awaitable[None]],
    ) -> None:
        self._admission = admission
        self._tickets = tickets
        self._door = Doorkeeper(tickets, metrics)
        self._numbers = numbers
        self._registry = registry
        self._store = store
        self._clock = clock
        self._refresh = refresh
        self.body_s = BODY_S
        self._idempotency = IdempotencyKeys(store, clock)

    def app(self, webhook: Webhook, softphones: SoftphoneServer) -> web.Application:
        """Return the application of the public port."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[problems])
        number = "/v1/numbers/{number_id}"
        app.add_routes(
            [
                web.get("/webhooks/meta", webhook.verify),
                web.post("/webhooks/meta", webhook.receive),
                web.get("/v1/softphone", softphones.handle),
                web.post("/v1/tickets", self.make_ticket),
                web.get("/v1/numbers", self._keyed(self.list_numbers)),
                web.get(number, self._keyed(self.show_number)),
                web.post(number + "/refresh", self._keyed(self.refresh_number)),
                web.post(number + "/calls", self._keyed(self.dial, None)),  # admission refuses, and logs it
                web.get(number + "/contacts/{user}", self._keyed(self.show_contact)),
                web.post(number + "/contacts/{user}/reconcile", self._keyed(self.reconcile)),
                web.post(number + "/contacts/{user}/permission-requests", self._keyed(self.ask_permission)),
                web.get(number + "/decisions", self._keyed(self.list_decisions, Work.REPORT)),
                web.get("/v1/calls", self._keyed(self.list_calls, Work.REPORT)),
                web.get("/v1/calls/{call_id}", self._keyed(self.show_call)),
                web.delete("/v1/calls/{call_id}", self._keyed(self.end_call, None)),
                web.get("/v1/softphone.schema.json", _show_wire_schema),
                web.get("/openapi.json", _show_openapi),
                web.get("/", _page),
                web.get("/static/{name}", _static),
            ]
        )
        return app

    def _keyed(self, handler: Handler, work: Work | None = Work.LOOK_UP) -> Handler:
        """Require the API key, and refuse while the gateway is too busy for this kind of work."""

        async def checked(request: web.Request) -> web.StreamResponse:
            if not self._door.has_api_key(request):
                raise Problem(401, "unauthorized", "Send the gateway's API key as a Bearer token.")
            overloaded = self._admission.overloaded(work) if work is not None else None
            if overloaded is not None:
                raise refused(overloaded, now=self._clock.now())
            return await handler(request)

        return checked

    async def _read_body(self, request: web.Request) -> bytes:
        """Return the body, if it arrives in time: an endless body must not keep a task for ever. Raises: Problem."""
        try:
            async with asyncio.timeout(self.body_s):
                return await request.read()
        except TimeoutError as error:
            raise Problem(408, "slow_body", "The body did not arrive in time.") from error

    # --- tickets -----------------------------------------------------------------------------------

    async def make_ticket(self, request: web.Request) -> web.StreamResponse:
        """Issue a one-time ticket to an operator with their access key, or for any operator with the API key."""
        wanted = _parse_body(await self._read_body(request), TicketRequest)
        operator = self._door.operator(request, wanted)
        if operator is None:
            raise Problem(401, "unauthorized", "The operator name and the access key do not match.")
        ticket = self._tickets.issue(operator, now=asyncio.get_running_loop().time())
        if ticket is None:
            raise Problem(429, "too_many", "Too many tickets are open.", retry_after_s=int(TICKET_S))
        device = self._door.device(operator, wanted.device) if wanted.key is not None else None
        return _json_response(TicketReply(ticket=ticket, expires_in_s=int(TICKET_S), device=device), status=201)

    # --- numbers and contacts ------------------------------------------------------------------------

    async def list_numbers(self, request: web.Request) -> web.StreamResponse:
        return _json_response([number_view(number, now=self._clock.now()) for number in self._numbers])

    async def show_number(self, request: web.Request) -> web.StreamResponse:
        return _json_response(number_view(self._number(request), now=self._clock.now()))

    async def refresh_number(self, request: web.Request) -> web.StreamResponse:
        """Read the number from Meta again, e.g. after a payment, a change of settings, or a lifted restriction."""
        number = self._number(request)
        await self._refresh(number)
        return _json_response(number_view(number, now=self._clock.now()))

    async def show_contact(self, request: web.Request) -> web.StreamResponse:
        """Show what the gate would answer about a contact now."""
        checked = await self._admission.check(_path_part(request, "number_id"), _path_part(request, "user"))
        if isinstance(checked, Refusal):
            raise refused(checked, now=self._clock.now())
        return _json_response(await self._contact_view(self._number(request), checked))

    async def reconcile(self, request: web.Request) -> web.StreamResponse:
        """Ask Meta what it knows about a contact, take that over, and show where it differed from our record."""
        done = await self._admission.reconcile(_path_part(request, "number_id"), _path_part(request, "user"))
        if isinstance(done, Refusal):
            raise refused(done, now=self._clock.now())
        contact = await self._contact_view(self._number(request), done.checked)
        return _json_response(ReconcileReply(contact=contact, drift=[_drift_view(drift) for drift in done.drifts]))

    async def _contact_view(self, number: Number, checked: Checked) -> ContactView:
        stored = await self._store.facts(checked.contact_id)
        facts = [fact_from_dict(row.fact) for row in stored if row.fact.get("kind") in _ABOUT_REQUESTS]
        # The latest facts may not be in the database yet.
        requests = request_views(number.pack, [*facts, *facts_of(checked.state)], now=checked.overview.at)
        return views.contact_view(checked.user, checked.name, checked.overview, requests)

    async def ask_permission(self, request: web.Request) -> web.StreamResponse:
        number_id, user = _path_part(request, "number_id"), _path_part(request, "user")

        async def ask() -> tuple[int, Any]:
            asked = await self._admission.ask_permission(number_id, user, asked_by="api")
            if isinstance(asked, Refusal):
                raise refused(asked, now=self._clock.now())
            return 201, PermissionRequestReply(form=asked.form.value, message_id=asked.message_id)

        return await self._perform_once(request, b"", ask)

    async def list_decisions(self, request: web.Request) -> web.StreamResponse:
        number, limit = self._number(request), _limit(request, default=50)
        if "user" not in request.query:
            return _json_response(
                [views.decided_view(each) for each in await self._store.decisions(number.id, limit=limit)]
            )
        contact = await self._admission.look_up(number.id, request.query["user"])
        if isinstance(contact, Refusal):
            raise refused(contact, now=self._clock.now())
        return _json_response(
            [views.decided_view(each) for each in await self._decisions_about(number, contact.user, limit)]
        )

    async def _decisions_about(self, number: Number, user: UserRef, limit: int) -> list[DecisionRecord]:
        """Return a contact's decisions under its BSUID and its number: either may have become known later."""
        found: list[DecisionRecord] = []
        for name in filter(None, (user.user_id, user.wa_id)):
            found += await self._store.decisions(number.id, user_key=name, limit=limit)
        return sorted(found, key=lambda decision: decision.at, reverse=True)[:limit]

    def _number(self, request: web.Request) -> Number:
        number = self._numbers.get(_path_part(request, "number_id"))
        if number is None:
            raise Problem(404, "unknown_number", "This gateway does not serve that number.")
        return number

    # --- calls ---------------------------------------------------------------------------------------

    async def dial(self, request: web.Request) -> web.StreamResponse:
        number_id, body = _path_part(request, "number_id"), await self._read_body(request)
        wanted = _parse_body(body, DialRequest)

        async def place() -> tuple[int, Any]:
            placed = await self._admission.place(number_id, wanted.to, operator=OperatorId(wanted.operator))
            if isinstance(placed, Refusal):
                raise refused(placed, now=self._clock.now())
            return 201, placed.view()

        return await self._perform_once(request, body, place)

    async def list_calls(self, request: web.Request) -> web.StreamResponse:
        calls = await self._store.recent_calls(phone_number_ids=self._numbers.ids, limit=_limit(request, default=50))
        return _json_response([views.call_view(call) for call in calls])

    async def show_call(self, request: web.Request) -> web.StreamResponse:
        call_id = _call_id(request)
        call = self._registry.get(call_id)
        if call is not None:
            return _json_response(call.view())
        record = await self._store.call(call_id)
        if record is None:
            raise Problem(404, "unknown_call", "There is no such call.")
        return _json_response(views.call_view(record))

    async def end_call(self, request: web.Request) -> web.StreamResponse:
        call = self._registry.get(_call_id(request))
        if call is None:
            raise Problem(404, "unknown_call", "There is no such live call.")
        call.feed(CallInput(kind=InputKind.API_HANGUP))
        return web.Response(status=202)

    async def _perform_once(self, request: web.Request, body: bytes, perform: Perform) -> web.StreamResponse:
        status, answer = await self._idempotency.do(request.headers.get("Idempotency-Key"), request.path, body, perform)
        return _json_response(answer, status=status)


# --- shape -------------------------------------------------------------------------------------------


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem. A bug is logged, and its text is not shown."""
    try:
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            raise Problem(415, "unsupported_encoding", "Send the body uncompressed.")
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as error:
        code, title = _HTTP.get(error.status, ("http", error.reason))
        response = Problem(error.status, code, title).response()
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except web.RequestPayloadError:
        return Problem(400, "bad_request", "The body is incomplete.").response()
    except CannotDial as error:
        return Problem(409, error.reason, error.public).response()
    except StoreDown as error:
        return Problem(503, "store_down", error.public).response()
    except GraphError as error:
        return _graph_problem(error).response()
    except TooOften as error:
        return Problem(429, error.reason, error.public, retry_after_s=1).response()
    except GatewayError as error:
        return Problem(500, error.reason, error.public).response()
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("request_broken", path=request.path)
        return Problem(500, "internal", GatewayError.public).response()


_HTTP: Final = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not support that method."),
    413: ("too_large", "The body is larger than 64 kB."),
}


def _graph_problem(error: GraphError) -> Problem:
    """Return Meta's error as a problem, with the gate's new answer if the error has changed it."""
    refusal = error.refusal if isinstance(error, GraphRefused | GraphPaused) else None
    members = {"refusal": msgspec.to_builtins(views.refusal_view(refusal))} if refusal is not None else None
    if isinstance(error, GraphPaused):
        code = error.refusal.reason.value
        return Problem(503, code, error.public, retry_after_s=error.wait_s, members=members)
    detail = MAYBE_SENT if error.maybe_sent else None
    return Problem(502, "graph_error", error.public, detail=detail, members=members)


def _json_response(data: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json", headers=PRIVATE)


def _parse_body(body: bytes, shape: type[T]) -> T:
    """Read a JSON body. Raises: Problem."""
    try:
        return msgspec.convert(orjson.loads(body), shape)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "bad_json", "The body is not JSON.", detail=mask_text(str(error))) from error
    except msgspec.ValidationError as error:
        raise Problem(422, "bad_request", "The body does not fit the schema.", detail=mask_text(str(error))) from error


def _path_part(request: web.Request, name: str) -> str:
    return request.match_info[name][:128]


def _call_id(request: web.Request) -> CallId:
    found = _path_part(request, "call_id")
    if not CALL_ID.match(found):
        raise Problem(404, "unknown_call", "There is no such call.")
    return CallId(found)


def _limit(request: web.Request, *, default: int) -> int:
    text = request.query.get("limit", str(default))
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= 500:
        raise Problem(400, "bad_request", "limit is a whole number from 1 to 500.")
    return int(text)


def _drift_view(drift: Drift) -> DriftView:
    return DriftView(rule=drift.rule, ours=drift.ours, metas=drift.metas)


async def _show_openapi(request: web.Request) -> web.StreamResponse:
    return web.Response(body=openapi.api_document(program_version()), content_type="application/json")


async def _show_wire_schema(request: web.Request) -> web.StreamResponse:
    return web.Response(body=openapi.wire_document(), content_type="application/schema+json")


async def _page(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)


async def _static(request: web.Request) -> web.StreamResponse:
    name = _path_part(request, "name")
    path = STATIC / name
    if name.startswith(".") or path.parent != STATIC or not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path, headers=PAGE_HEADERS)
