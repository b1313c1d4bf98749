"""WebSocket client for load generation: hands each text message to a function as soon as it is complete.

Receiving costs only the parsing of the bytes: no task is woken and no queue is kept. RFC 6455 without extensions (none
is offered, so the server may use none).
"""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Callable
from typing import Final, cast

from yarl import URL

from loadtest.net.http_client import place

_MAX_BYTES: Final = 1 << 20
_OPEN_S: Final = 10.0
_CLOSE_S: Final = 5.0
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: First byte of a frame: the FIN bit and the opcode.
_LAST: Final = 0x80
_MORE, _TEXT, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x8, 0x9, 0xA
_WHOLE_TEXT: Final = _LAST | _TEXT
#: Close codes: the server's close frame had no code; the connection ended without a close frame.
_NO_CODE, _ABNORMAL = 1005, 1006


def read_frame(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Return first byte and payload of the frame that begins at `at`, and the offset of the next frame.

    None if the frame is incomplete. Raises: ValueError.
    """
    begin = at + 2
    if len(data) < begin:
        return None
    length = data[at + 1]
    if length > 125:
        if length > 127:
            raise ValueError("masked frame from a server")
        begin += 2 if length == 126 else 8
        length = int.from_bytes(data[at + 2 : begin])
        if len(data) < begin:
            return None
        if length > _MAX_BYTES:
            raise ValueError("frame too long")
    end = begin + length
    return (data[at], data[begin:end], end) if len(data) >= end else None


def write_frame(kind: int, payload: bytes) -> bytes:
    """Return a message as one masked frame."""
    length = len(payload)
    if length < 126:
        head = bytes((_LAST | kind, 0x80 | length))
    elif length < 1 << 16:
        head = bytes((_LAST | kind, 0x80 | 126)) + length.to_bytes(2)
    else:
        head = bytes((_LAST | kind, 0x80 | 127)) + length.to_bytes(8)
    key = secrets.token_bytes(4)
    mask = (key * (length // 4 + 1))[:length]
    return head + key + (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(length)


class WebSocket(asyncio.Protocol):
    """One WebSocket, made by `connect()`; call `close()` once."""

    def __init__(self, on_text: Callable[[bytes], None], on_lost: Callable[["WebSocket"], None]) -> None:
        loop = asyncio.get_running_loop()
        self._on_text, self._on_lost = on_text, on_lost
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._parts: list[bytes] = []
        self._accept = b""
        self._opened: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._closing = False
        #: Set when the connection is closed; 1006 if the server sent no close frame.
        self.close_code: int | None = None

    @classmethod
    async def connect(
        cls, url: str, *, subprotocol: str, on_text: Callable[[bytes], None], on_lost: Callable[["WebSocket"], None]
    ) -> "WebSocket":
        """Open a WebSocket: `on_text` gets each message, `on_lost` is called once when it is closed. Raises: OSError.

        Neither is called before this returns.
        """
        address = URL(url)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_OPEN_S):
            _, ws = await loop.create_connection(lambda: cls(on_text, on_lost), **place(address))
            try:
                await ws._open(address, subprotocol)
            except BaseException:
                ws._abort()
                raise
        return ws

    async def _open(self, address: URL, subprotocol: str) -> None:
        key = base64.b64encode(secrets.token_bytes(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        lines = (
            f"GET {address.raw_path_qs} HTTP/1.1",
            f"Host: {address.host_port_subcomponent}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key.decode()}",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {subprotocol}",
        )
        self._write("\r\n".join((*lines, "", "")).encode("ascii"))
        await self._opened

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self._transport is None or self._transport.is_closing()

    def send_text(self, message: bytes) -> None:
        """Send a message. Raises: ConnectionError."""
        if self.closed:
            raise ConnectionResetError("the WebSocket is closed")
        self._write(write_frame(_TEXT, message))

    async def close(self) -> None:
        """Send a close frame and wait for the server to close, for a limited time. Idempotent."""
        if not self.closed:
            self._closing = True
            self._write(write_frame(_CLOSE, (1000).to_bytes(2)))
        try:
            await asyncio.wait([self._lost], timeout=_CLOSE_S)
        finally:
            self._abort()
        await asyncio.wait([self._lost])

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        try:
            if self._opened.done() or self._upgraded():
                self._take_frames()
        except ValueError:
            self._abort()

    def connection_lost(self, failure: Exception | None) -> None:
        if self.close_code is None:
            self.close_code = _ABNORMAL
        self._lost.set_result(None)
        if not self._opened.done():
            said = self._received.partition(b"\r\n")[0][:100].decode("ascii", "replace")
            self._opened.set_exception(ConnectionError(f"the server refused the WebSocket: {said or 'no response'}"))
        elif not self._opened.cancelled() and self._opened.exception() is None:
            self._on_lost(self)

    def _upgraded(self) -> bool:
        """Return whether the response to the upgrade is complete. Raises: ValueError if it is not an upgrade."""
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        lines = head.split(b"\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if not lines[0].startswith(b"HTTP/1.1 101 ") or fields.get(b"sec-websocket-accept") != self._accept:
            raise ValueError("the response is not a WebSocket upgrade")
        self._received = rest
        self._opened.set_result(None)
        return True

    def _take_frames(self) -> None:
        data, at = self._received, 0
        while self.close_code is None and (frame := read_frame(data, at)) is not None:
            first, payload, at = frame
            if first == _WHOLE_TEXT:
                self._on_text(payload)
            else:
                self._take_other(first, payload)
        self._received = data[at:]

    def _take_other(self, first: int, payload: bytes) -> None:
        """Take a fragment of a message or a control frame. Raises: ValueError."""
        kind = first & 0xF
        if first in (_TEXT, _MORE, _LAST | _MORE):
            self._parts.append(payload)
            if sum(map(len, self._parts)) > _MAX_BYTES:
                raise ValueError("message too long")
            if first & _LAST:
                message, self._parts = b"".join(self._parts), []
                self._on_text(message)
        elif kind == _PING:
            self._write(write_frame(_PONG, payload))
        elif kind == _CLOSE:
            self.close_code = int.from_bytes(payload[:2]) if len(payload) > 1 else _NO_CODE
            if not self._closing:
                self._closing = True
                self._write(write_frame(_CLOSE, payload[:2]))
            if self._transport is not None:
                self._transport.close()
        elif kind != _PONG:
            raise ValueError("reserved opcode or unexpected frame")

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
