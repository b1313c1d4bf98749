"""A report is written, read again, and shown: the same figures, whatever is missing."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.loads.page import load_page, show, write
from loadtest.measure.report import NotWritten
from loadtest.measure.results import BadReport, Check, Report, Result, Sample, StepResult, read_report

KEPT = Check(name="calls left", found="0", wanted="none", kept=True)
MISSED = Check(name="accept_p99_ms at 50/s", found="700", wanted="<= 50", kept=False)


def sample(at_s: float, **more: float | None) -> Sample:
    facts: dict[str, float | None] = {"cpu_s": at_s / 2, "rss_bytes": 2**20, "descriptors": 9, "tasks": 5}
    return Sample(**(facts | {"at_s": at_s, "lag_ms": 1.5, "live": 3} | more))  # type: ignore[arg-type]


def a_report(*checks: Check, failure: str = "", stopped: bool = False) -> Report:
    step = StepResult(label="50/s", rate_per_s=50, graph_ms=0, count=100)
    step.figures = {"accept_p50_ms": 4.0, "accept_p99_ms": 7.25, "lost": 0.0, "cpu_ms": 1.25}
    slow = replace(step, label="50/s, Graph 80 ms", graph_ms=80, held=False, generator_was_the_limit=True)
    result = Result(scenario="ring", what="<users> call", work="ring", form="short", seed=3)
    result.steps = [step, slow]
    result.samples = [sample(0.5), sample(1.0, tasks=None, lag_ms=None, live=None), sample(1.5)]
    result.thresholds = list(checks)
    result.failure, result.stopped = failure, stopped
    return Report(
        machine={"cpu": "a & b", "cores": 2},
        versions={"commit": "abc"},
        pinning="not pinned",
        command="python -m loadtest run ring",
        results=[result],
        wanted=["ring"],
    )


def shown(report: Report) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=200))
    return out.getvalue()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    report = a_report(KEPT)
    as_json, as_html = write(report, tmp_path / "out")
    assert read_report(as_json) == report
    assert json.loads(as_json.read_text(encoding="utf-8"))["passed"] is True
    assert as_html.read_text(encoding="utf-8") == load_page(report)


def test_the_page_names_the_conditions_and_draws_the_plots() -> None:
    page = load_page(a_report(KEPT))
    for text in (
        "All checks passed.",
        "a &amp; b",
        "&lt;users&gt; call",
        "media engine null",
        "not held, generator was",
    ):
        assert text in page
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_terminal_says_what_was_missed() -> None:
    said = shown(a_report(KEPT, MISSED))
    assert "Some checks failed." in said
    assert "7.2" in said
    assert "accept_p99_ms at 50/s │ 700" in said


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (a_report(KEPT, failure="it said [/red]"), "The run is not complete. Not measured, or not completely: ring."),
        (a_report(KEPT, stopped=True), "The run is not complete. Not measured, or not completely: ring."),
    ],
)
def test_a_run_that_is_not_complete_has_not_passed(report: Report, said: str) -> None:
    assert not report.passed
    assert said in shown(report)
    assert said in load_page(report)
    assert report.results[0].failure in shown(report)


def test_a_scenario_that_never_ran_is_missing() -> None:
    report = a_report(KEPT)
    report.wanted = ["ring", "dial"]
    assert not report.passed
    assert "completely: dial." in shown(report)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1}', '{"format": 1, "results": [3]}', "\xff"])
def test_what_is_no_report_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadReport, match="not a report of a load run"):
        read_report(path)


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten, match="choose another --out"):
        write(a_report(), tmp_path / "file")


def test_the_command_shows_an_earlier_run(tmp_path: Path) -> None:
    run = CliRunner()
    as_json, _ = write(a_report(MISSED), tmp_path)
    result = run.invoke(app, ["report", str(as_json), "--out", str(tmp_path / "again")])
    assert result.exit_code == 1
    assert "Some checks failed." in result.output
    assert (tmp_path / "again" / "load.html").is_file()
    assert run.invoke(app, ["report", str(tmp_path / "none.json")]).exit_code == 2
