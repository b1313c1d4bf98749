"""The operators' WebSocket: reads requests, answers each once, writes pushes.

Responsible for the socket: origin, size, login, heartbeat, one answer to each request. Not responsible for what an
operator has and sees (see `hub`) nor for calls (see `admission`, `driver`).
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import orjson
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from gateway import messages as msg
from gateway import views
from gateway.admission import Admission, CannotDial, Overview
from gateway.call import CallInput, InputKind
from gateway.clock import Clock
from gateway.driver import CallDriver
from gateway.errors import GatewayError, GraphError
from gateway.hub import Hub, Phone
from gateway.ids import CallId
from gateway.numbers import Numbers
from gateway.registry import Registry
from gateway.store import Store
from gateway.tickets import Tickets
from media.engine import MediaEngine, WorkerId
from media.errors import MediaError, SdpRefused
from policy.decision import Refusal

log = structlog.get_logger()

HEARTBEAT_S: Final = 15.0
HELLO_S: Final = 5.0
MAX_MESSAGE_BYTES: Final = 65_536
#: Pushes waiting for a phone that does not read; more, and it is closed.
MAX_BACKLOG: Final = 500


class Reply(Exception):
    """Ends a request with an error; not an error of ours."""

    def __init__(self, code: str, title: str, refusal: Refusal | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.title = title
        self.refusal = refusal


class _Socket:
    """One open WebSocket: a queue of what is to be written and the task that writes it. Implements `hub.Line`."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self.ws = ws
        self._out: asyncio.Queue[bytes | int] = asyncio.Queue()

    def push(self, message: msg.Push | msg.Ok | msg.Failed) -> None:
        if self._out.qsize() >= MAX_BACKLOG:
            self.hang_up(msg.CLOSE_TOO_MANY)
            return
        self._out.put_nowait(msgspec.json.encode(message))

    def hang_up(self, code: int) -> None:
        self._out.put_nowait(code)

    async def write(self) -> None:
        """Write until told to close, or until the peer is gone."""
        while True:
            item = await self._out.get()
            if isinstance(item, int):
                await self.ws.close(code=item)
                return
            try:
                await self.ws.send_str(item.decode())
            except (ConnectionError, RuntimeError):
                return


