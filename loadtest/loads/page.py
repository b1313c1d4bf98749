"""The results of a load run, as tables in the terminal and as one HTML page with plots.

Nothing is measured or judged here: the checks are part of the report.
"""

import html
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.loads.scenarios import Work
from loadtest.measure.plots import Series, plot
from loadtest.measure.report import facts_table, in_words, page, write_report
from loadtest.measure.results import Report, Result, Sample, StepResult

METHOD: Final = (
    "Open loop: calls arrive on a seeded schedule, however slow the answers are. A time counts from the instant at"
    " which the call was due to the instant at which the simulated Graph had read the request; ack is the response to a"
    " webhook (for calls, from when the webhook was sent). A warm-up second of light load is not counted."
    " The gateway ran as a separate process with its embedded PostgreSQL and full durability; except in the media"
    " scenarios it carried no audio (media engine null), because these scenarios measure signalling."
    " The simulated Meta, users and operators share one process, the generator. CPU is user and system time per call,"
    " including idle work."
    " The p99 of event-loop lag is the upper bound of a bucket of the gateway's histogram. In the media scenarios, the"
    " added delay runs from just before a packet is given to the sender's socket to when the kernel put it into the"
    " receiver's, including both hops over loopback; CPU, memory and cores are those of the media worker alone, per"
    " forwarded packet, per call and per leg set up (ICE and DTLS); losses injected by the proxy do not count as lost."
)
#: Figures of steps that the tables show, if they are there: key, heading, format.
_COLUMNS: Final = (
    ("ack_p99_ms", "ack p99", ".1f"),
    ("pre_accept_p99_ms", "pre_accept p99", ".1f"),
    ("accept_p50_ms", "accept p50", ".1f"),
    ("accept_p99_ms", "accept p99", ".1f"),
    ("accept_p999_ms", "accept p999", ".1f"),
    ("overhead_p99_ms", "without Graph p99", ".1f"),
    ("connect_p50_ms", "connect p50", ".1f"),
    ("connect_p99_ms", "connect p99", ".1f"),
    ("connect_p999_ms", "connect p999", ".1f"),
    ("last_answer_ms", "last answer", ".0f"),
    ("events_per_s", "events/s", ".0f"),
    ("refusal_in_p99_ms", "refusal in p99", ".1f"),
    ("refusal_out_p99_ms", "refusal out p99", ".1f"),
    ("kib_per_call", "KiB a call", ".1f"),
    ("kib_per_operator", "KiB an operator", ".1f"),
    ("idle_cpu_share", "cores idle", ".2f"),
    ("call_cpu_ms", "CPU ms beyond idle", ".2f"),
    ("delay_p50_ms", "added delay p50", ".2f"),
    ("delay_p99_ms", "added delay p99", ".1f"),
    ("delivered_to_operator", "% to operators", ".2f"),
    ("delivered_to_user", "% to users", ".2f"),
    ("cpu_us", "CPU us a packet", ".1f"),
    ("calls_per_core", "calls a core would carry", ".0f"),
    ("setup_cpu_ms", "CPU ms a leg's set-up", ".2f"),
    ("worker_kb_per_call", "KiB a call", ".0f"),
    ("cpu_ms", "CPU ms", ".2f"),
    ("cpu_share", "cores", ".2f"),
    ("database_cpu_ms", "PostgreSQL CPU ms", ".2f"),
    ("generator_cpu_ms", "generator CPU ms", ".2f"),
    ("late_p99_ms", "generator late p99", ".1f"),
    ("lag_p99_ms", "lag p99", ".1f"),
    ("lag_max_ms", "lag max", ".1f"),
    ("rss_mb", "MiB", ".0f"),
    ("spooled", "spooled", ".0f"),
    ("missing", "missing", ".0f"),
    ("injected", "injected", ".0f"),
    ("lost", "lost", ".0f"),
)
_OF_TERMINAL: Final = frozenset(
    {
        *("ack_p99_ms", "accept_p50_ms", "accept_p99_ms", "connect_p50_ms", "connect_p99_ms", "last_answer_ms"),
        *("refusal_in_p99_ms", "refusal_out_p99_ms", "kib_per_call", "idle_cpu_share", "call_cpu_ms"),
        *("delay_p50_ms", "delay_p99_ms", "cpu_us", "calls_per_core", "setup_cpu_ms", "injected"),
        *("events_per_s", "spooled", "cpu_ms", "lag_p99_ms", "lag_max_ms", "lost"),
    }
)


