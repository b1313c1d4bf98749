"""A load on one gateway: what arrives, when the simulated Graph received the resulting requests, what that cost.

Arrivals are an open loop, and times count from when a call was due (see `generator.py`); a webhook that the simulated
Meta delays on purpose is due when it is sent. Instants are those at which the simulated Graph had read the request. The
gateway is started, and thresholds are checked, in `run.py`.
"""

import asyncio
import contextlib
import math
import random
import resource
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from loadtest.loads.generator import Shot, open_loop, percentile
from loadtest.loads.scenarios import Form, Scenario, Step, Work
from loadtest.loads.soak import soak_users
from loadtest.measure.process import cpu_now, lag_buckets, lag_share_ms
from loadtest.measure.results import Result, Sample, StepResult
from loadtest.measure.stack import Stack
from loadtest.operators.signalling_bot import Crew, Policy
from loadtest.operators.softphone_wire import RequestFailed
from loadtest.simulator.config import LIMITS, Behaviour, NumberSpec, Profile, Timers, crowd
from loadtest.simulator.faults import Fault, GraphFault, WebhookFaults

#: Longest wait for unfinished work after a step.
DRAIN_S: Final = 30.0
#: A rate was not held if calls were slower than this, without the Graph's own time, or if more were lost than this
#: share.
_HELD_MS: Final = 500.0
_HELD_LOST: Final = 0.001
#: If the generator is later, or busier, than this, it measures itself.
_GENERATOR_LATE_MS: Final = 20.0
_GENERATOR_BUSY: Final = 0.85
#: Lag below this is noise; the generator waits a while for a higher one to pass.
_CALM_LAG_MS: Final = 2.0
_FORGOTTEN_S: Final = 1.2
_LOOK_S: Final = 0.1
#: A user may have five connected calls from the business in 24 hours; a number may place 10,000 calls.
DIALS_PER_USER: Final = 2
#: Not counted: the first calls are slower.
WARM_UP: Final = Step(rate_per_s=20, seconds=1)
#: Number of users that call before one of them calls again.
_CALLERS: Final = 20_000
_DIALS_PER_NUMBER: Final = 8_000
#: Time an operator is in a call besides talking and waiting for the Graph.
_HANDLING_S: Final = 0.05
#: Descriptors of this process and of the gateway, in addition to one for each softphone.
_OTHER_DESCRIPTORS: Final = 1_000
#: Graph requests that a call waits for, one after another.
_WAITS_PER_CALL: Final = 3
BURST_OPERATORS: Final = 4
#: Surplus calls on a full number: one from a user, one from the operator.
KNOCKERS: Final = 2
_REORDERED_BY_S: Final = 0.1
#: How long the simulated Meta collects a batch.
_COLLECTED_S: Final = 0.1
_INTAKE_USERS: Final = 2_000
OK: Final = 200


@dataclass(slots=True, kw_only=True)
class Job:
    """What a load works with, and where its results go."""

    stack: Stack
    form: Form
    work: Work
    seed: int
    result: Result
    #: Called with the current activity and the share that is done.
    progress: Callable[[str, float], None] = lambda what, share: None

    def count_refusal(self, failure: Exception) -> None:
        """Count a call that was not set up, by cause."""
        cause = failure.reason if isinstance(failure, RequestFailed) else type(failure).__name__
        name = f"refused: {cause}"
        self.result.figures[name] = self.result.figures.get(name, 0) + 1


def operators_for(step: Step, talk_s: float) -> int:
    """Return the number of operators that such a rate keeps busy, plus a margin for random peaks.

    The margin is small: a free operator is told of every call, and that is not what is measured.
    """
    busy = step.rate_per_s * (talk_s + _HANDLING_S + _WAITS_PER_CALL * step.graph_ms / 1_000)
    return math.ceil(busy + 3 * math.sqrt(busy)) + 4


def needed_operators(work: Work, form: Form) -> int:
    """Return the number of operators that the gateway must know."""
    if work is Work.SOAK:
        return form.lanes + 1
    if work is Work.BURST:
        return BURST_OPERATORS
    if work is Work.MEDIA:
        return max(step.calls for step in form.anchored)
    busy = max(operators_for(step, form.talk_s) for step in (WARM_UP, *form.steps))
    return busy + most_staying(form) + 1 if work is Work.FILL else busy


