"""The `/sim/` endpoints: act as the users, order faults, inspect everything; and the page that uses them.

JSON in, JSON out; errors are `{"error": {"message": …}}`. For loopback only. Requests that a foreign web page makes a
browser send are refused (they carry another Origin, or are not JSON).
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, fields, replace
from importlib import resources
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from aiohttp import web

from loadtest.simulator.calls import Calls
from loadtest.simulator.config import Behaviour, PermissionAnswer, Timers, UserSpec
from loadtest.simulator.errors import NotPossible
from loadtest.simulator.faults import Faults, read_graph_fault, read_graph_shares, read_webhook_faults
from loadtest.simulator.messages import Messages
from loadtest.simulator.payloads import Direction, restriction
from loadtest.simulator.rules import recent
from loadtest.simulator.state import Number, World
from loadtest.simulator.webhooks import Webhooks

Body: TypeAlias = dict[str, Any]
_PAGE_FILES = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "texts.js": "text/javascript",
    "page.css": "text/css",
}
_CSP = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'"
_MAX_USERS = 20_000


class ControlApi:
    """The control endpoints as aiohttp routes."""

    def __init__(self, world: World, calls: Calls, messages: Messages, webhooks: Webhooks, faults: Faults) -> None:
        self._world, self._calls, self._messages = world, calls, messages
        self._webhooks, self._faults = webhooks, faults

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        user = "/sim/users/{wa_id}"
        return [
            web.get("/", _page_file),
            web.get("/static/{name}", _page_file),
            web.get("/sim/state", self._state),
            web.get("/sim/users", self._list_users),
            web.post("/sim/users", self._json(self._put_user)),
            web.post(user + "/call", self._json(self._call)),
            web.post(user + "/accept", self._json(self._accept)),
            web.post(user + "/decline", self._json(self._decline)),
            web.post(user + "/hangup", self._json(self._hang_up)),
            web.post(user + "/permission", self._json(self._permission)),
            web.post(user + "/grant", self._json(self._grant)),
            web.post(user + "/revoke", self._json(self._revoke)),
            web.post(user + "/message", self._json(self._message)),
            web.post(user + "/dtmf", self._json(self._dtmf)),
            web.get("/sim/faults", self._get_faults),
            web.post("/sim/faults", self._json(self._order_faults)),
            web.delete("/sim/faults", self._clear_faults),
            web.post("/sim/timers", self._json(self._set_timers)),
            web.post("/sim/restriction", self._json(self._restrict)),
        ]

    def _json(
        self, work: Callable[[web.Request, Body], Body]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                _check_origin(request)
                answer = work(request, await _read_object(request))
            except NotPossible as refusal:
                return _error(409, str(refusal))
            except _NotFound as missing:
                return _error(404, str(missing))
            except (ValueError, TypeError) as mistake:
                return _error(400, str(mistake))
            self._world.changed()
            return web.json_response(answer)

        return handle

    # Users

    def _user(self, request: web.Request) -> UserSpec:
        user = self._world.users.get(request.match_info["wa_id"])
        if user is None:
            raise _NotFound("no such user; see GET /sim/users")
        return user

    def _number(self, body: Body) -> Number:
        wanted = body.get("phone_number_id")
        if wanted is None:
            return next(iter(self._world.numbers.values()))
        number = self._world.numbers.get(wanted) if isinstance(wanted, str) else None
        if number is None:
            raise _NotFound("no such phone_number_id")
        return number

    async def _list_users(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"users": [self._described(user) for user in self._world.users.values()]})

    def _put_user(self, request: web.Request, body: Body) -> Body:
        """Create a user, or change the given fields of an existing one."""
        values = _user_values(body)
        known = self._world.users.get(values.get("wa_id", ""))
        if known is None and len(self._world.users) >= _MAX_USERS:
            raise ValueError(f"there can be at most {_MAX_USERS} users")
        user = replace(known, **values) if known else UserSpec(**values)
        self._world.users[user.wa_id] = user
        return self._described(user)

    def _described(self, user: UserSpec) -> Body:
        world, now = self._world, self._world.clock()
        call = self._calls.current(user.wa_id)
        permissions: Body = {}
        for phone_number_id, number in world.numbers.items():
            contact = world.contacts.get((phone_number_id, user.wa_id))
            if contact is None:
                continue
            live = contact.live_permission(now=now)
            permissions[number.spec.phone_number_id] = {
                "status": live.kind.value if live else "no_permission",
                "expires_at": live.expires_at if live else None,
                "unanswered": contact.unanswered,
                "connected_24h": len(recent(contact.connected, now=now, window_s=86_400)),
                "window_until": contact.window_until,
                "requests": [
                    {"id": one.id, "state": one.state.value, "text": one.text, "sent_at": one.sent_at}
                    for one in contact.open_requests(now=now)
                ],
            }
        described = asdict(user) | {"user_id": user.user_id, "numbers": permissions}
        return described | {"call": call.described() if call else None}

    # Acting as a user

    def _call(self, request: web.Request, body: Body) -> Body:
        deeplink, cta = _text(body, "deeplink_payload"), _text(body, "cta_payload")
        number = self._number(body)
        return self._calls.user_calls(self._user(request), number, deeplink=deeplink, cta=cta).described()

    def _accept(self, request: web.Request, body: Body) -> Body:
        return self._calls.user_accepts(self._user(request).wa_id).described()

    def _decline(self, request: web.Request, body: Body) -> Body:
        return self._calls.user_declines(self._user(request).wa_id).described()

    def _hang_up(self, request: web.Request, body: Body) -> Body:
        return self._calls.user_hangs_up(self._user(request).wa_id).described()

    def _permission(self, request: web.Request, body: Body) -> Body:
        response, permanent = body.get("response"), body.get("permanent", False)
        if response not in ("accept", "reject") or not isinstance(permanent, bool):
            raise ValueError("response must be accept or reject, permanent must be true or false")
        user, number = self._user(request), self._number(body)
        self._messages.answer_request(number, user, accept=response == "accept", permanent=permanent)
        return self._described(user)

    def _grant(self, request: web.Request, body: Body) -> Body:
        user = self._user(request)
        self._messages.grant(self._number(body), user)
        return self._described(user)

    def _revoke(self, request: web.Request, body: Body) -> Body:
        user = self._user(request)
        self._messages.revoke(self._number(body), user)
        return self._described(user)

    def _message(self, request: web.Request, body: Body) -> Body:
        text = _text(body, "text", limit=4096)
        if text is None:
            raise ValueError("text is missing")
        return {"id": self._messages.write(self._number(body), self._user(request), text)}

    def _dtmf(self, request: web.Request, body: Body) -> Body:
        digits = _text(body, "digits", limit=64)
        if digits is None:
            raise ValueError("digits are missing")
        if set(digits) - set("0123456789*#ABCD"):
            raise ValueError("digits must be 0 to 9, *, # or A to D")
        call = self._calls.current(self._user(request).wa_id)
        if call is None or not call.media.press(digits):
            raise NotPossible("the user is not talking to the business")
        return call.described()

    # State and settings

    async def _state(self, request: web.Request) -> web.StreamResponse:
        limit = request.query.get("limit", "200")
        if not limit.isdecimal() or int(limit) > 100_000:
            return _error(400, "limit must be a number up to 100000")
        return web.json_response(self.state(int(limit)))

    def state(self, limit: int = 200) -> Body:
        """Return the whole state; at most `limit` entries of each list."""
        world = self._world
        calls = list(world.calls.values())
        shown = [call for call in calls if call.live] + [call for call in calls if not call.live][-limit:]
        return {
            "now": world.clock(),
            "profile": world.config.profile.value,
            "limits": _plain(asdict(world.limits)),
            "callback": {"url": world.config.callback_url, "verified": self._webhooks.verified},
            "numbers": [self._described_number(number) for number in world.numbers.values()],
            "users": [self._described(user) for user in list(world.users.values())[:limit]],
            "calls": [call.described() for call in shown],
            "violations": [asdict(violation) for violation in world.violations],
            "webhooks": {
                "delivered": self._webhooks.delivered,
                "attempts": self._webhooks.attempts,
                "pending": self._webhooks.pending,
                "lost": self._webhooks.lost,
            },
            "requests": [asdict(entry) for entry in list(world.requests)[-limit:]],
            "log": list(world.log)[-limit:],
            "faults": self._faults.described(),
        }

    def _described_number(self, number: Number) -> Body:
        world = self._world
        return {
            "phone_number_id": number.spec.phone_number_id,
            "display_phone_number": number.spec.display_phone_number,
            "verified_name": number.spec.verified_name,
            "country": number.spec.country,
            "calling": number.calling,
            "live_user_initiated": world.count_live(number, Direction.USER_INITIATED),
            "live_business_initiated": world.count_live(number, Direction.BUSINESS_INITIATED),
        }

    async def _get_faults(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._faults.described())

    async def _clear_faults(self, request: web.Request) -> web.StreamResponse:
        _check_origin(request)
        self._faults.clear()
        return web.json_response(self._faults.described())

    def _order_faults(self, request: web.Request, body: Body) -> Body:
        unknown = set(body) - {"graph", "graph_shares", "webhooks"}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: graph, graph_shares, webhooks")
        graph, shares, webhooks = body.get("graph", []), body.get("graph_shares"), body.get("webhooks")
        if not isinstance(graph, list) or any(not isinstance(one, dict) for one in graph):
            raise ValueError("graph must be a list of objects")
        if webhooks is not None and not isinstance(webhooks, dict):
            raise ValueError("webhooks must be an object")
        if shares is not None and not isinstance(shares, dict):
            raise ValueError("graph_shares must be an object")
        orders = [read_graph_fault(one) for one in graph]
        self._faults.order(
            orders,
            None if webhooks is None else read_webhook_faults(webhooks),
            None if shares is None else read_graph_shares(shares),
        )
        return self._faults.described()

    def _set_timers(self, request: web.Request, body: Body) -> Body:
        world = self._world
        known = {field.name for field in fields(Timers)}
        if set(body) - known:
            raise ValueError(f"unknown timer; known are {', '.join(sorted(known))}")
        values: Body = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
        if any(isinstance(value, (str, bool, dict)) for value in values.values()):
            raise ValueError("timers must be in seconds")
        if "webhook_retry_s" in values and not isinstance(values["webhook_retry_s"], tuple):
            raise ValueError("webhook_retry_s must be a list of seconds")
        changed: Timers = replace(world.timers, **values)
        world.timers = self._webhooks.timers = changed
        return asdict(world.timers)

    def _restrict(self, request: web.Request, body: Body) -> Body:
        """Restrict business-initiated calling for some seconds, as Meta does for low quality; 0 lifts it."""
        seconds = body.get("seconds", 7 * 86_400)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= 1e7:
            raise ValueError("seconds must be a number from 0 to 10000000")
        number = self._number(body)
        number.restricted_until = self._world.clock() + seconds
        if seconds:
            change = restriction(number.spec, "RESTRICTED_BUSINESS_INITIATED_CALLING", number.restricted_until)
            self._webhooks.send("account", change, waba_id=number.spec.waba_id)
        return {"restricted_until": number.restricted_until}


class _NotFound(Exception):
    """There is no such user or number."""


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


def _check_origin(request: web.Request) -> None:
    """Refuse requests that another site's page makes a browser send."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise web.HTTPForbidden(text="request from another origin")