class Softphones:
    """The handler of `/v1/softphone`."""

    def __init__(
        self,
        *,
        hub: Hub,
        admission: Admission,
        tickets: Tickets,
        numbers: Numbers,
        registry: Registry,
        store: Store,
        media: MediaEngine,
        clock: Clock,
        origins: Sequence[str],
    ) -> None:
        self._hub = hub
        self._admission = admission
        self._tickets = tickets
        self._numbers = numbers
        self._registry = registry
        self._store = store
        self._media = media
        self._clock = clock
        self._origins = frozenset(origin.rstrip("/") for origin in origins)
        self._sockets: set[_Socket] = set()

    def close_all(self) -> None:
        """The gateway goes away."""
        for socket in self._sockets:
            socket.hang_up(WSCloseCode.GOING_AWAY)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if not self._is_own_origin(request):
            log.warning("softphone_foreign_origin")
            return web.Response(status=403, text="This page may not use the softphone.")
        ws = web.WebSocketResponse(
            protocols=[msg.SUBPROTOCOL], heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False
        )
        await ws.prepare(request)
        socket = _Socket(ws)
        self._sockets.add(socket)
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(socket.write())
                await self._serve(socket)
                writer.cancel()
        finally:
            self._sockets.discard(socket)
        return ws

    def _is_own_origin(self, request: web.Request) -> bool:
        """Allow the page's own origin, those in the settings, and clients that are no browser."""
        origin = request.headers.get("Origin")
        if origin is None or origin.rstrip("/") in self._origins:
            return True
        return urlsplit(origin).netloc == request.host

    async def _serve(self, socket: _Socket) -> None:
        phone = await self._hello(socket)
        if phone is None:
            await socket.ws.close(code=msg.CLOSE_UNAUTHORIZED)
            return
        try:
            async for frame in socket.ws:
                if frame.type is not WSMsgType.TEXT:
                    await socket.ws.close(code=WSCloseCode.UNSUPPORTED_DATA)
                    break
                if not await self._answer(socket, phone, frame.data):
                    break
        finally:
            self._hub.line_lost(phone, socket)

    # --- login -------------------------------------------------------------------------------------

    async def _hello(self, socket: _Socket) -> Phone | None:
        """Wait for `hello` and log the operator in; None: not theirs, not in time, or not readable."""
        try:
            async with asyncio.timeout(HELLO_S):
                frame = await socket.ws.receive()
        except TimeoutError:
            return None
        if frame.type is not WSMsgType.TEXT:
            return None
        try:
            hello = _read(frame.data)
        except Reply:
            return None
        if not isinstance(hello, msg.Hello):
            return None
        phone, resumed = self._phone_for(hello, socket)
        if phone is None:
            failed = msg.Failed(id=hello.id, code="unauthorized", title="The ticket is not valid (any more).")
            await socket.ws.send_str(msgspec.json.encode(failed).decode())
            return None
        socket.push(msg.Ok(id=hello.id, data=self._welcome(phone, resumed=resumed)))
        return phone

    def _phone_for(self, hello: msg.Hello, socket: _Socket) -> tuple[Phone | None, bool]:
        if hello.resume is not None:
            return self._hub.resume(hello.resume, socket), True
        now = asyncio.get_running_loop().time()
        operator = self._tickets.use(hello.ticket, now=now) if hello.ticket else None
        return (self._hub.login(operator, socket) if operator else None), False

    def _welcome(self, phone: Phone, *, resumed: bool) -> msg.Welcome:
        driver = self._registry.get(phone.call) if phone.call else None
        return msg.Welcome(
            operator=phone.operator,
            resume=phone.resume,
            resumed=resumed,
            available=phone.available,
            workers=[int(worker) for worker in self._media.workers],
            numbers=[views.number_view(number) for number in self._numbers],
            calls=([driver.view()] if driver else []) + self._hub.ringing_views(phone),
            heartbeat_s=HEARTBEAT_S,
        )

    # --- requests ----------------------------------------------------------------------------------

    async def _answer(self, socket: _Socket, phone: Phone, data: str) -> bool:
        """Answer one message; False: the operator said good-bye."""
        request_id: int | None = None
        try:
            request = _read(data)
            request_id = request.id
            result = await self._do(phone, request)
        except Reply as reply:
            refusal = views.refusal_view(reply.refusal) if reply.refusal else None
            socket.push(msg.Failed(id=request_id, code=reply.code, title=reply.title, refusal=refusal))
            return True
        except (GatewayError, MediaError) as error:
            socket.push(_failed(request_id, error))
            return True
        except Exception:
            log.exception("softphone_request_broken")
            socket.push(msg.Failed(id=request_id, code="unavailable", title=GatewayError.public))
            return True
        socket.push(msg.Ok(id=request.id, data=result))
        return not isinstance(request, msg.Bye)

    async def _do(self, phone: Phone, request: msg.Request) -> Any:
        match request:
            case msg.Leg():
                worker = WorkerId(request.worker)
                if worker not in self._media.workers:
                    raise Reply("gone", "There is no such media worker.")
                sdp = await self._hub.make_leg(phone, worker, request.sdp)
                return msg.LegAnswer(worker=request.worker, sdp=sdp)
            case msg.SetStatus():
                self._hub.set_available(phone, request.available)
                return None
            case msg.Check():
                return _decision(await self._admission.check(request.number_id, request.to))
            case msg.Dial():
                placed = await self._admission.place(request.number_id, request.to, operator=phone.operator)
                return _not_refused(placed).view()
            case msg.AskPermission():
                asked = await self._admission.ask_permission(request.number_id, request.to, asked_by=phone.operator)
                if isinstance(asked, Refusal):
                    raise _refused(asked)
                return {"form": asked.form.value}
            case msg.Recent():
                calls = await self._store.recent_calls(phone_number_ids=self._numbers.ids, limit=request.limit)
                return [views.call_view(call) for call in calls]
            case msg.Hello():
                raise Reply("bad_message", "Already logged in.")
            case msg.Bye():
                self._hub.logout(phone)
                return None
            case _:
                return self._on_call(phone, request)

    def _on_call(self, phone: Phone, request: msg.Accept | msg.Reject | msg.Hangup | msg.Hold) -> None:
        call_id = CallId(request.call_id)
        driver = self._registry.get(call_id)
        match request:
            case msg.Accept():
                self._accept(phone, driver)
            case msg.Reject():
                if not self._hub.decline(phone, call_id):
                    raise Reply("gone", "This call does not ring here any more.")
            case msg.Hangup():
                self._own(phone, driver).feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=phone.operator))
            case msg.Hold():
                self._own(phone, driver).feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=request.on))

    def _accept(self, phone: Phone, driver: CallDriver | None) -> None:
        if driver is None or driver.is_business_initiated:
            raise Reply("gone", "This call has ended.")
        if phone.call is not None:
            raise Reply("busy", "You are in a call already.")
        if driver.worker is None or self._hub.leg_of(phone.operator, driver.worker) is None:
            raise Reply("no_leg", "The softphone has no audio path: check the microphone permission.")
        if not driver.claim(phone.operator):
            raise Reply("already_taken", "Somebody else has answered this call, or it has ended.")
        self._hub.take(phone, driver.call.call_id)

    @staticmethod
    def _own(phone: Phone, driver: CallDriver | None) -> CallDriver:
        """Return the call if it is this operator's; another's call does not exist for them."""
        if driver is None or phone.call != driver.call.call_id:
            raise Reply("gone", "This call has ended.")
        return driver


def _read(data: str) -> msg.Request:
    """Read one request. Raises: Reply."""
    try:
        # orjson stops at a nesting depth of 1,024, where msgspec would raise RecursionError.
        request: msg.Request = msgspec.convert(orjson.loads(data), msg.Request)
        return request
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise Reply("bad_message", f"This message cannot be read: {error}"[:300]) from error


def _decision(checked: Overview | Refusal) -> msg.DecisionView:
    if isinstance(checked, Refusal):
        return msg.DecisionView(
            allowed=False,
            refusal=views.refusal_view(checked),
            warnings=[],
            permission_expires_at=None,
            ask_form=None,
            ask=views.refusal_view(checked),
        )
    return views.decision_view(checked.place, checked.ask, form=checked.form.value)


def _not_refused(placed: CallDriver | Refusal) -> CallDriver:
    if isinstance(placed, Refusal):
        raise _refused(placed)
    return placed


def _refused(refusal: Refusal) -> Reply:
    return Reply("refused", views.TITLES[refusal.reason], refusal)


def _failed(request_id: int | None, error: GatewayError | MediaError) -> msg.Failed:
    if isinstance(error, CannotDial):
        return msg.Failed(id=request_id, code=error.reason, title=error.public)
    if isinstance(error, GraphError):
        return msg.Failed(id=request_id, code="graph_error", title=error.public)
    if isinstance(error, SdpRefused):
        return msg.Failed(id=request_id, code="bad_message", title=f"The SDP cannot be used: {error}"[:300])
    title = error.public if isinstance(error, GatewayError) else f"The audio path failed: {error.reason}"
    return msg.Failed(id=request_id, code="unavailable", title=title)
