"""The private port: is it alive, is it ready, what are its figures.

Never on the public port. `/healthz` never touches the database; `/readyz` says in words why not.
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

#: A loop that lags more than this is not healthy.
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
    """Return the application of the private port. `calls_left` is None unless the gateway drains.

    `degraded` says what does not work though the gateway should go on being sent webhooks and operators. So does a
    database that is away as long as the spool takes webhooks, and a spool that takes none as long as the database does:
    not ready is who can keep nothing. `sample` is called before the figures are shown.
    """

    async def healthz(request: web.Request) -> web.Response:
        lag = lag_s()
        return _json({"status": "ok" if lag < MAX_LAG_S else "lagging", "loop_lag_s": round(lag, 4)}, lag < MAX_LAG_S)

    async def readyz(request: web.Request) -> web.Response:
        problems, worries = [], degraded()
        left = calls_left()
        if left is not None:
            problems.append(f"draining: {left} calls left, no new ones are taken")
        spool = spool_problem()
        if not await store.healthy():
            away = "the database does not answer, or its schema is not the program's: no calls to users"
            problems += [away, spool] if spool is not None else []
            worries += [away] if spool is None else []
        elif spool is not None:
            worries.append(spool)
        if not media.workers:
            problems.append("no media worker is alive")
        status = "not ready" if problems else "ready"
        return _json({"status": status, "problems": problems, "degraded": worries}, not problems)

    async def show_metrics(request: web.Request) -> web.Response:
        sample()
        metrics.store_up.set(store.up)
        metrics.tasks.set(len(asyncio.all_tasks()))
        metrics.media_workers_alive.set(len(media.workers))
        return web.Response(body=await metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def show_version(request: web.Request) -> web.Response:
        return _json({"version": program_version()}, True)

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
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+checkout"


def _json(data: object, good: bool) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), status=200 if good else 503, content_type="application/json")
