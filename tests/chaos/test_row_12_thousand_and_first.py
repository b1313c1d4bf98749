"""A burst on one number: never more calls than it has slots, never fewer while one is free, and all given back."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
import structlog

from gateway.callflow.call import CallInput, InputKind
from gateway.callflow.outcome import EndReason
from gateway.calls.registry import LiveCall
from gateway.common.ids import OperatorId, PhoneNumberId, UserRef
from gateway.contacts.directory import Contact
from gateway.numbers.number import Number
from gateway.numbers.slots import Lease, Slots
from gateway.store.records import Change, ContactRecord, DecisionRecord
from policy.decision import Refusal
from policy.facts import Direction
from policy.reasons import Reason
from tests.support.fakes.memory_store import MemoryStore
from tests.support.harness.chaos import Chaos
from tests.support.harness.waiting import until
from tests.support.harness.world import NUMBER_ID, World, a_world

PROMISE = "Never more than 1,000 calls in and 1,000 out on a number, never fewer while a slot is free"
#: How many of the calls that got through end again during the burst.
END_AGAIN = 0.2


@dataclass(slots=True, kw_only=True)
class Burst:
    """What was seen of one direction, counted beside the gateway's own counters."""

    limit: int
    highest: int = 0
    began: int = 0
    refused: int = 0
    refused_though_free: int = 0
    nameless: int = 0  #: refusals that do not name the limit
    live: list[LiveCall] = field(default_factory=list)

    def watch(self, world: World) -> None:
        """Count the calls that there are: of one direction only in each run."""
        self.highest = max(self.highest, len(world.registry))

    def said_no(self, refusal: Refusal) -> None:
        self.refused += 1
        self.refused_though_free += refusal.reason is not Reason.NUMBER_BUSY or (refusal.observed or 0) < self.limit
        self.nameless += refusal.limit != self.limit or not refusal.rule.startswith("number/slots_")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


