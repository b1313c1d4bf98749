"""What can be measured, as data: the work of each scenario, in a short and a long form, and its thresholds.

Besides the built-in scenarios, users may write their own as TOML files:

    name = "evening"
    what = "Our evening peak, over a slow line to Meta"
    work = "ring"

    [short]
    steps = [{rate_per_s = 20, seconds = 5, graph_ms = 80}]
    thresholds = [{figure = "accept_p99_ms", at_most = 250, rate_per_s = 20}]

Such files are read in `scenario_file.py`; `run.py` does the work.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SEED: Final = 20261122
_MOST_RATES: Final = 8


class Work(StrEnum):
    """Kinds of load."""

    #: Users call, operators answer, users hang up.
    RING = "ring"
    #: Operators call, users answer, operators hang up.
    DIAL = "dial"
    #: Calls within one second, whose SDP offers must all be answered; nobody picks up.
    BURST = "burst"
    #: Deliveries of events, each written to disk before it is answered.
    INTAKE = "intake"
    #: Like `ring`, beside many live calls; a number without a free slot is called nevertheless.
    FILL = "fill"
    #: Calls of all kinds for a long time, and what they leave behind.
    SOAK = "soak"
    #: Policy decisions, with many contacts in the database.
    GATE = "gate"
    #: Calls with real RTP both ways.
    MEDIA = "media"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Load at one rate."""

    #: Calls per second; for `intake`, deliveries per second.
    rate_per_s: float
    seconds: float
    #: How long the simulated Graph takes to answer.
    graph_ms: float = 0.0
    #: Shares of webhooks that are delivered twice, or out of order.
    twice: float = 0.0
    reordered: float = 0.0
    #: Most events in a delivery; drawn uniformly from 1. For `intake` and `ring`.
    batch: int = 1
    #: For `fill`: live calls on each of `numbers` numbers, half in each direction.
    live: int = 0
    numbers: int = 1
    #: For `intake`: delay of PostgreSQL's answers, and how long it is stalled in the middle of the step.
    database_ms: float = 0.0
    database_silent_s: float = 0.0

    @property
    def count(self) -> int:
        """Number of arrivals."""
        return max(1, round(self.rate_per_s * self.seconds))

    @property
    def series(self) -> str:
        """What distinguishes it from steps that differ only in rate, in a few words."""
        said = [f"batches of 1-{self.batch}"] if self.batch > 1 else []
        said += [f"Graph {self.graph_ms:g} ms"] if self.graph_ms else []
        said += [f"PostgreSQL {self.database_ms:g} ms later"] if self.database_ms else []
        said += [f"PostgreSQL silent for {self.database_silent_s:g} s"] if self.database_silent_s else []
        if self.live or self.numbers > 1:
            where = f"each of {self.numbers} numbers" if self.numbers > 1 else "one number"
            said.append(f"{self.live:,} calls up on {where}")
        return ", ".join(said)

    @property
    def label(self) -> str:
        """The step in a few words."""
        return ", ".join(filter(None, (f"{self.rate_per_s:g}/s", self.series)))


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaStep:
    """A number of simultaneous calls with real RTP both ways."""

    calls: int
    #: How long everyone talks, before the hold and after it; 0: not at all, only the set-up is measured.
    seconds: float = 4.0
    #: Loss and delay of a UDP proxy on the users' side; the delay is uniform.
    loss: float = 0.0
    jitter_ms: float = 0.0
    #: Whether to put all calls on hold in the middle.
    hold: bool = False

    @property
    def faulty(self) -> bool:
        """Whether the users are behind the proxy."""
        return bool(self.loss or self.jitter_ms)

    @property
    def label(self) -> str:
        """The step in a few words."""
        parts = [f"{self.calls} calls"]
        parts += [f"{100 * self.loss:g} % loss"] if self.loss else []
        parts += [f"0-{self.jitter_ms:g} ms jitter"] if self.jitter_ms else []
        return ", ".join(parts + (["hold"] if self.hold else []) + ([] if self.seconds else ["silent"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The bound of a figure: of one step if a rate is given, otherwise of the whole scenario."""

    figure: str
    at_most: float | None = None
    at_least: float | None = None
    rate_per_s: float | None = None
    graph_ms: float = 0.0

    @property
    def said(self) -> str:
        """The bound in a few words."""
        least = [] if self.at_least is None else [f">= {self.at_least:g}"]
        most = [] if self.at_most is None else [f"<= {self.at_most:g}"]
        return " and ".join(least + most)

    @property
    def name(self) -> str:
        """The figure, and the step it belongs to."""
        if self.rate_per_s is None:
            return self.figure
        return f"{self.figure} at {Step(rate_per_s=self.rate_per_s, seconds=1, graph_ms=self.graph_ms).label}"

    def met(self, value: float | None) -> bool:
        """Return whether a figure is within the bound; one that was not measured is not."""
        if value is None or math.isnan(value):
            return False
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The amount of work."""

    #: One after the other; a rate that was not held ends the steps with the same `graph_ms`.
    steps: tuple[Step, ...] = ()
    #: How long people talk.
    talk_s: float = 0.05
    #: For `fill`: slots of each number, in each direction.
    slots: int = 1_000
    #: For `soak`: calls in total, and at a time.
    calls: int = 0
    lanes: int = 20
    #: For `gate`.
    contacts: int = 0
    #: For `media`.
    anchored: tuple[MediaStep, ...] = ()
    thresholds: tuple[Threshold, ...] = ()

    @property
    def said(self) -> str:
        """The amount of work, in a few words."""
        if self.calls:
            return f"{self.calls:,} calls, {self.lanes} at a time"
        if self.contacts:
            return f"{self.contacts:,} contacts"
        if self.anchored:
            return "\n".join(step.label for step in self.anchored)
        lines = []
        for series, seconds in dict.fromkeys((step.series, step.seconds) for step in self.steps):
            steps = [step for step in self.steps if (step.series, step.seconds) == (series, seconds)]
            rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(step.rate_per_s for step in steps))
            if len(steps) > _MOST_RATES:
                rates = f"{steps[0].rate_per_s:g} to {steps[-1].rate_per_s:g} in {len(steps)} steps"
            lines.append(", ".join(filter(None, (f"{rates} a second", series, f"{seconds:g} s each"))))
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One repeatable experiment."""

    name: str
    what: str
    work: Work
    short: Form
    long: Form
    seed: int = SEED

    def form(self, *, long: bool) -> Form:
        """Return the requested form."""
        return self.long if long else self.short


class BadScenario(ValueError):
    """A scenario that cannot be run; `mistakes` lists everything that is wrong."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


# --- what is measured ----------------------------------------------------------------------------

#: Measured instants; each has p50, p99 and p999 in milliseconds.
_INSTANTS: Final[Mapping[Work, tuple[str, ...]]] = {
    Work.RING: ("ack", "pre_accept", "accept", "overhead"),
    Work.DIAL: ("ack", "connect"),
    Work.FILL: ("ack", "pre_accept", "accept", "overhead"),
    Work.BURST: ("ack", "pre_accept"),
    Work.INTAKE: ("ack",),
}
_SHARES: Final = ("p50", "p99", "p999")
_OF_STEPS: Final = (
    *("cpu_ms", "database_cpu_ms", "generator_cpu_ms", "cpu_share", "generator_cpu_share", "lost", "achieved_per_s"),
    *("lag_p99_ms", "lag_max_ms", "rss_mb", "late_p99_ms"),
)
_OVERALL: Final[Mapping[Work, tuple[str, ...]]] = {
    Work.RING: ("saturation_per_s", "cpu_growth"),
    Work.DIAL: ("saturation_per_s", "cpu_growth"),
    Work.FILL: (
        *("cpu_growth", "ack_p99_more_ms", "kib_per_call", "kib_per_operator", "refusal_in_p99_ms"),
        *("refusal_out_p99_ms", "let_in", "fallen", "lost"),
    ),
    Work.BURST: ("last_answer_ms",),
    Work.INTAKE: ("saturation_per_s", "events_per_s", "lost", "missing", "spooled"),
    Work.SOAK: ("bytes_per_call", "descriptors_more", "tasks_more", "refused", "calls_per_s", "lag_max_ms"),
    Work.GATE: ("evaluate_p50_us", "evaluate_p99_us", "cold_p50_ms", "cold_p99_ms", "by_index", "cache_kb"),
    Work.MEDIA: (
        *("calls_held", "calls_per_core", "lost", "cpu_us", "delay_p50_ms", "delay_p99_ms"),
        *("setup_cpu_ms", "worker_kb_per_call"),
    ),
}


def step_figures(work: Work) -> frozenset[str]:
    """Return the names of the figures of a step of this work."""
    if work not in _INSTANTS:
        return frozenset()
    timed = {f"{instant}_{share}_ms" for instant in _INSTANTS[work] for share in _SHARES}
    own = {"last_answer_ms"} if work is Work.BURST else {"events_per_s"} if work is Work.INTAKE else set()
    return frozenset(timed | own | set(_OF_STEPS))


def overall_figures(work: Work) -> frozenset[str]:
    """Return the names of the figures of a whole scenario of this work."""
    return frozenset(_OVERALL[work])
