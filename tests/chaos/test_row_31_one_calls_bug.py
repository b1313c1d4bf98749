"""Row 31: whatever breaks in a call, and wherever, ends that call only and gives back what it had."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import looptime
import pytest
import structlog

from gateway.calls.driver import CallDriver
from tests.support.harness.broken_call import Harm, Trial
from tests.support.harness.chaos import Chaos
from tests.support.harness.injection import ERRORS, Injector
from tests.support.harness.world import a_world

#: The longest life of a call has about so many points at which it can break.
POINTS = 110


@pytest.fixture(autouse=True)
def _quiet() -> Iterable[None]:
    """Hundreds of calls break, with a traceback each."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    yield
    structlog.configure(**before)


def _drop(logger: object, name: str, event: object) -> NoReturn:
    raise structlog.DropEvent


def break_one(seed: int) -> Harm:
    rng = random.Random(seed)
    injector = Injector(at=rng.randint(1, POINTS), error=rng.choice(ERRORS))

    async def trial() -> Harm:
        async with a_world() as world:
            return await Trial(world, injector, seed=seed).run()

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        return runner.run(trial())


def break_many(count: int, *, seed: int) -> list[tuple[int, Harm]]:
    return [(seed + number, break_one(seed + number)) for number in range(count)]


@pytest.mark.row(31, "a failure ends that call only and gives its slot back")
def test_a_bug_in_one_call_harms_no_other_and_leaves_nothing(chaos: Chaos) -> None:
    harms = break_many(chaos.size(test=120, short=1_500, long=16_000), seed=chaos.seed)
    broken = [(seed, harm) for seed, harm in harms if harm.broke_at is not None]
    chaos.note("calls that broke", len(broken))
    chaos.note("places at which calls broke", len({harm.broke_at for _, harm in broken}))
    bad = [(seed, harm) for seed, harm in harms if not harm.nothing]
    if bad:
        chaos.note("for example", f"seed {bad[0][0]}: {bad[0][1]}")
        chaos.note("where", str(Counter(harm.broke_at for _, harm in bad).most_common(5)))
    chaos.promise("other calls touched", sum(harm.others for _, harm in harms), at_most=0)
    chaos.promise("slots, tasks, legs, phones left", sum(bool(harm.left) for _, harm in harms), at_most=0)
    chaos.promise("calls that Meta still thinks alive", sum(harm.untold for _, harm in harms), at_most=0)


def test_a_call_that_keeps_its_slot_would_be_seen(monkeypatch: pytest.MonkeyPatch, chaos: Chaos) -> None:
    async def gone(self: CallDriver) -> None:
        """A build without the clean-up after a bug."""

    monkeypatch.setattr(CallDriver, "_abandon", gone)
    assert any(not harm.nothing for _, harm in break_many(60, seed=chaos.seed))


def test_a_bug_that_reaches_another_call_would_be_seen(monkeypatch: pytest.MonkeyPatch, chaos: Chaos) -> None:
    run = CallDriver._run_loop

    async def unguarded(self: CallDriver) -> None:
        """A build in which a broken call takes the next one along."""
        try:
            await run(self)
        finally:
            for other in self._context.registry:
                other.feed(self.origin.first)
                assert isinstance(other, CallDriver)
                other.call = self.call

    monkeypatch.setattr(CallDriver, "_run_loop", unguarded)
    assert any(harm.others for _, harm in break_many(10, seed=chaos.seed))
