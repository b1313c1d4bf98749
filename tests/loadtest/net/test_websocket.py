"""The generator's WebSocket client: frames as RFC 6455 has them, and every way in which one ends."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import WSMsgType, web
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure.stack import free_port
from loadtest.net import websocket
from loadtest.net.websocket import WebSocket, read_frame, write_frame
from tests.loadtest.helpers import until

TEXT, PING, PONG, CLOSE = 0x81, 0x89, 0x8A, 0x88


def frame(payload: bytes, first: int = TEXT) -> bytes:
    """Return a frame as a server sends it: not masked."""
    length = len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 1 << 16:
        return bytes((first, 126)) + length.to_bytes(2) + payload
    return bytes((first, 127)) + length.to_bytes(8) + payload


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20])
def test_a_frame_is_read_once_all_of_it_is_there(length: int) -> None:
    payload = b"x" * length
    data = frame(payload)
    assert read_frame(b"before" + data + b"behind", 6) == (TEXT, payload, 6 + len(data))
    for missing in (1, length // 2 + 1, length + 1, length + 2):
        assert read_frame(data[:-missing] if missing < len(data) else b"", 0) is None


@pytest.mark.parametrize("data", [bytes((TEXT, 0x81)), frame(b"", TEXT)[:1] + b"\x7f" + ((1 << 20) + 1).to_bytes(8)])
def test_a_frame_that_must_not_be_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"masked|long"):
        read_frame(data, 0)


@given(st.binary(max_size=70_000))
def test_what_is_written_is_masked_and_whole(payload: bytes) -> None:
    data = write_frame(0x1, payload)
    assert data[0] == TEXT
    assert data[1] & 0x80
    size = {126: 2, 127: 8}.get(data[1] & 0x7F, 0)
    length = int.from_bytes(data[2 : 2 + size]) if size else data[1] & 0x7F
    key, masked = data[2 + size : 6 + size], data[6 + size :]
    assert len(masked) == length == len(payload)
    assert bytes(byte ^ key[index % 4] for index, byte in enumerate(masked)) == payload


# --- against a usual server ----------------------------------------------------------------------


class Heard:
    """What a client was told."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.lost: list[WebSocket] = []

    async def connect(self, url: str) -> WebSocket:
        return await WebSocket.connect(url, subprotocol="calls.v1", on_text=self.texts.append, on_lost=self.lost.append)


