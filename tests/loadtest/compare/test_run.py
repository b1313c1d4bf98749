"""One run of a comparison: turns, failures, Ctrl-C, and what is said of arguments that cannot work."""

import asyncio
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

import loadtest
from loadtest.__main__ import app
from loadtest.compare import run
from loadtest.compare.contest import Contest, NotInstalled, PeerFailed, Tell
from loadtest.compare.results import Part, Row
from loadtest.compare.run import Order, why
from loadtest.measure.process import Cores
from loadtest.measure.results import Check
from tests.support.harness.waiting import until

RUN = CliRunner()


class Fake:
    """A contest of invented peers; `does` says what a peer does instead of being measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path, **does: BaseException) -> None:
        self.out, self.does = out, does
        self.turns: list[tuple[str, int]] = []
        contest = Contest(
            part=lambda: Part(name="fake", title="Fake", method="", columns=[]),
            peers=(("a", ""), ("b", ""), ("c", "")),
            prepare=self.prepare,
            round=self.round,
            checks=lambda part: [Check(name="x", found="", wanted="", kept=bool(part.rows))],
        )
        monkeypatch.setattr(run, "CONTESTS", {"fake": contest})

    async def prepare(self, name: str, tell: Tell) -> None:
        if isinstance(self.does.get(name), NotInstalled):
            raise self.does[name]

    async def round(self, name: str, row: Row, cores: Cores, seed: int, tell: Tell) -> None:
        self.turns.append((name, seed))
        row.rounds.append({"figure": float(seed)})
        if name in self.does:
            raise self.does[name]

    async def run(self) -> tuple[int, dict[str, Any], str]:
        """Compare in three rounds; return the exit code, the report and what was printed."""
        said = io.StringIO()
        order = Order(
            contests=("fake",), peers=frozenset("abc"), rounds=3, seed=10, out=self.out, command="compare fake"
        )
        code = await run.compare(order, Console(file=said, width=200))
        report: dict[str, Any] = json.loads((self.out / "compare.json").read_text(encoding="utf-8"))
        return code, report, said.getvalue()


async def test_peers_take_turns_and_another_one_is_first_in_each_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake(monkeypatch, tmp_path)
    code, report, said = await fake.run()
    assert "".join(name for name, _ in fake.turns) == "abcbcacab"
    assert [seed for _, seed in fake.turns] == 3 * [10] + 3 * [11] + 3 * [12]
    assert (code, report["passed"]) == (0, True)
    assert "All checks passed." in said


async def test_a_peer_that_fails_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake(monkeypatch, tmp_path, b=PeerFailed("it ended by itself"))
    code, report, said = await fake.run()
    assert [name for name, _ in fake.turns].count("b") == 1
    assert [name for name, _ in fake.turns].count("c") == 3
    assert (code, report["parts"][0]["rows"][1]["failure"]) == (1, "it ended by itself")
    assert "b: failed: it ended by itself" in said
    assert "not complete" in said


async def test_a_peer_that_cannot_be_installed_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake(monkeypatch, tmp_path, c=NotInstalled("no index"))
    code, report, said = await fake.run()
    assert {name for name, _ in fake.turns} == {"a", "b"}
    assert (code, report["missing"]) == (1, {"c": "no index"})
    assert "c: missing: no index" in said


async def test_whoever_stops_gets_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake(monkeypatch, tmp_path, b=asyncio.CancelledError())
    code, report, _ = await fake.run()
    assert (code, report["stopped"], report["passed"]) == (130, True, False)
    assert report["parts"][0]["rows"][0]["rounds"] == [{"figure": 10.0}]


def test_what_was_to_be_expected_is_said_in_words_and_a_bug_with_its_traceback() -> None:
    assert why(ExceptionGroup("", [OSError("gone"), PeerFailed("gone"), TimeoutError()])) == "gone\nTimeoutError"
    assert "KeyError: 'x'" in why(ExceptionGroup("", [OSError("gone"), KeyError("x")]))


def test_every_mistake_of_the_command_line_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://192.0.2.1/calls")
    said = RUN.invoke(app, ["compare", "dance", "--peers", "gateway,asterisk,"])
    assert said.exit_code == 2
    for text in (
        "DATABASE_URL is set",
        "'asterisk': unknown peer; known are gateway,",
        "'': unknown peer",
        "'dance': unknown part",
    ):
        assert text in said.output


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--rounds", "21"], ["--rounds", "x"], ["--seed", "-1"]])
def test_numbers_that_cannot_be_are_refused(arguments: list[str]) -> None:
    assert RUN.invoke(app, ["compare", *arguments]).exit_code == 2


def test_a_folder_for_the_report_that_cannot_be_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = RUN.invoke(app, ["compare", "--peers", "floor", "--out", str(tmp_path / "file")])
    assert (said.exit_code, "choose another --out" in said.output) == (2, True)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_ctrl_c_ends_the_peer_and_leaves_a_report(tmp_path: Path) -> None:
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", "compare", "--peers", "floor", "--out", str(tmp_path)),
        cwd=Path(loadtest.__file__).parent.parent,
        env=os.environ | {"COLUMNS": "160"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )

    def floor() -> list[psutil.Process]:
        # Between fork and exec a child looks like its parent.
        return [one for one in psutil.Process(run.pid).children() if "floor_peer.py" in " ".join(one.cmdline())]

    try:
        await until(lambda: bool(floor()), timeout_s=15)
        (peer,) = floor()
        run.send_signal(signal.SIGINT)
        said, _ = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
            await run.communicate()
    assert run.returncode == 130, said.decode()
    assert json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))["stopped"]
    assert not peer.is_running()
