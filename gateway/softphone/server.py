"""Serve the operators' WebSocket: check who may open one, and give each request one answer.

This module checks origin and size, does login and heartbeat, and answers slow requests in tasks of their own, so that
an operator can pick up a call while Meta has not answered another request. `outbox` sends, `operators.hub` knows what
an operator has and sees, and `admission` and `calls` run the calls.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import orjson
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from gateway.admission.admission import Admission
from gateway.admission.gate import Checked, Gate
from gateway.admission.overload import Work
from gateway.callflow.call import CallInput, InputKind
from gateway.calls.registry import LiveCall, Registry
from gateway.common.clock import Clock
from gateway.common.errors import CannotDial, GatewayError, GraphError, GraphPaused, GraphRefused
from gateway.common.ids import CallId
from gateway.common.log import mask_text
from gateway.common.rate_limit import Rate, RateLimit
from gateway.numbers.number import Number, Numbers
from gateway.numbers.views import number_view
from gateway.operators.hub import Hub
from gateway.operators.phone import Phone
from gateway.softphone.outbox import Outbox
from gateway.softphone.tickets import Tickets
from gateway.store.store import Store
from gateway.wire import messages as msg
from gateway.wire import views
from media.engine import MediaEngine, WorkerId
from media.errors import MediaError, SdpRefused
from policy.decision import Refusal
from policy.facts import Direction

log = structlog.get_logger()

HEARTBEAT_S: Final = 15.0
HELLO_S: Final = 5.0
MAX_MESSAGE_BYTES: Final = 65_536
#: How many slow requests of one softphone may be in progress at once.
MAX_IN_HAND: Final = 16
#: How many messages of one softphone are read per second, and in one burst; a page sends a few a second.
MESSAGES_PER_S: Final = 100.0
BURST: Final = 200
#: How long the closing handshake may take.
CLOSE_S: Final = 2.0

#: Requests that wait for Meta, the database or a media worker. All others are answered before the next is read.
_SLOW: Final = (msg.Leg, msg.Check, msg.Dial, msg.AskPermission, msg.Recent)


class RequestFailed(Exception):
    """Ends a request with a `failed` answer that tells the operator why. Not a bug."""

    def __init__(self, code: str, title: str, refusal: Refusal | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.title = title
        self.refusal = refusal


class Unreadable(Exception):
    """A message does not fit the schema; `request_id` is its id, if that could be read."""

    def __init__(self, detail: str, request_id: int | None = None) -> None:
        super().__init__(mask_text(detail))  # the detail may quote the message
        self.request_id = request_id

    def failed(self) -> msg.Failed:
        return msg.Failed(id=self.request_id, code="bad_message", title=f"This message cannot be read: {self}"[:300])


@dataclass(slots=True, kw_only=True)
class _Session:
    """An open WebSocket after login."""

    phone: Phone
    outbox: Outbox
    tasks: asyncio.TaskGroup
    in_hand: int = 0


class SoftphoneServer:
    """The handler of `/v1/softphone`."""

    def __init__(
        self,
        *,
        hub: Hub,
        gate: Gate,
        admission: Admission,
        tickets: Tickets,
        numbers: Numbers,
        status_of: Callable[[Number], msg.NumberStatusView],
        registry: Registry,
        store: Store,
        media: MediaEngine,
        clock: Clock,
        origins: Sequence[str],
    ) -> None:
        self._hub = hub
        self._gate = gate
        self._admission = admission
        self._tickets = tickets
        self._numbers = numbers
        self._status_of = status_of
        self._registry = registry
        self._store = store
        self._media = media
        self._clock = clock
        self._origins = frozenset(origin.rstrip("/") for origin in origins)
        self.hello_s = HELLO_S
        self._outboxes: set[Outbox] = set()

    def close_all(self) -> None:
        """Close every WebSocket, because the gateway stops."""
        for outbox in self._outboxes:
            outbox.hang_up(WSCloseCode.GOING_AWAY)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one WebSocket until it is closed."""
        if not self._is_own_origin(request):
            log.warning("softphone_foreign_origin")
            return web.Response(status=403, text="This page may not use the softphone.")
        ws = web.WebSocketResponse(
            protocols=[msg.SUBPROTOCOL],
            heartbeat=HEARTBEAT_S,
            max_msg_size=MAX_MESSAGE_BYTES,
            compress=False,
            timeout=CLOSE_S,
        )
        await ws.prepare(request)
        outbox = Outbox(ws, request.transport)
        self._outboxes.add(outbox)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(outbox.write())
                try:
                    await self._serve_session(ws, outbox, tasks)
                except Exception:  # too late for an HTTP error response
                    log.exception("softphone_broken")
                    outbox.hang_up(WSCloseCode.INTERNAL_ERROR)
                outbox.hang_up(WSCloseCode.OK)
        finally:
            self._outboxes.discard(outbox)
        return ws

    def _is_own_origin(self, request: web.Request) -> bool:
        """Allow the page's own origin, the origins in the settings, and clients without Origin (not browsers)."""
        origin = request.headers.get("Origin")
        if origin is None or origin.rstrip("/") in self._origins:
            return True
        try:
            return urlsplit(origin).netloc == request.host
        except ValueError:  # e.g. "http://["
            return False

    async def _serve_session(self, ws: web.WebSocketResponse, outbox: Outbox, tasks: asyncio.TaskGroup) -> None:
        """Log the operator in, then answer requests until the WebSocket or the login ends."""
        phone = await self._receive_hello(ws, outbox)
        if phone is None:
            return
        session = _Session(phone=phone, outbox=outbox, tasks=tasks)
        pace = RateLimit(Rate(per_s=MESSAGES_PER_S, burst=BURST))
        try:
            async for frame in ws:
                await _wait_for_turn(pace)
                if frame.type is not WSMsgType.TEXT:
                    outbox.hang_up(WSCloseCode.UNSUPPORTED_DATA)
                    break
                if not await self._handle_message(session, frame.data):
                    break
        finally:
            self._hub.line_lost(phone, outbox)

    # --- login -------------------------------------------------------------------------------------

    async def _receive_hello(self, ws: web.WebSocketResponse, outbox: Outbox) -> Phone | None:
        """Wait for `hello` and log the operator in; return None if it is late, unreadable or not authorized."""
        try:
            async with asyncio.timeout(self.hello_s):
                frame = await ws.receive()
        except TimeoutError:
            outbox.hang_up(msg.CLOSE_TIMEOUT)
            return None
        if frame.type is not WSMsgType.TEXT:
            outbox.hang_up(WSCloseCode.UNSUPPORTED_DATA)
            return None
        answer = self._login(frame.data, outbox)
        if isinstance(answer, msg.Failed):
            outbox.push(answer)
            outbox.hang_up(msg.CLOSE_UNAUTHORIZED)
            return None
        return answer

    def _login(self, data: str, outbox: Outbox) -> Phone | msg.Failed:
        try:
            hello = _read_request(data)
        except Unreadable as error:
            return error.failed()
        if not isinstance(hello, msg.Hello):
            return msg.Failed(id=hello.id, code="unauthorized", title="Send hello first.")
        if (hello.ticket is None) == (hello.resume is None):
            return msg.Failed(id=hello.id, code="bad_message", title="Send either a ticket or a resume token.")
        phone, resumed = self._phone_for(hello, outbox)
        if phone is None:
            return msg.Failed(
                id=hello.id, code="unauthorized", title="The ticket or resume token is invalid or has expired."
            )
        outbox.push_first(msg.Ok(id=hello.id, data=self._welcome_message(phone, resumed=resumed)))
        if self._gate.draining:
            outbox.push(msg.Notice(level="warning", code="draining"))
        return phone

    def _phone_for(self, hello: msg.Hello, outbox: Outbox) -> tuple[Phone | None, bool]:
        if hello.resume is not None:
            return self._hub.resume(hello.resume, outbox), True
        operator = self._tickets.use(hello.ticket, now=asyncio.get_running_loop().time()) if hello.ticket else None
        return (self._hub.login(operator, outbox) if operator else None), False

    def _welcome_message(self, phone: Phone, *, resumed: bool) -> msg.Welcome:
        call = self._registry.get(phone.call) if phone.call else None
        now = self._clock.now()
        return msg.Welcome(
            operator=phone.operator,
            resume=phone.resume,
            resumed=resumed,
            available=phone.available,
            workers=[int(worker) for worker in self._media.workers],
            numbers=[number_view(number, now=now, status=self._status_of(number)) for number in self._numbers],
            calls=([call.view()] if call else []) + self._hub.ringing_views(phone),
            heartbeat_s=HEARTBEAT_S,
        )

    # --- requests ----------------------------------------------------------------------------------

    async def _handle_message(self, session: _Session, data: str) -> bool:
        """Answer one message, in a task if it is slow; return False if no further message should be read."""
        try:
            request = _read_request(data)
        except Unreadable as error:
            session.outbox.push(error.failed())
            return True
        if not self._hub.is_current(session.phone, session.outbox):
            session.outbox.push(
                msg.Failed(id=request.id, code="unauthorized", title="Another login has replaced this one.")
            )
            return False
        if not isinstance(request, _SLOW):
            await self._answer_request(session, request)
        elif session.in_hand < MAX_IN_HAND:
            session.in_hand += 1
            session.tasks.create_task(self._answer_in_task(session, request))
        else:
            session.outbox.push(msg.Failed(id=request.id, code="unavailable", title="Too many requests at once."))
        return not isinstance(request, msg.Bye | msg.Leaving)

    async def _answer_in_task(self, session: _Session, request: msg.Request) -> None:
        try:
            await self._answer_request(session, request)
        finally:
            session.in_hand -= 1

    async def _answer_request(self, session: _Session, request: msg.Request) -> None:
        """Carry out a request and send the answer. Never raises, so a failed request affects no other."""
        try:
            answer: msg.Ok | msg.Failed = msg.Ok(id=request.id, data=await self._carry_out(session.phone, request))
        except RequestFailed as failure:
            refusal = views.refusal_view(failure.refusal) if failure.refusal else None
            answer = msg.Failed(id=request.id, code=failure.code, title=failure.title, refusal=refusal)
        except (GatewayError, MediaError) as error:
            answer = _failure_answer(request.id, error)
        except Exception:
            log.exception("softphone_request_broken", request=type(request).__name__)
            answer = msg.Failed(id=request.id, code="unavailable", title=GatewayError.public)
        session.outbox.push(answer)

    async def _carry_out(self, phone: Phone, request: msg.Request) -> Any:
        match request:
            case msg.Leg():
                worker = WorkerId(request.worker)
                if worker not in self._media.workers:
                    raise RequestFailed("gone", "This media worker does not exist.")
                sdp = await self._hub.make_leg(phone, worker, request.sdp)
                return msg.LegAnswer(worker=request.worker, sdp=sdp)
            case msg.SetStatus():
                self._hub.set_available(phone, request.available)
                return None
            case msg.Check():
                return _decision_view(await self._admission.check(request.number_id, request.to))
            case msg.Dial():
                placed = await self._admission.place(request.number_id, request.to, operator=phone.operator)
                return _not_refused(placed).view()
            case msg.AskPermission():
                asked = await self._admission.ask_permission(request.number_id, request.to, asked_by=phone.operator)
                if isinstance(asked, Refusal):
                    raise _refused(asked)
                return {"form": asked.form.value}
            case msg.Recent():
                self._unless_overloaded(Work.REPORT)
                calls = await self._store.recent_calls(phone_number_ids=self._numbers.ids, limit=request.limit)
                return [views.call_view(call) for call in calls]
            case msg.Hello():
                raise RequestFailed("bad_message", "This WebSocket is already logged in.")
            case msg.Bye():
                self._hub.logout(phone)
                return None
            case msg.Leaving():
                self._hub.page_left(phone)
                return None
            case _:
                return self._carry_out_on_call(phone, request)

    def _unless_overloaded(self, work: Work) -> None:
        refusal = self._admission.overloaded(work)
        if refusal is not None:
            raise _refused(refusal)

    def _carry_out_on_call(self, phone: Phone, request: msg.Accept | msg.Reject | msg.Hangup | msg.Hold) -> None:
        call_id = CallId(request.call_id)
        call = self._registry.get(call_id)
        match request:
            case msg.Accept():
                self._accept_call(phone, call)
            case msg.Reject():
                if not self._hub.decline(phone, call_id):
                    raise RequestFailed("gone", "This call no longer rings here.")
            case msg.Hangup():
                self._own_call(phone, call).feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=phone.operator))
            case msg.Hold():
                self._own_call(phone, call).feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=request.on))

    def _accept_call(self, phone: Phone, call: LiveCall | None) -> None:
        if call is None or call.call.direction is Direction.BUSINESS_INITIATED:
            raise RequestFailed("gone", "This call has ended.")
        if phone.call is not None:
            raise RequestFailed("busy", "You are already in a call.")
        if call.worker is None or self._hub.leg_of(phone.operator, call.worker) is None:
            raise RequestFailed("no_leg", "The softphone has no audio connection: check the microphone permission.")
        if not call.claim(phone.operator):
            raise RequestFailed("already_taken", "Another operator has answered this call, or it has ended.")
        call.shown_by(lambda: self._hub.take(phone, call.call.call_id))

    @staticmethod
    def _own_call(phone: Phone, call: LiveCall | None) -> LiveCall:
        """Return the call if it is this operator's. For another's call raise the same error as for an ended one."""
        if call is None or phone.call != call.call.call_id:
            raise RequestFailed("gone", "This call has ended.")
        return call


