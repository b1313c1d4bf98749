"""What can be measured, as data: each scenario's work, in a short and a long form, and what it must reach.

Besides the built-in ones, whoever measures may write one as a TOML file:

    name = "evening"
    what = "Our evening peak, over a slow line to Meta"
    work = "ring"

    [short]
    steps = [{rate_per_s = 20, seconds = 5, graph_ms = 80}]
    thresholds = [{figure = "accept_p99_ms", at_most = 250, rate_per_s = 20}]

Not responsible for reading such files (see `scenario_file`), nor for doing the work (see `run`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

SEED: Final = 20261122
_MOST_RATES: Final = 8


class Work(StrEnum):
    """Kinds of load."""

    #: Users call, operators pick up, users hang up.
    RING = "ring"
    #: Operators call, users pick up, operators hang up.
    DIAL = "dial"
    #: Offers within one second, all of which must be answered; nobody picks up.
    BURST = "burst"
    #: Deliveries of events, each on disk before it is answered.
    INTAKE = "intake"
    #: As `ring`, beside many calls that stay up; a number that is full is called all the same.
    FILL = "fill"
    #: Calls of all kinds for long, and what they leave behind.
    SOAK = "soak"
    #: Decisions, with many contacts in the database.
    GATE = "gate"
    #: Calls with real RTP both ways.
    MEDIA = "media"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Load at one rate."""

    #: Calls a second; for `intake` deliveries a second.
    rate_per_s: float
    seconds: float
    #: How long the simulated Graph takes to answer.
    graph_ms: float = 0.0
    #: Shares of webhooks that come twice, or out of order.
    twice: float = 0.0
    reordered: float = 0.0
    #: Most events of a delivery; evenly spread from 1. For `intake` and `ring`.
    batch: int = 1
    #: For `fill`: calls that stay up on each of so many numbers, half of them from users, half to users.
    live: int = 0
    numbers: int = 1
    #: For `intake`: how much later PostgreSQL answers, and how long it is silent in the middle.
    database_ms: float = 0.0
    database_silent_s: float = 0.0

    @property
    def count(self) -> int:
        """How many arrivals there are."""
        return max(1, round(self.rate_per_s * self.seconds))

    @property
    def series(self) -> str:
        """What sets it apart from steps that differ in their rate only, in a few words."""
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
    """So many calls at once, with real RTP both ways."""

    calls: int
    #: How long everybody talks, before the hold and after it; 0: nobody does, it is about the set-up.
    seconds: float = 4.0
    #: What a UDP proxy on the users' side loses, and by how much it delays; evenly spread.
    loss: float = 0.0
    jitter_ms: float = 0.0
    #: Put all calls on hold in the middle.
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
    """What a figure must reach: of one step if a rate is given, else of the whole scenario."""

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
        """The figure, and where it is taken."""
        if self.rate_per_s is None:
            return self.figure
        return f"{self.figure} at {Step(rate_per_s=self.rate_per_s, seconds=1, graph_ms=self.graph_ms).label}"

    def met(self, value: float | None) -> bool:
        """Tell whether a figure is good; one that was not measured is not."""
        if value is None or math.isnan(value):
            return False
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How much of the work is done."""

    #: One after the other; a rate that was not held ends the steps with the same `graph_ms`.
    steps: tuple[Step, ...] = ()
    #: How long people talk.
    talk_s: float = 0.05
    #: For `fill`: how many calls a number may have at once, each way.
    slots: int = 1_000
    #: For `soak`: calls in all, and at a time.
    calls: int = 0
    lanes: int = 20
    #: For `gate`.
    contacts: int = 0
    #: For `media`.
    anchored: tuple[MediaStep, ...] = ()
    thresholds: tuple[Threshold, ...] = ()

    @property
    def said(self) -> str:
        """How much that is, in a few words."""
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
    """One experiment that can be repeated."""

    name: str
    what: str
    work: Work
    short: Form
    long: Form
    seed: int = SEED

    def form(self, *, long: bool) -> Form:
        """Return the form asked for."""
        return self.long if long else self.short


class BadScenario(ValueError):
    """What cannot be run; `mistakes` has every one of them."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


# --- what is built in ----------------------------------------------------------------------------

#: What is measured of instants; each has p50, p99 and p999 in milliseconds.
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
    """Return the names of the figures that a step of this work has."""
    if work not in _INSTANTS:
        return frozenset()
    timed = {f"{instant}_{share}_ms" for instant in _INSTANTS[work] for share in _SHARES}
    own = {"last_answer_ms"} if work is Work.BURST else {"events_per_s"} if work is Work.INTAKE else set()
    return frozenset(timed | own | set(_OF_STEPS))


