"""The operators' WebSocket: who may open one, and one answer to each request that comes in.

Responsible for origin, size, login, heartbeat, and for a request that takes its time not holding up the next: nobody
waits for Meta's answer to something else before they can pick up. Not responsible for the way out (see
`outbox`), for what an operator has and sees (see `operators.hub`) nor for calls (see `admission`, `driver`).
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
from gateway.softphone.outbox import SoftphoneLine
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
#: Requests of one softphone that may wait for an answer at once.
MAX_IN_HAND: Final = 16
#: Messages of one softphone that are read, and how many at once; a page sends a few a second.
MESSAGES_PER_S: Final = 100.0
BURST: Final = 200
#: The closing handshake may take so long.
CLOSE_S: Final = 2.0

#: Requests that wait for Meta, the database or a media worker; all others are answered before the next is read.
_SLOW: Final = (msg.Leg, msg.Check, msg.Dial, msg.AskPermission, msg.Recent)


class Reply(Exception):
    """Ends a request with an error; not an error of ours."""

    def __init__(self, code: str, title: str, refusal: Refusal | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.title = title
        self.refusal = refusal


class Unreadable(Exception):
    """The message is none of the wire's; `request_id` is its id if at least that could be read."""

    def __init__(self, detail: str, request_id: int | None = None) -> None:
        super().__init__(mask_text(detail))  # it may repeat what was sent
        self.request_id = request_id

    def failed(self) -> msg.Failed:
        return msg.Failed(id=self.request_id, code="bad_message", title=f"This message cannot be read: {self}"[:300])


@dataclass(slots=True, kw_only=True)
class _Session:
    """One open WebSocket after its login."""

    phone: Phone
    line: SoftphoneLine
    tasks: asyncio.TaskGroup
    in_hand: int = 0


