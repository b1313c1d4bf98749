"""Serve the private port: health, readiness, metrics and version.

These routes are never on the public port. `/healthz` never touches the database; `/readyz` lists problems in words.
"""

import asyncio
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec
from aiohttp import web

from gateway.common.metrics import CONTENT_TYPE, Metrics
from gateway.store.store import Store
from media.engine import MediaEngine

#: An event loop that lags more than this is unhealthy.
MAX_LAG_S: Final = 1.0


def admin_app(
    *,
    metrics: Metrics,
    store: Store,
    media: MediaEngine,
    lag_s: Callable[[], float],
    calls_left: Callable[[], int | None],
    degraded: Callable[[], list[str]] = list,
    spool_problem: Callable[[], str | None] = lambda: "the spool is not open",
    sample: Callable[[], None] = lambda: None,
) -> web.Application:
    """Return the application of the private port.

    `lag_s`: the event loop's lag. `calls_left`: the number of live calls while the gateway drains, otherwise None.
    `degraded`: what does not work, in words, although webhooks and operators should still be sent here. `sample` is
    called before the metrics are shown.

    If only one of database and spool works, the gateway is degraded: it can still keep webhooks. If neither works, it
    is not ready.
    """

    async def healthz(request: web.Request) -> web.Response:
        lag = lag_s()
        return _json_response(
            {"status": "ok" if lag < MAX_LAG_S else "lagging", "loop_lag_s": round(lag, 4)}, lag < MAX_LAG_S
        )

    async def readyz(request: web.Request) -> web.Response:
        problems, worries = [], degraded()
        left = calls_left()
        if left is not None:
            problems.append(f"draining: {left} calls left, no new calls are taken")
        spool = spool_problem()
        if not await store.healthy():
            away = "the database does not answer, or its schema does not match this program: no calls to users"
            problems += [away, spool] if spool is not None else []
            worries += [away] if spool is None else []
        elif spool is not None:
            worries.append(spool)
        if not media.workers:
            problems.append("no media worker is alive")
        status = "not ready" if problems else "ready"
        return _json_response({"status": status, "problems": problems, "degraded": worries}, not problems)

    async def show_metrics(request: web.Request) -> web.Response:
        sample()
        metrics.store_up.set(store.up)
        metrics.tasks.set(len(asyncio.all_tasks()))
        metrics.media_workers_alive.set(len(media.workers))
        return web.Response(body=await metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def show_version(request: web.Request) -> web.Response:
        return _json_response({"version": program_version()}, True)

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", show_metrics),
            web.get("/version", show_version),
        ]
    )
    return app


def program_version() -> str:
    try:
        return version("whatsapp-call-gateway")
    except PackageNotFoundError:  # the program runs from a checkout that is not installed
        return "0+checkout"


def _json_response(data: object, good: bool) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), status=200 if good else 503, content_type="application/json")
