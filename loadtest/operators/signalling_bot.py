"""Simulated operators without audio, by the hundred: they log in, answer, talk, hang up and dial by a policy.

They speak `calls.v1` (see `softphone_wire.py`) and offer a fixed browser SDP for each leg, which a gateway with
`GATEWAY_MEDIA_ENGINE=null` accepts like a real one. For operators with audio see `softphone_bot.py`.

    async with Crew(url, keys={"op0": "key-of-op0", "op1": "key-of-op1"}, policy=Policy(talk_s=1.0)) as crew:
        ...  # users call: one of the crew answers
        await crew.dial(number_id, "+5511900000001")
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

import aiohttp

from loadtest.operators.softphone_wire import Json, RequestFailed, SoftphoneWire

#: A shortened version of Chrome's offer.
BROWSER_OFFER: Final = "".join(
    f"{line}\r\n"
    for line in (
        "v=0",
        "o=- 4611731400430051336 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "a=msid-semantic: WMS stream",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111 126",
        "c=IN IP4 0.0.0.0",
        "a=rtcp:9 IN IP4 0.0.0.0",
        "a=ice-ufrag:bots",
        "a=ice-pwd:simulatedbrowserpassword",
        "a=ice-options:trickle",
        "a=fingerprint:sha-256 " + ":".join(f"{byte:02X}" for byte in range(32)),
        "a=setup:actpass",
        "a=mid:0",
        "a=sendrecv",
        "a=rtcp-mux",
        "a=rtpmap:111 opus/48000/2",
        "a=fmtp:111 minptime=10;useinbandfec=1",
        "a=rtpmap:126 telephone-event/8000",
        "a=ssrc:1000000007 cname:bot",
    )
)
#: Pushes that are not needed here; each softphone gets one for every call of all operators.
_UNREAD: Final = ("slots", "number", "contact", "notice")
#: Number of pushes kept for each operator.
_KEEP: Final = 50
_LOGINS_AT_ONCE: Final = 16


class Answer(StrEnum):
    """How an operator reacts to a ringing call."""

    ACCEPT = "accept"
    DECLINE = "decline"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """An operator's automatic behaviour. Delays in seconds."""

    answer: Answer = Answer.ACCEPT
    after_s: float = 0.0
    #: Hangs up after talking for this long; None: never by itself.
    talk_s: float | None = None
    #: Reconnects (resumes, or logs in again) this long after its WebSocket was lost; None: never by itself.
    back_after_s: float | None = None


