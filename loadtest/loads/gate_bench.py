"""`python -m loadtest gate`: the cost of one policy decision here, with a million contacts in PostgreSQL.

Runs `python -m gateway bench` as a separate process (this side shares no code with the gateway), shows its progress
and checks its figures against the goals.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

#: The goals, in microseconds and milliseconds on one quiet core.
EVALUATE_P99_US: Final = 50.0
COLD_P99_MS: Final = 5.0

_ROOT: Final = Path(__file__).resolve().parents[2]
_STEPS: Final = {"decide": "deciding", "load": "filling the table", "read": "reading cold contacts"}


class BenchFailed(Exception):
    """The measured process ended without figures; the text is its last output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One figure and its goal."""

    name: str
    value: str
    goal: str
    met: bool


async def measure(contacts: int, seed: int, console: Console, *, decisions: int = 100_000) -> dict[str, Any]:
    """Run the benchmark and return its figures. Raises: BenchFailed."""
    figures = {"--contacts": contacts, "--decisions": decisions, "--seed": seed}
    arguments = ("-m", "gateway", "bench", *(str(part) for pair in figures.items() for part in pair))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=_ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with Progress(console=console, transient=True) as progress:
            async with asyncio.TaskGroup() as tasks:
                errors = tasks.create_task(process.stderr.read())
                found = await _follow(process.stdout, progress)
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if found is None:
        raise BenchFailed(errors.result().decode(errors="replace").strip()[-2_000:] or "no figures came")
    return found


async def _follow(lines: asyncio.StreamReader, progress: Progress) -> dict[str, Any] | None:
    bars: dict[str, TaskID] = {}
    figures: dict[str, Any] | None = None
    while line := await lines.readline():
        if not line.startswith(b'{"'):  # a log line
            continue
        said = json.loads(line)
        figures = said.get("figures", figures)
        step = said.get("step")
        if step is None:
            continue
        if step not in bars:
            bars[step] = progress.add_task(_STEPS.get(step, step), total=said["total"])
        progress.update(bars[step], completed=said["done"])
    return figures


def goals(figures: Mapping[str, Any]) -> list[Goal]:
    """Check the figures against the goals."""
    evaluate, cold, cache = figures["evaluate_us"], figures["cold_ms"], figures["cache"]
    scans = [node for node in figures["plan"] if "Scan" in node]
    by_index = bool(scans) and not any(node == "Seq Scan" for node in scans)
    return [
        Goal(
            name="decision, state at hand, p50 / p99",
            value=f"{evaluate['p50']} / {evaluate['p99']} us",
            goal=f"p99 < {EVALUATE_P99_US:g} us",
            met=evaluate["p99"] < EVALUATE_P99_US,
        ),
        Goal(
            name=f"decision, cold contact of {figures['contacts']:,}, p50 / p99",
            value=f"{cold['p50']} / {cold['p99']} ms",
            goal=f"p99 < {COLD_P99_MS:g} ms",
            met=cold["p99"] < COLD_P99_MS,
        ),
        Goal(name="how it is found", value=", ".join(scans), goal="by index", met=by_index),
        Goal(
            name="names in memory",
            value=f"{cache['kept']:,} ({cache['kb']:,} KiB)",
            goal=f"at most {cache['limit']:,}",
            met=cache["kept"] <= cache["limit"],
        ),
    ]


def show(figures: Mapping[str, Any], console: Console) -> bool:
    """Print a table, then the JSON; return whether every goal was met."""
    table = Table("figure", "here", "goal", "", title="The gate")
    found = goals(figures)
    for one in found:
        table.add_row(one.name, one.value, one.goal, "[green]met[/green]" if one.met else "[red]missed[/red]")
    console.print(table)
    met = all(one.met for one in found)
    console.print_json(data=dict(figures) | {"met": met})
    return met
