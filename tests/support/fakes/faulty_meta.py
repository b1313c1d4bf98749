"""A Meta behind a bad line: answers fail, hang or are cut after the request was carried out. Seeded, in virtual time.

It stands where the network is, so that the real client with its tries, limits and breaker is what is tested, and it
keeps its own books: what was rung, sent and is still alive at Meta. Not responsible for media, nor for a contact's
limits (see the simulated Meta in `loadtest`).
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from gateway.common.errors import GraphUnreachable
from gateway.meta.graph_http import GraphHttp, GraphRequest, RawAnswer

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Shares (0 to 1) of requests that suffer each fault."""

    fail: float = 0.0  #: 500, nothing done
    hang: float = 0.0  #: no answer; every other one is carried out
    cut: float = 0.0  #: carried out, then cut


@dataclass(slots=True, kw_only=True)
class MetaCall:
    """One call as Meta has it."""

    call_id: str
    wa_id: str
    ours: bool  #: business-initiated
    opaque: str | None = None
    pre_accepted: bool = False
    accepted: bool = False
    ended: bool = False

    def webhook(self, event: str, at: float, **more: Any) -> Json:
        """Return the value of a webhook of field `calls`."""
        common = {"id": self.call_id, "timestamp": str(int(at))}
        if self.opaque is not None:
            common["biz_opaque_callback_data"] = self.opaque
        if event in ("RINGING", "ACCEPTED"):
            return {"statuses": [{**common, "type": "call", "status": event, "recipient_id": self.wa_id}]}
        business, user = "551155550100", self.wa_id
        ends = {"from": business, "to": user} if self.ours else {"from": user, "to": business}
        direction = "BUSINESS_INITIATED" if self.ours else "USER_INITIATED"
        return {"calls": [{**common, **ends, "event": event, "direction": direction, **more}]}


