"""The runner of the reliability table: what it runs, what it shows, what it says when it cannot."""

import asyncio
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.chaos.rows import ChaosFailed, Wanted, chaos
from tests.support.harness.waiting import until

CONFTEST = Path(__file__).resolve().parents[2] / "chaos" / "conftest.py"

ROW = """
import pytest

@pytest.mark.row({row}, "a promise of <b>{row}</b>")
def test_promise(chaos, tmp_path):
    (tmp_path / "file").write_text("something")
    chaos.note("size", chaos.size(test="test", short="short", long="long"))
    chaos.promise("lost", {lost}, at_most=0)
"""

SLOW = """
import time, pytest

@pytest.mark.row(8, "to take its time")
def test_slow(chaos, tmp_path):
    (tmp_path / "began").touch()
    time.sleep(60)
"""

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # it runs a process of its own


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers = row\nasyncio_default_fixture_loop_scope = function\n", encoding="utf-8"
    )
    (folder / "test_row_07_kept.py").write_text(ROW.format(row=7, lost=0), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A temporary folder for the runs alone; whatever happens, nothing is left in there."""
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    monkeypatch.setenv("TMPDIR", str(own))
    yield
    assert os.listdir(own) == []


def wanted(rows: Path, *only: int, long: bool = False) -> Wanted:
    return Wanted(long=long, seed=5, rows=only, out=rows.parent / "out", folder=rows)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


async def test_rows_are_run_shown_and_written(rows: Path) -> None:
    shown = console()
    assert await chaos(wanted(rows), shown) == 0
    assert "size: short" in said(shown)
    assert "lost: 0 (promised <= 0)" in said(shown)
    report = json.loads((rows.parent / "out" / "chaos-short.json").read_text(encoding="utf-8"))
    assert (report["kept"], report["seed"], [line["row"] for line in report["rows"]]) == (True, 5, [7])
    page = (rows.parent / "out" / "chaos-short.html").read_text(encoding="utf-8")
    assert "a promise of &lt;b&gt;7&lt;/b&gt;" in page
    assert "Every promise was kept." in page


async def test_a_promise_that_is_not_kept_is_named_and_fails_the_run(rows: Path) -> None:
    (rows / "test_row_08_broken.py").write_text(ROW.format(row=8, lost=2), encoding="utf-8")
    shown = console()
    assert await chaos(wanted(rows, long=True), shown) == 1
    assert "row 8 not kept: lost: 2 (promised <= 0)" in said(shown)
    report = json.loads((rows.parent / "out" / "chaos-long.json").read_text(encoding="utf-8"))
    assert [(line["row"], line["kept"]) for line in report["rows"]] == [(7, True), (8, False)]


async def test_a_run_that_is_stopped_leaves_nothing(rows: Path) -> None:
    (rows / "test_row_08_slow.py").write_text(SLOW, encoding="utf-8")
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(chaos(wanted(rows, 8), console()))
        temporary = Path(tempfile.gettempdir())
        await until(lambda: any(temporary.glob("*/*/*/began")), timeout_s=10)
        run.cancel()
    assert run.cancelled()


async def test_only_the_rows_asked_for_are_run(rows: Path) -> None:
    (rows / "test_row_08_broken.py").write_text(ROW.format(row=8, lost=2), encoding="utf-8")
    assert await chaos(wanted(rows, 7), console()) == 0


async def test_a_row_that_is_not_there_is_said(rows: Path) -> None:
    with pytest.raises(ChaosFailed, match="Unknown row: 9"):
        await chaos(wanted(rows, 9), console())


async def test_rows_that_cannot_be_read_are_said(rows: Path) -> None:
    (rows / "test_row_08_broken.py").write_text("import no_such_module\n", encoding="utf-8")
    with pytest.raises(ChaosFailed, match="no_such_module"):
        await chaos(wanted(rows), console())


async def test_without_a_checkout_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ChaosFailed, match="in a checkout"):
        await chaos(wanted(tmp_path / "nothing"), console())
