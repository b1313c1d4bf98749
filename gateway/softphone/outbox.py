"""The way out of one operator's WebSocket: what is pushed, in order, until it is closed.

Responsible for never making anybody wait for a phone that does not read: `push` and `hang_up` return at once, the
backlog is bounded, a stuck connection is cut. Not responsible for what comes in (see `server`).

Theory of operation: while the connection takes what it is given, a frame is handed to it at once. What does not fit
into its buffer waits here for `write`, and everything after it, so the order stays.
"""

import asyncio
from collections import deque
from typing import Final

import structlog
from aiohttp import WSMsgType, web

from gateway.wire import messages as msg

log = structlog.get_logger()

#: Messages waiting for a phone that does not read; more, and it is closed.
MAX_BACKLOG: Final = 500
#: One message, or the closing handshake, may take so long to get out.
SEND_S: Final = 5.0
#: Bytes that the connection may hold. Below half of asyncio's limit, so that aiohttp has nothing to wait for.
ROOM_BYTES: Final = 32_768


class SoftphoneLine:
    """Implements `phone.Line` on one WebSocket. `write` runs once, for as long as the socket is open."""

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
        self._writing = False  #: `write` has a frame in hand
        self._code: int | None = None

    def push(self, message: msg.Push | msg.Ok | msg.Failed) -> None:
        self.send(msg.encode(message))

    def send(self, frame: bytes) -> None:
        """Send after everything sent before; nothing more is sent once the line is to be closed."""
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
        """Send before everything that waits: a page knows nothing, and is sent nothing, before its welcome."""
        self._waiting.appendleft(msg.encode(message))
        self._welcomed = True
        self._changed.set()

    def hang_up(self, code: int) -> None:
        """Close after what waits has been sent; the first code counts."""
        if self._code is None:
            self._code = code
            self._changed.set()

    def _has_room(self, size: int) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() + size <= ROOM_BYTES

    def _send_now(self, frame: bytes) -> None:
        """Send without a task: one step of aiohttp's coroutine writes the frame, and with room it has no second."""
        sending = self._ws.send_frame(frame, WSMsgType.TEXT)
        try:
            sending.send(None)
        except StopIteration:
            pass
        except (ConnectionError, RuntimeError):  # as in `write`, which ends now
            self.hang_up(1000)
        else:
            sending.close()

    async def write(self) -> None:
        """Send what waits until told to close, or until the peer is gone."""
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
        except (ConnectionError, RuntimeError):  # RuntimeError: aiohttp has closed it already
            log.debug("softphone_line_gone")

    async def _has_more(self) -> bool:
        """Wait until there is something to send, or until the line is to be closed."""
        while not self._waiting and self._code is None:
            self._changed.clear()
            await self._changed.wait()
        return bool(self._waiting)
