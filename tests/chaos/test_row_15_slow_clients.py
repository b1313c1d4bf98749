"""Clients that are slow on purpose hold a socket for 15 s at most, and nobody else notices them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from gateway import app as gateway_app
from gateway.softphone import server
from loadtest.loads.generator import SignedWebhooks, open_loop, percentile
from loadtest.measure.stack import Stack, StackConfig
from loadtest.simulator.config import NumberSpec, SimConfig, UserSpec
from tests.support.harness.chaos import Chaos, Scale
from tests.support.harness.doors import doors
from tests.support.harness.slow_clients import Slow, held_s
from tests.support.harness.world import APP_SECRET, a_world

PROMISE = "A slow client holds at most one socket for 15 s, and the others are served as before"
NUMBER: Final[NumberSpec] = SimConfig().numbers[0]
SENDER: Final = UserSpec(wa_id="5511900000001", name="Ana")

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"])]


@asynccontextmanager
async def small(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[int, SignedWebhooks]]:
    """The doors in this process, with every wait a twentieth of the real one."""
    monkeypatch.setattr(gateway_app, "KEEPALIVE_S", 0.75)
    monkeypatch.setattr(gateway_app, "LINGER_S", 0.1)
    monkeypatch.setattr(server, "CLOSE_S", 0.1)
    async with a_world() as world, doors(world, body_s=0.25, hello_s=0.25) as opened, AsyncExitStack() as stack:
        port = await gateway_app._listen(stack, opened.app_again(), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{port}/webhooks/meta"
        yield port, await stack.enter_async_context(SignedWebhooks(url, app_secret=APP_SECRET, number=NUMBER))


@asynccontextmanager
async def real(tmp_path: Path, database: str) -> AsyncIterator[tuple[int, SignedWebhooks]]:
    """A gateway process as users run it."""
    environment = {"GATEWAY_DATABASE_URL": database, "GATEWAY_LOG_LEVEL": "warning"}
    config = StackConfig(port=0, admin_port=0, sim_port=0, data_dir=tmp_path, null_media=True, environment=environment)
    async with Stack(config) as stack:
        number, secret = stack.sim.number.spec, stack.sim.config.app_secret
        async with SignedWebhooks(f"{stack.url}/webhooks/meta", app_secret=secret, number=number) as webhooks:
            yield stack.port, webhooks


@pytest.mark.row(15, PROMISE)
async def test_slow_clients(chaos: Chaos, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each, limit_s = chaos.size(test=3, short=60, long=125), chaos.size(test=1.5, short=15.5, long=15.5)
    rate, seconds = chaos.size(test=50, short=100, long=200), chaos.size(test=1, short=18, long=18)
    opened = small(monkeypatch) if chaos.scale is Scale.TEST else real(tmp_path, database)
    async with opened as (port, webhooks), asyncio.TaskGroup() as tasks:
        holding = [
            tasks.create_task(held_s(port, slow, drip_s=limit_s / 30, patience_s=2 * limit_s))
            for slow in Slow
            for _ in range(each)
        ]
        shots = await open_loop(
            lambda _: webhooks.post([webhooks.message(SENDER)]),
            rate_per_s=rate,
            count=rate * seconds,
            seed=chaos.seed,
        )
        held = await asyncio.gather(*holding)
    chaos.note("slow clients", len(held))
    chaos.promise("longest that one was held", max(held), at_most=limit_s, unit="s")
    chaos.note("normal requests", len(shots))
    chaos.promise("normal requests that were not served", sum(shot.status != 200 for shot in shots), at_most=0)
    p99 = percentile([shot.took_s for shot in shots], 0.99)
    chaos.promise("p99 of a normal request", p99 * 1_000, at_most=250, unit="ms", timed=True)


async def test_a_server_without_time_limits_would_be_seen() -> None:
    """As aiohttp comes: an hour for headers, and for a body as long as it takes."""

    async def read(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/webhooks/meta", read)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        for slow in (Slow.HEADERS, Slow.WEBHOOK_BODY):
            assert await held_s(port, slow, drip_s=0.05, patience_s=1.6) >= 1.5
    finally:
        await runner.cleanup()
