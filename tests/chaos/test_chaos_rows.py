"""The rows' own tool: a promise that is not kept fails its row, and is written down."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness.chaos import Chaos, Scale

pytest_plugins = ["pytester"]

ROW = """
import pytest

@pytest.mark.row(99, "nothing is lost")
def test_promise(chaos):
    chaos.note("sent", chaos.size(test=1, short=2, long=3))
    chaos.promise("lost", {lost}, at_most=0)
    chaos.promise("slowest", 9.0, at_most=1, unit="s", timed=True)
"""


def run_row(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *, lost: int, scale: str
) -> tuple[int, dict[str, Any]]:
    out = pytester.path / "figures.jsonl"
    monkeypatch.setenv("CHAOS_SCALE", scale)
    monkeypatch.setenv("CHAOS_OUT", str(out))
    pytester.makeini("[pytest]\nmarkers = row\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(ROW.format(lost=lost))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    (line,) = out.read_text(encoding="utf-8").splitlines()
    return int(result.ret), json.loads(line)


def test_a_row_that_keeps_its_promises_passes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    code, line = run_row(pytester, monkeypatch, lost=0, scale="test")
    assert (code, line["kept"], line["row"], line["scale"]) == (0, True, 99, "test")
    assert [figure["kept"] for figure in line["figures"]] == [None, True, None]


def test_a_broken_promise_fails_its_row(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    code, line = run_row(pytester, monkeypatch, lost=3, scale="test")
    assert (code, line["kept"]) == (1, False)
    assert "lost: 3 (promised <= 0)" in line["failure"]


def test_what_is_timed_counts_above_size_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    code, line = run_row(pytester, monkeypatch, lost=0, scale="short")
    assert (code, line["kept"]) == (1, False)
    assert "slowest: 9.0 s (promised <= 1)" in line["failure"]


def test_a_promise_has_two_sides() -> None:
    chaos = Chaos(scale=Scale.LONG, seed=1)
    chaos.promise("between", 8.4, at_least=8, at_most=10)
    chaos.promise("between", 7.9, at_least=8, at_most=10)
    assert [str(figure) for figure in chaos.broken] == ["between: 7.9 (promised <= 10 and >= 8)"]
