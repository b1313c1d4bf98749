"""A peer that does not start, or dies, is said with its last words; one that runs is alone on its core."""

import os
from pathlib import Path

import pytest

from loadtest.compare import peers
from loadtest.compare.contest import PeerFailed
from loadtest.compare.peers import PEERS_OF_CALLS, Peer, running
from loadtest.measure.process import Cores
from loadtest.simulator.config import crowd

ANYWHERE = Cores(generator=frozenset(), gateway=frozenset())
SMALL = {"users": crowd(3), "silent": True}


def script(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> Peer:
    """Return a peer whose program is this text."""
    monkeypatch.setattr(peers, "PEERS", folder)
    (folder / "own.py").write_text(text, encoding="utf-8")
    return Peer(name="own", what="", script="own.py")


async def test_a_peer_that_ends_at_once_is_said_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peer = script(monkeypatch, tmp_path, "raise SystemExit('no settings')")
    with pytest.raises(PeerFailed, match=r"it ended unexpectedly, exit code 1\n  no settings"):
        async with running(peer, ANYWHERE, SMALL):
            pytest.fail("it runs")


async def test_a_peer_that_never_serves_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "_START_S", 0.5)
    peer = script(monkeypatch, tmp_path, "import time; print('waiting', flush=True); time.sleep(60)")
    with pytest.raises(PeerFailed, match=r"not ready within 0 s\n  waiting"):
        async with running(peer, ANYWHERE, SMALL):
            pytest.fail("it runs")


async def test_a_peer_that_dies_is_noticed() -> None:
    async with running(PEERS_OF_CALLS[-1], ANYWHERE, SMALL) as target:
        target.check()
        target.process.kill()
        await target.process.wait()
        with pytest.raises(PeerFailed, match="exit code -9"):
            target.check()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
async def test_a_peer_runs_on_its_core_and_we_stay_where_we_are() -> None:
    ours = frozenset(os.sched_getaffinity(0))
    core = frozenset({max(ours)})
    async with running(PEERS_OF_CALLS[-1], Cores(generator=ours - core, gateway=core), SMALL) as target:
        assert os.sched_getaffinity(target.process.pid) == core
        assert os.sched_getaffinity(0) == ours


async def test_settings_of_the_surroundings_do_not_reach_a_peer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('not mine')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with running(PEERS_OF_CALLS[-1], ANYWHERE, SMALL) as target:
        assert await target.live() == 0
