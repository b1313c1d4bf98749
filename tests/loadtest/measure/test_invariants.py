"""Whatever a gateway leaves behind is named."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.measure.invariants import Before, invariants
from loadtest.measure.stack import free_port
from loadtest.simulator.meta_sim import MetaSim
from loadtest.simulator.state import ViolationKind
from tests.loadtest.helpers import ANA, running

CLEAN = {"wacg_calls_active": 0.0, "wacg_slots_in_use": 0.0, "wacg_softphones_connected": 0.0, "wacg_tasks": 10.0}


def a_stack(sim: MetaSim, **figures: float) -> Any:
    async def metrics() -> dict[str, float]:
        return CLEAN | figures

    return SimpleNamespace(sim=sim, metrics=metrics, gateway_pid=os.getpid(), port=free_port())


async def broken(stack: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("loadtest.measure.invariants._SETTLE_S", 0.0)
    return [check.name for check in await invariants(stack, Before(tasks=10)) if not check.kept]


async def test_a_gateway_that_left_nothing_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as sim:
        assert await broken(a_stack(sim), monkeypatch) == []


@pytest.mark.parametrize(
    ("series", "value", "name"),
    [
        ('wacg_calls_active{direction="USER_INITIATED",number="1"}', 1, "calls left"),
        ('wacg_slots_in_use{direction="USER_INITIATED",number="1"}', 1, "slots left"),
        ("wacg_softphones_connected", 1, "softphones left"),
        ("wacg_tasks", 11, "tasks"),
        ('wacg_store_dropped_total{kind="x"}', 1, "changes that were never written"),
    ],
)
async def test_what_it_left_is_named(monkeypatch: pytest.MonkeyPatch, series: str, value: float, name: str) -> None:
    async with running() as sim:
        assert await broken(a_stack(sim, **{series: value}), monkeypatch) == [name]


async def test_what_meta_saw_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as sim:
        sim.world.violate(ViolationKind.RUNG_TWICE, "c1", "")
        sim.world.violate(ViolationKind.MEDIA_BEFORE_ACCEPT, "c1", "")
        sim.world.refused.update({138012: 2, 100: 5})
        sim.user(ANA).call()
        assert await broken(a_stack(sim), monkeypatch) == [
            "calls that Meta still considers live",
            "calls rung twice",
            "other rules of Meta broken",
            "requests above one of Meta's limits",
        ]
