"""A load run as its users start it: a small one, one whose gateway dies, one that is stopped; nothing is left."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import loadtest

# The run is a process of its own: the loop of the test does not matter to it.
pytestmark = [pytest.mark.timeout(60), pytest.mark.asyncio(loop_factories=["uvloop"])]

CALLS = """
name = "{name}"
work = "{work}"
[short]
steps = [{{rate_per_s = 10, seconds = {seconds}}}]
thresholds = [{{figure = "lost", at_most = {lost}, rate_per_s = 10}}]
"""

#: Three slots each way.
FULL = """
name = "full"
work = "fill"
[short]
slots = 3
steps = [
    {rate_per_s = 10, seconds = 1},
    {rate_per_s = 10, seconds = 1, live = 3},
    {rate_per_s = 10, seconds = 1, live = 6},
]
thresholds = [{figure = "let_in", at_most = 0}, {figure = "fallen", at_most = 0}]
"""
SLOW = """
name = "slow"
work = "intake"
[short]
steps = [
    {rate_per_s = 40, seconds = 1, database_ms = 50},
    {rate_per_s = 40, seconds = 2, database_silent_s = 1},
]
thresholds = [{figure = "missing", at_most = 0}]
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: PostgreSQL's socket is in it, and may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        yield Path(folder)


def mine(folder: Path, name: str, *, work: str = "ring", seconds: int = 1, lost: int = 0) -> str:
    return written(folder, name, CALLS.format(name=name, work=work, seconds=seconds, lost=lost))


def written(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


async def start(folder: Path, *files: str, **environment: str) -> asyncio.subprocess.Process:
    temporary = folder / "tmp"
    temporary.mkdir()
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", "run", *files, "--out", str(folder / "out")),
        cwd=Path(loadtest.__file__).parent.parent,
        env=os.environ | {"TMPDIR": str(temporary), "COLUMNS": "160"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    said, _ = await process.communicate()
    return process.returncode, said.decode()


def reported(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "out" / "load.json").read_text(encoding="utf-8"))
    return report


def left(folder: Path) -> list[psutil.Process]:
    """Return processes that were started for this run, by their folders."""
    return [one for one in psutil.process_iter() if str(folder / "tmp") in " ".join(_of(one))]


def _of(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), *process.environ().values()]
    except psutil.Error:
        return []


async def gateway_of(run: asyncio.subprocess.Process) -> psutil.Process:
    """Return the gateway once calls are being made: its softphones are connected."""
    while True:
        for child in psutil.Process(run.pid).children():
            if "serve" in " ".join(_of(child)) and len(child.net_connections("tcp")) > 5:
                return child
        await asyncio.sleep(0.1)


async def test_calls_both_ways_are_measured_and_nothing_is_left(tmp_path: Path) -> None:
    files = mine(tmp_path, "in"), mine(tmp_path, "out", work="dial")
    code, said = await ended(await start(tmp_path, *files))
    assert code == 0, said
    report = reported(tmp_path)
    assert report["passed"]
    for result, instant in zip(report["results"], ("accept", "connect"), strict=True):
        (step,) = result["steps"]
        assert (step["count"], step["figures"]["lost"]) == (10, 0)
        assert 0 < step["figures"][f"{instant}_p50_ms"] <= step["figures"][f"{instant}_p99_ms"] < 5_000
        assert step["figures"]["cpu_ms"] > 0
        assert result["samples"]
        assert all(check["kept"] for check in result["invariants"])
    assert (tmp_path / "out" / "load.html").is_file()
    assert left(tmp_path) == []


MEDIA = """
name = "media-small"
work = "media"
[short]
anchored = [{calls = 2, seconds = 0.4, loss = 0.2, jitter_ms = 5}, {calls = 3, seconds = 0.4, hold = true}]
thresholds = [{figure = "lost", at_most = 0}]
"""