class Softphones:
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
        self._lines: set[SoftphoneLine] = set()

    def close_all(self) -> None:
        """The gateway goes away."""
        for line in self._lines:
            line.hang_up(WSCloseCode.GOING_AWAY)

    async def handle(self, request: web.Request) -> web.StreamResponse:
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
        line = SoftphoneLine(ws, request.transport)
        self._lines.add(line)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(line.write())
                try:
                    await self._serve(ws, line, tasks)
                except Exception:  # it is too late for an HTTP answer
                    log.exception("softphone_broken")
                    line.hang_up(WSCloseCode.INTERNAL_ERROR)
                line.hang_up(WSCloseCode.OK)
        finally:
            self._lines.discard(line)
        return ws

    def _is_own_origin(self, request: web.Request) -> bool:
        """Allow the page's own origin, those in the settings, and clients that are no browser."""
        origin = request.headers.get("Origin")
        if origin is None or origin.rstrip("/") in self._origins:
            return True
        try:
            return urlsplit(origin).netloc == request.host
        except ValueError:  # "http://["
            return False

    async def _serve(self, ws: web.WebSocketResponse, line: SoftphoneLine, tasks: asyncio.TaskGroup) -> None:
        """Log in, then read requests until the socket or the login ends."""
        phone = await self._hello(ws, line)
        if phone is None:
            return
        session = _Session(phone=phone, line=line, tasks=tasks)
        pace = RateLimit(Rate(per_s=MESSAGES_PER_S, burst=BURST))
        try:
            async for frame in ws:
                await _turn(pace)
                if frame.type is not WSMsgType.TEXT:
                    line.hang_up(WSCloseCode.UNSUPPORTED_DATA)
                    break
                if not await self._take(session, frame.data):
                    break
        finally:
            self._hub.line_lost(phone, line)

    # --- login -------------------------------------------------------------------------------------

    async def _hello(self, ws: web.WebSocketResponse, line: SoftphoneLine) -> Phone | None:
        """Wait for `hello` and log the operator in; None: not theirs, not in time, or not readable."""
        try:
            async with asyncio.timeout(self.hello_s):
                frame = await ws.receive()
        except TimeoutError:
            line.hang_up(msg.CLOSE_TIMEOUT)
            return None
        if frame.type is not WSMsgType.TEXT:
            line.hang_up(WSCloseCode.UNSUPPORTED_DATA)
            return None
        answer = self._login(frame.data, line)
        if isinstance(answer, msg.Failed):
            line.push(answer)
            line.hang_up(msg.CLOSE_UNAUTHORIZED)
            return None
        return answer

    def _login(self, data: str, line: SoftphoneLine) -> Phone | msg.Failed:
        try:
            hello = _read(data)
        except Unreadable as error:
            return error.failed()
        if not isinstance(hello, msg.Hello):
            return msg.Failed(id=hello.id, code="unauthorized", title="Say hello first.")
        if (hello.ticket is None) == (hello.resume is None):
            return msg.Failed(id=hello.id, code="bad_message", title="Send either a ticket or a resume token.")
        phone, resumed = self._phone_for(hello, line)
        if phone is None:
            return msg.Failed(id=hello.id, code="unauthorized", title="The ticket is not valid (any more).")
        line.push_first(msg.Ok(id=hello.id, data=self._welcome(phone, resumed=resumed)))
        if self._gate.draining:
            line.push(msg.Notice(level="warning", code="draining"))
        return phone

    def _phone_for(self, hello: msg.Hello, line: SoftphoneLine) -> tuple[Phone | None, bool]:
        if hello.resume is not None:
            return self._hub.resume(hello.resume, line), True
        operator = self._tickets.use(hello.ticket, now=asyncio.get_running_loop().time()) if hello.ticket else None
        return (self._hub.login(operator, line) if operator else None), False

    def _welcome(self, phone: Phone, *, resumed: bool) -> msg.Welcome:
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

    async def _take(self, session: _Session, data: str) -> bool:
        """Answer one message, or let it be answered; False: this was the last."""
        try:
            request = _read(data)
        except Unreadable as error:
            session.line.push(error.failed())
            return True
        if not self._hub.is_current(session.phone, session.line):
            session.line.push(msg.Failed(id=request.id, code="unauthorized", title="Another login took over."))
            return False
        if not isinstance(request, _SLOW):
            await self._answer(session, request)
        elif session.in_hand < MAX_IN_HAND:
            session.in_hand += 1
            session.tasks.create_task(self._answer_later(session, request))
        else:
            session.line.push(msg.Failed(id=request.id, code="unavailable", title="Too many requests at once."))
        return not isinstance(request, msg.Bye | msg.Leaving)

    async def _answer_later(self, session: _Session, request: msg.Request) -> None:
        try:
            await self._answer(session, request)
        finally:
            session.in_hand -= 1

    async def _answer(self, session: _Session, request: msg.Request) -> None:
        """Do what was asked and say how it went. Never raises: one request cannot spoil another."""
        try:
            answer: msg.Ok | msg.Failed = msg.Ok(id=request.id, data=await self._do(session.phone, request))
        except Reply as reply:
            refusal = views.refusal_view(reply.refusal) if reply.refusal else None
            answer = msg.Failed(id=request.id, code=reply.code, title=reply.title, refusal=refusal)
        except (GatewayError, MediaError) as error:
            answer = _failed(request.id, error)
        except Exception:
            log.exception("softphone_request_broken", request=type(request).__name__)
            answer = msg.Failed(id=request.id, code="unavailable", title=GatewayError.public)
        session.line.push(answer)

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
                self._unless_overloaded(Work.REPORT)
                calls = await self._store.recent_calls(phone_number_ids=self._numbers.ids, limit=request.limit)
                return [views.call_view(call) for call in calls]
            case msg.Hello():
                raise Reply("bad_message", "Already logged in.")
            case msg.Bye():
                self._hub.logout(phone)
                return None
            case msg.Leaving():
                self._hub.page_left(phone)
                return None
            case _:
                return self._on_call(phone, request)

    def _unless_overloaded(self, work: Work) -> None:
        refusal = self._admission.overloaded(work)
        if refusal is not None:
            raise _refused(refusal)

    def _on_call(self, phone: Phone, request: msg.Accept | msg.Reject | msg.Hangup | msg.Hold) -> None:
        call_id = CallId(request.call_id)
        call = self._registry.get(call_id)
        match request:
            case msg.Accept():
                self._accept(phone, call)
            case msg.Reject():
                if not self._hub.decline(phone, call_id):
                    raise Reply("gone", "This call does not ring here any more.")
            case msg.Hangup():
                self._own(phone, call).feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=phone.operator))
            case msg.Hold():
                self._own(phone, call).feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=request.on))

    def _accept(self, phone: Phone, call: LiveCall | None) -> None:
        if call is None or call.call.direction is Direction.BUSINESS_INITIATED:
            raise Reply("gone", "This call has ended.")
        if phone.call is not None:
            raise Reply("busy", "You are in a call already.")
        if call.worker is None or self._hub.leg_of(phone.operator, call.worker) is None:
            raise Reply("no_leg", "The softphone has no audio path: check the microphone permission.")
        if not call.claim(phone.operator):
            raise Reply("already_taken", "Somebody else has answered this call, or it has ended.")
        call.shown_by(lambda: self._hub.take(phone, call.call.call_id))

    @staticmethod
    def _own(phone: Phone, call: LiveCall | None) -> LiveCall:
        """Return the call if it is this operator's; another's call does not exist for them."""
        if call is None or phone.call != call.call.call_id:
            raise Reply("gone", "This call has ended.")
        return call


class _Numbered(msgspec.Struct):
    id: msg.RequestId


async def _turn(pace: RateLimit) -> None:
    """Return when the next message may be read. Nothing is refused: TCP holds back what waits, at the sender."""
    now = asyncio.get_running_loop().time()
    wait_s = pace.wait_s(now=now)
    pace.count(now=now + wait_s)
    if wait_s > 0:
        await asyncio.sleep(wait_s)


def _read(data: str) -> msg.Request:
    """Read one request. Raises: Unreadable."""
    try:
        # orjson stops at a nesting depth of 1,024, where msgspec would raise RecursionError.
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


def _decision(checked: Checked | Refusal) -> msg.DecisionView:
    return views.refused_view(checked) if isinstance(checked, Refusal) else views.decision_view(checked.overview)


def _not_refused(placed: LiveCall | Refusal) -> LiveCall:
    if isinstance(placed, Refusal):
        raise _refused(placed)
    return placed


def _refused(refusal: Refusal) -> Reply:
    return Reply("refused", views.TITLES[refusal.reason], refusal)


def _failed(request_id: int, error: GatewayError | MediaError) -> msg.Failed:
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
    title = error.public if isinstance(error, GatewayError) else f"The audio path failed: {error.reason}"
    return msg.Failed(id=request_id, code="unavailable", title=title)
