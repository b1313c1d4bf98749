"""Nonsense, absurd times, jumping clocks and a store that is away: each has one answer, and none breaks anything."""

from datetime import timedelta
from typing import Any

import pytest

from gateway.admission.admission import Admission
from gateway.calls.driver import CallDriver
from gateway.common.errors import StoreDown
from gateway.common.ids import OperatorId
from gateway.meta.events import UnknownEvent, read_delivery
from gateway.store.records import EventRecord, FactRecord
from policy.decision import Allow, Refusal
from policy.facts import MAX_AHEAD, CallConnected, Direction, PermissionRequested, RequestForm
from policy.reasons import Reason
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

OPERATOR = OperatorId("ana")
TO = "+5511900000001"

#: What people, scripts and attackers put where a user belongs.
NO_USERS = [
    "",
    " ",
    "+",
    "abc",
    "12",
    "0",
    "-5511900000001a-",
    "+55119000000012345678901234567890",
    "9" * 10_000,
    "BR.",
    "BR.12",
    "br.00000000005511900000",
    "BRA.00000000005511900000",
    "BR.0000000000551190000O",
    "'; drop table contacts; --",
    "\x00",
    "\ud83d\ude00",
    "null",
    "../../etc/passwd",
]
#: UNIX seconds that are no time of a call, as Meta's JSON could carry them.
NO_TIMES = ["0", "-1", "1262304000", "99999999999", "1790000000000", str(2**63), str(10**30), "soon", "", "1e300"]


async def asked_for(admission: Admission, number: str, to: str) -> list[Any]:
    """Everything that can be asked about a user."""
    return [
        await admission.check(number, to),
        await admission.place(number, to, operator=OPERATOR),
        await admission.ask_permission(number, to, asked_by="ana"),
    ]


def reasons(answers: list[Any]) -> set[Reason]:
    assert all(isinstance(answer, Refusal) for answer in answers), answers
    return {answer.reason for answer in answers}


async def decision(world: World, to: str = TO) -> Allow | Refusal:
    checked = await world.admission.check(NUMBER_ID, to)
    assert not isinstance(checked, Refusal)
    return checked.overview.place


@pytest.mark.parametrize("to", NO_USERS)
async def test_what_is_neither_number_nor_bsuid_is_nobody(to: str) -> None:
    async with a_world() as world:
        await world.login()
        # "-5511900000001a-" and the like may be read as a number: then it is that number, and nobody allowed it.
        user = world.number.read_user(to)
        answers = await asked_for(world.admission, NUMBER_ID, to) if user is None else []
        assert reasons(answers) <= {Reason.INVALID_USER}
        assert user is None or (user.wa_id or "").isdecimal()
        assert not world.graph.ops()
        assert not [row for group in world.store.written for row in group if isinstance(row, FactRecord)]


@pytest.mark.parametrize("number", ["", "123", "200000000000003", "\x00", "9" * 10_000])
async def test_a_number_that_is_not_ours(number: str) -> None:
    async with a_world() as world:
        await world.login()
        assert reasons(await asked_for(world.admission, number, TO)) == {Reason.UNKNOWN_NUMBER}
        assert not world.graph.ops()


async def test_events_of_a_number_that_is_not_ours_are_kept_and_make_no_contact() -> None:
    async with a_world() as world:
        body = (
            b'{"entry":[{"changes":[{"field":"messages","value":{"metadata":{"phone_number_id":"999"},'
            b'"messages":[{"id":"wamid.1","from":"5511900000001","timestamp":"1795348800","type":"text"}]}}]}]}'
        )
        await world.inbox.deliver(read_delivery(body))
        assert {type(row) for group in world.store.written for row in group} == {EventRecord}


# Times


@pytest.mark.parametrize("timestamp", NO_TIMES)
@pytest.mark.parametrize("kind", ["connect", "terminate", "ACCEPTED", "message", "reply", "expiry"])
async def test_an_absurd_time_costs_nobody_anything(timestamp: str, kind: str) -> None:
    """The event is kept; what the gate says stays as it was."""
    async with a_world() as world:
        await world.allow_calls()
        before = await decision(world)
        await world.deliver(**event(kind, timestamp, now=str(int(world.clock.now().timestamp()))))
        assert len(world.store.events) == 1
        after = await decision(world)
        # Meta's word about an end of permission in the far future is taken; everything else changes nothing.
        assert isinstance(after, Allow)
        assert kind == "expiry" or after == before
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        latest = world.clock.now() + MAX_AHEAD
        assert contact.state.window_opened is None or contact.state.window_opened.at <= latest
        assert not contact.state.connected


def event(kind: str, timestamp: str, *, now: str) -> dict[str, Any]:
    """A webhook's value with one absurd time in it."""
    who = {"from": ANA.wa_id, "from_user_id": ANA.user_id}
    whole: dict[str, Any] = {"id": "wacid.T", "event": kind, "timestamp": timestamp, "direction": "USER_INITIATED"}
    reply = {"response": "accept", "response_source": "user_action", "expiration_timestamp": timestamp}
    match kind:
        case "connect":
            return {"calls": [whole | who | {"session": {"sdp_type": "offer", "sdp": "v=0"}}]}
        case "terminate":
            times = {"start_time": timestamp, "end_time": timestamp, "duration": 5, "status": "COMPLETED"}
            return {"calls": [whole | {"to": ANA.wa_id, "direction": "BUSINESS_INITIATED"} | times]}
        case "message":
            return {"messages": [who | {"id": "wamid.T", "timestamp": timestamp, "type": "text"}]}
        case "reply" | "expiry":
            at = now if kind == "expiry" else timestamp
            reply["expiration_timestamp"] = timestamp if kind == "expiry" else now
            interactive = {"type": "call_permission_reply", "call_permission_reply": reply}
            message = {"id": "wamid.T", "timestamp": at, "type": "interactive", "interactive": interactive}
            return {"messages": [who | message]}
        case _:
            return {"statuses": [{"id": "wacid.T", "type": "call", "status": kind, "timestamp": timestamp}]}


