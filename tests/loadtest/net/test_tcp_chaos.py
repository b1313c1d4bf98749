"""The TCP proxy passes everything on, and breaks what it is told to break, whenever it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtest.common.guard import NotLoopback
from loadtest.net.tcp_chaos import Place, TcpChaos
from tests.support.harness.waiting import LOOP_GRAIN_S


@asynccontextmanager
async def echo(place: Place = ("127.0.0.1", 0)) -> AsyncIterator[Place]:
    """A server that repeats what it hears, and ends when its client does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            writer.close()
        except OSError:
            writer.transport.abort()

    if isinstance(place, Path):
        server = await asyncio.start_unix_server(serve, place)
    else:
        server = await asyncio.start_server(serve, *place)
        place = server.sockets[0].getsockname()[:2]
    try:
        yield place
    finally:
        server.close()


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, text: bytes, *, within_s: float = 5.0) -> bytes:
        """Send and return as much; less if the connection ends. Raises: TimeoutError."""
        self.writer.write(text)
        return await self.hear(len(text), within_s=within_s)

    async def hear(self, size: int, *, within_s: float = 5.0) -> bytes:
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.readexactly(size)
            except asyncio.IncompleteReadError as cut:
                return cut.partial
            except ConnectionError:
                return b""


@asynccontextmanager
async def through(proxy: TcpChaos, place: Path | None = None) -> AsyncIterator[Client]:
    if place is not None:
        reader, writer = await asyncio.open_unix_connection(place)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def proxied(**faults: float) -> AsyncIterator[TcpChaos]:
    async with echo() as target, TcpChaos(target) as proxy:
        for name, value in faults.items():
            setattr(proxy, name, value)
        yield proxy


async def test_everything_passes_unchanged() -> None:
    async with proxied() as proxy, through(proxy) as client:
        blob = bytes(range(256)) * 2_000
        assert await client.ask(blob) == blob
        assert proxy.connections == 1


async def test_a_unix_socket_is_served_as_well(tmp_path: Path) -> None:
    async with (
        echo(tmp_path / "far") as target,
        TcpChaos(target, listen=tmp_path / "near") as proxy,
        through(proxy, tmp_path / "near") as client,
    ):
        assert await client.ask(b"hello") == b"hello"
        await proxy.refuse()
        assert not (tmp_path / "near").exists()
        await proxy.open()
        async with through(proxy, tmp_path / "near") as again:
            assert await again.ask(b"hello") == b"hello"


async def test_the_end_of_one_side_is_passed_on() -> None:
    async with proxied() as proxy, through(proxy) as client:
        await client.ask(b"x")
        client.writer.write_eof()
        assert await client.hear(1) == b""


async def test_a_delay_holds_for_both_ways_and_keeps_the_order() -> None:
    async with proxied(delay_s=0.1, jitter_s=0.02) as proxy, through(proxy) as client:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        for part in (b"a", b"b", b"c"):
            client.writer.write(part)
            await asyncio.sleep(0.005)
        assert await client.hear(3) == b"abc"
        took_s = loop.time() - began_at
        assert took_s > 0.2 - 2 * LOOP_GRAIN_S  # there and back
        proxy.delay_s = proxy.jitter_s = 0.0
        assert await client.ask(b"quick", within_s=5) == b"quick"


async def test_a_drip_lets_so_much_through_in_a_second() -> None:
    async with proxied(bytes_per_s=10_000) as proxy, through(proxy) as client:
        began_at = asyncio.get_running_loop().time()
        assert len(await client.ask(b"x" * 3_000)) == 3_000
        assert asyncio.get_running_loop().time() - began_at > 0.25


async def test_a_silence_keeps_connections_and_loses_nothing() -> None:
    async with proxied() as proxy, through(proxy) as client:
        proxy.silence()
        with pytest.raises(TimeoutError):
            await client.ask(b"hello", within_s=0.1)
        proxy.speak()
        assert await client.hear(5) == b"hello"


async def test_only_the_answer_to_some_words_can_be_kept_back() -> None:
    async with proxied() as proxy, through(proxy) as client:
        proxy.silence_answer_to(b"commit")
        assert await client.ask(b"begin") == b"begin"
        with pytest.raises(TimeoutError):
            await client.ask(b"commit", within_s=0.1)
        proxy.speak()
        assert await client.hear(6) == b"commit"


async def test_a_cut_ends_every_connection_and_takes_new_ones() -> None:
    async with proxied() as proxy, through(proxy) as one, through(proxy) as other:
        await one.ask(b"x"), await other.ask(b"x")
        proxy.cut()
        assert (await one.hear(1), await other.hear(1)) == (b"", b"")
        async with through(proxy) as again:
            assert await again.ask(b"x") == b"x"


async def test_a_cut_at_some_words_happens_once_and_the_words_do_not_arrive() -> None:
    async with proxied() as proxy:
        proxy.cut_at(b"commit")
        async with through(proxy) as client:
            assert await client.ask(b"commit") == b""
        async with through(proxy) as client:
            assert await client.ask(b"commit") == b"commit"


async def test_a_share_of_what_is_asked_is_cut_by_the_seed() -> None:
    async def answers(seed: int) -> list[bytes]:
        said = []
        async with echo() as target, TcpChaos(target, seed=seed) as proxy:
            proxy.cut_share = 0.5
            for _ in range(20):
                async with through(proxy) as client:
                    said.append(await client.ask(b"x"))
            assert proxy.cuts == said.count(b"")
        return said

    first = await answers(1)
    assert set(first) == {b"", b"x"}
    assert await answers(1) == first


async def test_refused_means_that_nobody_is_there_until_it_opens_again() -> None:
    async with proxied() as proxy, through(proxy) as client:
        await client.ask(b"x")
        port = proxy.port
        await proxy.refuse()
        assert await client.hear(1) == b""
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.open()
        assert proxy.port == port
        async with through(proxy) as again:
            assert await again.ask(b"x") == b"x"


async def test_a_server_that_is_away_cuts_the_client() -> None:
    async with echo() as target:
        pass
    async with TcpChaos(target) as proxy, through(proxy) as client:
        assert await client.ask(b"x") == b""


async def test_closing_does_not_wait_for_a_long_delay() -> None:
    async with proxied(delay_s=60.0) as proxy, through(proxy) as client:
        client.writer.write(b"x")
        await asyncio.sleep(0.05)
        async with asyncio.timeout(2):
            await proxy.close()
            await proxy.close()


def test_it_stays_on_this_machine() -> None:
    with pytest.raises(NotLoopback):
        TcpChaos(("192.0.2.1", 80))
    with pytest.raises(NotLoopback):
        TcpChaos(("127.0.0.1", 80), listen=("0.0.0.0", 0))


async def lost(proxy: TcpChaos, *, waits: bool) -> int:
    """Hand in 30 words through a proxy that cuts; return how many that were called kept did not arrive."""
    called_kept = arrived = 0
    proxy.cut_share = 0.3
    for _ in range(30):
        async with through(proxy) as client:
            client.writer.write(b"x")
            if not waits:  # the mistake: what was sent is taken for what was kept
                called_kept += 1
            answered = await client.hear(1) == b"x"
            called_kept += waits and answered
            arrived += answered
    return called_kept - arrived


async def test_a_client_that_takes_sent_for_kept_would_be_seen() -> None:
    async with proxied() as proxy:
        assert await lost(proxy, waits=True) == 0
        assert await lost(proxy, waits=False) > 0
