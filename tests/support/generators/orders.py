"""One call's five webhooks in every order, each once or twice, with our own actions in between: what is left of it.

One world serves all sequences and is wiped in between, so that a sequence takes a millisecond or two. What happened is
told from the outside (what the user and our operator did, and which of it came first); what is left must depend on
nothing else.
"""

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.callflow.call import CallInput, CallState, InputKind
from gateway.calls.driver import CallDriver
from gateway.common.ids import MetaCallId
from gateway.meta.events import read_delivery
from gateway.operators.phone import Phone
from gateway.store.records import CallRecord
from policy.facts import Direction
from tests.support.fakes.graph import unreachable
from tests.support.fakes.memory_store import _Tables
from tests.support.harness.world import ANA, NUMBER_ID, FakeLine, World

#: What a final state is compared by.
Left = tuple[Any, ...]

EVENTS: Final = 5
PLACEMENTS: Final = 10
OURS, THEIRS = Direction.BUSINESS_INITIATED, Direction.USER_INITIATED
WACID: Final = "wacid.FAKE0001"  # what FakeGraph says first
#: A call that is not over after so many turns of the loop is not going to be.
TURNS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One of 120 orders x 32 duplications x 10 placements."""

    direction: Direction
    order: tuple[int, ...]
    twice: tuple[bool, ...]
    placement: int
    seed: int  #: where the second copies come, and what shares a delivery

    @property
    def declined(self) -> bool:
        """In a third of our calls the user declines, and does not talk."""
        return self.direction is OURS and random.Random(-self.seed).random() < 1 / 3

    def deliveries(self) -> list[list[int]]:
        """Return the numbers of the events, delivery by delivery."""
        rng = random.Random(self.seed)
        events = list(self.order)
        for event in self.order:
            if self.twice[event]:
                events.insert(rng.randint(events.index(event) + 1, len(events)), event)
        found: list[list[int]] = []
        for event in events:
            if found and rng.random() < 0.15:
                found[-1].append(event)
            else:
                found.append([event])
        return found


def every_sequence(direction: Direction, *, seed: int) -> Iterator[Sequence]:
    """Yield all 38,400."""
    orders = itertools.permutations(range(EVENTS))
    duplications = list(itertools.product((False, True), repeat=EVENTS))
    product = itertools.product(orders, duplications, range(PLACEMENTS))
    for number, (order, twice, placement) in enumerate(product):
        yield Sequence(direction=direction, order=order, twice=twice, placement=placement, seed=seed + number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What happened, what is left, and whether anything is left that should not be."""

    happened: str
    left: Left
    leaked: str


