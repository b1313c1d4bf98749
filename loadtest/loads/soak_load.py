"""Calls of all kinds for a long time, as a load, and what they leave behind. The calls themselves are in `soak.py`."""

import asyncio

from loadtest.loads.job import Job, crew_of, drained
from loadtest.loads.soak import bytes_per_call, look, soak
from loadtest.operators.signalling_bot import Policy


async def soak_load(job: Job) -> None:
    """Make the calls; the figures are those of the second half."""
    stack, form, loop = job.stack, job.form, asyncio.get_running_loop()
    async with crew_of(stack, form.lanes + 1, Policy(talk_s=0.0)) as crew:
        for wa_id in stack.sim.world.users:
            for number in stack.sim.world.numbers.values():
                stack.sim.user(wa_id).grant(number=number)
        await stack.sim.until(lambda: stack.sim.webhooks.pending == 0, timeout_s=120)
        before, began_at = await look(stack, 0), loop.time()
        done = await soak(
            stack,
            crew,
            calls=form.calls,
            lanes=form.lanes,
            seed=job.seed,
            progress=lambda calls: job.progress(f"{calls:,} calls", calls / form.calls),
        )
        await drained(stack)
        took_s = loop.time() - began_at
        after = await look(stack, done.calls)
    half = len(done.samples) // 2
    later, figures = done.samples[half:], job.result.figures
    if len(later) > 1:
        figures["bytes_per_call"] = bytes_per_call(later)
        # Including the pools to Meta and to the database, which keep their connections for minutes.
        most = max(sample.descriptors for sample in done.samples[half // 2 : half + 1])
        figures["descriptors_more"] = float(after.descriptors - most)
    lags = [sample.lag_ms for sample in job.result.samples if sample.lag_ms is not None]
    figures["lag_max_ms"] = max(lags, default=0.0)
    figures["tasks_more"] = float(after.tasks - before.tasks)
    figures["refused"] = float(done.refused.total())
    figures["calls_per_s"] = done.calls / took_s
    job.result.load += [f"{count:,} calls {kind}" for kind, count in sorted((done.ended + done.refused).items())]
