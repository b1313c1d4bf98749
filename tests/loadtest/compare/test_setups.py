"""Set-ups are counted, timed and charged, and a ramp ends where a peer no longer holds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from loadtest.compare import setups
from loadtest.compare.desk import Desk, desk
from loadtest.compare.peers import PEERS_OF_CALLS, Target, running
from loadtest.compare.results import Row
from loadtest.compare.setups import SETUPS, WORLD, Offered, Rate, offer
from loadtest.measure.process import Cores
from loadtest.simulator.config import Limits, crowd
from loadtest.simulator.faults import Fault, GraphFault
from tests.loadtest.helpers import answer_sdp
from tests.support.fakes.webhook_peer import Flaw, webhook_peer

ANYWHERE = Cores(generator=frozenset(), gateway=frozenset())
SMALL: dict[str, Any] = WORLD | {"users": crowd(50), "silent": True}
FLOOR = PEERS_OF_CALLS[-1]


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charge a peer that is no process with 2 ms a call, its other processes with 1 ms more."""
    spent = iter([(1.0, 1.0), (1.02, 1.03)])
    monkeypatch.setattr(Target, "cpu_s", lambda self: next(spent))


async def offered(flaw: Flaw | None = None, *, sdp: str | None = None, count: int = 10) -> Offered:
    async with webhook_peer(sdp or answer_sdp(), flaw, **SMALL) as target, desk(target) as at:
        found = await offer(at, Rate(per_s=100, count=count, talk_s=0.01), 3)
        assert at.sim.world.live_calls() == []
        assert await target.live() == 0
    return found


@pytest.mark.usefixtures("no_process")
async def test_calls_are_answered_timed_and_charged() -> None:
    found = await offered()
    assert (found.lost, found.connected, len(found.acks)) == (0, 10, 10)
    assert found.held
    figures = found.figures()
    assert figures["cpu_ms"] == pytest.approx(2)
    assert figures["all_cpu_ms"] == pytest.approx(3)
    assert figures["per_s"] == pytest.approx(500)
    assert 0 < figures["accept_p50_ms"] <= figures["accept_p99_ms"] < 1_000
    assert 0 < figures["ack_p50_ms"] <= figures["ack_p99_ms"] < 1_000


@pytest.mark.usefixtures("no_process")
async def test_an_ack_that_waits_for_graph_is_seen() -> None:
    async with webhook_peer(answer_sdp(), Flaw.ANSWERS_LATE, **SMALL) as target, desk(target) as at:
        at.order(GraphFault(fault=Fault.DELAY, action="accept", times=5, seconds=0.2))
        found = await offer(at, Rate(per_s=100, count=5, talk_s=0.0), 3)
    assert min(found.acks) >= 200


@pytest.mark.usefixtures("no_process")
async def test_calls_that_are_not_answered_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setups, "_PATIENCE_S", 0.1)
    found = await offered(sdp="no SDP", count=3)
    assert (found.lost, found.held, found.accepts) == (3, False, {})
    assert "accept_p50_ms" not in found.figures()


@pytest.mark.usefixtures("no_process")
async def test_calls_that_meta_does_not_let_through_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALL, "limits", Limits(concurrent_in=1))
    async with webhook_peer(answer_sdp(), None, **SMALL) as target, desk(target) as at:
        at.order(GraphFault(fault=Fault.DELAY, action="pre_accept", times=10, seconds=0.2))
        found = await offer(at, Rate(per_s=1_000, count=10, talk_s=0.0), 3)
    assert (found.lost, found.held) == (9, False)


def test_a_rate_is_held_by_who_loses_none_and_is_quick() -> None:
    assert Offered(count=2, accepts={0: 10.0, 1: 250.0}, connected=2).held
    assert not Offered(count=2, accepts={0: 10.0, 1: 251.0}, connected=2).held
    assert not Offered(count=2, accepts={0: 10.0, 1: 250.0}, connected=1).held
    assert not Offered(count=2, accepts={0: 10.0}, connected=1).held
    assert not Offered(count=2).held
    assert Offered(count=1, late_p99_ms=51).generator_was_the_limit
    assert Offered(count=1, generator_share=0.9).generator_was_the_limit
    assert not Offered(count=1, late_p99_ms=3, generator_share=0.5).generator_was_the_limit


# --- ramps -------------------------------------------------------------------------------------------


