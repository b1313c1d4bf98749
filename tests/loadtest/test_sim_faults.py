"""Faults are used up, seeded and checked."""

from typing import Any

import pytest

from loadtest.sim_faults import (
    Fault,
    Faults,
    GraphFault,
    WebhookFaults,
    read_graph_fault,
    read_webhook_faults,
)


def test_a_fault_is_used_up_by_its_action() -> None:
    faults = Faults()
    faults.order([GraphFault(fault=Fault.FAIL, action="accept", times=2)], None)
    assert faults.take("connect") is None
    assert faults.take("accept") is not None
    assert faults.take("accept") is not None
    assert faults.take("accept") is None


def test_a_star_matches_everything() -> None:
    faults = Faults()
    faults.order([GraphFault(fault=Fault.DELAY)], None)
    assert faults.take("settings") is not None


def test_the_same_seed_gives_the_same_fates() -> None:
    def fates(seed: int) -> list[Any]:
        faults = Faults()
        faults.order([], WebhookFaults(late=0.5, twice=0.5, reordered=0.5, lost=0.2, seed=seed))
        return [faults.fate() for _ in range(50)]

    assert fates(7) == fates(7)
    assert fates(7) != fates(8)


def test_without_faults_nothing_happens_to_a_webhook() -> None:
    fate = Faults().fate()
    assert (fate.lost, fate.late_s, fate.again_after_s, fate.overtaken_s) == (False, 0.0, None, None)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"fault": "explode"},
        {"fault": "fail", "times": 0},
        {"fault": "fail", "times": True},
        {"fault": "fail", "code": "138006"},
        {"fault": "fail", "status": 200},
        {"fault": "delay", "seconds": -1},
        {"fault": "delay", "seconds": "1"},
        {"fault": "fail", "what": 1},
    ],
)
def test_a_graph_fault_is_checked(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_graph_fault(data)


@pytest.mark.parametrize(
    "data", [{"late": 2}, {"lost": -0.1}, {"late_s": 1e9}, {"batch_s": 61}, {"seed": 1.5}, {"early": 1}]
)
def test_webhook_faults_are_checked(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_webhook_faults(data)