def _columns(result: Result, *, narrow: bool) -> list[tuple[str, str, str]]:
    there = {name for step in result.steps for name in step.figures}
    return [one for one in _COLUMNS if one[0] in there and (not narrow or one[0] in _OF_TERMINAL)]


def _cell(step: StepResult, key: str, form: str) -> str:
    return format(step.figures[key], form) if key in step.figures else "-"


def _remark(step: StepResult) -> str:
    remarks = [] if step.held else ["not held"]
    return ", ".join(remarks + (["generator was the limit"] if step.generator_was_the_limit else []))


def _verdict(report: Report) -> str:
    if report.passed:
        return "All checks passed."
    done = [result.scenario for result in report.results if not result.stopped and not result.failure]
    missing = [name for name in report.wanted if name not in done]
    early = f" Not measured, or not completely: {', '.join(missing)}." if missing else ""
    missed = any(not check.kept for result in report.results for check in result.thresholds + result.invariants)
    return ("Some checks failed." if missed else "The run is not complete.") + early


# --- terminal ------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    for result in report.results:
        if result.steps:
            columns = _columns(result, narrow=True)
            table = Table("load", *(heading for _, heading, _ in columns), "", title=escape(result.scenario))
            for step in result.steps:
                cells = [_cell(step, key, form) for key, _, form in columns]
                table.add_row(step.label, *cells, f"[yellow]{_remark(step)}[/yellow]")
            console.print(table)
        if result.figures:
            said = ", ".join(f"{name} {value:,.6g}" for name, value in sorted(result.figures.items()))
            console.print(f"{escape(result.scenario)}: {escape(said)}", highlight=False)
        if result.failure:
            console.print(f"[red]{escape(result.scenario)} ended early[/red]: ", end="")
            console.print(result.failure, markup=False, highlight=False)
    table = Table("scenario", "what", "found", "wanted", "kept", title="Thresholds and invariants")
    for result in report.results:
        for check in result.thresholds + result.invariants:
            kept = "[green]yes[/green]" if check.kept else "[red]NO[/red]"
            table.add_row(escape(result.scenario), escape(check.name), escape(check.found), escape(check.wanted), kept)
    if table.row_count:
        console.print(table)
    console.print(_verdict(report), style="green" if report.passed else "red")


