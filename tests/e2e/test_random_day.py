"""Random days against the simulated Meta's own counts: what the gate lets through, Meta takes.

The simulator was written separately, from Meta's pages, and counts by itself. Each day is 10,000 actions of 40 people
and 12 operators on one clock that both sides read; time stands still within an action and stops at edges of limits.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from loadtest.simulator.config import Profile
from policy.pack import Pack, load_pack
from tests.support.generators.day import Days, days

ACTIONS = 10_000
#: Of the same day, enough for what has to be seen without the gate.
MORNING = 3_000
SEED = 20261122

pytestmark = [pytest.mark.timeout(90), pytest.mark.asyncio(loop_factories=["uvloop"])]

GUIDE, META = load_pack("guide"), load_pack("meta")
#: Under the guide a user's call grants nothing (R11), so Meta's callback permission is off there.
WORLDS = [
    pytest.param({"profile": Profile.GUIDE, "pack": GUIDE, "callback": False}, id="guide"),
    pytest.param({"profile": Profile.META, "pack": META, "callback": True}, id="meta"),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep tens of thousands of log lines out of the run."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


async def live(monkeypatch: pytest.MonkeyPatch, actions: int, *, gate: bool = True, **world: Any) -> Days:
    async with days(monkeypatch, gate=gate, seed=SEED, **world) as run:
        for _ in range(actions):
            await run.action()
    return run


@pytest.mark.parametrize("world", WORLDS)
async def test_meta_refuses_nothing_that_the_gate_lets_through(
    monkeypatch: pytest.MonkeyPatch, world: dict[str, Any]
) -> None:
    run = await live(monkeypatch, ACTIONS, **world)
    assert run.refused == {}
    # What nobody told the gateway: permissions taken back in the profile. Meta's refusal tells, or soon after it
    # `call_permissions`.
    assert set(run.excused) <= {138006}
    assert run.excused.total() <= 2 * run.done["user_revokes"]
    # It was a full day, and the gate had much to say on it.
    assert run.said["dial: allowed"] > 1_000
    assert run.said["ask: allowed"] > 200
    for what in ("no_permission", "permission_expired", "permission_revoked", "connected_limit", "user_busy"):
        assert run.said[f"dial: {what}"] > 0, what
    for what in ("request_limit", "window_closed"):
        assert run.said[f"ask: {what}"] > 0, what
    # It is no stricter than Meta either, but for permissions that are silently gone, and for what Meta's webhooks say
    # of one and the same second (they tell no more): then the stricter reading wins.
    assert set(run.too_strict) <= {"ask: permission_exists", "ask: request_limit", "dial: no_permission"}
    assert run.too_strict.total() < ACTIONS / 100


@pytest.mark.parametrize("world", WORLDS)
async def test_without_the_gate_the_same_day_shows_hundreds(
    monkeypatch: pytest.MonkeyPatch, world: dict[str, Any]
) -> None:
    run = await live(monkeypatch, MORNING, gate=False, **world)
    assert run.refused.total() > 500
    for code in (138003, 138006, 138009, 138012, 131047):
        assert run.refused[code] > 10, code


@pytest.mark.parametrize(
    "change",
    [
        {"connected_per_24h": GUIDE.connected_per_24h + 1},
        {"requests_per_24h": GUIDE.requests_per_24h + 1},
        {"requests_per_7d": GUIDE.requests_per_7d + 1},
        {"streak_revoke": GUIDE.streak_revoke + 1},
        {"service_window_s": GUIDE.service_window_s + 3_600},
        {"after_decline_s": GUIDE.after_decline_s - 3_600},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_gate_that_is_a_little_too_generous_is_found_out(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, int]
) -> None:
    generous: Pack = replace(GUIDE, **change)  # type: ignore[arg-type]
    run = await live(monkeypatch, MORNING, profile=Profile.GUIDE, pack=generous, callback=False)
    assert run.refused.total() > 0
