"""Row 3: what is left of a call depends on what happened, not on the order or the repetition of its webhooks."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest
import structlog

from policy.facts import Direction
from tests.support.generators.orders import Left, Orders, Sequence, every_sequence
from tests.support.harness.chaos import Chaos
from tests.support.harness.world import World, a_world


class Tally:
    """The final states that were seen, by what had happened."""

    def __init__(self) -> None:
        self.sequences = 0
        self.states: defaultdict[str, Counter[Left]] = defaultdict(Counter)
        self.examples: dict[tuple[str, Left], Sequence] = {}
        self.leaks: Counter[str] = Counter()

    @property
    def surplus(self) -> int:
        """Final states beyond one for each thing that may have happened."""
        return sum(len(states) - 1 for states in self.states.values())


async def play(world: World, sequences: Iterable[Sequence]) -> Tally:
    phone, line = await world.login()
    orders, tally = Orders(world, phone, line), Tally()
    for sequence in sequences:
        result = await orders.play(sequence)
        tally.sequences += 1
        tally.states[result.happened][result.left] += 1
        tally.examples.setdefault((result.happened, result.left), sequence)
        if result.leaked:
            tally.leaks[result.leaked] += 1
    return tally


def sample(direction: Direction, *, count: int, seed: int) -> list[Sequence]:
    every = list(every_sequence(direction, seed=seed))
    return every if count >= len(every) else random.Random(seed).sample(every, count)


@pytest.fixture(autouse=True)
def _quiet() -> Iterable[None]:
    """Thousands of calls say the same thing."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


@pytest.mark.row(3, "the final state does not depend on order or repetition of a call's webhooks")
@pytest.mark.parametrize("direction", list(Direction))
async def test_any_order_and_any_repetition_leave_the_same(chaos: Chaos, direction: Direction) -> None:
    count = chaos.size(test=300, short=4_000, long=38_400)
    async with a_world() as world:
        tally = await play(world, sample(direction, count=count, seed=chaos.seed))
    for happened, states in sorted(tally.states.items()):
        chaos.note(f"sequences in which {happened}", states.total())
    chaos.note("sequences", tally.sequences)
    chaos.promise("final states beyond one for what happened", tally.surplus, at_most=0)
    chaos.promise("sequences that leaked a slot, task or leg", tally.leaks.total(), at_most=0)


async def test_an_inbox_that_parks_nothing_would_be_seen(chaos: Chaos) -> None:
    async with a_world() as world:
        world.registry.park = lambda event, *, now: None  # type: ignore[method-assign]
        tally = await play(world, sample(Direction.USER_INITIATED, count=60, seed=chaos.seed))
    assert tally.leaks.total() > 0


async def test_an_inbox_that_knows_no_repetition_would_be_seen(chaos: Chaos) -> None:
    async with a_world() as world:
        world.inbox._remember_if_new = lambda event: True  # type: ignore[method-assign]
        world.inbox._without_durable = lambda events: events  # type: ignore[method-assign]
        world.registry.has_ended = lambda meta_call_id: False  # type: ignore[method-assign]
        tally = await play(world, sample(Direction.USER_INITIATED, count=60, seed=chaos.seed))
    assert tally.surplus + tally.leaks.total() > 0
