"""`python -m loadtest chaos`: run the reliability table on this machine, with measured figures.

Runs the rows (`tests/chaos`) at the requested size, one after the other, shows progress, prints row, promise, figures
and verdict, and writes them as JSON and as an HTML page.
"""

import asyncio
import contextlib
import html
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtest.measure.report import NotWritten, in_words, machine, page, write_report

_ROOT: Final = Path(__file__).resolve().parents[2]
_LOOK_S: Final = 0.3
_STOP_S: Final = 20.0


class ChaosFailed(Exception):
    """The rows could not be run at all; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to run."""

    long: bool
    seed: int
    rows: tuple[int, ...]  #: empty: all
    out: Path  #: folder of the report
    folder: Path = _ROOT / "tests" / "chaos"  #: of the rows

    @property
    def scale(self) -> str:
        return "long" if self.long else "short"


@dataclass(slots=True, kw_only=True)
class Report:
    """The results."""

    machine: dict[str, Any]
    scale: str
    seed: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int = 0
    last_words: str = ""

    @property
    def kept(self) -> bool:
        return bool(self.lines) and self.exit_code == 0 and all(line["kept"] for line in self.lines)

    def sorted_lines(self) -> list[dict[str, Any]]:
        return sorted(self.lines, key=lambda line: (line["row"], line["test"]))


async def chaos(wanted: Wanted, console: Console) -> int:
    """Run the rows and write the report; return 0 if every promise was kept. Raises: ChaosFailed."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        return await _chaos(wanted, console, Path(folder))


async def _chaos(wanted: Wanted, console: Console, folder: Path) -> int:
    tests = await _collect(wanted, folder)
    report = Report(machine=machine(), scale=wanted.scale, seed=wanted.seed)
    console.print(
        f"{len(tests)} tests of {len({row for row, _ in tests})} rows, size {wanted.scale}, seed {wanted.seed};"
        f" {report.machine['cpu']}, {report.machine['cores']} cores. Ctrl-C stops."
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=len(tests))
        async with aclosing(_run(wanted, report, folder)) as lines:
            async for line in lines:
                report.lines.append(line)
                progress.update(task, advance=1, description=f"after row {line['row']}")
                if not console.is_terminal:  # no progress bar is shown
                    console.print(f"row {line['row']}: {'kept' if line['kept'] else 'NOT KEPT'}, {line['seconds']} s")
                if not line["kept"]:
                    console.print(f"[red]row {line['row']} not kept[/red]: {_reason(line)}", highlight=False)
    _show(report, console)
    paths = write(report, wanted.out)
    console.print("Report: " + ", ".join(str(path) for path in paths))
    return 0 if report.kept else 1


# --- running -------------------------------------------------------------------------------------


async def _collect(wanted: Wanted, folder: Path) -> list[tuple[int, str]]:
    """List row and test of everything that will run. Raises: ChaosFailed."""
    if not wanted.folder.is_dir():
        raise ChaosFailed(f"There are no rows in {wanted.folder}: run this in a checkout of the repository.")
    process = await asyncio.create_subprocess_exec(
        *_pytest(wanted, folder, "--collect-only", "-q", "-p", "no:warnings"),
        cwd=_ROOT,
        env=_environ(wanted, None),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    tests = [
        (_row_of(word), word)
        for word in said.decode(errors="replace").splitlines()
        if "::" in word and _row_of(word) is not None
    ]
    if process.returncode != 0 or not tests:
        tail = "\n  ".join(said.decode(errors="replace").splitlines()[-15:])
        raise ChaosFailed(f"The rows cannot be collected (`make setup-dev` installs what they need):\n  {tail}")
    return [(row, test) for row, test in tests if row is not None]


def _row_of(test: str) -> int | None:
    """Read the row's number from its file's name, `test_row_06_….py`."""
    name = Path(test.partition("::")[0]).name.removeprefix("test_row_")
    digits = name.partition("_")[0]
    return int(digits) if digits.isdecimal() else None


def _pytest(wanted: Wanted, folder: Path, *more: str) -> Sequence[str]:
    files = sorted(
        path for path in wanted.folder.glob("test_row_*.py") if not wanted.rows or _row_of(path.name) in wanted.rows
    )
    if not files:
        raise ChaosFailed(f"Unknown row: {', '.join(map(str, wanted.rows))}.")
    # By default pytest would keep the rows' files of the last three runs.
    own = f"--basetemp={folder / 'rows'}"
    return (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", own, *more, *map(str, files))


def _environ(wanted: Wanted, out: Path | None) -> dict[str, str]:
    environ = os.environ | {"CHAOS_SCALE": wanted.scale, "CHAOS_SEED": str(wanted.seed)}
    if out is not None:
        environ["CHAOS_OUT"] = str(out)
    return environ


async def _run(wanted: Wanted, report: Report, folder: Path) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the line of each test when it has ended."""
    out, log = folder / "figures.jsonl", folder / "log.txt"
    out.touch()
    async with _process(_pytest(wanted, folder, "-q"), _environ(wanted, out), log) as process:
        read = 0
        while True:
            ended = process.returncode is not None
            lines = out.read_text(encoding="utf-8").splitlines()
            for line in lines[read:]:
                yield json.loads(line)
            read = len(lines)
            if ended:
                break
            await asyncio.sleep(_LOOK_S)
        report.exit_code = process.returncode or 0
        report.last_words = log.read_text(encoding="utf-8", errors="replace")[-4_000:]


