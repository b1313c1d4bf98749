"""The private port says whether the gateway is alive and ready, and if not, why not."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway.common.metrics import Metrics
from gateway.http import admin as admin_module
from gateway.http.admin import MAX_LAG_S, admin_app, program_version
from media.engine import WorkerId
from tests.support.fakes.media import FakeMedia
from tests.support.fakes.memory_store import MemoryStore


class Admin:
    """The private port with everything behind it at hand."""

    def __init__(self) -> None:
        self.metrics, self.store, self.media = Metrics(), MemoryStore(), FakeMedia()
        self.store.heal()
        self.lag_s = 0.0
        self.calls_left: int | None = None
        self.degraded: list[str] = []
        self.spool_problem: str | None = None
        self.samples: list[int] = []
        app = admin_app(
            metrics=self.metrics,
            store=self.store,
            media=self.media,
            lag_s=lambda: self.lag_s,
            calls_left=lambda: self.calls_left,
            degraded=lambda: self.degraded,
            spool_problem=lambda: self.spool_problem,
            sample=lambda: self.samples.append(1),
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
        assert await admin.get("/readyz") == (200, {"status": "ready", "problems": [], "degraded": []})


async def test_what_does_not_work_is_told_without_taking_the_gateway_out_of_service() -> None:
    async with an_admin() as admin:
        admin.degraded = ["number 1: Meta refuses the access token"]
        body = {"status": "ready", "problems": [], "degraded": admin.degraded}
        assert await admin.get("/readyz") == (200, body)


async def test_not_ready_says_everything_that_is_missing() -> None:
    async with an_admin() as admin:
        admin.calls_left = 2
        admin.store.fail_with()
        admin.spool_problem = "full: the spool"
        admin.media.alive.clear()
        status, body = await admin.get("/readyz")
        assert (status, body["status"]) == (503, "not ready")
        assert [problem.split()[0] for problem in body["problems"]] == ["draining:", "the", "full:", "no"]


async def test_without_the_database_webhooks_are_still_taken_and_so_it_stays_in_the_load_balancer() -> None:
    async with an_admin() as admin:
        admin.store.fail_with()
        status, body = await admin.get("/readyz")
        assert (status, body["status"], body["problems"]) == (200, "ready", [])
        assert body["degraded"][0].startswith("the database does not answer")


async def test_without_the_spool_the_database_still_takes_webhooks() -> None:
    async with an_admin() as admin:
        admin.spool_problem = "the disk of the spool is full"
        assert await admin.get("/readyz") == (
            200,
            {"status": "ready", "problems": [], "degraded": ["the disk of the spool is full"]},
        )


async def test_the_figures_are_of_this_instant() -> None:
    async with an_admin() as admin:
        admin.media.alive.append(WorkerId(1))
        admin.store.fail_with()
        async with admin.client.get("/metrics") as response:
            text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "wacg_media_workers_alive 2.0" in text
        assert "wacg_store_up 0.0" in text
        assert "\nwacg_tasks " in text
        assert admin.samples == [1]


async def test_every_series_of_ours_begins_with_the_prefix() -> None:
    async with an_admin() as admin:
        ours = {one.name: one.labels for one in admin.metrics.described}
        for name, labels in ours.items():
            if labels:  # without values there is no series yet
                getattr(admin.metrics, name.removeprefix("wacg_")).labels(*labels)
        async with admin.client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
    shown = {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}
    assert {name for name in shown if not name.startswith(("process_", "python_"))} == {
        name for name in shown if name.startswith("wacg_")
    }
    assert {line.split()[2] for line in lines if line.startswith("# TYPE wacg_")} >= set(ours)
    assert all(any(one == name or one.startswith(f"{name}_") for one in shown) for name in ours)


async def test_the_version_is_told() -> None:
    async with an_admin() as admin:
        assert await admin.get("/version") == (200, {"version": program_version()})


def test_a_checkout_that_is_not_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(admin_module, "version", missing)
    assert program_version() == "0+checkout"