def overall_figures(work: Work) -> frozenset[str]:
    """Return the names of the figures that such a scenario has as a whole."""
    return frozenset(_OVERALL[work])


def _steps(rates: Sequence[float], *, seconds: float, **more: Any) -> tuple[Step, ...]:
    return tuple(Step(rate_per_s=rate, seconds=seconds, **more) for rate in rates)


_UNRULY: Final = {"twice": 0.02, "reordered": 0.02}
_UP: Final = tuple(range(50, 1_001, 50))


def _most(figure: str, value: float, rate: float | None = None, graph_ms: float = 0.0) -> Threshold:
    return Threshold(figure=figure, at_most=value, rate_per_s=rate, graph_ms=graph_ms)


def _least(figure: str, value: float) -> Threshold:
    return Threshold(figure=figure, at_least=value)


BUILT_IN: Final = (
    Scenario(
        name="ring",
        what="Users call: signed connect, gate, slot, pre_accept, an operator picks up, accept; 2 % of the webhooks"
        " come twice, 2 % out of order",
        work=Work.RING,
        short=Form(
            steps=_steps((50, 100, 200, 300), seconds=2, **_UNRULY)
            + _steps((50, 100), seconds=2, graph_ms=80, **_UNRULY)
            + _steps((100,), seconds=2, batch=20, **_UNRULY),
            thresholds=(_most("overhead_p99_ms", 100, 50), _most("lost", 0, 50), _most("lost", 0, 50, 80)),
        ),
        long=Form(
            steps=_steps(_UP, seconds=20, **_UNRULY)
            + _steps(_UP, seconds=20, graph_ms=80, **_UNRULY)
            + _steps((50, 100, 200, 400), seconds=20, batch=20, **_UNRULY),
            thresholds=(
                _least("saturation_per_s", 500),
                _most("overhead_p99_ms", 50, 200),
                _most("overhead_p99_ms", 50, 200, 80),
                _most("cpu_ms", 1.5, 200),
                _most("cpu_growth", 1.1),
            ),
        ),
    ),
    Scenario(
        name="dial",
        what="Operators call: gate, connect, ringing, accepted, terminate",
        work=Work.DIAL,
        short=Form(
            steps=_steps((50, 100, 150), seconds=2) + _steps((50,), seconds=2, graph_ms=80),
            thresholds=(_most("connect_p99_ms", 100, 50), _most("lost", 0, 50), _most("lost", 0, 50, 80)),
        ),
        long=Form(
            steps=_steps(_UP, seconds=10) + _steps(_UP, seconds=10, graph_ms=80),
            thresholds=(_most("connect_p99_ms", 50, 200), _most("cpu_growth", 1.1)),
        ),
    ),
    Scenario(
        name="fill",
        what="As `ring`, while another number has calls up, each with an operator, until all of its slots are taken;"
        " then one call more each way",
        work=Work.FILL,
        short=Form(
            steps=tuple(Step(rate_per_s=50, seconds=2, live=live) for live in (0, 400)),
            slots=200,
            thresholds=(
                *(_most("lost", 0), _most("fallen", 0), _most("let_in", 0)),
                *(_most("refusal_in_p99_ms", 500), _most("refusal_out_p99_ms", 500)),
            ),
        ),
        long=Form(
            steps=tuple(
                Step(rate_per_s=100, seconds=seconds, live=live)
                for live, seconds in ((0, 20), (10, 20), (100, 20), (1_000, 20), (2_000, 150))
            ),
            thresholds=(
                *(_most("lost", 0), _most("fallen", 0), _most("let_in", 0), _most("kib_per_call", 40)),
                *(_most("refusal_in_p99_ms", 5), _most("refusal_out_p99_ms", 5), _most("cpu_growth", 1.1)),
            ),
        ),
    ),
    Scenario(
        name="numbers",
        what="As `fill`, with calls up on many numbers, and users who call all of them in turn",
        work=Work.FILL,
        short=Form(
            steps=tuple(Step(rate_per_s=50, seconds=2, live=4, numbers=numbers) for numbers in (1, 10)),
            thresholds=(_most("lost", 0), _most("fallen", 0)),
        ),
        long=Form(
            steps=tuple(
                Step(rate_per_s=100, seconds=seconds, live=20, numbers=numbers)
                for numbers, seconds in ((1, 20), (50, 20), (500, 60))
            ),
            thresholds=(_most("lost", 0), _most("fallen", 0), _most("cpu_growth", 1.1)),
        ),
    ),
    Scenario(
        name="burst",
        what="1,000 users call within one second; each offer must be answered",
        work=Work.BURST,
        short=Form(steps=_steps((1_000,), seconds=1), thresholds=(_most("lost", 0, 1_000),)),
        long=Form(
            steps=_steps((1_000,), seconds=1) * 5,
            thresholds=(
                _most("lost", 0, 1_000),
                _most("last_answer_ms", 600),
                _most("lag_p99_ms", 5, 1_000),
                _most("lag_max_ms", 30, 1_000),
            ),
        ),
    ),
    Scenario(
        name="intake",
        what="Deliveries of one event, on disk before the 200",
        work=Work.INTAKE,
        short=Form(
            steps=_steps((250, 500, 1_000), seconds=2),
            thresholds=(_most("ack_p99_ms", 50, 250), _most("lost", 0, 250)),
        ),
        long=Form(
            steps=_steps((250, 500, 1_000, 1_500, 2_000), seconds=20),
            thresholds=(_most("ack_p99_ms", 15, 1_000), _most("lost", 0, 1_000)),
        ),
    ),
    Scenario(
        name="slow-database",
        what="Deliveries of one event, with a proxy between the gateway and PostgreSQL that is late, then silent",
        work=Work.INTAKE,
        short=Form(
            steps=(
                *(Step(rate_per_s=200, seconds=1, database_ms=late_ms) for late_ms in (0, 20, 200)),
                Step(rate_per_s=200, seconds=4, database_silent_s=3),
            ),
            thresholds=(_most("lost", 0), _most("missing", 0)),
        ),
        long=Form(
            steps=(
                *(Step(rate_per_s=200, seconds=20, database_ms=late_ms) for late_ms in (0, 20, 200)),
                *(Step(rate_per_s=200, seconds=30, database_silent_s=silent_s) for silent_s in (3, 20)),
            ),
            thresholds=(_most("lost", 0), _most("missing", 0)),
        ),
    ),
    Scenario(
        name="batches",
        what="Deliveries of 1 to 20 events, each event on disk before the 200",
        work=Work.INTAKE,
        short=Form(steps=_steps((50, 100, 200), seconds=2, batch=20), thresholds=(_most("lost", 0, 50),)),
        long=Form(steps=_steps((50, 100, 200, 300), seconds=20, batch=20), thresholds=(_most("lost", 0, 50),)),
    ),
    Scenario(
        name="media",
        what="Anchored calls with 50 RTP packets a second each way, through one media worker: lost, late, on hold",
        work=Work.MEDIA,
        short=Form(
            anchored=(
                MediaStep(calls=10, seconds=2, loss=0.02, jitter_ms=30),
                MediaStep(calls=50, seconds=2, hold=True),
            ),
            thresholds=(_least("calls_held", 50), _most("lost", 0), _most("delay_p99_ms", 100)),
        ),
        long=Form(
            anchored=(
                MediaStep(calls=20, seconds=10, loss=0.02, jitter_ms=30),
                *(MediaStep(calls=calls, seconds=10, hold=True) for calls in (50, 100, 200, 250, 300, 350, 400, 450)),
            ),
            thresholds=(_least("calls_held", 300), _most("lost", 0), _most("setup_cpu_ms", 2.4)),
        ),
    ),
    Scenario(
        name="soak",
        what="Calls of all kinds, and what they leave behind in memory, descriptors and tasks",
        work=Work.SOAK,
        # The heap grows by the MiB: over 500 calls that alone is more than 1 KiB a call.
        short=Form(calls=500, lanes=20, thresholds=(_most("bytes_per_call", 65_536), _most("refused", 0))),
        long=Form(
            calls=20_000,
            lanes=20,
            thresholds=(_most("bytes_per_call", 1_024), _most("refused", 0), _most("descriptors_more", 0)),
        ),
    ),
    Scenario(
        name="gate",
        what="Decisions of the gate, warm and from contacts that are not in memory",
        work=Work.GATE,
        short=Form(contacts=50_000, thresholds=(_least("by_index", 1),)),
        long=Form(
            contacts=1_000_000,
            thresholds=(_most("evaluate_p50_us", 20), _most("cold_p99_ms", 5), _least("by_index", 1)),
        ),
    ),
)
NAMES: Final = tuple(scenario.name for scenario in BUILT_IN)
