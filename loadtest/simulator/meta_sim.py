"""A Meta on this machine: Graph API, signed webhooks, media relay and WhatsApp users.

`MetaSim` builds, starts and stops the parts: the other modules of this folder, and `loadtest/webrtc` for the media.

    sim = MetaSim(SimConfig(callback_url="http://127.0.0.1:8080/webhooks/meta"))
    await sim.start()
    call = sim.user("5511900000001").call()
    await sim.until(lambda: call.state is CallState.ACTIVE)
    await sim.close()
"""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from loadtest.common.background import Background
from loadtest.simulator.calls import Calls
from loadtest.simulator.config import SimConfig, UserSpec
from loadtest.simulator.control import ControlApi
from loadtest.simulator.errors import GraphError, NotPossible
from loadtest.simulator.faults import Faults
from loadtest.simulator.graph import GraphApi
from loadtest.simulator.messages import Messages
from loadtest.simulator.relay import Relay
from loadtest.simulator.state import Call, Number, World
from loadtest.simulator.webhooks import Webhooks

_MAX_BODY_BYTES = 1 << 20


class SimUser:
    """Act as one user; the same actions as `/sim/users/<wa_id>/…`. Methods raise NotPossible."""

    def __init__(self, sim: "MetaSim", wa_id: str) -> None:
        self._sim, self.wa_id = sim, wa_id

    @property
    def spec(self) -> UserSpec:
        """The user's configuration."""
        return self._sim.world.users[self.wa_id]

    @property
    def current_call(self) -> Call | None:
        """The user's live call."""
        return self._sim.calls.current(self.wa_id)

    def call(self, *, number: Number | None = None, deeplink: str | None = None, cta: str | None = None) -> Call:
        """Call the business."""
        return self._sim.calls.user_calls(self.spec, number or self._sim.number, deeplink=deeplink, cta=cta)

    def accept(self) -> Call:
        """Answer the ringing call of the business."""
        return self._sim.calls.user_accepts(self.wa_id)

    def decline(self) -> Call:
        """Decline the ringing call of the business."""
        return self._sim.calls.user_declines(self.wa_id)

    def let_it_ring_out(self) -> Call:
        """Leave the ringing call of the business unanswered: it ends now as it would after its ring time."""
        return self._sim.calls.ring_out(self.wa_id)

    def hang_up(self) -> Call:
        """Hang up, give up or decline the current call."""
        return self._sim.calls.user_hangs_up(self.wa_id)

    def is_asked(self, *, number: Number | None = None) -> bool:
        """Return whether a permission request is waiting for an answer."""
        contact = self._sim.world.contact(number or self._sim.number, self.spec)
        return bool(contact.open_requests(now=self._sim.world.clock()))

    def answer_permission(self, *, accept: bool, permanent: bool = False, number: Number | None = None) -> None:
        """Answer the newest permission request."""
        self._sim.messages.answer_request(number or self._sim.number, self.spec, accept=accept, permanent=permanent)

    def grant(self, *, number: Number | None = None) -> None:
        """Allow calls in the business profile, without a request."""
        self._sim.messages.grant(number or self._sim.number, self.spec)

    def revoke(self, *, number: Number | None = None) -> None:
        """Withdraw the permission, without a webhook."""
        self._sim.messages.revoke(number or self._sim.number, self.spec)

    def message(self, text: str, *, number: Number | None = None) -> str:
        """Send a message to the business; return its id."""
        return self._sim.messages.write(number or self._sim.number, self.spec, text)

    def dtmf(self, digits: str) -> None:
        """Press keys during the call. Raises: ValueError for an invalid digit."""
        call = self.current_call
        if call is None or not call.media.press(digits):
            raise NotPossible("the user is not talking to the business")


class MetaSim:
    """One simulated Meta. `start()` once, `close()` once."""

    def __init__(self, config: SimConfig | None = None) -> None:
        self.config = config or SimConfig()
        self.world = World(self.config)
        self.faults = Faults()
        self.background = Background("simulated Meta")
        self.webhooks = Webhooks(self.config, self.faults, self.background)
        self.webhooks.on_change = self.world.changed
        self.messages = Messages(self.world, self.webhooks)
        self.calls = Calls(self.world, self.webhooks, self.messages, self.background)
        parts = (self.world, self.calls, self.messages, self.webhooks, self.faults)
        self._graph, self._control = GraphApi(*parts), ControlApi(*parts)
        self._relay: Relay | None = None
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        """Listen, open the media relay, and start verifying the callback."""
        await self.background.start()
        if not self.config.silent:
            self._relay = await Relay.open(self.config.media_host)
            self.calls.use_relay(self._relay)
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.config.host, self.config.port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        await self.webhooks.start()

    def app(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[_json_errors], client_max_size=_MAX_BODY_BYTES)
        app.add_routes(self._graph.routes())
        app.add_routes(self._control.routes())
        return app

    @property
    def url(self) -> str:
        """The address of the Graph API and of the page, without a trailing slash."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self._port}"

    @property
    def number(self) -> Number:
        """The first (usually the only) business number."""
        return next(iter(self.world.numbers.values()))

    def user(self, wa_id: str) -> SimUser:
        """Return a handle for a user. Raises: KeyError."""
        return SimUser(self, self.world.users[wa_id].wa_id)

    def add_user(self, spec: UserSpec) -> SimUser:
        """Add a user, or replace the one with this number."""
        self.world.users[spec.wa_id] = spec
        return SimUser(self, spec.wa_id)

    def state(self, limit: int = 200) -> dict[str, Any]:
        """Return what `GET /sim/state` returns."""
        return self._control.state(limit)

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
        """Wait until a condition is true. Raises: TimeoutError."""
        await self.world.until(condition, timeout_s=timeout_s)

    async def close(self) -> None:
        """Stop everything; live calls end without a webhook. Idempotent."""
        self.world.stop_timers()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.background.close()
        for call in self.world.calls.values():
            await call.media.close()
        if self._relay is not None:
            await self._relay.close()
        await self.webhooks.close()


@web.middleware
async def _json_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Return aiohttp's own errors (unknown path, wrong method, body too large) as JSON in the endpoint's format."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        if refusal.status < 400:
            raise
        if request.path.startswith("/sim") or request.path.startswith("/static"):
            body: dict[str, Any] = {"error": {"message": refusal.reason}}
        else:
            code = 2500 if refusal.status in (404, 405) else 100
            body = GraphError(code, refusal.reason, status=refusal.status).body("simulated")
        return web.json_response(body, status=refusal.status)