class Orders:
    """Plays sequences in a world."""

    def __init__(self, world: World, phone: Phone, line: FakeLine) -> None:
        self.world = world
        self.phone = phone
        self._line = line
        self._now = int(world.clock.now().timestamp())
        self._base = len(world.tasks._tasks)
        self._terminate: bytes | None = None
        self._happened = ""

    async def play(self, sequence: Sequence) -> Result:
        self._wipe()
        ours = sequence.direction is OURS
        await (self._play_ours(sequence) if ours else self._play_theirs(sequence))
        await self._settle()
        return Result(happened=self._happened, left=await self._left(sequence.direction), leaked=await self._leaked())

    # --- a call of ours ----------------------------------------------------------------------------

    async def _play_ours(self, sequence: Sequence) -> None:
        """Placements: Meta's answer to `connect` after so many deliveries (the odd ones without our id in the
        webhooks), no answer at all, the operator hanging up after some.
        """
        world, placement = self.world, sequence.placement
        answer = world.graph.hold("connect") if placement <= EVENTS else None
        if placement == 6:
            world.graph.fail("connect", unreachable("connect"))
        await world.allow_calls()
        driver = await world.admission.place(NUMBER_ID, f"+{ANA.wa_id}", operator=self.phone.operator)
        assert isinstance(driver, CallDriver), driver
        await self._turns(until=lambda: driver.call.state not in (CallState.PREPARING, CallState.REQUESTING))
        opaque = b"" if placement <= EVENTS and placement % 2 else driver.call.call_id.encode()
        hang_up_after = {7: 1, 8: 2, 9: 4}.get(placement)
        seen: set[int] = set()
        self._happened = "the user declined" if sequence.declined else "the user hung up"
        for count, delivery in enumerate([*sequence.deliveries(), []]):
            if answer is not None and count == min(placement, EVENTS):
                answer.set()
                await self._turns()
            if count == hang_up_after:
                # The same webhooks, but the operator acted before or after they were known here.
                if not seen & {2, 3}:
                    self._happened = "we cancelled, the user declined" if sequence.declined else "we cancelled"
                elif 3 not in seen and not sequence.declined:
                    self._happened = "we hung up"
                driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=self.phone.operator))
            if delivery:
                await self._deliver([self._ours(event, opaque, declined=sequence.declined) for event in delivery])
                seen.update(delivery)
        if answer is not None:
            answer.set()

    def _ours(self, event: int, opaque: bytes, *, declined: bool) -> bytes:
        now = self._now
        call = {"id": WACID, "from": "551155550100", "to": ANA.wa_id, "direction": "BUSINESS_INITIATED"}
        mark = {"biz_opaque_callback_data": opaque.decode()} if opaque else {}
        status = {"id": WACID, "type": "call", "recipient_id": ANA.wa_id, **mark}
        made: tuple[dict[str, Any], ...] = (
            {"calls": [call | mark | _connect(now - 20, "answer")]},
            {"statuses": [status | {"status": "RINGING", "timestamp": str(now - 19)}]},
            {"statuses": [status | {"status": "REJECTED" if declined else "ACCEPTED", "timestamp": str(now - 15)}]},
            {"calls": [call | mark | _terminate(now, talked_s=None if declined else 15)]},
            {"messages": [_message(now - 1)]},
        )
        return _change(made[event])

    # --- a call of the user's ----------------------------------------------------------------------

    async def _play_theirs(self, sequence: Sequence) -> None:
        """Placements: the operator answers after so many deliveries, never, declines after some, answers and hangs up.

        People talked if they did before the end came: only then does Meta's `terminate` say so.
        """
        placement = sequence.placement
        acts = {7: {1: "decline"}, 8: {3: "decline"}, 9: {1: "answer", 3: "hang up"}, 6: {}}
        plan = acts.get(placement, {placement: "answer"})
        self._terminate, self._happened = None, "the user gave up"
        for count, delivery in enumerate([*sequence.deliveries(), []]):
            if count in plan:
                await self._turns()
                self._act(plan[count])
                await self._turns()
            if delivery:
                await self._deliver([self._theirs(event) for event in delivery])

    def _act(self, action: str) -> None:
        driver = self.world.registry.by_meta_id(MetaCallId(WACID))
        if driver is None:
            return
        if action == "answer" and driver.claim(self.phone.operator):
            self.world.hub.take(self.phone, driver.call.call_id)
            self._happened = "the user hung up"
        elif action == "decline" and self.world.hub.decline(self.phone, driver.call.call_id):
            self._happened = "we declined"
        elif action == "hang up" and driver.call.state is CallState.ACTIVE:
            driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=self.phone.operator))
            self._happened = "we hung up"

    def _theirs(self, event: int) -> bytes:
        now = self._now
        call = {"id": WACID, "from": ANA.wa_id, "to": "551155550100", "direction": "USER_INITIATED"}
        if event == 3 and self._terminate is None:
            talked_s = 15 if "hung up" in self._happened else None
            self._terminate = _change({"calls": [call | _terminate(now, talked_s=talked_s)]})
        made: dict[int, dict[str, Any]] = {
            0: {"calls": [call | _connect(now - 20, "offer")]},
            1: {"messages": [_message(now - 30)]},
            2: {"messages": [_message(now - 10) | _GRANTED | {"id": "wamid.GRANT"}]},
            4: {"calls": [call | {"event": "call_recording_available", "timestamp": str(now)}]},
        }
        return self._terminate if event == 3 and self._terminate else _change(made[event])

    # --- both --------------------------------------------------------------------------------------

    async def _deliver(self, changes: list[bytes]) -> None:
        await self.world.inbox.deliver(read_delivery(b'{"entry":[{"changes":[' + b",".join(changes) + b"]}]}"))

    async def _turns(self, *, until: Any = None) -> None:
        """Let what was started happen."""
        for _ in range(TURNS if until is not None else 12):
            if until is not None and until():
                return
            await asyncio.sleep(0)

    async def _settle(self) -> None:
        await self._turns(until=lambda: len(self.world.tasks._tasks) == self._base and not len(self.world.registry))

    async def _left(self, direction: Direction) -> Left:
        store = self.world.store
        calls = tuple(_seen_of(call) for call in store._tables.calls.values())
        contact = await self.world.contacts.get(self.world.number, ANA)
        journal = frozenset(key for _, key in store._tables.events)
        return calls, contact.state, journal, self.world.graph.ops().count("connect")

    async def _leaked(self) -> str:
        world = self.world
        leaks = {
            "incoming slots": world.number.incoming.in_use,
            "outgoing slots": world.number.outgoing.in_use,
            "calls": len(world.registry),
            "engaged": len(world.engagements),
            "endings": len(world.owed_hangups),
            "tasks": len(world.tasks._tasks) - self._base,
            "busy phones": int(self.phone.call is not None),
            "ringing": len(world.hub._ringing),
            "legs": len(world.media.legs) - len(self.phone.legs),
        }
        found = {what: count for what, count in leaks.items() if count}
        if found:
            await self._clear_up()
        return ", ".join(f"{count} {what}" for what, count in found.items())

    async def _clear_up(self) -> None:
        """After a leak: the next sequence begins with nothing."""
        world = self.world
        tasks = list(world.tasks._tasks)[self._base :]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        world.owed_hangups._owed.clear()
        world.owed_hangups._expected.clear()
        world.hub._ringing.clear()
        world.engagements._calls.clear()
        self.phone.call = None
        world.media.legs &= set(self.phone.legs.values())

    def _wipe(self) -> None:
        world = self.world
        world.store._tables = _Tables()
        world.store.written.clear()
        world.contacts._by_name.clear()
        world.contacts._alive.clear()
        world.registry._ended.clear()
        world.inbox._seen.clear()
        world.registry._parked.clear()
        world.drivers.clear()
        world.media.asked.clear()
        world.number.placed.preload([])
        graph = world.graph
        graph.sent.clear()
        graph._held.clear()
        graph._failures.clear()
        self._line.pushes.clear()


