"""Anchored calls with real RTP both ways, as a load: what arrives, how late, and what it costs the media worker.

Each step sets up its calls, lets everyone talk, puts all calls on hold, resumes them, and ends them. Delivery is
counted exactly: packets sent during a stretch against packets received until no more came, minus what the proxy was
told to drop. How the far ends work is in `media_plane.py`, `media_talk.py` and `media_pump.py`.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from loadtest.common.clock import instant
from loadtest.loads.generator import percentile
from loadtest.loads.job import Job, drained
from loadtest.loads.media_plane import AnchoredCalls, Plane, anchored_calls, plane
from loadtest.loads.media_talk import CARRIED_MS, PACKETS_PER_CALL_AND_S, Stretch, talk, until_quiet
from loadtest.loads.scenarios import MediaStep
from loadtest.measure.results import StepResult
from loadtest.net.udp_chaos import UdpFaults, Way

#: Number of calls whose set-up is measured, after all other calls of the step are up.
_LAST: Final = 20
_WARM_UP_S: Final = 1.0
_IDLE_S: Final = 1.0
_HOLD_S: Final = 1.0
#: A packet rate below this share of the wanted one proves nothing.
_PACE: Final = 0.9


async def media_load(job: Job) -> None:
    """Run the steps; once a number of calls was too much, no higher one is tried."""
    steps = job.form.anchored
    job.result.load.append("the media worker had the gateway's core; the gateway shared the generator's")
    async with plane(job.stack, seed=job.seed) as found:
        for index, step in enumerate(steps):
            job.progress(step.label, index / len(steps))
            result = await _step(found, step)
            job.result.steps.append(result)
            if not result.held and not step.faulty:
                job.result.load.append(f"{step.label} were not carried, so no more were tried")
                break
    job.result.figures |= media_overall(steps, job.result.steps)


async def _step(plane: Plane, step: MediaStep) -> StepResult:
    result = StepResult(label=step.label, rate_per_s=float(step.calls), graph_ms=0.0, count=step.calls)
    figures, worker = result.figures, plane.worker
    plane.through_proxy = step.faulty
    async with anchored_calls(plane) as calls:
        await _set_up(plane, step, calls, figures)
        if step.seconds:
            await talk(plane.pump, calls.pairs, seconds=_WARM_UP_S, pid=worker)
            plane.chaos.set(UdpFaults(drop=step.loss, jitter_s=step.jitter_ms / 1_000))
            lost_before = _told_to_lose(plane)
            stretches = [await talk(plane.pump, calls.pairs, seconds=step.seconds, pid=worker)]
            figures["injected"] = float(_told_to_lose(plane) - lost_before)
            plane.chaos.set(UdpFaults())
            if step.hold:
                await _hold(plane, calls, figures)
                stretches.append(await talk(plane.pump, calls.pairs, seconds=step.seconds, pid=worker))
            _sum_up(stretches, figures)
            result.generator_was_the_limit = any(one.generator_was_the_limit for one in stretches)
        figures["calls_lost"] = float(step.calls - calls.live)
    await drained(plane.stack)
    bad = ("lost", "calls_lost", "strange", "leaked", "unheard_tone")
    whole = not any(figures.get(name) for name in bad)
    carried = figures.get("delay_p99_ms", 0.0) <= CARRIED_MS and figures.get("pace", 1.0) >= _PACE
    result.held = whole and (step.faulty or carried)
    return result


async def _set_up(plane: Plane, step: MediaStep, calls: AnchoredCalls, figures: dict[str, float]) -> None:
    """Set up all calls; for the last ones, measure what a leg costs the worker beyond its idle work."""
    last = min(_LAST, step.calls)
    if step.calls > last:
        await calls.add(step.calls - last)
    cpu, began_at = plane.cpu_s(), instant()
    await asyncio.sleep(_IDLE_S)
    idle = (plane.cpu_s() - cpu) / (instant() - began_at)
    cpu, began_at = plane.cpu_s(), instant()
    await calls.add(last)
    spent_s = plane.cpu_s() - cpu - idle * (instant() - began_at)
    figures["setup_cpu_ms"] = 1_000 * spent_s / (2 * last)
    figures["idle_share"] = idle
    figures["worker_mb"] = plane.rss_bytes() / 2**20
    figures["worker_kb_per_call"] = (plane.rss_bytes() - plane.empty_bytes) / 1_024 / step.calls


def _told_to_lose(plane: Plane) -> int:
    return sum(plane.chaos.ways[way].dropped_rtp for way in Way)


async def _hold(plane: Plane, calls: AnchoredCalls, figures: dict[str, float]) -> None:
    """Put all calls on hold while users keep talking: no operator may receive them, each user must receive a tone."""
    users, operators = [pair.user for pair in calls.pairs], [pair.operator for pair in calls.pairs]
    await calls.hold(on=True)
    await until_quiet(operators)  # the reply says that hold was ordered, not that it is in effect
    heard = [line.heard for line in users], sum(line.heard for line in operators)
    await plane.pump.prepare(users, seconds=_HOLD_S)
    await plane.pump.play(users)
    figures["leaked"] = float(sum(line.heard for line in operators) - heard[1])
    figures["unheard_tone"] = float(sum(line.heard == before for line, before in zip(users, heard[0], strict=True)))
    await calls.hold(on=False)
    await until_quiet(users + operators)


def _sum_up(stretches: Sequence[Stretch], figures: dict[str, float]) -> None:
    """Add the figures of all stretches; costs and delays are those of the worst stretch."""
    directions = [one for stretch in stretches for one in (stretch.to_operator, stretch.to_user)]
    figures["lost"] = sum(stretch.missing for stretch in stretches) - figures["injected"]
    figures["strange"] = float(sum(one.strange for one in directions))
    for name, heard in (("operator", directions[::2]), ("user", directions[1::2])):
        figures[f"delivered_to_{name}"] = 100 * sum(one.heard for one in heard) / sum(one.sent for one in heard)
        delays_ms = [delay_ms for one in heard for delay_ms in one.delays_ms]
        figures[f"to_{name}_p99_ms"] = percentile(delays_ms, 0.99)
    worst = max(stretches, key=lambda one: percentile(one.delays_ms, 0.99))
    for share, label in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        figures[f"delay_{label}_ms"] = percentile(worst.delays_ms, share)
    costly = max(stretches, key=lambda one: one.cpu_us)
    figures["cpu_us"] = costly.cpu_us
    figures["cpu_share"] = costly.server_share
    figures["calls_per_core"] = 1e6 / (costly.cpu_us * PACKETS_PER_CALL_AND_S)
    figures["generator_cpu_share"] = max(one.generator_cpu_s / one.seconds for one in stretches)
    figures["pace"] = min(one.pace for one in stretches)
    figures["late_p99_ms"] = max(one.late_p99_ms for one in stretches)


def media_overall(steps: Sequence[MediaStep], found: Sequence[StepResult]) -> dict[str, float]:
    """Return the figures of all completed steps; RTP figures are from the one with the most calls carried."""
    done = [(result, step.faulty) for step, result in zip(steps, found, strict=False)]
    if not done:
        return {}
    # A step that was too much ends the series; its losses do not count.
    lost = [result.figures.get("lost", 0.0) for result, faulty in done if result.held or faulty]
    # With few legs most of the set-up cost is waking up; the cost with many legs is the one that could grow.
    fullest = max((result for result, _ in done), key=lambda result: result.count)
    figures = {"lost": sum(lost), "setup_cpu_ms": fullest.figures["setup_cpu_ms"]}
    carried = [result for result, faulty in done if result.held and not faulty and "cpu_us" in result.figures]
    if carried:
        most = max(carried, key=lambda result: result.count)
        figures["calls_held"] = float(most.count)
        names = ("calls_per_core", "cpu_us", "delay_p50_ms", "delay_p99_ms", "worker_kb_per_call")
        figures |= {name: most.figures[name] for name in names}
    return figures
