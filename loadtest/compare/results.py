"""What a comparison found, as values: figures of interleaved rounds, and what each peer did when probed.

Not responsible for how it looks (see `compare_page`) nor for measuring.
"""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest.measure.results import Check, read_as

#: In the file, so that a later program can tell that it was another form.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A figure that a table shows."""

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
    #: What a reader has to know about these figures.
    remarks: list[str] = field(default_factory=list)
    #: Why there are no more of them; empty if nothing went wrong.
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
    """One table: all peers at the same work, in rounds that take turns."""

    name: str
    title: str
    #: How it was measured, for the reader of the page.
    method: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    #: The figures, the more the better, of which the first row's ratio to each other's is shown.
    ratios: list[Column] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def row(self, name: str) -> Row | None:
        """Return the row of a peer."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, key: str, name: str) -> float | None:
        """Return how many times as much of a figure the first row has as this one, by medians."""
        other = self.row(name)
        theirs = None if other is None else other.median(key)
        first = self.rows[0].median(key) if self.rows else None
        return None if first is None or not theirs else first / theirs

    def at_least(self, factor: float, key: str, name: str) -> Check:
        """Return the check that the first row has so many times as much of a figure as that of `name`."""
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
        """How many probes went well."""
        return sum(one.passed for one in self.probed)


@dataclass(slots=True, kw_only=True)
class Comparison:
    """A run."""

    format: int = FORMAT
    machine: dict[str, Any]
    versions: dict[str, str]
    #: Which cores the peers and the generator had.
    pinning: str
    command: str
    seed: int
    rounds: int
    parts: list[Part] = field(default_factory=list)
    #: The probes, in their order: what is asked, for the reader.
    probes: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    #: Peers that could not be had, and why.
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Whether all that was wanted was measured."""
        failures = [row.failure for part in self.parts for row in part.rows] + [score.failure for score in self.scores]
        return not self.stopped and not self.missing and not any(failures)

    @property
    def passed(self) -> bool:
        """Whether it was measured, and everything held."""
        return self.complete and all(check.kept for check in self.every_check())

    def every_check(self) -> list[Check]:
        """Return the checks of the parts and of the whole."""
        return [check for part in self.parts for check in part.checks] + self.checks

    def as_json(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return asdict(self) | {"passed": self.passed}


def read_comparison(path: Path) -> Comparison:
    """Read what a run wrote. Raises: BadReport."""
    return read_as(Comparison, path, version=FORMAT, what="a comparison")
