"""The results of a comparison, as values: figures of interleaved rounds, and what each peer did when probed.

How they are shown is in `page.py`.
"""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest.measure.results import Check, read_as

#: Version of the file format, so that a later program can recognise it.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A figure shown in a table."""

    key: str
    heading: str
    form: str = ".1f"


@dataclass(slots=True, kw_only=True)
class Row:
    """One peer's figures, round by round."""

    name: str
    what: str
    #: A round in which something failed has fewer figures, or none.
    rounds: list[dict[str, float]] = field(default_factory=list)
    #: What a reader must know about these figures.
    remarks: list[str] = field(default_factory=list)
    #: Why there are no more figures; empty if nothing failed.
    failure: str = ""

    def median(self, key: str) -> float | None:
        """Return the median over the rounds that have this figure."""
        values = [figures[key] for figures in self.rounds if key in figures]
        return statistics.median(values) if values else None

    def remark(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.remarks:
            self.remarks.append(text)


@dataclass(slots=True, kw_only=True)
class Part:
    """One table: all peers at the same work, in alternating rounds."""

    name: str
    title: str
    #: How it was measured, for the reader of the page.
    method: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    #: Figures where more is better; the first row's ratio to each other row is shown.
    ratios: list[Column] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def row(self, name: str) -> Row | None:
        """Return the row of a peer."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, key: str, name: str) -> float | None:
        """Return the ratio of the first row's median to this row's."""
        other = self.row(name)
        theirs = None if other is None else other.median(key)
        first = self.rows[0].median(key) if self.rows else None
        return None if first is None or not theirs else first / theirs

    def at_least(self, factor: float, key: str, name: str) -> Check:
        """Return the check that the first row has at least `factor` times as much of a figure as `name`."""
        found = self.ratio(key, name)
        heading = next((column.heading for column in (*self.ratios, *self.columns) if column.key == key), key)
        return Check(
            name=f"{self.rows[0].name} to {name}: {heading}",
            found="not measured" if found is None else f"{found:.2g} times",
            wanted=f">= {factor:g} times",
            kept=found is not None and found >= factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One peer's behaviour in one probe."""

    probe: str
    passed: bool
    #: What it did, in words.
    observed: str


@dataclass(slots=True, kw_only=True)
class Score:
    """One peer's behaviour in all probes."""

    name: str
    what: str
    probed: list[Probed] = field(default_factory=list)
    failure: str = ""

    @property
    def passed(self) -> int:
        """Number of probes passed."""
        return sum(one.passed for one in self.probed)


@dataclass(slots=True, kw_only=True)
class Comparison:
    """The results of one run."""

    format: int = FORMAT
    machine: dict[str, Any]
    versions: dict[str, str]
    #: Cores of the peers and of the generator.
    pinning: str
    command: str
    seed: int
    rounds: int
    parts: list[Part] = field(default_factory=list)
    #: Names of the probes in order, for the reader.
    probes: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    #: Peers that could not be installed, and why.
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Whether everything requested was measured."""
        failures = [row.failure for part in self.parts for row in part.rows] + [score.failure for score in self.scores]
        return not self.stopped and not self.missing and not any(failures)

    @property
    def passed(self) -> bool:
        """Whether it was measured, and every check passed."""
        return self.complete and all(check.kept for check in self.every_check())

    def every_check(self) -> list[Check]:
        """Return the checks of the parts and of the whole."""
        return [check for part in self.parts for check in part.checks] + self.checks

    def as_json(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return asdict(self) | {"passed": self.passed}


def read_comparison(path: Path) -> Comparison:
    """Read the report of a run. Raises: BadReport."""
    return read_as(Comparison, path, version=FORMAT, what="a comparison")