async def test_a_full_number_refuses_one_call_more_each_way_and_the_calls_that_are_up_stay(tmp_path: Path) -> None:
    code, said = await ended(await start(tmp_path, written(tmp_path, "full", FULL)))
    assert code == 0, said
    (result,) = reported(tmp_path)["results"]
    empty, half, full = (step["figures"] for step in result["steps"])
    assert all(one["lost"] <= 5 for one in (empty, half, full))  # of ten; a busy machine is slow
    assert [one["live_max"] >= live for one, live in ((empty, 0), (half, 3), (full, 6))] == [True] * 3
    assert full["refusal_in_p99_ms"] > 0
    assert full["refusal_out_p99_ms"] > 0
    assert "refusal_in_p99_ms" not in half
    assert (result["figures"]["let_in"], result["figures"]["fallen"]) == (0, 0)
    assert all(check["kept"] for check in result["invariants"])
    assert left(tmp_path) == []


async def test_calls_with_media_are_measured_through_loss_and_hold_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "media.toml"
    path.write_text(MEDIA, encoding="utf-8")
    code, said = await ended(await start(tmp_path, str(path)))
    assert code == 0, said
    (result,) = reported(tmp_path)["results"]
    rough, held = (step["figures"] for step in result["steps"])
    assert rough["lost"] == held["lost"] == held["leaked"] == held["unheard_tone"] == held["injected"] == 0
    assert rough["injected"] > 0
    assert 50 < rough["delivered_to_user"] < 100
    assert held["delivered_to_user"] == held["delivered_to_operator"] == 100
    assert 0 < held["delay_p50_ms"] <= held["delay_p99_ms"] < 1_000
    assert all(check["kept"] for check in result["invariants"])
    assert left(tmp_path) == []


async def test_with_the_database_late_and_silent_nothing_acknowledged_is_missing(tmp_path: Path) -> None:
    code, said = await ended(await start(tmp_path, written(tmp_path, "slow", SLOW)))
    assert code == 0, said
    (result,) = reported(tmp_path)["results"]
    late, silent = (step["figures"] for step in result["steps"])
    assert late["ack_p50_ms"] > 50
    assert silent["spooled"] > 0
    assert (result["figures"]["lost"], result["figures"]["missing"]) == (0, 0)
    assert left(tmp_path) == []


async def test_a_missed_threshold_fails_the_run(tmp_path: Path) -> None:
    code, said = await ended(await start(tmp_path, mine(tmp_path, "strict", work="intake", lost=-1)))
    assert code == 1, said
    assert not reported(tmp_path)["passed"]
    assert "Some checks failed." in said


async def test_a_gateway_that_never_starts_is_reported_with_its_last_words(tmp_path: Path) -> None:
    code, said = await ended(await start(tmp_path, mine(tmp_path, "never"), GATEWAY_LOG_LEVEL="loud"))
    assert code == 1, said
    assert "GATEWAY_LOG_LEVEL" in reported(tmp_path)["results"][0]["failure"]
    assert "never ended early" in said
    assert left(tmp_path) == []


async def test_a_gateway_that_dies_is_reported_and_its_postgresql_does_not_stay(tmp_path: Path) -> None:
    run = await start(tmp_path, mine(tmp_path, "dies", seconds=30))
    (await gateway_of(run)).kill()
    code, said = await ended(run)
    assert code == 1, said
    assert "The gateway ended unexpectedly, with exit code -9" in reported(tmp_path)["results"][0]["failure"]
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
async def test_a_run_that_is_stopped_says_what_it_has_and_leaves_nothing(tmp_path: Path, name: signal.Signals) -> None:
    run = await start(tmp_path, mine(tmp_path, "stopped", seconds=30), "gate")
    await gateway_of(run)
    run.send_signal(name)
    code, said = await ended(run)
    assert code == 130, said
    report = reported(tmp_path)
    assert [result["stopped"] for result in report["results"]] == [True]
    assert "Not measured, or not completely: stopped, gate." in said
    assert left(tmp_path) == []
