"""The private port says whether the gateway is alive and ready, and if not, why not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway import admin as admin_module
from gateway.admin import MAX_LAG_S, admin_app, program_version
from gateway.metrics import Metrics
from media.engine import WorkerId
from tests.support.fake_media import FakeMedia
from tests.support.memory_store import MemoryStore


class Admin:
    """The private port with everything behind it at hand."""

    def __init__(self) -> None:
        self.metrics, self.store, self.media = Metrics(), MemoryStore(), FakeMedia()
        self.store.heal()
        self.lag_s = 0.0
        self.draining = False
        app = admin_app(
            metrics=self.metrics,
            store=self.store,
            media=self.media,
            lag_s=lambda: self.lag_s,
            draining=lambda: self.draining,
        )
        self.client: Any = TestClient(TestServer(app, host="127.0.0.1"))

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(path) as response:
            return response.status, await response.json()


@asynccontextmanager
async def an_admin() -> AsyncIterator[Admin]:
    admin = Admin()
    async with admin.client:
        yield admin


@pytest.mark.parametrize(
    ("lag_s", "status", "word"), [(0.0, 200, "ok"), (0.99, 200, "ok"), (MAX_LAG_S, 503, "lagging")]
)
async def test_alive_is_a_loop_that_runs(lag_s: float, status: int, word: str) -> None:
    async with an_admin() as admin:
        admin.lag_s = lag_s
        admin.store.fail_with()  # never asked
        assert await admin.get("/healthz") == (status, {"status": word, "loop_lag_s": lag_s})


async def test_ready_is_everything_that_a_call_needs() -> None:
    async with an_admin() as admin:
        assert await admin.get("/readyz") == (200, {"status": "ready", "problems": []})


async def test_not_ready_says_everything_that_is_missing() -> None:
    async with an_admin() as admin:
        admin.draining = True
        admin.store.fail_with()
        admin.media.alive.clear()
        status, body = await admin.get("/readyz")
        assert (status, body["status"]) == (503, "not ready")
        assert [problem.split()[0] for problem in body["problems"]] == ["draining:", "the", "no"]


async def test_the_figures_are_of_this_instant() -> None:
    async with an_admin() as admin:
        admin.media.alive.append(WorkerId(1))
        admin.store.fail_with()
        async with admin.client.get("/metrics") as response:
            text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "media_workers_alive 2.0" in text
        assert "store_up 0.0" in text


async def test_the_version_is_told() -> None:
    async with an_admin() as admin:
        assert await admin.get("/version") == (200, {"version": program_version()})


def test_a_checkout_that_is_not_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(admin_module, "version", missing)
    assert program_version() == "0+checkout"