class FaultyMeta:
    """One number's Graph API and its webhooks, which `deliver` takes."""

    def __init__(self, rng: random.Random, shares: Shares, start: Callable[[Any], asyncio.Task[None]]) -> None:
        self.rng = rng
        self.shares = shares
        self.start = start
        self.now: Callable[[], float] = lambda: 0.0
        self.deliver: Callable[[Json], Awaitable[None]] = _nowhere
        self.mute = False  #: no webhook ever comes
        self.token_refused = False
        self.talk_s = (5.0, 20.0)
        self.calls: dict[str, MetaCall] = {}
        self.rung: Counter[str] = Counter()  #: by what we sent along
        self.messages: Counter[str] = Counter()  #: permission requests by user
        self.requests: Counter[str] = Counter()
        self.refused_at: list[tuple[float, str]] = []  #: loop time and name of each request with a token refused
        self.faults: Counter[str] = Counter()

    @property
    def alive(self) -> list[MetaCall]:
        return [call for call in self.calls.values() if not call.ended]

    # --- the Graph API -----------------------------------------------------------------------------

    async def answer(self, request: GraphRequest, timeout_s: float) -> RawAnswer:
        """Carry out one request, or not. Raises: GraphUnreachable."""
        self.requests[request.op] += 1
        if self.token_refused:
            return await self._refused(request)
        thrown, shares = self.rng.random(), self.shares
        if thrown < shares.fail:
            return await self._failed()
        if thrown < shares.fail + shares.hang:
            if self.rng.random() < 0.5:
                self._carry_out(request)
            self.faults["hang"] += 1
            await asyncio.sleep(timeout_s)
            raise GraphUnreachable("no answer in time", op=request.op, maybe_sent=True, status="timeout")
        await asyncio.sleep(self.rng.uniform(0.05, 0.3))
        status, body = self._carry_out(request)
        if thrown < shares.fail + shares.hang + shares.cut:
            self.faults["cut"] += 1
            raise GraphUnreachable("ServerDisconnectedError", op=request.op, maybe_sent=True, status="cut")
        return RawAnswer(status=status, raw=orjson.dumps(body), headers={})

    async def _refused(self, request: GraphRequest) -> RawAnswer:
        self.refused_at.append((asyncio.get_running_loop().time(), request.op))
        await asyncio.sleep(self.rng.uniform(0.05, 0.3))
        return RawAnswer(status=401, raw=orjson.dumps(_error(190, "The access token has expired")), headers={})

    async def _failed(self) -> RawAnswer:
        self.faults["fail"] += 1
        await asyncio.sleep(self.rng.uniform(0.05, 0.3))
        return RawAnswer(status=500, raw=orjson.dumps(_error(131000, "Something went wrong")), headers={})

    def _carry_out(self, request: GraphRequest) -> tuple[int, Json]:
        body = dict(request.body or {})
        action = body.get("action")
        if action == "connect":
            return self._connect(body)
        if request.path == "/messages":
            self.messages[body["to"]] += 1
            return 200, {"messages": [{"id": f"wamid.{sum(self.messages.values())}"}]}
        if request.path == "/call_permissions":
            return 200, {"permission": {"status": "no_permission"}}
        if request.path != "/calls":
            return 200, {}
        call = self.calls.get(body["call_id"])
        if call is None or call.ended:
            return 400, _error(100, "The call has already ended")
        return self._acted(call, action or "")

    def _acted(self, call: MetaCall, action: str) -> tuple[int, Json]:
        if action in ("terminate", "reject"):
            self._end(call)
        elif action == "pre_accept":
            if call.pre_accepted or call.accepted:
                return 400, _error(100, "The call is already pre-accepted")
            call.pre_accepted = True
        else:
            if call.accepted:
                return 400, _error(100, "The call is already accepted")
            call.accepted = True
            self.start(self._talk(call))
        return 200, {"success": True}

    def _connect(self, body: Json) -> tuple[int, Json]:
        self.rung[body["biz_opaque_callback_data"]] += 1
        call = self._new(body["to"], ours=True, opaque=body["biz_opaque_callback_data"])
        self.start(self._ring_user(call))
        return 200, {"calls": [{"id": call.call_id}]}

    def _new(self, wa_id: str, *, ours: bool, opaque: str | None = None) -> MetaCall:
        call = MetaCall(call_id=f"wacid.F{len(self.calls):06d}", wa_id=wa_id, ours=ours, opaque=opaque)
        self.calls[call.call_id] = call
        return call

    # --- what users do -----------------------------------------------------------------------------

    async def user_calls(self, wa_id: str) -> MetaCall:
        """A user calls and rings until somebody answers, or for 45 s."""
        call = self._new(wa_id, ours=False)
        self.start(self._ring_out(call))
        session = {"sdp_type": "offer", "sdp": "v=0 offer"}
        await self._say(call, "connect", session=session)
        return call

    async def _ring_user(self, call: MetaCall) -> None:
        await asyncio.sleep(self.rng.uniform(0.02, 0.5))  # may overtake the answer to `connect`
        await self._say(call, "connect", session={"sdp_type": "answer", "sdp": "v=0 answer"})
        await asyncio.sleep(self.rng.uniform(0.1, 0.5))
        await self._say(call, "RINGING")
        await asyncio.sleep(self.rng.uniform(1, 8))
        if not call.ended:
            call.accepted = True
            await self._say(call, "ACCEPTED")
            await self._talk(call)

    async def _talk(self, call: MetaCall) -> None:
        await asyncio.sleep(self.rng.uniform(*self.talk_s))
        self._end(call)

    async def _ring_out(self, call: MetaCall) -> None:
        await asyncio.sleep(45)
        if not call.accepted:
            self._end(call)

    def _end(self, call: MetaCall) -> None:
        if not call.ended:
            call.ended = True
            self.start(self._terminated(call))

    async def _terminated(self, call: MetaCall) -> None:
        await asyncio.sleep(self.rng.uniform(0.05, 0.5))
        more: Json = {"status": "COMPLETED"}
        if call.accepted:
            now = int(self.now())
            more |= {"start_time": str(now - 5), "end_time": str(now), "duration": 5}
        await self._say(call, "terminate", even_if_ended=True, **more)

    async def _say(self, call: MetaCall, event: str, *, even_if_ended: bool = False, **more: Any) -> None:
        if not self.mute and (even_if_ended or not call.ended):
            await self.deliver(call.webhook(event, self.now(), **more))


class FaultyHttp(GraphHttp):
    """The client's HTTP with Meta at once behind it; `partial(FaultyHttp, meta)` fits `GraphClient(http=…)`."""

    def __init__(self, meta: FaultyMeta, **options: Any) -> None:
        super().__init__(**options)
        self._meta = meta

    async def start(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def _exchange(self, request: GraphRequest, token: str, timeout: aiohttp.ClientTimeout) -> RawAnswer:
        assert timeout.total is not None
        return await self._meta.answer(request, timeout.total)


async def _nowhere(value: Json) -> None:
    pass


def _error(code: int, details: str) -> Json:
    return {"error": {"code": code, "message": f"(#{code})", "error_data": {"details": details}}}
