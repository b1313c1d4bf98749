"""The results of a load run as values: written as JSON, and read again for a report.

How they are shown is in `loads/page.py`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

#: Version of the file format, so that a later program can recognise it.
FORMAT: Final = 1


class BadReport(ValueError):
    """The file is not a report of a load run; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The gateway at one instant."""

    #: Seconds since the start of the scenario.
    at_s: float
    #: CPU time, user and system, since the gateway's start.
    cpu_s: float
    rss_bytes: int
    descriptors: int
    #: None: `/metrics` did not answer in time.
    tasks: int | None
    #: Longest event-loop lag in the second before.
    lag_ms: float | None
    live: int | None


@dataclass(slots=True, kw_only=True)
class StepResult:
    """The figures of one step."""

    label: str
    rate_per_s: float
    graph_ms: float
    count: int
    figures: dict[str, float] = field(default_factory=dict)
    #: Whether the gateway kept up.
    held: bool = True
    #: What distinguishes it from steps that differ only in rate.
    series: str = ""
    #: The load generator itself was late, so the figures are not the gateway's.
    generator_was_the_limit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A requirement: a threshold or an invariant."""

    name: str
    found: str
    wanted: str
    kept: bool


@dataclass(slots=True, kw_only=True)
class Result:
    """The outcome of one scenario, as far as it ran."""

    scenario: str
    what: str
    work: str
    form: str
    seed: int
    #: Conditions of the load that are in no other field.
    load: list[str] = field(default_factory=list)
    seconds: float = 0.0
    steps: list[StepResult] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    thresholds: list[Check] = field(default_factory=list)
    invariants: list[Check] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    #: Why it ended early; empty if it did not.
    failure: str = ""
    stopped: bool = False

    @property
    def passed(self) -> bool:
        """Whether it ran to the end and every check passed."""
        checks = self.thresholds + self.invariants
        return not self.failure and not self.stopped and all(check.kept for check in checks)


@dataclass(slots=True, kw_only=True)
class Report:
    """The results of one run."""

    format: int = FORMAT
    machine: dict[str, Any]
    versions: dict[str, str]
    #: The cores of the gateway and of the generator.
    pinning: str
    command: str
    results: list[Result] = field(default_factory=list)
    #: Scenarios that were requested.
    wanted: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all requested scenarios ran and every check passed."""
        return bool(self.results) and len(self.results) == len(self.wanted) and all(one.passed for one in self.results)

    def as_json(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self) | {"passed": self.passed}


T = TypeVar("T")


def read_report(path: Path) -> Report:
    """Read the report of a run. Raises: BadReport."""
    return read_as(Report, path, version=FORMAT, what="a load run")


def is_comparison(path: Path) -> bool:
    """Return whether the file looks like the report of a comparison rather than of a load run."""
    try:
        data = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(data, dict) and "scores" in data


def read_as(kind: type[T], path: Path, *, version: int, what: str) -> T:
    """Read a report of one kind and version; `what` names its subject. Raises: BadReport."""
    try:
        data = msgspec.json.decode(path.read_bytes())
        if not isinstance(data, dict) or data.get("format") != version:
            raise BadReport(f"{path} is not a report of {what} that this version can read")
        return msgspec.convert({key: value for key, value in data.items() if key != "passed"}, kind)
    except OSError as error:
        raise BadReport(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReport(f"{path} is not a report of {what}: {error}") from error
