"""Send messages on one operator's WebSocket, in order, until it is closed.

No caller waits for a phone that does not read: `push` and `hang_up` return at once, the backlog is bounded, and a stuck
connection is aborted. `server` reads what comes in.

Theory of operation: while the connection's write buffer has room, a frame is handed to it at once. A frame that does
not fit waits here for `write`, and so does every frame after it, which keeps the order.
"""

import asyncio
from collections import deque
from typing import Final

import structlog
from aiohttp import WSMsgType, web

from gateway.wire import messages as msg

log = structlog.get_logger()

#: How many messages may wait for a phone that does not read; with more, its WebSocket is closed.
MAX_BACKLOG: Final = 500
#: How long sending one message, or the closing handshake, may take.
SEND_S: Final = 5.0
#: How many bytes the write buffer may hold. Below half of asyncio's limit, so that aiohttp never waits.
ROOM_BYTES: Final = 32_768


class Outbox:
    """Implements `operators.phone.Line` on one WebSocket. Run `write` once, for as long as the socket is open."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        *,
        max_backlog: int = MAX_BACKLOG,
        send_s: float = SEND_S,
    ) -> None:
        self._ws = ws
        self._transport = transport
        self._max_backlog = max_backlog
        self._send_s = send_s
        self._waiting: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._welcomed = False
        self._writing = False  #: `write` is sending a frame
        self._code: int | None = None

    def push(self, message: msg.Push | msg.Ok | msg.Failed) -> None:
        self.send(msg.encode(message))

    def send(self, frame: bytes) -> None:
        """Send a frame after all earlier ones; after `hang_up` do nothing."""
        if self._code is not None:
            return
        if self._welcomed and not self._waiting and not self._writing and self._has_room(len(frame)):
            self._send_now(frame)
        elif len(self._waiting) < self._max_backlog:
            self._waiting.append(frame)
            self._changed.set()
        else:
            log.warning("softphone_too_slow", backlog=len(self._waiting))
            self._waiting.clear()
            self.hang_up(msg.CLOSE_TOO_MANY)

    def push_first(self, message: msg.Ok) -> None:
        """Send the welcome before everything that waits; until then nothing is sent to the page."""
        self._waiting.appendleft(msg.encode(message))
        self._welcomed = True
        self._changed.set()

    def hang_up(self, code: int) -> None:
        """Close the WebSocket after the waiting messages are sent; the first code counts."""
        if self._code is None:
            self._code = code
            self._changed.set()

    def _has_room(self, size: int) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() + size <= ROOM_BYTES

    def _send_now(self, frame: bytes) -> None:
        """Send without a task: the first step of aiohttp's coroutine writes the frame; with room there is no second."""
        sending = self._ws.send_frame(frame, WSMsgType.TEXT)
        try:
            sending.send(None)
        except StopIteration:
            pass
        except (ConnectionError, RuntimeError):  # the peer is gone, as in `write`, which now ends
            self.hang_up(1000)
        else:
            sending.close()

    async def write(self) -> None:
        """Send waiting messages until `hang_up` is called or the peer is gone."""
        try:
            while await self._has_more():
                async with asyncio.timeout(self._send_s):
                    self._writing = True
                    await self._ws.send_frame(self._waiting.popleft(), WSMsgType.TEXT)
                    self._writing = False
            async with asyncio.timeout(self._send_s):
                await self._ws.close(code=self._code or 1000)
        except TimeoutError:
            log.warning("softphone_stuck")
            if self._transport is not None:
                self._transport.abort()
        except (ConnectionError, RuntimeError):  # RuntimeError: aiohttp has already closed it
            log.debug("softphone_line_gone")

    async def _has_more(self) -> bool:
        """Wait for a message or `hang_up`; return whether there is a message to send."""
        while not self._waiting and self._code is None:
            self._changed.clear()
            await self._changed.wait()
        return bool(self._waiting)
