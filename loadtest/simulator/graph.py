"""The simulated Graph API: HTTP requests in, Graph-shaped JSON out; the rules are in `calls.py` and `messages.py`.

It checks the token and the format of every request, applies the ordered faults, and keeps a list of requests (without
tokens and SDP). No request leads to a 500, except by an ordered fault.
"""

import asyncio
import hmac
import secrets
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, TypeAlias

import orjson
from aiohttp import web

from loadtest.simulator.calls import Calls
from loadtest.simulator.config import UserSpec
from loadtest.simulator.errors import GraphError
from loadtest.simulator.faults import Fault, Faults, GraphFault
from loadtest.simulator.messages import Messages
from loadtest.simulator.payloads import settings_update
from loadtest.simulator.rules import Contact
from loadtest.simulator.sdp import MAX_SDP_CHARACTERS
from loadtest.simulator.settings import apply_settings, settings_body
from loadtest.simulator.state import GraphRequest, Number, World
from loadtest.simulator.webhooks import Webhooks

Body: TypeAlias = dict[str, Any]
_ACTIONS = ("connect", "pre_accept", "accept", "reject", "terminate")
_TIERS = {250: "TIER_250", 2_000: "TIER_2K", 10_000: "TIER_10K", 100_000: "TIER_100K"}
_JSON: Final = "application/json; charset=utf-8"
_PREFIX = r"/{version:v[0-9]{1,2}\.[0-9]}/{number:[0-9]+}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One request, parsed and authorised."""

    number: Number
    action: str
    body: Body
    query: Mapping[str, str]

    def text(self, name: str, *, limit: int = 512) -> str:
        """Return a required string. Raises: GraphError."""
        value = self.optional(name, limit=limit)
        if value is None:
            raise GraphError(131008, f"The parameter {name} is required")
        return value

    def optional(self, name: str, *, limit: int = 512) -> str | None:
        """Return a string if it is present. Raises: GraphError."""
        value = self.body.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= limit:
            raise GraphError(100, f"{name} must be a string of 1 to {limit} characters")
        return value

    def sdp(self, sdp_type: str) -> str:
        """Return the SDP of `session`. Raises: GraphError."""
        session = self.body.get("session")
        if not isinstance(session, dict) or not isinstance(session.get("sdp"), str):
            raise GraphError(131008, "session with sdp_type and sdp is required")
        if session.get("sdp_type") != sdp_type:
            raise GraphError(100, f"session.sdp_type must be {sdp_type!r} for {self.action}")
        sdp: str = session["sdp"]
        if len(sdp) > MAX_SDP_CHARACTERS:
            raise GraphError(100, "SDP Validation error: too long")
        return sdp


