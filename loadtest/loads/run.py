"""`python -m loadtest run`: scenarios one after another, each on its own gateway, and the report.

Starts what a scenario needs and leaves nothing running, whatever happens: an error, a gateway that dies, Ctrl-C. Checks
the figures against thresholds and invariants. The loads themselves are in `job.py` and the modules for each kind.
"""

import asyncio
import contextlib
import gc
import io
import os
import signal
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.common.guard import check_url, inherited_settings
from loadtest.common.stopping import STOPPED, cancelled_by_signals, take_back_cancellation
from loadtest.loads.calls import Dial, Ring
from loadtest.loads.fill import filling
from loadtest.loads.gate_bench import BenchFailed, measure
from loadtest.loads.intake import taking_in
from loadtest.loads.job import Job, needed_operators, needed_world, overall, stepped
from loadtest.loads.media import media_load, media_overall
from loadtest.loads.media_plane import ENVIRONMENT
from loadtest.loads.page import show, write
from loadtest.loads.scenarios import Form, Scenario, Work
from loadtest.loads.soak_load import soak_load
from loadtest.measure.invariants import Before, invariants
from loadtest.measure.process import Cores, divide_cores, pin, pin_database, postmaster, sampling
from loadtest.measure.report import check_folder, machine, versions
from loadtest.measure.results import Check, Report, Result
from loadtest.measure.stack import GatewayDied, PortTaken, Stack, StackConfig, operators
from loadtest.operators.softphone_wire import RequestFailed

