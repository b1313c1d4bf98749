"""A call rings at a few phones first, then at all; what is kept for that is right after whatever happens."""

import asyncio
import random
from datetime import UTC, datetime

import pytest

from gateway.callflow.call import CallState
from gateway.callflow.effects import StopReason
from gateway.callflow.outcome import EndReason
from gateway.common.ids import CallId, OperatorId
from gateway.operators.hub import Hub
from gateway.operators.phone import Phone
from gateway.operators.ring_policy import FIRST, MOST_CALLS, WIDEN_S
from gateway.wire import messages as msg
from tests.support.harness.world import FakeLine, World, a_world

ONE, TWO = CallId("1"), CallId("2")


def view(call_id: CallId) -> msg.CallView:
    return msg.CallView(
        call_id=call_id,
        number_id="200000000000002",
        direction="USER_INITIATED",
        state="pre_accepting",
        user=msg.UserView(number="+5511900000001", user_id=None, name=None),
        operator=None,
        worker=0,
        created_at=datetime(2026, 11, 22, tzinfo=UTC),
        accepted_at=None,
        ended_at=None,
        duration_s=None,
        outcome=None,
    )


class Crew:
    """Operators who are logged in, in this order."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hub: Hub = world.hub
        self.phones: list[Phone] = []
        self.lines: list[FakeLine] = []

    async def come(self, count: int) -> None:
        for _ in range(count):
            phone, line = await self.world.login(f"op{len(self.phones)}", leg=False)
            self.phones.append(phone)
            self.lines.append(line)

    def ring(self, call_id: CallId = ONE) -> None:
        self.hub.ring(call_id, view(call_id))

    def rung(self, call_id: CallId = ONE) -> list[int]:
        """Those at whom it has ever rung."""
        return [
            number
            for number, line in enumerate(self.lines)
            if call_id in [push.call.call_id for push in line.of_type(msg.Incoming)]
        ]

    def rings(self, call_id: CallId = ONE) -> list[int]:
        """Those at whom it rings now."""
        return [number for number, phone in enumerate(self.phones) if call_id in phone.rings]

    def decline(self, *numbers: int) -> None:
        for number in numbers:
            assert self.hub.decline(self.phones[number], ONE)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_the_first_ring_at_once_and_everybody_else_3_seconds_later() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(20)
        world.hub.set_available(crew.phones[19], False)
        crew.ring()
        assert crew.rings() == list(range(FIRST))
        await asyncio.sleep(WIDEN_S - 0.01)
        assert crew.rings() == list(range(FIRST))
        await asyncio.sleep(0.02)
        assert crew.rings() == list(range(19))
        assert all(len(line.of_type(msg.Incoming)) <= 1 for line in crew.lines)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_who_becomes_free_rings_if_there_is_room_or_everybody_rings() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(FIRST - 1)
        crew.ring()
        await crew.come(2)
        assert crew.rings() == list(range(FIRST))
        await asyncio.sleep(WIDEN_S)
        assert crew.rings() == list(range(FIRST + 1))
        await crew.come(1)
        assert crew.rings() == list(range(FIRST + 2))


async def test_when_all_of_the_first_declined_the_rest_ring_at_once() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(FIRST + 3)
        driver = await world.user_calls()
        assert driver is not None
        call = driver.call.call_id
        await world.until(lambda: driver.call.state.value == "ringing")
        for number in range(FIRST):
            assert crew.rings(call) == list(range(number, FIRST))
            assert world.hub.decline(crew.phones[number], call)
        assert crew.rings(call) == [FIRST, FIRST + 1, FIRST + 2]
        for phone in crew.phones[FIRST:]:
            assert driver.call.state.value == "ringing"
            assert world.hub.decline(phone, call)
        await world.until(lambda: driver.call.state.value == "ending")


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_call_that_stopped_ringing_is_not_widened() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(20)
        crew.ring()
        timer = world.hub._ringing[ONE].widens
        world.hub.stop_ringing(ONE, StopReason.HUNG_UP_BY_USER)
        assert timer is not None
        assert timer.cancelled()
        await asyncio.sleep(2 * WIDEN_S)
        assert crew.rung() == list(range(FIRST))
        assert crew.rings() == []
        assert [len(line.of_type(msg.Gone)) for line in crew.lines] == [1] * FIRST + [0] * (20 - FIRST)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_closed_hub_has_no_timers() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(20)
        crew.ring()
        world.hub.close()
        await asyncio.sleep(2 * WIDEN_S)
        assert crew.rung() == list(range(FIRST))


async def test_a_second_ring_of_a_call_changes_nothing() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(20)
        crew.ring()
        crew.ring()
        assert crew.rung() == list(range(FIRST))


@pytest.mark.parametrize("way", ["takes another", "logs out", "is lost"])
async def test_the_place_of_one_who_is_not_free_any_more_goes_to_the_next(way: str) -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(FIRST + 2)
        crew.ring()
        phone, line = crew.phones[3], crew.lines[3]
        match way:
            case "takes another":
                world.hub.take(phone, TWO)
                assert [push.reason for push in line.of_type(msg.Gone)] == ["answered_elsewhere"]
            case "logs out":
                world.hub.logout(phone)
            case _:
                world.hub.line_lost(phone, line)
        assert crew.rings() == [*range(3), *range(4, FIRST + 1)]


async def test_calls_at_once_ring_at_different_phones() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(3 * FIRST)
        for number in range(3):
            crew.ring(CallId(str(number)))
        assert [crew.rings(CallId(str(number))) for number in range(3)] == [
            list(range(start, start + FIRST)) for start in (0, FIRST, 2 * FIRST)
        ]


async def test_who_has_just_talked_waits_behind_those_who_have_not() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(FIRST + 1)
        world.hub.take(crew.phones[0], TWO)
        world.hub.release(OperatorId("op0"), TWO)
        crew.ring()
        assert crew.rings() == list(range(1, FIRST + 1))


async def test_a_few_calls_ring_at_a_phone_and_the_next_when_one_of_them_is_gone() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(1)
        calls = [CallId(str(number)) for number in range(MOST_CALLS + 2)]
        for call_id in calls:
            crew.ring(call_id)
        assert list(crew.phones[0].rings) == calls[:MOST_CALLS]
        world.hub.stop_ringing(calls[1], StopReason.HUNG_UP_BY_USER)
        assert list(crew.phones[0].rings) == [calls[0], *calls[2 : MOST_CALLS + 1]]


async def test_a_call_costs_as_many_messages_however_many_wait() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(3)
        for number in range(500):
            crew.ring(CallId(str(number)))
        before = sum(len(line.pushes) for line in crew.lines)
        world.hub.take(crew.phones[0], CallId("0"))
        world.hub.stop_ringing(CallId("0"), StopReason.ANSWERED_ELSEWHERE, but=OperatorId("op0"))
        world.hub.release(OperatorId("op0"), CallId("0"))
        assert sum(len(line.pushes) for line in crew.lines) - before <= 4 * MOST_CALLS


async def test_who_declines_does_not_end_a_call_that_another_who_is_free_has_not_heard_of_yet() -> None:
    async with a_world() as world:
        crew = Crew(world)
        await crew.come(2)
        others = [CallId(str(number)) for number in range(2, 2 + MOST_CALLS)]
        for call_id in others:
            crew.ring(call_id)
        assert world.hub.decline(crew.phones[0], others[0])
        driver = await world.user_calls()
        assert driver is not None
        call_id = driver.call.call_id
        await world.until(lambda: crew.rings(call_id) == [0])  # the other phone has no room
        assert world.hub.decline(crew.phones[0], call_id)
        await world.until(lambda: driver._inputs.empty() and driver.call.state is CallState.RINGING)
        world.hub.stop_ringing(others[1], StopReason.HUNG_UP_BY_USER)
        assert crew.rings(call_id) == [1]
        assert world.hub.decline(crew.phones[1], call_id)
        await world.until(lambda: driver.call.outcome is not None)
        assert driver.call.outcome is not None
        assert driver.call.outcome.reason is EndReason.DECLINED


def check(hub: Hub) -> None:
    """What is kept says what a look at everything says."""
    phones = list(hub)
    assert set(hub._free) == {phone.operator for phone in phones if phone.can_ring}
    assert hub.connected == sum(phone.line is not None for phone in phones)
    for phone in phones:
        assert set(phone.rings) == {c for c, ringing in hub._ringing.items() if phone.operator in ringing.at}
        assert phone.line is not None or not phone.rings
        assert len(phone.rings) <= MOST_CALLS
        assert set(phone.rings) <= {phone.call} or phone.call is None
    for call_id, ringing in hub._ringing.items():
        assert (call_id in hub._roomy) == ringing.has_room
        assert not set(ringing.at) & ringing.declined
        assert ringing.widens is None or len(ringing.at) + len(ringing.declined) <= FIRST
        if ringing.has_room:  # nobody who could ring is left out
            assert set(hub._free) <= set(ringing.at) | ringing.declined
    assert set(hub._roomy) <= set(hub._ringing)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_what_is_kept_is_right(seed: int) -> None:
    dice = random.Random(seed)
    async with a_world() as world:
        hub = world.hub
        for _ in range(300):
            phone = hub.phone(OperatorId(f"op{dice.randrange(30)}"))
            call_id = CallId(str(dice.randrange(6)))
            match dice.randrange(10):
                case 0 | 1 | 2:
                    await world.login(f"op{dice.randrange(30)}", leg=False)
                case 3:
                    hub.ring(call_id, view(call_id))
                case 4:
                    hub.stop_ringing(call_id, StopReason.FAILED)
                case 5 if phone is not None and phone.line is not None:
                    hub.line_lost(phone, phone.line)
                case 6 if phone is not None:
                    hub.resume(phone.resume, FakeLine())
                case 7 if phone is not None:
                    hub.set_available(phone, dice.random() < 0.7)
                case 8 if phone is not None and phone.call is None and phone.line is not None:
                    hub.take(phone, call_id)
                    hub.stop_ringing(call_id, StopReason.ANSWERED_ELSEWHERE, but=phone.operator)
                case 8 if phone is not None and phone.call is not None:
                    hub.release(phone.operator, phone.call)
                case 9 if phone is not None:
                    hub.decline(phone, call_id)
                case _:
                    await asyncio.sleep(dice.choice([0.5, 1.0, 3.1]))
            check(hub)