class OnlyDecisions(MemoryStore):
    """Keeps what the gate answered: the whole memory store copies its tables with each write."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[DecisionRecord] = []

    def _apply(self, changes: tuple[Change, ...]) -> None:
        self.kept += [change for change in changes if isinstance(change, DecisionRecord)]

    async def contact(self, phone_number_id: PhoneNumberId, user: UserRef) -> ContactRecord | None:
        return None


def wacid(number: int) -> str:
    return f"wacid.BURST{number}"


async def ring_in(world: World, number: int) -> None:
    """A user who has not called before calls."""
    wa_id = f"55119{number:08d}"
    at = str(int(world.clock.now().timestamp()))
    one = {
        "id": wacid(number),
        "from": wa_id,
        "to": "551155550100",
        "event": "connect",
        "timestamp": at,
        "direction": "USER_INITIATED",
        "session": {"sdp_type": "offer", "sdp": "v=0 offer"},
    }
    await world.deliver(contacts=[{"profile": {"name": "X"}, "wa_id": wa_id}], calls=[one])


async def burst_in(world: World, store: OnlyDecisions, attempts: int, rng: random.Random) -> Burst:
    """Let so many users call at once; some of those who get through hang up meanwhile."""
    seen = Burst(limit=world.number.incoming.limit)

    async def attempt(number: int, wait_s: float, *, ends: bool) -> None:
        await asyncio.sleep(wait_s)
        await ring_in(world, number)
        seen.watch(world)
        driver = world.registry.by_meta_id(wacid(number))  # type: ignore[arg-type]
        if driver is None:
            return
        seen.began += 1
        if ends:
            await asyncio.sleep(wait_s / 4)
            await world.meta_terminates(wacid(number))
        else:
            seen.live.append(driver)

    spread_s = attempts / 5_000
    async with asyncio.TaskGroup() as tasks:
        for number in range(attempts):
            tasks.create_task(attempt(number, rng.random() * spread_s, ends=rng.random() < END_AGAIN))
    for decision in store.kept:
        said = decision.refusal
        if said is not None:
            seen.said_no(
                Refusal(
                    reason=Reason(said["reason"]), rule=said["rule"], observed=said["observed"], limit=said["limit"]
                )
            )
    return seen


async def burst_out(world: World, attempts: int, rng: random.Random) -> Burst:
    """Let operators dial so many contacts at once, more operators than there are slots."""
    limit = world.number.outgoing.limit
    seen = Burst(limit=limit)
    free: asyncio.Queue[str] = asyncio.Queue()
    for name in (f"op{number}" for number in range(limit + 30)):
        await world.login(name)
        free.put_nowait(name)

    async def attempt(user: UserRef, wait_s: float, *, ends: bool) -> None:
        await asyncio.sleep(wait_s)
        name = await free.get()
        placed = await world.admission.place(NUMBER_ID, f"+{user.wa_id}", operator=OperatorId(name))
        seen.watch(world)
        if isinstance(placed, Refusal):
            seen.said_no(placed)
            free.put_nowait(name)
            return
        seen.began += 1
        if ends:
            await asyncio.sleep(wait_s / 4)
            await end(placed)
            free.put_nowait(name)
        else:
            seen.live.append(placed)

    users = [world.number.read_user(f"+55119{50_000_000 + number}") for number in range(attempts)]
    known = [user for user in users if user is not None]
    for user in known:
        await world.allow_calls(user)
    spread_s = attempts / 5_000
    async with asyncio.TaskGroup() as tasks:
        for user in known:
            tasks.create_task(attempt(user, rng.random() * spread_s, ends=rng.random() < END_AGAIN))
    return seen


async def end(driver: LiveCall) -> None:
    """End a call and wait until it is gone."""
    driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP))
    driver.feed(CallInput(kind=InputKind.META_TERMINATE))
    await until(lambda: driver.is_over)


async def end_all(world: World) -> None:
    for driver in world.registry:
        driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP))
        driver.feed(CallInput(kind=InputKind.META_TERMINATE))
    await until(lambda: not len(world.registry), timeout_s=30)


def a_jittered(get: Callable[..., Awaitable[Contact]], rng: random.Random) -> Callable[..., Awaitable[Contact]]:
    """Let contacts come from the store after a moment, so that dials overtake each other."""

    async def later(number: Number, user: UserRef, name: str | None = None) -> Contact:
        await asyncio.sleep(rng.random() * 0.002)
        return await get(number, user, name)

    return later


@pytest.mark.row(12, PROMISE)
@pytest.mark.parametrize("direction", list(Direction))
async def test_a_burst_on_one_number(chaos: Chaos, direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = chaos.size(test=40, short=1_000, long=1_000)
    attempts = chaos.size(test=400, short=4_000, long=20_000)
    rng = random.Random(chaos.seed)
    store = OnlyDecisions()
    async with a_world(incoming_slots=limit, outgoing_slots=limit, store=store) as world:
        if direction is Direction.USER_INITIATED:
            seen, slots = await burst_in(world, store, attempts, rng), world.number.incoming
        else:
            monkeypatch.setattr(world.contacts, "get", a_jittered(world.contacts.get, rng))
            seen, slots = await burst_out(world, attempts, rng), world.number.outgoing
        wrong = abs(slots.in_use - len(seen.live))
        await end_all(world)
        after = world.number.incoming.in_use + world.number.outgoing.in_use
    chaos.note("attempts at once", attempts)
    chaos.note("calls that began", seen.began)
    chaos.note("refused", seen.refused)
    chaos.promise("most calls at a time", seen.highest, at_most=limit, at_least=limit)
    chaos.promise("slots in use beside the calls that are up after the burst", wrong, at_most=0)
    chaos.promise("answers that are missing", attempts - seen.began - seen.refused, at_most=0)
    chaos.promise("refused while a slot was free", seen.refused_though_free, at_most=0)
    chaos.promise("refusals that do not name the limit", seen.nameless, at_most=0)
    chaos.promise("slots in use at the end", after, at_most=0)


async def test_slots_that_are_looked_at_and_taken_later_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_then_take(self: Slots) -> Lease | Refusal:
        if self.in_use >= self.limit:
            return await original(self)
        await asyncio.sleep(0)  # the fault: what was looked at no longer holds
        self.in_use += 1
        return Lease(lambda: None)

    original = Slots.try_acquire
    monkeypatch.setattr(Slots, "try_acquire", look_then_take)
    store = OnlyDecisions()
    async with a_world(incoming_slots=5, store=store) as world:
        seen = await burst_in(world, store, 60, random.Random(1))
        assert seen.highest > 5
        await end_all(world)
        assert world.number.incoming.in_use > 0


async def test_a_turned_away_call_says_which_limit_it_met() -> None:
    async with a_world(incoming_slots=1) as world:
        for number in range(2):
            await ring_in(world, number)
        calls = await world.store.recent_calls(phone_number_ids=[NUMBER_ID], limit=5)
        assert [call.reason for call in calls if call.reason] == [EndReason.NO_SLOT]
        await end_all(world)