# --- page ----------------------------------------------------------------------------------------


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write JSON and page. Raises: NotWritten."""
    return write_report(folder, "load", report.as_json(), load_page(report))


def load_page(report: Report) -> str:
    """Return the HTML page."""
    facts = {
        "machine": in_words(report.machine),
        "versions": in_words(report.versions),
        "cores": report.pinning,
        "command": report.command,
    }
    sections = "\n".join(map(_section, report.results))
    body = f"<p><strong>{html.escape(_verdict(report))}</strong></p>{facts_table(facts)}<p>{METHOD}</p>\n{sections}"
    return page("Load, measured", body)


def _section(result: Result) -> str:
    what = f"{result.what}. " if result.what else ""
    facts = f"{what}Form {result.form}, seed {result.seed}, {result.seconds:.0f} s."
    parts = [
        f"<h2>{html.escape(result.scenario)}</h2>",
        f"<p>{html.escape(facts)}</p>",
    ]
    if result.stopped:
        parts.append("<p><strong>Stopped before the end.</strong></p>")
    if result.failure:
        parts.append(f"<p><strong>Ended early:</strong></p><pre>{html.escape(result.failure)}</pre>")
    if result.load:
        parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in result.load) + "</ul>")
    parts += [_steps_table(result), _figures_table(result), _checks_table(result)]
    parts.append('<div class="plots">' + "".join(_plots(result)) + "</div>")
    return "\n".join(part for part in parts if part)


def _table(headings: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th scope=col>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _steps_table(result: Result) -> str:
    if not result.steps:
        return ""
    columns = _columns(result, narrow=False)
    rows = [
        f"<tr><td>{html.escape(step.label)}</td>"
        + "".join(f'<td class="number">{_cell(step, key, form)}</td>' for key, _, form in columns)
        + f"<td>{_remark(step)}</td></tr>"
        for step in result.steps
    ]
    return _table(["load", *(heading for _, heading, _ in columns), ""], rows)


def _figures_table(result: Result) -> str:
    if not result.figures:
        return ""
    rows = [
        f'<tr><td>{html.escape(name)}</td><td class="number">{value:,.6g}</td></tr>'
        for name, value in sorted(result.figures.items())
    ]
    return _table(["figure", "value"], rows)


def _checks_table(result: Result) -> str:
    rows = []
    for check in result.thresholds + result.invariants:
        kept = "yes" if check.kept else "no"
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in (check.name, check.found, check.wanted))
        rows.append(f"<tr>{cells}<td class={kept}>{kept}</td></tr>")
    return _table(["threshold or invariant", "found", "wanted", "kept"], rows) if rows else ""


def _plots(result: Result) -> list[str]:
    used = [(one, two) for one, two in pairwise(result.samples) if two.at_s > one.at_s]
    cpu = [(float(two.live), _cores_used(one, two)) for one, two in used if two.live is not None]
    memory = [(float(one.live), one.rss_bytes / 2**20) for one in result.samples if one.live is not None]
    lag = [(one.at_s, one.lag_ms) for one in result.samples if one.lag_ms is not None]
    live = "live calls"
    return [
        plot(
            "Latency over rate",
            x="calls" if result.work == Work.MEDIA else "calls/s",
            y="ms",
            series=_latencies(result),
            logarithmic=True,
        ),
        plot("CPU over live calls", x=live, y="% of a core", series=[_dots("gateway", cpu)]),
        plot("Memory over live calls", x=live, y="MiB resident", series=[_dots("gateway", memory)]),
        plot(
            "Event-loop lag",
            x="s",
            y="ms, worst of a second",
            series=[Series(name="gateway", points=tuple(lag))],
        ),
    ]


def _cores_used(one: Sample, two: Sample) -> float:
    return 100 * (two.cpu_s - one.cpu_s) / (two.at_s - one.at_s)


def _dots(name: str, points: Sequence[tuple[float, float]]) -> Series:
    return Series(name=name, points=tuple(points), joined=False)


def _latencies(result: Result) -> list[Series]:
    """Return p50 and p99 of the last instant of a call, for the fastest and the slowest Graph."""
    there = {name for step in result.steps for name in step.figures}
    instants = ("accept", "connect", "pre_accept", "ack", "delay")
    instant = next((one for one in instants if f"{one}_p50_ms" in there), None)
    delays = sorted({step.graph_ms for step in result.steps})
    series = []
    for graph_ms in dict.fromkeys((*delays[:1], *delays[-1:])):
        steps = [step for step in result.steps if step.graph_ms == graph_ms]
        for share in ("p50", "p99"):
            key = f"{instant}_{share}_ms"
            points = tuple((step.rate_per_s, step.figures[key]) for step in steps if key in step.figures)
            after = f", Graph {graph_ms:g} ms" if len(delays) > 1 else ""
            series.append(Series(name=f"{share}{after}", points=points))
    return series
