"""The built-in scenarios. Their terms are explained in `scenarios.py`."""

from collections.abc import Sequence
from typing import Any, Final

from loadtest.loads.scenarios import Form, MediaStep, Scenario, Step, Threshold, Work


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
        what="Users call: signed connect, gate, slot, pre_accept, an operator answers, accept; 2 % of the webhooks"
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
        what="Like `ring`, while another number has calls up, each with an operator, until all of its slots are in use;"
        " then one more call in each direction",
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
        what="Like `fill`, with live calls on many numbers, and users who call each of these in turn",
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
        what="Deliveries of one event, written to disk before the 200",
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
        what="Deliveries of one event, with a proxy before PostgreSQL that first delays and then stalls",
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
        what="Deliveries of 1 to 20 events, each event written to disk before the 200",
        work=Work.INTAKE,
        short=Form(steps=_steps((50, 100, 200), seconds=2, batch=20), thresholds=(_most("lost", 0, 50),)),
        long=Form(steps=_steps((50, 100, 200, 300), seconds=20, batch=20), thresholds=(_most("lost", 0, 50),)),
    ),
    Scenario(
        name="media",
        what="Anchored calls with 50 RTP packets a second each way, through one media worker: loss, delay, hold",
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
                MediaStep(calls=500, seconds=0),
                *(MediaStep(calls=calls, seconds=10, hold=True) for calls in (50, 100, 200, 250, 300, 350, 400, 450)),
            ),
            thresholds=(_least("calls_held", 300), _most("lost", 0), _most("setup_cpu_ms", 2.4)),
        ),
    ),
    Scenario(
        name="soak",
        what="Calls of all kinds, and what they leave behind in memory, descriptors and tasks",
        work=Work.SOAK,
        # The heap grows by whole MiB: over 500 calls that alone is more than 1 KiB per call.
        short=Form(calls=500, lanes=20, thresholds=(_most("bytes_per_call", 65_536), _most("refused", 0))),
        long=Form(
            calls=20_000,
            lanes=20,
            thresholds=(_most("bytes_per_call", 1_024), _most("refused", 0), _most("descriptors_more", 0)),
        ),
    ),
    Scenario(
        name="gate",
        what="Decisions of the gate, with warm state and for contacts that are not in memory",
        work=Work.GATE,
        short=Form(contacts=50_000, thresholds=(_least("by_index", 1),)),
        long=Form(
            contacts=1_000_000,
            thresholds=(_most("evaluate_p50_us", 20), _most("cold_p99_ms", 5), _least("by_index", 1)),
        ),
    ),
)
NAMES: Final = tuple(scenario.name for scenario in BUILT_IN)