class _Numbered(msgspec.Struct):
    id: msg.RequestId


async def _wait_for_turn(pace: RateLimit) -> None:
    """Wait until the next message may be read. None is refused: TCP holds waiting messages back at the sender."""
    now = asyncio.get_running_loop().time()
    wait_s = pace.wait_s(now=now)
    pace.count(now=now + wait_s)
    if wait_s > 0:
        await asyncio.sleep(wait_s)


def _read_request(data: str) -> msg.Request:
    """Read one request. Raises: Unreadable."""
    try:
        # orjson refuses a nesting deeper than 1,024, at which msgspec would raise RecursionError.
        message = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Unreadable(str(error)) from error
    try:
        request: msg.Request = msgspec.convert(message, msg.Request)
        return request
    except msgspec.ValidationError as error:
        raise Unreadable(str(error), _id_of(message)) from error


def _id_of(message: object) -> int | None:
    try:
        return msgspec.convert(message, _Numbered).id
    except msgspec.ValidationError:
        return None


def _decision_view(checked: Checked | Refusal) -> msg.DecisionView:
    return views.refused_view(checked) if isinstance(checked, Refusal) else views.decision_view(checked.overview)


def _not_refused(placed: LiveCall | Refusal) -> LiveCall:
    if isinstance(placed, Refusal):
        raise _refused(placed)
    return placed


def _refused(refusal: Refusal) -> RequestFailed:
    return RequestFailed("refused", views.TITLES[refusal.reason], refusal)


def _failure_answer(request_id: int, error: GatewayError | MediaError) -> msg.Failed:
    if isinstance(error, CannotDial):
        return msg.Failed(id=request_id, code=error.reason, title=error.public)
    if isinstance(error, GraphError):
        unsent = "refused" if isinstance(error, GraphPaused) else "graph_error"
        code = "outcome_unknown" if error.maybe_sent else unsent
        refusal = error.refusal if isinstance(error, GraphRefused | GraphPaused) else None
        view = views.refusal_view(refusal) if refusal is not None else None
        return msg.Failed(id=request_id, code=code, title=error.public, refusal=view)
    if isinstance(error, SdpRefused):
        return msg.Failed(id=request_id, code="bad_message", title=f"The SDP cannot be used: {error}"[:300])
    title = error.public if isinstance(error, GatewayError) else f"The audio connection failed: {error.reason}"
    return msg.Failed(id=request_id, code="unavailable", title=title)
