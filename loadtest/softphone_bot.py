"""A simulated operator: logs in at a softphone's WebSocket, keeps warm legs, answers, dials, hangs up, listens.

Speaks the wire `calls.v1` as a browser page does, with a `BrowserPeer` for each media worker. Not responsible for what
the gateway makes of it; shares no code with it.

    bot = SoftphoneBot("http://127.0.0.1:8080", operator="ana", key="…")
    await bot.start()
    call = await bot.wait_push("incoming")
    await bot.request("accept", call_id=call["call"]["call_id"])
    await bot.close()
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import aiohttp

from loadtest.background import Background
from loadtest.browser_peer import BrowserPeer

Json: TypeAlias = dict[str, Any]


class RequestFailed(Exception):
    """The gateway answered with an error; `answer` is its whole message."""

    def __init__(self, answer: Json) -> None:
        super().__init__(f"{answer.get('code')}: {answer.get('title')}")
        self.answer = answer
        self.code = str(answer.get("code"))


class SoftphoneBot:
    """One operator. `start()` once, `close()` once."""

    def __init__(self, url: str, *, operator: str, key: str, tone_hz: int = 1000, audio: bool = True) -> None:
        self.url = url.rstrip("/")
        self.operator = operator
        self.tone_hz = tone_hz
        self.welcome: Json = {}
        #: Every push since the start, oldest first.
        self.pushes: list[Json] = []
        self.peers: dict[int, BrowserPeer] = {}
        #: The close code of the WebSocket, once it is closed.
        self.close_code: int | None = None
        self._key = key
        self._audio = audio
        self._background = Background(f"softphone of {operator}")
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._changed = asyncio.Event()
        self._http: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None

    # Life

    async def start(self) -> None:
        """Log in and make a warm leg for each worker. Raises: RequestFailed, aiohttp.ClientError."""
        await self._background.start()
        self._http = aiohttp.ClientSession()
        await self.connect(ticket=await self.ticket())

    async def ticket(self) -> str:
        """Fetch a one-time ticket. Raises: RequestFailed."""
        assert self._http is not None
        wanted = {"operator": self.operator, "key": self._key}
        async with self._http.post(f"{self.url}/v1/tickets", json=wanted) as response:
            answer = await response.json(content_type=None)
            if response.status != 201:
                raise RequestFailed(answer)
            return str(answer["ticket"])

    async def connect(self, *, ticket: str | None = None, resume: str | None = None) -> None:
        """Open the WebSocket with a ticket or a resume token."""
        assert self._http is not None
        self._ws = await self._http.ws_connect(
            f"{self.url}/v1/softphone", protocols=["calls.v1"], autoping=True, max_msg_size=1 << 20
        )
        self.close_code = None
        self._background.spawn(self._read(self._ws), "read")
        login = {"ticket": ticket} if ticket else {"resume": resume}
        self.welcome = await self.request("hello", **login)
        if self._audio:
            for worker in self.welcome["workers"]:
                if worker not in self.peers:
                    await self.make_leg(worker)

    async def make_leg(self, worker: int) -> None:
        """Make (again) the warm leg of one worker and wait until media can flow."""
        old = self.peers.pop(worker, None)
        if old is not None:
            await old.close()
        peer = self.peers[worker] = BrowserPeer(tone_hz=self.tone_hz)
        answer = await self.request("leg", worker=worker, sdp=await peer.offer())
        await peer.answer(answer["sdp"])
        await peer.connected()

    async def drop(self) -> None:
        """Cut the WebSocket as a lost network would; the legs stay."""
        if self._ws is not None:
            await self._ws.close()

    async def close(self) -> None:
        """Leave: everything closed, nothing left. Safe to call twice."""
        await self.drop()
        if self._http is not None:
            await self._http.close()
        for peer in self.peers.values():
            await peer.close()
        await self._background.close()

    # Speaking with the gateway

    async def request(self, kind: str, *, timeout_s: float = 10.0, **fields: Any) -> Any:
        """Send one request and return the `data` of its answer. Raises: RequestFailed, TimeoutError."""
        assert self._ws is not None
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._ws.send_str(json.dumps({"type": kind, "id": number, **fields}))
            async with asyncio.timeout(timeout_s):
                answer = await waiting
        finally:
            del self._waiting[number]
        if answer["type"] == "error":
            raise RequestFailed(answer)
        return answer.get("data")

    async def wait_push(
        self, kind: str, where: Callable[[Json], bool] = lambda push: True, *, timeout_s: float = 10.0
    ) -> Json:
        """Return the first push of this kind that fits, past ones included. Raises: TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                for push in self.pushes:
                    if push["type"] == kind and where(push):
                        return push
                self._changed.clear()
                await self._changed.wait()

    async def wait_call(self, call_id: str, state: str, *, timeout_s: float = 10.0) -> Json:
        """Return the view of a call once it is in this state. Raises: TimeoutError."""
        push = await self.wait_push(
            "call",
            lambda push: push["call"]["call_id"] == call_id and push["call"]["state"] == state,
            timeout_s=timeout_s,
        )
        return dict(push["call"])

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in ws:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                break
            self._take(json.loads(frame.data))
        self.close_code = ws.close_code
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(f"the softphone's socket closed ({ws.close_code})"))
        self._changed.set()

    def _take(self, message: Json) -> None:
        waiting = self._waiting.get(message.get("id", -1))
        if waiting is not None and not waiting.done():
            waiting.set_result(message)
            return
        self.pushes.append(message)
        self._changed.set()
        if message["type"] == "call":
            self._talk(message["call"])

    def _talk(self, call: Json) -> None:
        """Speak during a conversation and at no other time, as the page does."""
        peer = self.peers.get(call["worker"]) if call["worker"] is not None else None
        if peer is None:
            return
        if call["state"] == "active":
            peer.speak()
        elif call["state"] in ("held", "ending", "ended"):
            peer.hush()
