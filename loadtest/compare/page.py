"""The results of a comparison, as tables in the terminal and as one HTML page. Peers are columns."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.compare.results import Column, Comparison, Part, Row, Score
from loadtest.measure.report import facts_table, in_words, page, write_report

_NONE: Final = "-"


def _verdict(found: Comparison) -> str:
    if found.passed:
        return "All checks passed."
    held = all(check.kept for check in found.every_check())
    incomplete = "" if found.complete else " The comparison is not complete."
    return ("" if held else "Some checks failed.") + incomplete


def _cell(row: Row, column: Column) -> str:
    value = row.median(column.key)
    return _NONE if value is None else format(value, column.form)


def _spread(row: Row, column: Column) -> str:
    """Return the median and, over several rounds, the range."""
    values = [figures[column.key] for figures in row.rounds if column.key in figures]
    if len(values) < 2:
        return _cell(row, column)
    return f"{_cell(row, column)} ({min(values):{column.form}} to {max(values):{column.form}})"


def _ratio(part: Part, column: Column, row: Row) -> str:
    value = part.ratio(column.key, row.name)
    return _NONE if value is None else f"{value:.2g} x"


def _columns(part: Part) -> list[Column]:
    """Return the columns for which any row has a figure."""
    return [column for column in part.columns if any(row.median(column.key) is not None for row in part.rows)]


def _ratios(part: Part) -> list[Column]:
    return [column for column in part.ratios if any(part.ratio(column.key, row.name) for row in part.rows[1:])]


def _answer(score: Score, index: int) -> str:
    if index >= len(score.probed):
        return _NONE
    return "yes" if score.probed[index].passed else "NO"


def _total(score: Score) -> str:
    return f"{score.passed}/{len(score.probed)}"


def _said(found: Comparison) -> list[tuple[str, str]]:
    """Return the remarks about peers, as (peer, remark)."""
    said = [(name, f"missing: {why}") for name, why in found.missing.items()]
    for part in found.parts:
        for row in part.rows:
            said += [(row.name, remark) for remark in row.remarks]
            said += [(row.name, f"failed: {row.failure}")] if row.failure else []
    for score in found.scores:
        said += [(score.name, f"failed: {score.failure}")] if score.failure else []
        said += [(score.name, f"{one.probe}: {one.observed}") for one in score.probed if not one.passed]
    return said


# --- terminal ------------------------------------------------------------------------------------


def show(found: Comparison, console: Console) -> None:
    """Print the tables."""
    for part in found.parts:
        table = Table(f"median of {found.rounds}", *(escape(row.name) for row in part.rows), title=escape(part.title))
        for column in _columns(part):
            table.add_row(escape(column.heading), *(_cell(row, column) for row in part.rows))
        first = part.rows[0].name if part.rows else ""
        for column in _ratios(part):
            cells = [_ratio(part, column, row) for row in part.rows]
            table.add_row(escape(f"{first} to this: {column.heading}"), *cells)
        console.print(table)
    if found.scores:
        table = Table("probe", *(escape(score.name) for score in found.scores), title="Correctness")
        for index, name in enumerate(found.probes):
            table.add_row(escape(name), *(_answer(score, index) for score in found.scores))
        table.add_row("score", *map(_total, found.scores))
        console.print(table)
    for name, what in _said(found):
        console.print(f"{name}: {what}", markup=False, highlight=False)
    table = Table("what", "found", "wanted", "kept")
    for check in found.every_check():
        kept = "[green]yes[/green]" if check.kept else "[red]NO[/red]"
        table.add_row(escape(check.name), escape(check.found), escape(check.wanted), kept)
    if table.row_count:
        console.print(table)
    console.print(_verdict(found), style="green" if found.passed else "red")


# --- page ----------------------------------------------------------------------------------------


def write(found: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write JSON and page. Raises: NotWritten."""
    return write_report(folder, "compare", found.as_json(), comparison_page(found))


def comparison_page(found: Comparison) -> str:
    """Return the HTML page."""
    facts = {
        "machine": in_words(found.machine),
        "versions": in_words(found.versions),
        "cores": found.pinning,
        "command": found.command,
        "rounds": f"{found.rounds}, seed {found.seed}, {found.seconds:.0f} s in all",
    }
    parts = [f"<p><strong>{html.escape(_verdict(found))}</strong></p>{facts_table(facts)}"]
    if found.stopped:
        parts.append("<p><strong>Stopped before the end.</strong></p>")
    parts += [_part(part) for part in found.parts]
    parts += [_scores(found)] if found.scores else []
    said = [f"<li>{html.escape(name)}: {html.escape(what)}</li>" for name, what in _said(found)]
    parts += [f"<h2>Remarks</h2><ul>{''.join(said)}</ul>"] if said else []
    checks = [[check.name, check.found, check.wanted, "yes" if check.kept else "NO"] for check in found.every_check()]
    parts += ["<h2>Thresholds</h2>", _table(["what", "found", "wanted", "kept"], checks)] if checks else []
    return page("Compared", "\n".join(parts))


def _part(part: Part) -> str:
    figures = [[column.heading, *(_spread(row, column) for row in part.rows)] for column in _columns(part)]
    first = part.rows[0].name if part.rows else ""
    figures += [
        [f"{first} to this: {column.heading}", *(_ratio(part, column, row) for row in part.rows)]
        for column in _ratios(part)
    ]
    who = "".join(f"<li><strong>{html.escape(row.name)}</strong>: {html.escape(row.what)}</li>" for row in part.rows)
    return "\n".join(
        (
            f"<h2>{html.escape(part.title)}</h2><p>{html.escape(part.method)}</p><ul>{who}</ul>",
            "<p>Median of the rounds (lowest to highest).</p>",
            _table(["", *(row.name for row in part.rows)], figures),
        )
    )


def _scores(found: Comparison) -> str:
    rows = [[name, *(_answer(score, index) for score in found.scores)] for index, name in enumerate(found.probes)]
    rows.append(["score", *map(_total, found.scores)])
    return "<h2>Correctness</h2>\n" + _table(["probe", *(score.name for score in found.scores)], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first cell of each row is its heading."""
    head = "".join(f"<th scope=col>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join(f"<tr><th scope=row>{html.escape(row[0])}</th>{''.join(map(_td, row[1:]))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _td(text: str) -> str:
    kind = {"yes": "yes", "NO": "no"}.get(text, "number")
    return f"<td class={kind}>{html.escape(text)}</td>"
