"""Faults are used up, seeded and checked."""

from collections import Counter
from typing import Any

import pytest

from loadtest.simulator.faults import (
    Fault,
    Faults,
    GraphFault,
    GraphFaults,
    WebhookFaults,
    read_graph_fault,
    read_graph_shares,
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
    "data",
    [
        {"late": 2},
        {"lost": -0.1},
        {"late_s": 1e9},
        {"batch_s": 61},
        {"batch": 1_001},
        {"batch": 1.5},
        {"seed": 1.5},
        {"early": 1},
    ],
)
def test_webhook_faults_are_checked(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_webhook_faults(data)


def test_batches_are_of_all_sizes_up_to_the_most_and_the_same_again_with_the_same_seed() -> None:
    def sizes(seed: int) -> list[int | None]:
        faults = Faults()
        faults.order([], WebhookFaults(batch_s=1, batch=4, seed=seed))
        return [faults.batch() for _ in range(100)]

    assert set(sizes(7)) == {1, 2, 3, 4}
    assert sizes(7) == sizes(7) != sizes(8)
    assert Faults().batch() is None


def thrown(shares: GraphFaults, count: int = 4_000, action: str = "connect") -> Counter[Fault | None]:
    faults = Faults()
    faults.order([], None, shares)
    taken = [faults.take(action) for _ in range(count)]
    return Counter(fault.fault if fault else None for fault in taken)


def test_shares_of_graph_requests_fail_as_often_as_told() -> None:
    found = thrown(GraphFaults(fail=0.3, hang=0.1, cut_before=0.02, cut_after=0.05, seed=7))
    assert found[Fault.FAIL] == pytest.approx(1_200, rel=0.1)
    assert found[Fault.DELAY] + found[Fault.STALL] == pytest.approx(400, rel=0.2)
    assert found[Fault.DELAY] == pytest.approx(found[Fault.STALL], rel=0.3)  # every other one was carried out
    assert found[Fault.CUT_BEFORE] == pytest.approx(80, rel=0.4)
    assert found[Fault.CUT_AFTER] == pytest.approx(200, rel=0.3)
    assert found[None] == pytest.approx(2_120, rel=0.1)


def test_shares_are_seeded_and_may_be_for_one_action() -> None:
    one, other = (thrown(GraphFaults(fail=0.5, seed=seed), 100) for seed in (1, 1))
    assert one == other != thrown(GraphFaults(fail=0.5, seed=2), 100)
    assert thrown(GraphFaults(fail=1.0, action="connect"), 10, "terminate") == {None: 10}


def test_an_ordered_fault_comes_before_the_dice_and_clearing_stops_both() -> None:
    faults = Faults()
    faults.order([GraphFault(fault=Fault.FAIL, code=190)], None, GraphFaults(fail=1.0, code=131016))
    assert [fault.code for fault in (faults.take("connect"), faults.take("connect")) if fault] == [190, 131016]
    assert faults.described()["graph_shares"]["fail"] == 1.0
    faults.clear()
    assert faults.take("connect") is None


@pytest.mark.parametrize(
    "data", [{"fail": 2}, {"fail": 0.6, "hang": 0.6}, {"hang": "1"}, {"hang_s": -1}, {"seed": 1.5}, {"late": 1}]
)
def test_shares_of_graph_faults_are_checked(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_graph_shares(data)