class SignallingBot(SoftphoneWire):
    """One operator. `start()` once, `close()` once."""

    def __init__(
        self,
        url: str,
        *,
        operator: str,
        key: str,
        policy: Policy = Policy(),
        http: aiohttp.ClientSession | None = None,
        claims: set[str] | None = None,
    ) -> None:
        """Operators that share `claims` do not race for a call: the first free one answers."""
        super().__init__(url, operator=operator, key=key, http=http, keep=_KEEP, unread=_UNREAD)
        self.policy = policy
        #: The latest view of the operator's current call.
        self.call: Json | None = None
        #: Counts of actions: accepted, declined, dialled, hung_up, resumed, logged_in_again, legs.
        self.done: Counter[str] = Counter()
        #: Ended calls of this operator, by reason of their outcome.
        self.ended: Counter[str] = Counter()
        #: Requests refused by the gateway, by code.
        self.refused: Counter[str] = Counter()
        self._claims = set[str]() if claims is None else claims
        #: Ringing calls that were not tried yet, oldest first: an operator that was busy answers them afterwards.
        self._ringing: dict[str, Json] = {}
        #: Ids of the calls in recent pushes.
        self._told: deque[str] = deque(maxlen=_KEEP)
        #: Workers that have a leg of this operator.
        self._legs: set[int] = set()
        self._asking = False
        self._leaving = False

    @property
    def idle(self) -> bool:
        """Whether this operator is free for a call."""
        return self.call is None and not self._asking and self._ws is not None and not self._ws.closed

    async def dial(self, number_id: str, to: str) -> Json:
        """Call a user and return the call's view. Raises: RequestFailed, TimeoutError, ConnectionError."""
        self._asking = True
        try:
            view: Json = await self.request("dial", number_id=number_id, to=to)
        except RequestFailed as failure:
            self.refused[failure.code] += 1
            raise
        finally:
            self._asking = False
        self.done["dialled"] += 1
        self._begins(view)
        return view

    async def set_available(self, available: bool) -> None:
        """Set whether calls ring here. Raises: RequestFailed, TimeoutError, ConnectionError."""
        await self.request("status", available=available)

    async def hang_up(self) -> None:
        """End the current call, if any."""
        if self.call is not None:
            await self._ask("hangup", "hung_up", self.call["call_id"])

    async def log_out(self) -> None:
        """Send `bye`, so that the gateway does not wait for this operator to return; a call in progress ends."""
        self._leaving = True
        with suppress(RequestFailed, aiohttp.ClientError, OSError):
            await self.request("bye")

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self._leaving = True
        await super().close()

    async def logged_in(self) -> None:
        """Offer a leg to each worker, and take up the calls in progress."""
        mine = [call for call in self.welcome["calls"] if call["operator"] == self.operator]
        self.call = mine[0] if mine else None
        if not self.welcome["resumed"]:
            self._legs.clear()
        await self._make_legs(self.welcome["workers"])
        self._ringing.clear()
        for call in self.welcome["calls"]:
            if call["operator"] is None:
                self._rings(call)

    async def _make_legs(self, workers: Iterable[int]) -> None:
        for worker in set(workers) - self._legs:
            self._legs.add(worker)
            await self.make_leg(worker)
            self.done["legs"] += 1

    async def make_leg(self, worker: int) -> None:
        """Make a leg without media. Raises: RequestFailed, TimeoutError, ConnectionError."""
        await self.request("leg", worker=worker, sdp=BROWSER_OFFER)

    def heard(self, push: Json) -> None:
        """React to a push."""
        match push["type"]:
            case "incoming":
                self._rings(push["call"])
            case "call":
                self._told.append(push["call"]["call_id"])
                self._changes(push["call"])
            case "gone":
                self._told.append(push["call_id"])
                self._ringing.pop(push["call_id"], None)
                if self.call is not None and self.call["call_id"] == push["call_id"]:
                    self.call = None  # it ended before the reply to `accept` or `dial`
                # Answered by a colleague: other operators of the crew may not have seen it ring yet.
                if push["reason"] != "answered_elsewhere":
                    self._claims.discard(push["call_id"])
                self._next()
            case "leg_lost":
                self._legs.discard(push["worker"])
                self._background.spawn(self._legs_again([push["worker"]]), "leg")
            case "workers":
                self._legs &= set(push["workers"])
                self._background.spawn(self._legs_again(push["workers"]), "legs")
            case _:
                pass

    def lost(self) -> None:
        """Reconnect, if the policy says so."""
        if self.policy.back_after_s is not None and not self._leaving:
            self._background.spawn(self._come_back(self.policy.back_after_s), "coming back")

    def _rings(self, call: Json) -> None:
        if self.policy.answer is not Answer.IGNORE:
            self._ringing[call["call_id"]] = call
            self._next()

    def _next(self) -> None:
        """Take the oldest ringing call that no other operator is about to take."""
        if not self.idle:
            return
        call = next((call for call_id, call in self._ringing.items() if call_id not in self._claims), None)
        if call is None:
            return
        call_id = call["call_id"]
        del self._ringing[call_id]
        self._claims.add(call_id)
        if self.policy.answer is Answer.ACCEPT:
            self._asking = True  # busy from now on, so another operator takes the next call
        self._background.spawn(self._react(call), "answer")

    async def _react(self, call: Json) -> None:
        if self.policy.after_s:
            await asyncio.sleep(self.policy.after_s)
        try:
            if self.policy.answer is Answer.DECLINE:
                await self._ask("reject", "declined", call["call_id"])
            elif await self._ask("accept", "accepted", call["call_id"]):
                self._begins(call)
            else:
                self._claims.discard(call["call_id"])
        finally:
            self._asking = False
        self._next()

    async def _ask(self, kind: str, done: str, call_id: str) -> bool:
        """Make one request about a call; return False if it was refused or the gateway is unreachable."""
        try:
            await self.request(kind, call_id=call_id)
        except RequestFailed as failure:
            self.refused[failure.code] += 1
        except (aiohttp.ClientError, OSError):
            self.refused["no_answer"] += 1
        else:
            self.done[done] += 1
            return True
        return False

    def _changes(self, call: Json) -> None:
        state, before = call["state"], self.call
        if state == "ended":
            self.call = None
            self.ended[call["outcome"]["reason"]] += 1
            self._claims.discard(call["call_id"])
            self._next()
            return
        self.call = call
        became_active = state == "active" and (before is None or before["state"] not in ("active", "held"))
        if became_active and self.policy.talk_s is not None:
            self._background.spawn(self._talk(call["call_id"], self.policy.talk_s), "talk")

    async def _talk(self, call_id: str, talk_s: float) -> None:
        await asyncio.sleep(talk_s)
        if self.call is not None and self.call["call_id"] == call_id:
            await self._ask("hangup", "hung_up", call_id)

    def _begins(self, call: Json) -> None:
        """Enter this call, unless a push arrived before the reply with newer state."""
        call_id = call["call_id"]
        if self.call is None and call_id not in self._told:
            self.call = call

    async def _legs_again(self, workers: Iterable[int]) -> None:
        with suppress(RequestFailed, aiohttp.ClientError, OSError):
            await self._make_legs(workers)

    async def _come_back(self, pause_s: float) -> None:
        """Resume the session, or log in again if it is gone; retry until it works."""
        while not self._leaving:
            await asyncio.sleep(pause_s)
            try:
                try:
                    await self.resume()
                    self.done["resumed"] += 1
                except RequestFailed:
                    await self.connect(ticket=await self.ticket())
                    self.done["logged_in_again"] += 1
                return
            except (RequestFailed, aiohttp.ClientError, OSError, ValueError):
                continue