_LAST_LINES: Final = 20
#: Connections may break before the death of the gateway's process is noticed.
_NOTICED_S: Final = 1.0
_POSTGRES_STOP_S: Final = 10.0
#: Rare: reference counting frees nearly everything, and a full collection would stall the generator.
_COLLECT: Final = (20_000, 5, 100)
#: Errors that a broken gateway or machine causes; any other is a bug here, and its traceback is shown.
_EXPECTED: Final = (
    *(GatewayDied, PortTaken, BenchFailed, RequestFailed),
    *(aiohttp.ClientError, OSError),  # OSError: TimeoutError as well
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to run."""

    scenarios: tuple[Scenario, ...]
    long: bool
    #: None: each scenario's own seed.
    seed: int | None
    out: Path
    command: str


async def run(order: Order, console: Console) -> int:
    """Run the scenarios and write the report; return 0 if every check passed, 130 if stopped. Raises: NotWritten."""
    check_folder(order.out)
    cores = divide_cores()
    report = Report(machine=machine(), versions=versions(), pinning=cores.said, command=order.command)
    report.wanted = [scenario.name for scenario in order.scenarios]
    console.print(
        f"{', '.join(report.wanted)}: {'long' if order.long else 'short'} form;"
        f" {report.machine['cpu']}, {report.machine['cores']} cores ({cores.said}). Ctrl-C stops, with a report."
    )
    with cancelled_by_signals():
        stopped = await _all(order, report, cores, console)
    show(report, console)
    paths = write(report, order.out)
    console.print("Report: " + ", ".join(str(path) for path in paths))
    return STOPPED if stopped else 0 if report.passed else 1


async def _all(order: Order, report: Report, cores: Cores, console: Console) -> bool:
    """Run all scenarios; return whether the run was stopped. A failure ends it, because the next would fail too."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for scenario in order.scenarios:
            seed = scenario.seed if order.seed is None else order.seed
            form_name = "long" if order.long else "short"
            result = Result(
                scenario=scenario.name, what=scenario.what, work=scenario.work.value, form=form_name, seed=seed
            )
            report.results.append(result)
            bar = progress.add_task(f"{scenario.name}: starting", total=1.0)

            def tell(what: str, share: float, bar: int = bar, name: str = scenario.name) -> None:
                progress.update(progress.task_ids[bar], description=f"{name}: {what}", completed=share)

            try:
                await _scenario(scenario, scenario.form(long=order.long), result, cores, tell)
            except asyncio.CancelledError:
                take_back_cancellation()
                result.stopped = True
                return True
            tell("passed" if result.passed else "NOT passed", 1.0)
            if not console.is_terminal:  # no progress bar is shown
                console.print(f"{scenario.name}: {'passed' if result.passed else 'NOT passed'}, {result.seconds:.0f} s")
            if result.failure:
                return False
    return False


async def _scenario(
    scenario: Scenario, form: Form, result: Result, cores: Cores, tell: Callable[[str, float], None]
) -> None:
    """Run one scenario and check it; an error is recorded in `result.failure`."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    try:
        if scenario.work is Work.GATE:
            await _gate(form, result, tell)
        else:
            await _with_gateway(scenario, form, result, cores, tell)
    except* _EXPECTED as failures:
        result.failure = "\n".join(_leaves(failures))
    except* Exception as bugs:
        result.failure = "".join(traceback.format_exception(bugs))
    finally:
        result.seconds = round(loop.time() - began_at, 1)
        if not result.figures:
            if scenario.work is Work.MEDIA:
                result.figures |= media_overall(form.anchored, result.steps)
            else:
                result.figures |= overall(scenario.work, result.steps)
    if not result.failure:
        result.thresholds = judge(form, result)


def _leaves(failure: BaseException) -> list[str]:
    """Return the error messages without repetitions; if the gateway died, only the reason for that."""
    if isinstance(failure, BaseExceptionGroup):
        every = [text for one in failure.exceptions for text in _leaves(one)]
        died = failure.subgroup(GatewayDied)
        return _leaves(died.exceptions[0]) if died is not None else list(dict.fromkeys(every))
    return [str(failure) if isinstance(failure, GatewayDied | PortTaken) else f"{type(failure).__name__}: {failure}"]


def judge(form: Form, result: Result) -> list[Check]:
    """Check the figures against the thresholds."""
    checks = []
    for threshold in form.thresholds:
        if threshold.rate_per_s is None:
            values = [result.figures.get(threshold.figure)]
        else:
            at = (threshold.rate_per_s, threshold.graph_ms)
            steps = [step for step in result.steps if (step.rate_per_s, step.graph_ms) == at]
            values = [step.figures.get(threshold.figure) for step in steps] or [None]
        # The worst value, if a step was repeated.
        worst = next((value for value in values if not threshold.met(value)), values[-1])
        found = "not measured" if worst is None else f"{worst:,.4g}"
        kept = threshold.met(worst)
        checks.append(Check(name=threshold.name, found=found, wanted=threshold.said, kept=kept))
    return checks


# --- with a gateway ------------------------------------------------------------------------------


async def _with_gateway(
    scenario: Scenario, form: Form, result: Result, cores: Cores, tell: Callable[[str, float], None]
) -> None:
    with tempfile.TemporaryDirectory(prefix="load-", ignore_cleanup_errors=True) as folder:
        config = StackConfig(
            port=0,
            admin_port=0,
            sim_port=0,
            data_dir=Path(folder),
            operators=operators(needed_operators(scenario.work, form)),
            slots=form.slots if scenario.work is Work.FILL else None,
            null_media=scenario.work is not Work.MEDIA,
            environment=ENVIRONMENT if scenario.work is Work.MEDIA else {},
            inherits=True,
            sim=needed_world(scenario.work, form),
        )
        async with pinned_stack(config, cores) as stack:
            for url in (stack.url, stack.admin_url, stack.sim.url):
                check_url(url)
            job = Job(stack=stack, form=form, work=scenario.work, seed=result.seed, result=result, progress=tell)
            result.load += [f"{name} was set in the environment" for name in inherited_settings(os.environ)]
            before = await Before.look(stack)
            async with _unless_it_dies(stack), sampling(stack, result.samples):
                await _load(job)
            tell("checking what is left over", 1.0)
            result.invariants = await invariants(stack, before)
        result.invariants += _gone(stack)


async def _load(job: Job) -> None:
    match job.work:
        case Work.RING | Work.BURST:
            await stepped(job, Ring(job))
        case Work.DIAL:
            await stepped(job, Dial(job))
        case Work.FILL:
            async with filling(job) as fill:
                await stepped(job, fill)
        case Work.INTAKE:
            async with taking_in(job) as intake:
                await stepped(job, intake)
        case Work.SOAK:
            await soak_load(job)
        case Work.MEDIA:
            await media_load(job)
        case Work.GATE:
            raise ValueError("the gate is measured without a gateway")


@asynccontextmanager
async def pinned_stack(config: StackConfig, cores: Cores) -> AsyncIterator[Stack]:
    """Run a gateway, pinned, and stop all of it: also its PostgreSQL, which survives a killed gateway."""
    stack = Stack(config)
    ours = os.sched_getaffinity(0) if cores.generator else set()
    collect = gc.get_threshold()
    try:
        await stack.start()
        pin(stack.gateway_pid, cores.gateway)
        pin_database(stack, cores.generator)
        pin(os.getpid(), cores.generator)
        gc.collect()
        gc.freeze()  # people and numbers: scanning them all would stall the generator
        gc.set_threshold(*_COLLECT)
        yield stack
    finally:
        gc.set_threshold(*collect)
        gc.unfreeze()
        pin(os.getpid(), frozenset(ours))
        try:
            await stack.close()
        finally:
            assert config.data_dir is not None
            await end_postgres(config.data_dir)


async def end_postgres(data_dir: Path) -> None:
    """Stop the PostgreSQL of this folder if it runs: with a fast shutdown, then at once."""
    for name in (signal.SIGINT, signal.SIGQUIT):
        pid = postmaster(data_dir)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POSTGRES_STOP_S):
                while postmaster(data_dir) == pid:  # noqa: ASYNC110  # noqa: ASYNC110  another process: no event tells
                    await asyncio.sleep(0.05)


def _gone(stack: Stack) -> list[Check]:
    process = stack.process
    code = None if process is None else process.returncode
    data_dir = stack.config.data_dir
    left = data_dir is not None and postmaster(data_dir) is not None
    return [
        Check(name="exit code of the gateway", found=str(code), wanted="0", kept=code == 0),
        Check(name="PostgreSQL left running", found="yes" if left else "no", wanted="no", kept=not left),
    ]


@asynccontextmanager
async def _unless_it_dies(stack: Stack) -> AsyncIterator[None]:
    """Cancel the block when the gateway ends. Raises: GatewayDied with its last log lines, in a group."""

    async def watch() -> None:
        code = await stack.until_gone()
        # A task of the stack reads the last lines.
        await asyncio.sleep(_NOTICED_S / 2)
        tail = "\n  ".join(stack.log[-_LAST_LINES:]) or "(no output)"
        raise GatewayDied(f"The gateway ended unexpectedly, with exit code {code}. Its last log lines:\n  {tail}")

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        try:
            yield
        except (*_EXPECTED, ExceptionGroup):
            # Was the gateway's death the cause?
            await asyncio.wait([watching], timeout=_NOTICED_S)
            raise
        watching.cancel()


# --- the gate ------------------------------------------------------------------------------------


async def _gate(form: Form, result: Result, tell: Callable[[str, float], None]) -> None:
    """Measure the gate; its process brings its own PostgreSQL."""
    tell(f"{form.contacts:,} contacts", 0.0)
    found = await measure(form.contacts, result.seed, Console(file=io.StringIO()))
    scans = [node for node in found["plan"] if "Scan" in node]
    by_index = bool(scans) and "Seq Scan" not in scans
    result.figures |= {
        "evaluate_p50_us": float(found["evaluate_us"]["p50"]),
        "evaluate_p99_us": float(found["evaluate_us"]["p99"]),
        "cold_p50_ms": float(found["cold_ms"]["p50"]),
        "cold_p99_ms": float(found["cold_ms"]["p99"]),
        "cache_kb": float(found["cache"]["kb"]),
        "by_index": float(by_index),
    }
    result.load.append(f"{form.contacts:,} contacts in PostgreSQL")
