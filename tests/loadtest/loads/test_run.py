"""Judging, and what is said before anything starts."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.common.stopping import cancelled_by_signals
from loadtest.loads.built_in import NAMES
from loadtest.loads.run import _leaves, _unless_it_dies, end_postgres, judge, pinned_stack
from loadtest.loads.scenarios import Form, Threshold
from loadtest.measure.process import Cores, children, postmaster
from loadtest.measure.results import Result, StepResult
from loadtest.measure.stack import GatewayDied, StackConfig
from tests.support.harness.waiting import until

RUN = CliRunner()


def result() -> Result:
    found = Result(scenario="x", what="", work="ring", form="short", seed=1, figures={"saturation_per_s": 200.0})
    for rate, value in ((50, 10.0), (100, 20.0), (100, 90.0), (100, 30.0)):
        step = StepResult(label="", rate_per_s=rate, graph_ms=0, count=1, figures={"accept_p99_ms": value})
        found.steps.append(step)
    return found


def judged(**threshold: float | str) -> tuple[bool, str]:
    form = Form(thresholds=(Threshold(**threshold),))  # type: ignore[arg-type]
    (check,) = judge(form, result())
    return check.kept, check.found


def test_a_threshold_is_held_against_its_step_or_the_whole() -> None:
    assert judged(figure="saturation_per_s", at_least=150) == (True, "200")
    assert judged(figure="saturation_per_s", at_least=500) == (False, "200")
    assert judged(figure="accept_p99_ms", at_most=15, rate_per_s=50) == (True, "10")


def test_of_a_step_that_was_done_several_times_the_worst_counts() -> None:
    assert judged(figure="accept_p99_ms", at_most=50, rate_per_s=100) == (False, "90")
    assert judged(figure="accept_p99_ms", at_most=100, rate_per_s=100)[0]


def test_what_was_not_measured_is_missed() -> None:
    assert judged(figure="accept_p99_ms", at_most=50, rate_per_s=150) == (False, "not measured")
    assert judged(figure="cpu_growth", at_most=1.1) == (False, "not measured")


def test_why_the_gateway_died_says_it_all() -> None:
    group = ExceptionGroup("", [OSError("no connection"), ExceptionGroup("", [GatewayDied("its last words")])])
    assert _leaves(group) == ["its last words"]
    assert _leaves(ExceptionGroup("", [OSError("a"), OSError("a"), TimeoutError()])) == ["OSError: a", "TimeoutError: "]


@pytest.mark.parametrize("broken", [OSError("cut"), ExceptionGroup("logins", [OSError("cut"), TimeoutError()])])
async def test_a_load_that_breaks_first_waits_for_the_news_that_the_gateway_died(broken: Exception) -> None:
    async def until_gone() -> int:
        await asyncio.sleep(0.05)
        return -9

    stack: Any = SimpleNamespace(until_gone=until_gone, log=["its last words"])
    with pytest.raises(ExceptionGroup) as caught:
        async with _unless_it_dies(stack):
            raise broken
    (said,) = _leaves(caught.value)
    assert "with exit code -9. Its last log lines:\n  its last words" in said


def test_every_mistake_of_the_command_line_is_named_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("work = 3\n", encoding="utf-8")
    said = RUN.invoke(app, ["run", "nothing", str(bad)])
    assert said.exit_code == 2
    for text in ("nothing: unknown scenario", f"{bad}: name:", f"{bad}: work:", f"{bad}: short:"):
        assert text in said.output


def test_a_database_of_somebodys_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://192.0.2.1/calls")
    said = RUN.invoke(app, ["run", "gate", "nothing"])
    assert said.exit_code == 2
    assert "DATABASE_URL is set: a load run fills its database" in said.output
    assert "nothing: unknown scenario" in said.output


def test_a_folder_for_the_report_that_cannot_be_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = RUN.invoke(app, ["run", "gate", "--out", str(tmp_path / "file")])
    assert (said.exit_code, "choose another --out" in said.output) == (2, True)


def test_the_list_has_every_scenario() -> None:
    said = RUN.invoke(app, ["list"], env={"COLUMNS": "200"})
    assert said.exit_code == 0
    assert all(name in said.output for name in NAMES)


async def test_the_first_signal_cancels_and_the_next_ones_do_nothing() -> None:
    async def work() -> str:
        with cancelled_by_signals():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.05)
                return "cleaned up"
        return "never stopped"

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work())
    assert task.result() == "cleaned up"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_a_postgresql_that_was_left_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    # It has the folder on its command line, as PostgreSQL does.
    left = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)", str(folder))
    (folder / "postmaster.pid").write_text(f"{left.pid}\n", encoding="utf-8")
    try:
        await end_postgres(tmp_path)
        await until(lambda: left.returncode is not None, timeout_s=5)
    finally:
        if left.returncode is None:
            left.kill()
        await left.wait()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
async def test_a_gateway_has_its_core_for_itself(tmp_path: Path) -> None:
    ours = frozenset(os.sched_getaffinity(0))
    cores = Cores(generator=ours - {max(ours)}, gateway=frozenset({max(ours)}))
    config = StackConfig(port=0, admin_port=0, sim_port=0, data_dir=tmp_path, null_media=True)
    async with pinned_stack(config, cores) as stack:
        database = postmaster(tmp_path)
        assert database is not None
        others = [database, *children(database), os.getpid()]
        assert len(others) > 3
        assert {frozenset(os.sched_getaffinity(pid)) for pid in others} == {cores.generator}
        assert os.sched_getaffinity(stack.gateway_pid) == cores.gateway
    assert os.sched_getaffinity(0) == ours