class Crew:
    """Operators in one process that share one HTTP session and do not race for calls. An async context manager."""

    def __init__(
        self,
        url: str,
        keys: Mapping[str, str],
        *,
        policy: Policy = Policy(),
        bot: Callable[..., SignallingBot] = SignallingBot,
    ) -> None:
        """`keys`: name and key of each operator, as in `GATEWAY_OPERATORS`; `bot` creates each operator."""
        self._url, self._keys, self._policy, self._bot = url, keys, policy, bot
        self._claims: set[str] = set()
        self._http: aiohttp.ClientSession | None = None
        self.bots: list[SignallingBot] = []

    async def __aenter__(self) -> Self:
        """Log in all operators. Raises: RequestFailed, aiohttp.ClientError (in a group)."""
        # Each WebSocket keeps its connection, so a connection limit would make the last ones wait for ever.
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            await self.join(self._keys)
        except BaseException:
            await self.close()
            raise
        return self

    async def join(self, keys: Mapping[str, str]) -> list[SignallingBot]:
        """Log in more operators and return them. Raises: RequestFailed, aiohttp.ClientError (in a group)."""
        assert self._http is not None, "the crew is not open"
        joining = [
            self._bot(self._url, operator=name, key=key, policy=self._policy, http=self._http, claims=self._claims)
            for name, key in keys.items()
        ]
        self.bots += joining
        places = asyncio.Semaphore(_LOGINS_AT_ONCE)

        async def log_in(bot: SignallingBot) -> None:
            async with places:
                await bot.start()

        async with asyncio.TaskGroup() as group:
            for bot in joining:
                group.create_task(log_in(bot))
        return joining

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all operators' sockets. Idempotent."""
        async with asyncio.TaskGroup() as group:
            for bot in self.bots:
                group.create_task(bot.close())
        if self._http is not None:
            await self._http.close()

    async def log_out(self) -> None:
        """Let all operators send `bye` before they close."""
        async with asyncio.TaskGroup() as group:
            for bot in self.bots:
                group.create_task(bot.log_out())

    def free(self) -> SignallingBot | None:
        """Return an operator without a call."""
        return next((bot for bot in self.bots if bot.idle), None)

    async def dial(self, number_id: str, to: str) -> Json:
        """Let a free operator call a user; return the call's view.

        Raises: NobodyFree, RequestFailed, TimeoutError, ConnectionError.
        """
        bot = self.free()
        if bot is None:
            raise NobodyFree(f"all {len(self.bots)} operators are busy")
        return await bot.dial(number_id, to)

    @property
    def in_calls(self) -> int:
        """Number of operators in a call."""
        return sum(bot.call is not None for bot in self.bots)

    def total(self, what: str) -> Counter[str]:
        """Return `done`, `ended` or `refused` summed over all operators."""
        return sum((getattr(bot, what) for bot in self.bots), Counter[str]())


class NobodyFree(Exception):
    """Every operator of the crew is in a call."""