async def _read_object(request: web.Request) -> Body:
    raw = await request.read()
    if not raw:
        return {}
    if request.content_type != "application/json":
        raise ValueError("the body must be application/json")
    try:
        body = json.loads(raw)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


def _text(body: Body, name: str, *, limit: int = 512) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise ValueError(f"{name} must be a string of 1 to {limit} characters")
    return value


def _user_values(body: Body) -> Body:
    kinds: Mapping[str, Any] = {
        "wa_id": str,
        "name": str,
        "tone_hz": int,
        "echo": bool,
        "behaviour": str,
        "permission_answer": str,
        "after_s": (int, float),
        "talk_s": (int, float, type(None)),
        "hides_number": bool,
        "callable": bool,
        "allow_listed": bool,
    }
    if set(body) - set(kinds):
        raise ValueError(f"unknown field; known are {', '.join(kinds)}")
    if "wa_id" not in body:
        raise ValueError("wa_id is missing")
    for name, value in body.items():
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and kinds[name] is not bool):
            raise ValueError(f"{name} has the wrong type")
    values = dict(body)
    if "behaviour" in values:
        values["behaviour"] = Behaviour(values["behaviour"])
    if "permission_answer" in values:
        values["permission_answer"] = PermissionAnswer(values["permission_answer"])
    return values


def _plain(values: Body) -> Body:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}


async def _page_file(request: web.Request) -> web.StreamResponse:
    name = request.match_info.get("name", "index.html")
    if name not in _PAGE_FILES:
        raise web.HTTPNotFound()
    text = (resources.files("loadtest.simulator") / "page" / name).read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _CSP,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return web.Response(text=text, content_type=_PAGE_FILES[name], charset="utf-8", headers=headers)
