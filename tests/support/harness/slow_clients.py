"""Clients that hold a connection for as long as the server lets them: every way of being slow, over plain sockets."""

import asyncio
from contextlib import suppress
from enum import Enum

_HOST = "Host: 127.0.0.1\r\n"
_JSON = "Content-Type: application/json\r\n"
_BODY = f"{_HOST}{_JSON}Content-Length: 1000\r\n\r\n"


class Slow(Enum):
    """What is sent at once; what follows comes a byte at a time, and never ends."""

    SILENT = ""
    HEADERS = f"GET / HTTP/1.1\r\n{_HOST}X-Slow: "
    SECOND_HEADERS = f"GET /openapi.json HTTP/1.1\r\n{_HOST}\r\nGET / HTTP/1.1\r\n{_HOST}X-Slow: "
    WEBHOOK_BODY = f"POST /webhooks/meta HTTP/1.1\r\n{_BODY}"
    CHUNKED_BODY = f"POST /webhooks/meta HTTP/1.1\r\n{_HOST}Transfer-Encoding: chunked\r\n\r\n3e7\r\n"
    TICKET_BODY = f"POST /v1/tickets HTTP/1.1\r\n{_BODY}"
    UNREAD_BODY = f"POST /v1/numbers/1/refresh HTTP/1.1\r\n{_BODY}"
    NO_HELLO = (
        f"GET /v1/softphone HTTP/1.1\r\n{_HOST}Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )


async def held_s(port: int, slow: Slow, *, drip_s: float = 0.5, patience_s: float) -> float:
    """Hold a connection and return after how many seconds the server closed it, or `patience_s` if it did not."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began_at = loop.time()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s), asyncio.TaskGroup() as tasks:
                dripping = tasks.create_task(_drip(writer, slow, drip_s))
                with suppress(ConnectionError):
                    while await reader.read(65_536):
                        pass
                dripping.cancel()
        return loop.time() - began_at
    finally:
        writer.transport.abort()


async def _drip(writer: asyncio.StreamWriter, slow: Slow, drip_s: float) -> None:
    """Send the beginning, then a byte now and then; a WebSocket says nothing more (a byte would break its frames)."""
    with suppress(ConnectionError):
        writer.write(slow.value.encode())
        while True:
            await asyncio.sleep(drip_s)
            if slow not in (Slow.SILENT, Slow.NO_HELLO):
                writer.write(b"x")