@asynccontextmanager
async def usual(
    talk: Callable[[web.WebSocketResponse], Awaitable[None]], *, status: int | None = None
) -> AsyncIterator[str]:
    async def serve(request: web.Request) -> web.StreamResponse:
        if status is not None:
            return web.json_response({"code": "no"}, status=status)
        ws = web.WebSocketResponse(protocols=["calls.v1"], heartbeat=0.05)
        await ws.prepare(request)
        assert ws.ws_protocol == "calls.v1"
        await talk(ws)
        return ws

    app = web.Application()
    app.add_routes([web.get("/v1/softphone", serve)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/softphone"
    finally:
        await runner.cleanup()


async def echo(ws: web.WebSocketResponse) -> None:
    async for message in ws:
        assert message.type is WSMsgType.TEXT
        await ws.send_str(message.data)


async def test_messages_of_every_size_go_both_ways() -> None:
    heard = Heard()
    async with usual(echo) as url:
        ws = await heard.connect(url)
        sent = ["x" * length for length in (0, 1, 125, 126, 65_535, 65_536, 300_000)] + ["olá"]
        for text in sent:
            ws.send_text(text.encode())
        await until(lambda: len(heard.texts) == len(sent))
        assert [text.decode() for text in heard.texts] == sent
        await ws.close()
        assert (ws.closed, ws.close_code, heard.lost) == (True, 1000, [ws])
        await ws.close()
        with pytest.raises(ConnectionError):
            ws.send_text(b"too late")


async def test_pings_are_answered() -> None:
    """The server's heartbeat would end the WebSocket otherwise."""
    heard = Heard()
    async with usual(echo) as url:
        ws = await heard.connect(url)
        await asyncio.sleep(0.3)
        assert not ws.closed
        ws.send_text(b"still here")
        await until(lambda: heard.texts == [b"still here"])
        await ws.close()


async def test_a_server_that_closes_is_answered_and_its_code_kept() -> None:
    heard, answered = Heard(), asyncio.Event()

    async def leave(ws: web.WebSocketResponse) -> None:
        await ws.send_str("bye")
        assert await ws.close(code=4401, message=b"no such session")
        assert ws.close_code == 4401  # of our answer
        answered.set()

    async with usual(leave) as url:
        ws = await heard.connect(url)
        await until(lambda: heard.lost == [ws])
        assert (ws.close_code, ws.closed, heard.texts) == (4401, True, [b"bye"])
        await answered.wait()


@pytest.mark.parametrize("status", [200, 401, 503])
async def test_an_upgrade_that_is_refused_says_how(status: int) -> None:
    heard = Heard()
    async with usual(echo, status=status) as url:
        with pytest.raises(ConnectionError, match=str(status)):
            await heard.connect(url)
    assert heard.lost == []


async def test_nobody_listening_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await Heard().connect(f"http://127.0.0.1:{free_port()}/")


# --- against a server that does as it likes --------------------------------------------------------


@asynccontextmanager
async def odd(
    *said: bytes, accept: bool = True, then_close: bool = False, polite: bool = True
) -> AsyncIterator[tuple[str, bytearray]]:
    """Yield where to connect, and what the client has sent after the upgrade."""
    received = bytearray()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        key = head.partition(b"Sec-WebSocket-Key: ")[2].split(b"\r\n")[0] if accept else b"another"
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
        upgrade = b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-ACCEPT: " + base64.b64encode(digest) + b"\r\n\r\n"
        for part in (upgrade + said[0], *said[1:]) if said else (upgrade,):
            writer.write(part)
            await asyncio.sleep(0.002)
        if not then_close:
            while more := await reader.read(1 << 16):
                received.extend(more)
                if polite and more[0] == CLOSE:
                    break
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/", received
    finally:
        listener.close()
        await until(lambda: all(writer.is_closing() for writer in writers))


async def test_messages_may_come_with_the_upgrade_together_and_in_pieces() -> None:
    heard = Heard()
    pieces = [bytes((byte,)) for byte in frame(b"slowly")]
    async with odd(frame(b"one") + frame(b"two") + frame(b"three")[:4], frame(b"three")[4:], *pieces) as (url, _):
        ws = await heard.connect(url)
        await until(lambda: len(heard.texts) == 4)
        assert heard.texts == [b"one", b"two", b"three", b"slowly"]
        await ws.close()


async def test_a_message_in_several_frames_is_one() -> None:
    heard = Heard()
    async with odd(frame(b"a", 0x01), frame(b"ping", PING) + frame(b"b", 0x00), frame(b"c", 0x80)) as (url, received):
        ws = await heard.connect(url)
        await until(lambda: heard.texts == [b"abc"])
        await until(lambda: len(received) == len(write_frame(0xA, b"ping")))
        assert received[0] == PONG
        await ws.close()


@pytest.mark.parametrize(
    "said",
    [
        bytes((TEXT, 0x80)),
        frame(b"binary", 0x82),
        frame(b"compressed", 0xC1),
        frame(b"x" * (1 << 20), 0x01) + frame(b"x", 0x80),
    ],
)
async def test_what_was_not_agreed_upon_ends_it(said: bytes) -> None:
    heard = Heard()
    async with odd(said) as (url, _):
        ws = await heard.connect(url)
        await until(lambda: heard.lost == [ws])
        assert (ws.close_code, heard.texts) == (1006, [])


async def test_a_server_that_goes_without_a_word() -> None:
    heard = Heard()
    async with odd(then_close=True) as (url, _):
        ws = await heard.connect(url)
        await until(lambda: heard.lost == [ws])
        assert (ws.close_code, ws.closed) == (1006, True)


async def test_a_close_without_a_code() -> None:
    heard = Heard()
    async with odd(frame(b"", CLOSE) + frame(b"too late")) as (url, received):
        ws = await heard.connect(url)
        await until(lambda: heard.lost == [ws])
        assert (ws.close_code, heard.texts) == (1005, [])
        assert received[:2] == bytes((CLOSE, 0x80))


async def test_a_server_that_does_not_close_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_CLOSE_S", 0.05)
    heard = Heard()
    async with odd(polite=False) as (url, received):
        ws = await heard.connect(url)
        await ws.close()
        assert (ws.close_code, heard.lost, received[0]) == (1006, [ws], CLOSE)


async def test_an_answer_to_another_key_is_refused() -> None:
    async with odd(accept=False) as (url, _):
        with pytest.raises(ConnectionError):
            await Heard().connect(url)


async def test_an_upgrade_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_OPEN_S", 0.05)
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        gone.set()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    with pytest.raises(TimeoutError):
        await Heard().connect(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/")
    await gone.wait()
    listener.close()