def test_no_time_at_all_raises() -> None:
    call = '{"id":"x","event":"terminate","timestamp":%s}'
    values: list[object] = [*NO_TIMES, None, [], {}, True, 1.5, 10**400]
    for timestamp in values:
        raw = repr(timestamp).replace("'", '"').replace("None", "null").replace("True", "true")
        body = '{"entry":[{"changes":[{"field":"calls","value":{"calls":[%s]}}]}]}' % (call % raw)
        (found,) = read_delivery(body.encode())
        assert found.at is None or found.at.year < 10_000
        assert isinstance(found, UnknownEvent) or found.at is not None


# Clocks


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
async def test_a_clock_that_jumps_an_hour_and_back_changes_no_counts(jump: timedelta) -> None:
    async with a_world() as world:
        await world.allow_calls()
        contact = await world.contacts.get(world.number, ANA)
        start = world.clock.now()
        talks = [
            CallConnected(at=start - timedelta(minutes=n), key=f"c{n}", direction=Direction.BUSINESS_INITIATED)
            for n in range(5)
        ]
        asked = PermissionRequested(at=start, key="r", form=RequestForm.TEMPLATE)
        world.contacts.apply(contact, *talks, asked, seen_at=start)
        answers = []
        for now in (start, start + jump, start, start - jump, start):
            world.clock.set(now)
            answers.append(await decision(world))
        assert {answer.reason for answer in answers if isinstance(answer, Refusal)} == {Reason.CONNECTED_LIMIT}
        assert len({answer.retry_at for answer in answers if isinstance(answer, Refusal)}) == 1  # the same instant


async def test_what_is_known_from_a_clock_ahead_still_counts_on_a_clock_set_back() -> None:
    async with a_world() as world:
        await world.admission.ask_permission(NUMBER_ID, TO, asked_by="ana")
        world.clock.advance(-3_600)
        again = await world.admission.ask_permission(NUMBER_ID, TO, asked_by="ana")
        assert isinstance(again, Refusal)
        assert again.reason is Reason.REQUEST_LIMIT
        assert again.retry_at is not None
        assert again.retry_at - world.clock.now() == timedelta(hours=25)


@pytest.mark.parametrize("jump_s", [3_600, -3_600])
async def test_a_call_that_rings_does_not_mind_the_clock(jump_s: int) -> None:
    async with a_world() as world:
        _, line = await world.login()
        driver = await world.user_calls()
        assert driver is not None
        world.clock.advance(jump_s)
        await world.until(lambda: driver.call.state.value == "ringing")
        assert line.pushes
        assert driver.call.outcome is None


async def test_on_a_clock_an_hour_behind_a_call_rings_on_one_an_hour_ahead_it_is_stale() -> None:
    async with a_world() as world:
        behind = await world.user_calls("wacid.BEHIND", age_s=-3_600)
        assert isinstance(behind, CallDriver)
        # Nothing tells an old `connect` from a wrong clock; whether a phone still rings there, Meta would not say.
        assert await world.user_calls("wacid.AHEAD", age_s=3_600) is None
        assert [kept.kind for kept in world.store.events] == ["call.offered"] * 2


# A store that is away


async def test_without_a_store_nothing_new_goes_out() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.store.fail_with()
        placed = await world.admission.place(NUMBER_ID, TO, operator=OPERATOR)
        asked = await world.admission.ask_permission(NUMBER_ID, TO, asked_by="ana")
        assert reasons([placed, asked]) == {Reason.STORE_DOWN}
        assert reasons([await decision(world)]) == {Reason.STORE_DOWN}  # and the page says so before anybody tries
        assert not world.graph.ops()
        assert world.number.outgoing.in_use == 0


async def test_without_a_store_calls_that_come_are_judged_from_memory() -> None:
    async with a_world() as world:
        _, line = await world.login()
        world.store.fail_with()
        with pytest.raises(StoreDown):  # Meta is told to send it again
            await world.user_calls()
        driver = world.drivers[-1]
        await world.until(lambda: driver.call.state.value == "ringing")
        assert line.pushes
        world.gate.draining = True  # a rule that needs no store still refuses
        with pytest.raises(StoreDown):
            await world.user_calls("wacid.SECOND")
        await world.graph.arrival("reject")


async def test_what_happened_while_the_store_was_away_counts_at_once_and_is_kept_when_it_is_back() -> None:
    async with a_world() as world:
        await world.allow_calls()
        world.store.fail_with()
        at = str(int(world.clock.now().timestamp()))
        message = {"id": "wamid.1", "from": ANA.wa_id, "timestamp": at, "type": "text"}
        with pytest.raises(StoreDown):
            await world.deliver(messages=[message])
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        assert contact.state.window_opened is not None
        world.store.heal()
        await world.deliver(messages=[message])  # as Meta does
        (kept,) = [fact for fact in await world.store.facts(contact.contact_id) if fact.fact["kind"] == "window_opened"]
        assert kept.key == contact.state.window_opened.key
        assert isinstance(await decision(world), Allow)