class GraphApi:
    """The Graph endpoints as aiohttp routes."""

    def __init__(self, world: World, calls: Calls, messages: Messages, webhooks: Webhooks, faults: Faults) -> None:
        self._world, self._calls, self._messages = world, calls, messages
        self._webhooks, self._faults = webhooks, faults
        self._permission_reads: defaultdict[str, deque[float]] = defaultdict(deque)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, for every API version."""
        return [
            web.post(_PREFIX + "/calls", self._handler("calls", self._call)),
            web.get(_PREFIX + "/call_permissions", self._handler("call_permissions", self._permissions)),
            web.post(_PREFIX + "/messages", self._handler("messages", self._message)),
            web.get(_PREFIX + "/settings", self._handler("settings", self._read_settings)),
            web.post(_PREFIX + "/settings", self._handler("settings", self._write_settings)),
            web.get(_PREFIX, self._handler("number", self._number)),
        ]

    def _handler(
        self, name: str, work: Callable[[_Asked], Body]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._serve(request, name, work)

        return handle

    async def _serve(self, request: web.Request, name: str, work: Callable[[_Asked], Body]) -> web.StreamResponse:
        action, body, fault = name, {}, None
        try:
            self._authorise(request)
            body = await _read_body(request) if request.method == "POST" else {}
            if name == "calls" and body.get("action") in _ACTIONS:
                action = body["action"]
            fault = self._faults.take(action)
            answer, status, code = await self._perform(request, action, body, fault, work), 200, None
        except GraphError as error:
            answer, status, code = error.body(secrets.token_urlsafe(8)), error.status, error.code
        self._record(request, action, body, answer, status=status, code=code, fault=fault)
        cut = fault is not None and fault.fault in (Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.STALL)
        if cut and request.transport is not None:
            request.transport.abort()
        headers = {"Date": _date(int(self._world.clock())), "Content-Type": _JSON}
        return web.Response(body=orjson.dumps(answer), status=status, headers=headers)

    def _authorise(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "")
        expected = f"Bearer {self._world.config.access_token}"
        if not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()):
            raise GraphError(190, "Invalid OAuth access token")

    async def _perform(
        self,
        request: web.Request,
        action: str,
        body: Body,
        fault: GraphFault | None,
        work: Callable[[_Asked], Body],
    ) -> Body:
        if fault is not None and fault.fault is Fault.FAIL:
            raise GraphError(fault.code, "Ordered by /sim/faults", status=fault.status)
        if fault is not None and fault.fault in (Fault.CUT_BEFORE, Fault.STALL):
            await asyncio.sleep(fault.seconds if fault.fault is Fault.STALL else 0.0)
            return {}
        number = self._world.number(request.match_info["number"])
        answer = work(_Asked(number=number, action=action, body=body, query=request.query))
        if fault is not None and fault.fault is Fault.DELAY:
            await asyncio.sleep(fault.seconds)
        return answer

    def _record(
        self,
        request: web.Request,
        action: str,
        body: Body,
        answer: Body,
        *,
        status: int,
        code: int | None,
        fault: GraphFault | None,
    ) -> None:
        asked_id = body.get("call_id")
        made = answer.get("calls")
        call_id = made[0]["id"] if isinstance(made, list) else asked_id
        entry = GraphRequest(
            at=self._world.clock(),
            method=request.method,
            path=request.path,
            action=action,
            status=status,
            code=code,
            call_id=call_id if isinstance(call_id, str) else None,
            fault=fault.fault if fault else None,
        )
        self._world.requests.append(entry)
        if code is not None:
            self._world.refused[code] += 1
        self._world.changed()

    # POST /<number>/calls

    def _call(self, asked: _Asked) -> Body:
        _check_product(asked.body)
        action = asked.text("action")
        if action not in _ACTIONS:
            raise GraphError(100, f"action must be one of {', '.join(_ACTIONS)}")
        if asked.number.sip_on:
            raise GraphError(131055, "Graph API calling is not available while SIP is enabled")
        _check_announced(asked.body)
        if action == "connect":
            return self._connect(asked)
        call_id = asked.text("call_id", limit=1024)
        self._world.heard(action, call_id)
        self._check_owner(asked.number, call_id)
        if action == "pre_accept":
            self._calls.pre_accept(call_id, asked.sdp("answer"))
        elif action == "accept":
            opaque = asked.optional("biz_opaque_callback_data")
            self._calls.accept(call_id, asked.sdp("answer"), opaque)
        elif action == "reject":
            self._calls.reject(call_id)
        else:
            self._calls.business_terminates(call_id)
        return {"messaging_product": "whatsapp", "success": True}

    def _check_owner(self, number: Number, call_id: str) -> None:
        call = self._world.calls.get(call_id)
        if call is not None and call.facts.number is not number.spec:
            raise GraphError(100, "Invalid call_id")

    def _connect(self, asked: _Asked) -> Body:
        user = self._recipient(asked)
        opaque = asked.optional("biz_opaque_callback_data")
        call = self._calls.connect(asked.number, user, asked.sdp("offer"), opaque)
        self._world.heard(asked.action, call.id)
        return {"messaging_product": "whatsapp", "calls": [{"id": call.id}]}

    def _recipient(self, asked: _Asked) -> UserSpec | None:
        to, recipient = asked.optional("to"), asked.optional("recipient")
        if to is None and recipient is None:
            raise GraphError(131008, "to or recipient is required")
        if to is not None and not to.removeprefix("+").isdecimal():
            raise GraphError(100, "to must be a phone number in digits")
        return self._world.find_user(to=to, recipient=recipient)

    # The others

    def _permissions(self, asked: _Asked) -> Body:
        self._count_permission_read(asked.number.spec.phone_number_id)
        wa_id, recipient = asked.query.get("user_wa_id"), asked.query.get("recipient")
        if not wa_id and not recipient:
            raise GraphError(131008, "user_wa_id or recipient is required")
        world = self._world
        user = world.find_user(to=wa_id, recipient=recipient)
        if user is None:
            return Contact(world.limits).permissions_body(now=world.clock(), may_call=False)
        contact = world.contact(asked.number, user)
        return contact.permissions_body(now=world.clock(), may_call=user.callable)

    def _count_permission_read(self, phone_number_id: str) -> None:
        now = asyncio.get_running_loop().time()
        reads = self._permission_reads[phone_number_id]
        while reads and now - reads[0] >= 1.0:
            reads.popleft()
        if len(reads) >= self._world.limits.permission_reads_per_s:
            raise GraphError(613, "Too many reads of call_permissions")
        reads.append(now)

    def _message(self, asked: _Asked) -> Body:
        _check_product(asked.body)
        kind = asked.text("type")
        if kind == "interactive":
            text, free_form = _interactive_text(asked.body.get("interactive")), True
        elif kind == "template":
            text, free_form = self._template_text(asked.body.get("template")), False
        else:
            raise GraphError(131009, "The simulator accepts only type interactive and template")
        self._calls.check_business_calling(asked.number)
        user = self._recipient(asked)
        request = self._messages.request_permission(asked.number, user, text=text, free_form=free_form)
        assert user is not None
        known = {} if user.hides_number else {"wa_id": user.wa_id}
        sent_to = {"input": asked.body.get("to") or user.user_id, **known, "user_id": user.user_id}
        return {
            "messaging_product": "whatsapp",
            "contacts": [sent_to],
            "messages": [{"id": request.id}],
        }

    def _template_text(self, template: Any) -> str:
        if not isinstance(template, dict) or not isinstance(template.get("name"), str):
            raise GraphError(131008, "template.name is required")
        language = template.get("language")
        code = language.get("code") if isinstance(language, dict) else None
        if code not in self._world.config.templates.get(template["name"], ()):
            raise GraphError(132001, f"Template {template['name'][:100]!r} does not exist in {code!r}")
        return f"[{template['name']}]"

    def _read_settings(self, asked: _Asked) -> Body:
        return settings_body(asked.number, now=self._world.clock())

    def _write_settings(self, asked: _Asked) -> Body:
        number, world = asked.number, self._world
        minimum = world.limits.messaging_limit_minimum
        changed = apply_settings(number, asked.body.get("calling"), messaging_limit_minimum=minimum)
        if changed is not None:
            change = settings_update(number.spec, changed, world.clock())
            key = f"settings {number.spec.phone_number_id}"
            self._webhooks.send(key, change, waba_id=number.spec.waba_id)
        return {"success": True}

    def _number(self, asked: _Asked) -> Body:
        spec = asked.number.spec
        tier = "TIER_UNLIMITED" if spec.messaging_limit is None else _TIERS.get(spec.messaging_limit, "TIER_2K")
        if spec.messaging_limit is not None and spec.messaging_limit not in _TIERS:
            tier = f"TIER_{spec.messaging_limit}"
        fields: Body = {
            "verified_name": spec.verified_name,
            "display_phone_number": "+" + spec.display_phone_number,
            "quality_rating": "GREEN",
            "platform_type": "CLOUD_API",
            "is_on_biz_app": spec.on_business_app,
            "messaging_limit_tier": tier,
            "whatsapp_business_manager_messaging_limit": tier,
        }
        wanted = asked.query.get("fields", "verified_name,display_phone_number,quality_rating").split(",")
        unknown = [name for name in wanted if name not in fields and name != "id"]
        if unknown:
            raise GraphError(100, f"Tried accessing nonexisting field ({unknown[0][:100]})")
        return {name: fields[name] for name in wanted if name in fields} | {"id": spec.phone_number_id}


@lru_cache(maxsize=1)
def _date(now: int) -> str:
    return formatdate(now, usegmt=True)


async def _read_body(request: web.Request) -> Body:
    raw = await request.read()
    try:
        body = orjson.loads(raw)
    except ValueError:
        raise GraphError(100, "The request body is not valid JSON") from None
    if not isinstance(body, dict):
        raise GraphError(100, "The request body must be a JSON object")
    return body


def _check_product(body: Body) -> None:
    if body.get("messaging_product") != "whatsapp":
        raise GraphError(100, "The parameter messaging_product is required and must be 'whatsapp'")


def _check_announced(body: Body) -> None:
    """Check `recording` and `transcription`: each needs a purpose."""
    for name in ("recording", "transcription"):
        order = body.get(name)
        if order is None:
            continue
        if not isinstance(order, dict) or order.get("status") not in ("ENABLED", "DISABLED"):
            raise GraphError(100, f"{name}.status must be ENABLED or DISABLED")
        purpose = order.get("purpose")
        if order["status"] == "ENABLED" and not (isinstance(purpose, str) and 0 < len(purpose) <= 250):
            raise GraphError(100, f"{name}.purpose of 1 to 250 characters is required")


def _interactive_text(interactive: Any) -> str:
    if not isinstance(interactive, dict) or interactive.get("type") != "call_permission_request":
        raise GraphError(131009, "interactive.type must be call_permission_request")
    action, body = interactive.get("action"), interactive.get("body", {})
    if not isinstance(action, dict) or action.get("name") != "call_permission_request":
        raise GraphError(131009, "interactive.action.name must be call_permission_request")
    if "header" in interactive or "footer" in interactive:
        raise GraphError(131009, "a free-form call permission request has no header and no footer")
    text = body.get("text", "") if isinstance(body, dict) else None
    if not isinstance(text, str) or len(text) > 1024:
        raise GraphError(131009, "interactive.body.text must be a string of at most 1024 characters")
    return text