def short_of_descriptors(scenarios: Sequence[Scenario], *, long: bool) -> list[str]:
    """Raise the descriptor limit of this process and its children; return the scenarios that need even more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    needed = {one.name: needed_operators(one.work, one.form(long=long)) + _OTHER_DESCRIPTORS for one in scenarios}
    return [
        f"{name}: needs {count:,} descriptors, the system allows {most:,} (ulimit -Hn)"
        for name, count in needed.items()
        if most != resource.RLIM_INFINITY and count > most
    ]


def most_staying(form: Form) -> int:
    """Return the number of live calls in the last step."""
    return max((step.live * step.numbers for step in form.steps), default=0)


def needed_world(work: Work, form: Form) -> dict[str, object]:
    """Return fields of the simulator's `SimConfig`: people, numbers, timers."""
    calls = sum(step.count for step in form.steps)
    if work is Work.FILL:
        return _filled_world(form, calls)
    rules = {"profile": Profile.GUIDE, "timers": Timers(answer_after_s=0.0, ringing_after_s=0.0)}
    if work is Work.SOAK:
        users, numbers = soak_users(form.calls, form.lanes), _numbers_for(form.calls // 2)
        return {"users": users, "numbers": numbers, **rules, "history": 4 * form.lanes}
    if work is Work.DIAL:
        count = sum(step.count // DIALS_PER_USER + 1 for step in (WARM_UP, *form.steps))
        users = crowd(count, behaviour=Behaviour.AUTO_ACCEPT, after_s=0.0)
        history = max(step.count for step in form.steps) + 1_000
        return {"users": users, "numbers": _numbers_for(calls), **rules, "history": history}
    if work is Work.INTAKE:
        return {"users": crowd(_INTAKE_USERS), **rules}
    if work is Work.MEDIA:
        return {"users": crowd(max(step.calls for step in form.anchored)), **rules}
    talk_s = form.talk_s if work is Work.RING else None
    return {"users": crowd(min(calls, _CALLERS), talk_s=talk_s), **rules}


def _filled_world(form: Form, calls: int) -> dict[str, object]:
    """Return people for live calls, two for surplus calls, and callers; and one number more than is filled."""
    staying = crowd(most_staying(form) + KNOCKERS, behaviour=Behaviour.AUTO_ACCEPT, after_s=0.0)
    callers = crowd(min(calls, _CALLERS), first=5_511_920_000_000, talk_s=form.talk_s)
    # Meta would stop the surplus call; here it passes, so that the gateway has to refuse it.
    limits = replace(LIMITS[Profile.GUIDE], concurrent_in=form.slots + KNOCKERS, concurrent_out=form.slots)
    return {
        "users": staying + callers,
        "numbers": _numbers(max(step.numbers for step in form.steps) + 1),
        "limits": limits,
        "timers": Timers(answer_after_s=0.0, ringing_after_s=0.0),
    }


def _numbers_for(calls: int) -> tuple[NumberSpec, ...]:
    return _numbers(calls // _DIALS_PER_NUMBER + 1)


def _numbers(count: int) -> tuple[NumberSpec, ...]:
    return tuple(
        NumberSpec(phone_number_id=str(200_000_000_000_002 + index), display_phone_number=str(551_155_550_100 + index))
        for index in range(count)
    )


@asynccontextmanager
async def crew_of(stack: Stack, count: int, policy: Policy) -> AsyncIterator[Crew]:
    """Log in this many of the gateway's operators."""
    keys = dict(list(stack.config.operators.items())[:count])
    async with Crew(stack.url, keys, policy=policy) as crew:
        yield crew
        await crew.log_out()


# --- steps -------------------------------------------------------------------------------------------


class Load:
    """One kind of load during a step. Subclasses implement one arrival in `arrive`."""

    #: Name of the instants that decide whether a rate was held.
    decides: str = ""
    #: Number of calls that stay up on purpose.
    staying: int = 0

    def __init__(self, job: Job) -> None:
        self.job, self.stack = job, job.stack
        self.random = random.Random(job.seed)
        self.acks: list[float] = []
        #: Milliseconds from when each call was due, by name of the instant.
        self.instants: dict[str, list[float]] = {}

    def begin(self, step: Step) -> None:
        """Forget the step before."""
        self.acks, self.instants = [], {}

    def ready(self, step: Step) -> contextlib.AbstractAsyncContextManager[None]:
        """Return the context that is open during a step."""
        return contextlib.nullcontext()

    async def arrive(self, index: int) -> int:
        """Run the next arrival; return 200 if it succeeded."""
        raise NotImplementedError

    def finish(self, step: Step, shots: Sequence[Shot], result: StepResult) -> None:
        """Add the load's own figures."""


async def stepped(job: Job, load: Load) -> None:
    """Run the steps, after a light warm-up; a rate that was not held ends its series."""
    job.stack.sim.webhooks.on_answer = lambda took_s, status: load.acks.append(took_s)
    job.progress("warming up", 0.0)
    await _step(job, load, WARM_UP, len(job.form.steps))
    job.result.steps.clear()
    over: set[str] = set()
    for index, step in enumerate(job.form.steps):
        job.progress(step.label, index / len(job.form.steps))
        if step.series in over:
            continue
        found = await _step(job, load, step, index)
        if not found.held:
            over.add(step.series)
            job.result.load.append(f"{step.label} was not held, so no higher rate was tried")
    job.result.figures |= overall(job.work, job.result.steps)


async def _step(job: Job, load: Load, step: Step, index: int) -> StepResult:
    stack, loop, seed = job.stack, asyncio.get_running_loop(), job.seed + index
    result = StepResult(label=step.label, rate_per_s=step.rate_per_s, graph_ms=step.graph_ms, count=step.count)
    result.series = step.series
    _order_faults(stack, step, seed)
    load.begin(step)
    async with load.ready(step):
        await _forgotten(stack)
        cpu, lag, seen = cpu_now(stack), lag_buckets(await stack.metrics()), len(job.result.samples)
        began_at = loop.time()
        shots = await open_loop(load.arrive, rate_per_s=step.rate_per_s, count=step.count, seed=seed, most=20_000)
        took_s = loop.time() - began_at
        await drained(stack, load.staying)
        spent, after = cpu_now(stack), await stack.metrics()
        whole_s = loop.time() - began_at
    figures = result.figures
    figures["lost"] = float(sum(shot.status != OK for shot in shots))
    figures["achieved_per_s"] = (len(shots) - figures["lost"]) / max(took_s, shots[-1].due_s)
    figures["cpu_ms"] = 1_000 * (spent.gateway_s - cpu.gateway_s) / step.count
    figures["database_cpu_ms"] = 1_000 * (spent.database_s - cpu.database_s) / step.count
    figures["generator_cpu_ms"] = 1_000 * (spent.generator_s - cpu.generator_s) / step.count
    figures["cpu_share"] = (spent.gateway_s - cpu.gateway_s) / whole_s
    figures["generator_cpu_share"] = (spent.generator_s - cpu.generator_s) / whole_s
    figures["late_p99_ms"] = 1_000 * percentile([shot.late_s for shot in shots], 0.99)
    _from_samples(figures, job.result.samples[seen:])
    # The last sample may be half a second old.
    figures["lag_max_ms"] = max(figures.get("lag_max_ms", 0.0), 1_000 * after["wacg_loop_lag_seconds"])
    lag_ms = lag_share_ms(lag, lag_buckets(after), 0.99)
    if lag_ms is not None:
        figures["lag_p99_ms"] = lag_ms
    load.finish(step, shots, result)
    _timed(figures, "ack", [1_000 * took for took in load.acks])
    for name, values in load.instants.items():
        _timed(figures, name, values)
    result.generator_was_the_limit = (
        figures["late_p99_ms"] > _GENERATOR_LATE_MS or figures["generator_cpu_share"] > _GENERATOR_BUSY
    )
    slow_ms = figures.get(f"{load.decides}_p99_ms", math.inf) - _WAITS_PER_CALL * step.graph_ms
    result.held = figures["lost"] <= _HELD_LOST * step.count and slow_ms <= _HELD_MS
    job.result.steps.append(result)
    return result


async def _forgotten(stack: Stack) -> None:
    """Wait until the lag gauge, which covers one second, no longer shows what went before."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _FORGOTTEN_S
    while True:
        lag_ms = 1_000 * (await stack.metrics())["wacg_loop_lag_seconds"]
        if lag_ms <= _CALM_LAG_MS or loop.time() > give_up_at:
            return
        await asyncio.sleep(_LOOK_S)


def _order_faults(stack: Stack, step: Step, seed: int) -> None:
    faults = stack.sim.faults
    faults.clear()
    late = [GraphFault(fault=Fault.DELAY, times=1_000_000, seconds=step.graph_ms / 1_000)] if step.graph_ms else []
    webhooks = WebhookFaults(
        twice=step.twice,
        reordered=step.reordered,
        late_s=_REORDERED_BY_S,
        batch_s=_COLLECTED_S if step.batch > 1 else 0.0,
        batch=step.batch if step.batch > 1 else 0,
        seed=seed,
    )
    faults.order(late, webhooks)


async def drained(stack: Stack, staying: int = 0) -> None:
    """Wait until only `staying` calls are up and all webhooks are delivered, for a limited time."""
    world, webhooks = stack.sim.world, stack.sim.webhooks
    with contextlib.suppress(TimeoutError):
        await stack.sim.until(lambda: world.live <= staying and not webhooks.pending, timeout_s=DRAIN_S)


def _timed(figures: dict[str, float], name: str, values: Sequence[float]) -> None:
    if values:
        for share, label in ((0.5, "p50"), (0.99, "p99"), (0.999, "p999")):
            figures[f"{name}_{label}_ms"] = percentile(values, share)


def _from_samples(figures: dict[str, float], samples: Sequence[Sample]) -> None:
    lags = [sample.lag_ms for sample in samples if sample.lag_ms is not None]
    if lags:
        figures["lag_max_ms"] = max(lags)
    if samples:
        figures["rss_mb"] = max(sample.rss_bytes for sample in samples) / 2**20
        figures["descriptors"] = float(max(sample.descriptors for sample in samples))
        figures["live_max"] = float(max(sample.live or 0 for sample in samples))


def overall(work: Work, steps: Sequence[StepResult]) -> dict[str, float]:
    """Return the figures of a whole scenario; figures of rates come from the first series of steps."""
    if not steps:
        return {}
    if work is Work.BURST:
        last = [step.figures["last_answer_ms"] for step in steps if "last_answer_ms" in step.figures]
        return {"last_answer_ms": max(last)} if len(last) == len(steps) else {}
    if work is Work.FILL:
        return _filled(steps)
    if any("missing" in step.figures for step in steps):
        return {name: sum(step.figures[name] for step in steps) for name in ("lost", "missing", "spooled")}
    held = [step for step in steps if step.held and step.series == steps[0].series]
    figures = {"saturation_per_s": max((step.rate_per_s for step in held), default=0.0)}
    if held:
        costs = [step.figures["cpu_ms"] for step in held]
        figures["cpu_growth"] = max(costs) / costs[0] if costs[0] else 1.0
        if work is Work.INTAKE:
            figures["events_per_s"] = max(step.figures["events_per_s"] for step in held)
            del figures["cpu_growth"]
    return figures


def _filled(steps: Sequence[StepResult]) -> dict[str, float]:
    """Return the worst figures of the steps, and what live calls added to the cost of the others."""
    worst = ("kib_per_call", "kib_per_operator", "refusal_in_p99_ms", "refusal_out_p99_ms", "let_in", "fallen", "lost")
    found = {name: [step.figures[name] for step in steps if name in step.figures] for name in worst}
    figures = {name: max(values) for name, values in found.items() if values}
    first, last = steps[0].figures, steps[-1].figures
    costs = [step.figures["call_cpu_ms"] for step in steps if "call_cpu_ms" in step.figures]
    if len(costs) == len(steps):
        figures["cpu_growth"] = max(costs) / costs[0]
    if "ack_p99_ms" in first and "ack_p99_ms" in last:
        figures["ack_p99_more_ms"] = last["ack_p99_ms"] - first["ack_p99_ms"]
    return figures
