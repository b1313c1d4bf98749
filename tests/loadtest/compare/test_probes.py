"""Who does everything right passes every probe, and whoever does one thing wrong fails that one."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from loadtest.compare import probes
from loadtest.compare.desk import desk
from loadtest.compare.peers import PEERS_OF_CALLS, Peer, Target
from loadtest.compare.probes import PROBES, WORLD, probe, probe_target
from loadtest.compare.results import Score
from loadtest.measure.process import Cores
from tests.loadtest.helpers import answer_sdp
from tests.support.fakes.webhook_peer import Flaw, webhook_peer

# Waits for what will not happen are what takes the time here: once is enough.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

ANYWHERE = Cores(generator=frozenset(), gateway=frozenset())
FAILS: Mapping[Flaw, str] = {
    Flaw.FIRST_CALL_ONLY: "both calls of a batch",
    Flaw.ANSWERS_TWICE: "a webhook that comes twice",
    Flaw.NO_STATUSES: "a status webhook",
    Flaw.NO_PERMISSIONS: "a permission webhook",
    Flaw.NEEDS_DIRECTION: "connect without direction",
    Flaw.NEEDS_CONTACTS: "connect without contacts",
    Flaw.ANSWERS_THE_DEAD: "terminate before connect",
    Flaw.KEEPS_THE_DEAD: "terminate while accept is in flight",
    Flaw.ACCEPTS_AGAIN: "terminate while accept is in flight",
    Flaw.TRUSTS_ANY_SIGNATURE: "a bad signature",
    Flaw.TRUSTS_NO_SIGNATURE: "a missing signature",
    Flaw.LETS_IT_RING: "Graph fails at accept",
    Flaw.ANSWERS_LATE: "a slow Graph",
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for what will not happen: this peer answers within milliseconds."""
    for name, seconds in (
        ("_ANSWER_S", 1.0),
        ("_NOTHING_S", 0.1),
        ("_SLOW_S", 0.9),
        ("_ACK_S", 0.4),
        ("_COMPENSATED_S", 1.0),
        ("_LET_GO_S", 0.5),
    ):
        monkeypatch.setattr(probes, name, seconds)


async def scored(flaw: Flaw | None) -> Score:
    score = Score(name="test", what="a test")
    async with webhook_peer(answer_sdp(), flaw, **WORLD) as target, desk(target) as at:
        await probe_target(at, score)
        assert at.sim.world.live_calls() == []
    return score


async def test_who_does_everything_right_passes_every_probe() -> None:
    score = await scored(None)
    assert [one for one in score.probed if not one.passed] == []
    assert len(score.probed) == len(PROBES)


async def test_every_probe_is_failed_by_somebody() -> None:
    for one in PROBES:
        assert any(one.name.startswith(begin) for begin in FAILS.values()), one.name


@pytest.mark.parametrize("flaw", FAILS)
async def test_who_does_one_thing_wrong_fails_that_probe_and_no_other(flaw: Flaw) -> None:
    (failed,) = (one for one in (await scored(flaw)).probed if not one.passed)
    assert failed.probe.startswith(FAILS[flaw])
    assert failed.observed


async def test_who_answers_no_more_calls_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    later = tuple(one for one in PROBES if one.name.startswith(("a status", "terminate while")))
    monkeypatch.setattr(probes, "PROBES", later)
    status, meanwhile = (await scored(Flaw.STOPS_ANSWERING)).probed
    assert status.passed
    assert (meanwhile.passed, meanwhile.observed) == (False, "the call was never accepted")


# --- a peer's life -----------------------------------------------------------------------------------


def instead(monkeypatch: pytest.MonkeyPatch, *peers: tuple[str, Flaw | None]) -> list[tuple[str, Flaw | None]]:
    """Let these peers (answer, flaw) be run in the place of a real one, in this order; return those still to come."""
    left = list(peers)

    @asynccontextmanager
    async def running(peer: Peer, cores: Cores, world: Mapping[str, Any]) -> AsyncIterator[Target]:
        async with webhook_peer(*left.pop(0), **world) as target:
            yield target

    monkeypatch.setattr(probes, "running", running)
    return left


async def test_a_peer_that_dies_fails_that_probe_and_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = instead(monkeypatch, (answer_sdp(), Flaw.ENDS), (answer_sdp(), None))
    score = Score(name="test", what="")
    await probe(PEERS_OF_CALLS[-1], score, ANYWHERE)
    assert left == []
    failed = [one for one in score.probed if not one.passed]
    assert (len(score.probed), len(failed)) == (len(PROBES), 1)
    assert failed[0].observed.endswith("the process ended")


async def test_who_does_not_answer_a_plain_call_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, ("no SDP", None))
    score = Score(name="test", what="")
    await probe(PEERS_OF_CALLS[-1], score, ANYWHERE)
    assert (score.probed, score.failure) == ([], "it does not answer a plain call")
