"""`make run` as a user runs it: it comes up, a call connects, Ctrl-C leaves nothing behind."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from loadtest.operators.softphone_bot import SoftphoneBot

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.timeout(90), pytest.mark.asyncio(loop_factories=["asyncio"])]


@asynccontextmanager
async def started(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command of ours; a test that fails leaves none of its processes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/nonexistent", "COLUMNS": "200", **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """Return what the process printed up to and including the line with this text."""
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(60):
        while text not in said:
            line = (await process.stdout.readline()).decode()
            assert line, f"it ended early and said: {said}"
            said += line
    return said


@pytest.fixture
def temporary() -> Iterator[str]:
    """A temporary folder for the demo alone, with a path short enough for a socket; in the end nothing is in there."""
    with tempfile.TemporaryDirectory() as own:
        yield own
        assert os.listdir(own) == []


async def test_the_demo_connects_a_call_and_stops_without_a_trace(temporary: str) -> None:
    ports = ("--port", "0", "--admin-port", "0", "--sim-port", "0")
    # Somebody's real gateway: nothing of it may be touched.
    real = {"DATABASE_URL": "postgresql://192.0.2.1/calls", "GATEWAY_CONFIG": "/nowhere", "GATEWAY_API_KYE": "x"}
    async with started("-m", "loadtest", "demo", *ports, TMPDIR=temporary, **real) as process:
        said = await read_until(process, "Ctrl-C")
        assert "Ignored, because the demo has its own settings: DATABASE_URL, GATEWAY_API_KYE, GATEWAY_CONFIG" in said
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("media.worker" in " ".join(child.cmdline()) for child in family)
        page, user_page = re.findall(r"http://127\.0\.0\.1:\d+/ ", said)
        keys = dict(re.findall(r"(\w+) with key (\S+)", said))
        assert list(keys) == ["davi", "elena"]
        port, user_port = (re.findall(r":(\d+)/", url)[0] for url in (page, user_page))
        assert f"ssh -L {port}:127.0.0.1:{port} -L {user_port}:127.0.0.1:{user_port} " in said
        bot = SoftphoneBot(page.strip(), operator="elena", key=keys["elena"])
        async with aiohttp.ClientSession() as http:
            await bot.start()
            async with http.post(f"{user_page.strip()}sim/users/5511900000001/call", json={}) as answer:
                assert answer.status == 200
            incoming = await bot.wait_push("incoming")
            await bot.request("accept", call_id=incoming["call"]["call_id"])
            await bot.wait_call(incoming["call"]["call_id"], "active")
            await bot.close()
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert len(gone) == len(family)


async def test_settings_that_cannot_work_are_all_named_at_once() -> None:
    async with started("-m", "gateway", "serve", GATEWAY_PORT="http", GATEWAY_API_KYE="x") as process:
        out, _ = await process.communicate()
        said = out.decode()
        assert process.returncode == 2
        for name in (
            "GATEWAY_APP_SECRET",
            "GATEWAY_VERIFY_TOKEN",
            "GATEWAY_NUMBERS",
            "GATEWAY_PORT",
            "GATEWAY_API_KEY",
        ):
            assert name in said
        assert "Traceback" not in said


async def test_a_port_that_is_taken_is_a_clear_error(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    taken = server.sockets[0].getsockname()[1]
    try:
        settings = {
            "GATEWAY_APP_SECRET": "app-secret",
            "GATEWAY_VERIFY_TOKEN": "verify",
            "GATEWAY_ACCESS_TOKEN": "token",
            "GATEWAY_PHONE_NUMBER_ID": "200000000000002",
            "GATEWAY_PHONE_NUMBER": "+551155550100",
            "GATEWAY_OPERATORS": '{"ana": "long-enough"}',
            "GATEWAY_GRAPH_URL": "http://127.0.0.1:9/v26.0",
            "GATEWAY_DATA_DIR": str(tmp_path),
            "GATEWAY_MEDIA_BIND_ADDRESS": "127.0.0.1",
            "GATEWAY_MEDIA_PORTS": "0",
            "GATEWAY_PORT": str(taken),
            "GATEWAY_ADMIN_PORT": "0",
        }
        async with started("-m", "gateway", "serve", **settings) as process:
            out, _ = await process.communicate()
            assert process.returncode == 1
            assert f"Cannot listen on 127.0.0.1:{taken}" in out.decode()
            assert "Traceback" not in out.decode()
    finally:
        server.close()
        await server.wait_closed()
