"""Medians, ratios and what counts as passed; a comparison is written and read again, and shown."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.compare.page import comparison_page, show, write
from loadtest.compare.results import Column, Comparison, Part, Probed, Row, Score, read_comparison
from loadtest.measure.results import BadReport, Check, is_comparison

FAST = Column(key="per_s", heading="set-ups/s", form=".0f")
COST = Column(key="cpu_ms", heading="CPU <ms>", form=".2f")


def a_row(name: str, *rounds: float) -> Row:
    return Row(name=name, what=f"<{name}>", rounds=[{"per_s": one, "cpu_ms": 1000 / one} for one in rounds])


def a_part(*rows: Row) -> Part:
    return Part(name="calls", title="Set-ups", method="a & b", columns=[COST, FAST], rows=list(rows), ratios=[FAST])


def a_comparison(*checks: Check) -> Comparison:
    part = a_part(a_row("gateway", 500, 300, 400), a_row("other", 50, 80, 90))
    part.checks = list(checks)
    good = [Probed(probe="a batch", passed=True, observed="2 of 2")]
    bad = [Probed(probe="a batch", passed=False, observed="1 of <2> [/red]")]
    return Comparison(
        machine={"cpu": "a & b", "cores": 2},
        versions={"commit": "abc"},
        pinning="not pinned",
        command="python -m loadtest compare",
        seed=1,
        rounds=3,
        parts=[part],
        probes=["a batch"],
        scores=[Score(name="gateway", what="", probed=good), Score(name="other", what="", probed=bad)],
    )


def shown(found: Comparison) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=200))
    return out.getvalue()


def test_figures_are_medians_and_ratios_are_of_medians() -> None:
    part = a_comparison().parts[0]
    assert (part.rows[0].median("per_s"), part.rows[1].median("per_s")) == (400, 80)
    assert part.ratio("per_s", "other") == 5
    assert part.at_least(5, "per_s", "other").kept
    check = part.at_least(5.1, "per_s", "other")
    assert (check.kept, check.found, check.wanted) == (False, "5 times", ">= 5.1 times")
    assert check.name == "gateway to other: set-ups/s"


@pytest.mark.parametrize("rows", [(), (a_row("gateway", 4),), (a_row("gateway", 4), a_row("other"))])
def test_what_was_not_measured_has_not_been_reached(rows: tuple[Row, ...]) -> None:
    part = a_part(*rows)
    assert part.ratio("per_s", "other") is None
    if rows:
        check = part.at_least(1, "per_s", "other")
        assert (check.kept, check.found) == (False, "not measured")


def test_a_round_that_failed_half_way_counts_as_far_as_it_came() -> None:
    row = Row(name="x", what="", rounds=[{"per_s": 4}, {}, {"per_s": 8}])
    assert (row.median("per_s"), row.median("cpu_ms")) == (6, None)


def test_it_passes_only_if_it_is_complete_and_everything_held() -> None:
    kept = Check(name="x", found="1", wanted="1", kept=True)
    assert a_comparison(kept).passed
    missed = a_comparison(Check(name="x", found="1", wanted="2", kept=False))
    assert (missed.passed, missed.complete) == (False, True)
    stopped, missing, failed, broken = (a_comparison() for _ in range(4))
    stopped.stopped = True
    missing.missing["pipecat"] = "no index"
    failed.parts[0].rows[1].failure = "it ended"
    broken.scores[1].failure = "it ended"
    for found in (stopped, missing, failed, broken):
        assert not found.passed
        assert "not complete" in shown(found)
        assert "not complete" in comparison_page(found)


def test_what_was_written_is_read_again_and_shown(tmp_path: Path) -> None:
    found = a_comparison()
    as_json, as_html = write(found, tmp_path / "out")
    assert read_comparison(as_json) == found
    assert json.loads(as_json.read_text(encoding="utf-8"))["passed"] is True
    assert as_html.read_text(encoding="utf-8") == comparison_page(found)
    said = CliRunner().invoke(app, ["report", str(as_json), "--out", str(tmp_path / "again")])
    assert (said.exit_code, "Set-ups" in said.output) == (0, True)
    assert (tmp_path / "again" / "compare.html").read_bytes() == as_html.read_bytes()


@pytest.mark.parametrize("text", ["[]", '{"format": 9, "scores": []}', '{"format": 1, "scores": [3]}', "\xff"])
def test_what_is_no_comparison_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadReport, match="not a report of a comparison"):
        read_comparison(path)
    with pytest.raises(BadReport, match="cannot be read"):
        read_comparison(tmp_path / "none.json")
    assert not is_comparison(tmp_path / "none.json")


def test_the_terminal_and_the_page_say_who_did_what() -> None:
    found = a_comparison(Check(name="ratio", found="5", wanted="6", kept=False))
    found.parts[0].rows[1].remark("the generator was the limit")
    found.parts[0].rows[1].remark("the generator was the limit")
    text, page = shown(found), comparison_page(found)
    for said in (text, page):
        for words in ("Some checks failed.", "5 x", "1/1", "0/1", "the generator was the limit"):
            assert words in said
    assert "1 of <2> [/red]" in text
    assert "1 of &lt;2&gt; [/red]" in page
    assert "12.50 (11.11 to 20.00)" in page
    assert text.count("the generator was the limit") == 1
    assert "<script" not in page


def test_figures_that_nobody_has_are_left_out() -> None:
    found = a_comparison()
    for row in found.parts[0].rows:
        for figures in row.rounds:
            del figures["cpu_ms"]
    assert "CPU" not in shown(found)
    del found.parts[0].rows[1].rounds[:]
    assert "gateway to this" not in shown(found)
