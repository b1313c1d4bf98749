"""The protocol `calls.v1` from the operator's side: log in, send requests, receive pushes, resume. No audio.

Base of the simulated operators in `softphone_bot.py` (with audio) and `signalling_bot.py` (without). It shares no code
with the gateway.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import aiohttp
import orjson

from loadtest.common.background import Background
from loadtest.net.websocket import WebSocket

Json: TypeAlias = dict[str, Any]

SUBPROTOCOL: Final = "calls.v1"


class RequestFailed(Exception):
    """The gateway answered with an error; `answer` is the whole message."""

    def __init__(self, answer: Json) -> None:
        super().__init__(f"{answer.get('code')}: {answer.get('title')}")
        self.answer = answer
        self.code = str(answer.get("code"))
        #: The reason if a rule refused it, otherwise the code.
        self.reason = str((answer.get("refusal") or {}).get("reason", self.code)).lower()


def _too_late(waiting: asyncio.Future[Json]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())


class SoftphoneWire:
    """One operator's login and WebSocket. `start()` and `close()` once; subclasses override `logged_in` and `heard`."""

    def __init__(
        self,
        url: str,
        *,
        operator: str,
        key: str,
        http: aiohttp.ClientSession | None = None,
        keep: int | None = None,
        unread: tuple[str, ...] = (),
    ) -> None:
        """`http` is shared and not closed here. The last `keep` pushes are kept; `unread` kinds are not even parsed."""
        self.url = url.rstrip("/")
        self.operator = operator
        #: The last welcome, without its numbers: hundreds of them for thousands of operators would take gigabytes.
        self.welcome: Json = {}
        #: Pushes since the start, oldest first.
        self.pushes: deque[Json] = deque(maxlen=keep)
        #: The WebSocket's close code, once it is closed.
        self.close_code: int | None = None
        self._key = key
        self._background = Background(f"softphone of {operator}")
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._changed = asyncio.Event()
        self._http, self._own_http = http, http is None
        self._unread = tuple(f'{{"type":"{kind}"'.encode() for kind in unread)
        self._ws: WebSocket | None = None
        #: The WebSocket of the last successful login.
        self._member: WebSocket | None = None

    # Login and close

    async def start(self) -> None:
        """Log in. Raises: RequestFailed, aiohttp.ClientError, OSError."""
        await self._background.start()
        if self._http is None:
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
        """Open the WebSocket with a ticket or a resume token. Raises: RequestFailed, OSError."""
        ws = self._ws = await WebSocket.connect(
            f"{self.url}/v1/softphone", subprotocol=SUBPROTOCOL, on_text=self._read, on_lost=self._closed
        )
        self.close_code = None
        login = {"ticket": ticket} if ticket else {"resume": resume}
        self.welcome = await self.request("hello", **login)
        self.welcome.pop("numbers", None)
        self._member = ws
        await self.logged_in()

    async def resume(self) -> None:
        """Replace a lost WebSocket with a new one. Raises: RequestFailed, OSError."""
        await self.connect(resume=self.welcome["resume"])

    async def logged_in(self) -> None:
        """Called after each successful `hello`; does what the page does then."""

    async def drop(self) -> None:
        """Close the WebSocket without `bye`, which is what a lost network leads to."""
        if self._ws is not None:
            await self._ws.close()

    async def close(self) -> None:
        """Close everything. Idempotent."""
        await self.drop()
        if self._http is not None and self._own_http:
            await self._http.close()
        await self._background.close()

    # Requests and pushes

    async def request(self, kind: str, *, timeout_s: float = 10.0, **fields: Any) -> Any:
        """Send one request and return the `data` of the reply. Raises: RequestFailed, TimeoutError."""
        ws = self._ws
        assert ws is not None
        number, loop = next(self._numbers), asyncio.get_running_loop()
        waiting = self._waiting[number] = loop.create_future()
        timer = loop.call_later(timeout_s, _too_late, waiting)  # one `asyncio.timeout` costs several of these
        try:
            ws.send_text(orjson.dumps({"type": kind, "id": number, **fields}))
            answer = await waiting
        finally:
            timer.cancel()
            del self._waiting[number]
        if answer["type"] == "error":
            raise RequestFailed(answer)
        return answer.get("data")

    async def wait_push(
        self, kind: str, where: Callable[[Json], bool] = lambda push: True, *, timeout_s: float = 10.0
    ) -> Json:
        """Return the first push of this kind that matches, past ones included. Raises: TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                for push in self.pushes:
                    if push["type"] == kind and where(push):
                        return push
                self._changed.clear()
                await self._changed.wait()

    async def wait_call(self, call_id: str, state: str, *, timeout_s: float = 10.0) -> Json:
        """Return a call's view once it is in this state. Raises: TimeoutError."""
        push = await self.wait_push(
            "call",
            lambda push: push["call"]["call_id"] == call_id and push["call"]["state"] == state,
            timeout_s=timeout_s,
        )
        return dict(push["call"])

    def _read(self, message: bytes) -> None:
        if not message.startswith(self._unread):
            self._take(orjson.loads(message))

    def _closed(self, ws: WebSocket) -> None:
        if ws is not self._ws:  # a newer one has replaced it
            return
        self.close_code = ws.close_code
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(f"the softphone's socket closed ({ws.close_code})"))
        self._changed.set()
        if ws is self._member:
            self.lost()

    def _take(self, message: Json) -> None:
        waiting = self._waiting.get(message.get("id") or -1)
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(message)
            return
        self.pushes.append(message)
        self._changed.set()
        self.heard(message)

    def heard(self, push: Json) -> None:
        """Called for each push; does what the page does."""

    def lost(self) -> None:
        """Called when the WebSocket of the current login is lost; does what the page does."""