_GRANTED: Final = {
    "type": "interactive",
    "context": {"id": "wamid.REQUEST"},
    "interactive": {
        "type": "call_permission_reply",
        "call_permission_reply": {"response": "accept", "response_source": "user_action"},
    },
}


def _seen_of(call: CallRecord) -> Left:
    """What a record says, but for its random id and the instants at which we did something."""
    return (
        call.state,
        call.result,
        call.reason,
        call.meta_call_id,
        call.meta_status,
        call.meta_start_at,
        call.meta_end_at,
        call.duration_s,
    )


def _connect(at: int, kind: str) -> dict[str, Any]:
    return {"event": "connect", "timestamp": str(at), "session": {"sdp_type": kind, "sdp": f"v=0 {kind}"}}


def _terminate(at: int, *, talked_s: int | None) -> dict[str, Any]:
    end = {"event": "terminate", "timestamp": str(at), "status": "COMPLETED"}
    return end if talked_s is None else end | _talk(at, talked_s)


def _talk(at: int, talked_s: int) -> dict[str, Any]:
    return {"start_time": str(at - talked_s), "end_time": str(at), "duration": talked_s}


def _message(at: int) -> dict[str, Any]:
    return {"id": "wamid.MESSAGE", "from": ANA.wa_id, "from_user_id": ANA.user_id, "timestamp": str(at), "type": "text"}


def _change(value: dict[str, Any]) -> bytes:
    metadata = {"display_phone_number": "551155550100", "phone_number_id": NUMBER_ID}
    field = "messages" if "messages" in value else "calls"
    return orjson.dumps({"field": field, "value": {"messaging_product": "whatsapp", "metadata": metadata, **value}})