@asynccontextmanager
async def _process(
    command: Sequence[str], environ: dict[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Yield a running command; at the end it is stopped in any case, with time to stop what it has started."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=_ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
                try:
                    async with asyncio.timeout(_STOP_S):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()


# --- showing -------------------------------------------------------------------------------------


def _reason(line: dict[str, Any]) -> str:
    broken = [_said(figure) for figure in line["figures"] if figure["kept"] is False]
    return "; ".join(broken) or line["failure"].strip().splitlines()[-1]


def _said(figure: dict[str, Any]) -> str:
    value = f"{figure['name']}: {figure['value']}{' ' + figure['unit'] if figure['unit'] else ''}"
    return f"{value} (promised {figure['promised']})" if figure["promised"] else value


def _show(report: Report, console: Console) -> None:
    table = Table("row", "promise", "measured", "kept", title=f"Reliability, size {report.scale}", show_lines=True)
    for line in report.sorted_lines():
        measured = "\n".join(_said(figure) for figure in line["figures"]) or "-"
        if not line["kept"]:
            measured += f"\n{_reason(line)}"
        table.add_row(str(line["row"]), line["promise"], measured, "[green]yes[/green]" if line["kept"] else "[red]NO")
    console.print(table)
    if report.exit_code not in (0, 1) or (report.exit_code == 1 and all(line["kept"] for line in report.lines)):
        console.print(f"[red]The run itself failed[/red] (exit code {report.exit_code}):\n{report.last_words}")


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write the report as JSON and as an HTML page. Raises: ChaosFailed."""
    data = {
        "scale": report.scale,
        "seed": report.seed,
        "machine": report.machine,
        "kept": report.kept,
        "rows": report.sorted_lines(),
    }
    try:
        return write_report(folder, f"chaos-{report.scale}", data, _page(report))
    except NotWritten as error:
        raise ChaosFailed(str(error)) from error


def _page(report: Report) -> str:
    rows = "\n".join(map(_page_row, report.sorted_lines()))
    verdict = "Every promise was kept." if report.kept else "Not every promise was kept."
    facts = html.escape(in_words(report.machine))
    return page(
        "Reliability, measured",
        f"""<p>{verdict} Size {html.escape(report.scale)}, seed {report.seed}. {facts}.</p>
<table><thead><tr><th scope="col">row</th><th scope="col">promise</th><th scope="col">measured</th>
<th scope="col">kept</th></tr></thead><tbody>
{rows}
</tbody></table>""",
    )


def _page_row(line: dict[str, Any]) -> str:
    figures = "".join(f"<li>{html.escape(_said(figure))}</li>" for figure in line["figures"])
    failure = "" if line["kept"] else f"<p>{html.escape(_reason(line))}</p>"
    verdict = "yes" if line["kept"] else "no"
    return (
        f"<tr><td>{line['row']}</td><td>{html.escape(line['promise'])}</td>"
        f"<td><ul>{figures}</ul>{failure}</td><td class={verdict}>{verdict}</td></tr>"
    )