async def ramp(
    monkeypatch: pytest.MonkeyPatch, most: float, *, promised: float = 100.0, late_ms: float = 0.0
) -> tuple[float, str, list[int]]:
    """Let a peer hold `most` calls/s; return what the ramp finds and what it offered."""
    rates: list[int] = []

    async def offer(at: Desk, rate: Rate, seed: int) -> Offered:
        rates.append(round(rate.per_s))
        assert rate.count >= int(2 * rate.per_s)
        accepts = {0: 1.0} if rate.per_s <= most else {}
        found = Offered(count=1, accepts=accepts, connected=len(accepts), late_p99_ms=late_ms)
        found.cpu_ms, found.all_cpu_ms = rate.per_s, 1.0
        return found

    monkeypatch.setattr(setups, "offer", offer)
    async with webhook_peer(answer_sdp(), None, **SMALL) as target, desk(target) as at:
        figures, remark = await setups._ramp(at, promised, 0.0, 1, lambda what: None)
    held = figures.get("held_per_s", 0.0)
    assert figures.get("busy_cpu_ms", 0.0) == held  # what it costs at the rate that was held
    return held, remark, rates


async def test_a_ramp_goes_up_until_it_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held, remark, rates = await ramp(monkeypatch, 160)
    assert (held, remark, rates) == (156.25, "", [100, 125, 156, 195])


async def test_a_ramp_that_began_too_high_goes_down(monkeypatch: pytest.MonkeyPatch) -> None:
    held, remark, rates = await ramp(monkeypatch, 70)
    assert (round(held), remark, rates) == (64, "", [100, 80, 64])


async def test_a_ramp_says_when_it_found_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    held, remark, rates = await ramp(monkeypatch, 1e9)
    assert (len(rates), remark) == (8, f"more than {held:.0f}/s was not tried")
    assert await ramp(monkeypatch, 0) == (0.0, "no rate was held", [100, 80, 64, 51, 41, 33, 26, 21])


async def test_a_ramp_says_when_the_generator_was_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, remark, _ = await ramp(monkeypatch, 110, late_ms=60)
    assert remark == "the generator was the limit of what was held"


# --- the real floor ----------------------------------------------------------------------------------


async def test_the_floor_answers_as_a_process_of_its_own() -> None:
    async with running(FLOOR, ANYWHERE, SMALL) as target, desk(target) as at:
        found = await offer(at, Rate(per_s=50, count=10, talk_s=0.0), 1)
        assert (found.lost, found.cpu_ms > 0, found.cpu_ms == found.all_cpu_ms) == (0, True, True)
    assert target.process.returncode is not None


async def test_a_round_fills_in_the_figures_of_every_column_but_those_of_media(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setups, "_SILENT", replace(setups._SILENT, common=Rate(per_s=40, count=5, talk_s=0)))
    sizes = {"_WARM_UP_S": 0.1, "_STEPS": 1, "_STEP_S": 0.01, "_STEP_CALLS": 5, "_HELD_MS": 5_000}
    for name, size in sizes.items():
        monkeypatch.setattr(setups, name, size)
    told: list[str] = []
    row = Row(name=FLOOR.name, what="")
    await SETUPS.round(FLOOR.name, row, ANYWHERE, 1, told.append)
    keys = {column.key for column in SETUPS.part().columns if not column.key.startswith("media")}
    assert keys <= set(row.rounds[0])
    assert told[0] == "starting, without media"


@pytest.mark.parametrize(("cores", "said"), [(0.1, False), (0.5, True)])
async def test_what_others_did_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch, cores: float, said: bool) -> None:
    async def offer(at: Desk, rate: Rate, seed: int) -> Offered:
        accepts = dict.fromkeys(range(rate.count), 1.0)
        found = Offered(count=rate.count, accepts=accepts, connected=rate.count, others_share=cores)
        found.cpu_ms = found.all_cpu_ms = 1.0
        return found

    monkeypatch.setattr(setups, "offer", offer)
    monkeypatch.setattr(setups, "_STEPS", 0)
    row = Row(name="x", what="", rounds=[{}])
    async with webhook_peer(answer_sdp(), None, **SMALL) as target, desk(target) as at:
        await setups._measure(at, setups._SILENT, row, 1, lambda what: None)
    assert any(remark.startswith("disturbed") for remark in row.remarks) is said


def checked(*names: str) -> Sequence[Any]:
    part = SETUPS.part()
    part.rows = [
        Row(name=name, what="", rounds=[{"media_busy_per_s": 10.0 if name == "gateway" else 2.0}]) for name in names
    ]
    return [check.kept for check in SETUPS.checks(part)]


def test_the_ratio_to_pipecat_is_judged_if_both_are_there() -> None:
    assert checked("gateway", "pipecat") == [True]
    assert checked("gateway", "floor") == checked("pipecat") == []
