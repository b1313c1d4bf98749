"""The life of calls at the simulated Meta: states, timers, counts and webhooks. Media only where it matters."""

from dataclasses import replace
from typing import Any

import pytest

from loadtest.simulator.config import Behaviour, Limits, NumberSpec, PermissionAnswer, Profile, UserSpec
from loadtest.simulator.errors import NotPossible
from loadtest.simulator.meta_sim import MetaSim
from loadtest.simulator.state import CallState
from tests.loadtest.helpers import (
    ANA,
    QUICK,
    FakeWallClock,
    Graph,
    answer_sdp,
    events_of,
    graph,
    names_of,
    running,
)


def ana(**changes: Any) -> tuple[UserSpec, ...]:
    values: dict[str, Any] = {"wa_id": ANA, "name": "Ana", "after_s": 0.0}
    return (UserSpec(**values | changes),)


async def place(sim: MetaSim, api: Graph) -> str:
    """Let the business call Ana; return the call's id."""
    status, body = await api.connect()
    assert status == 200, body
    call_id: str = body["calls"][0]["id"]
    return call_id


async def test_an_accepted_call_of_the_business_and_its_times() -> None:
    clock = FakeWallClock()
    users = ana(behaviour=Behaviour.AUTO_ACCEPT)
    async with running(users=users, clock=clock) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        call_id = await place(sim, api)
        await sim.until(lambda: sim.world.calls[call_id].state is CallState.ACTIVE)
        clock.now += 61
        assert (await api.calls("terminate", call_id=call_id))[0] == 200
        assert names_of(sim, call_id) == ["connect", "RINGING", "ACCEPTED", "terminate"]
        end = events_of(sim, call_id)[-1]
        assert (end["status"], end["duration"]) == ("COMPLETED", 61)
        assert int(end["end_time"]) - int(end["start_time"]) == 61


async def test_a_declined_call_is_rejected_and_then_ends_without_times() -> None:
    async with running(users=ana(behaviour=Behaviour.AUTO_DECLINE)) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        call_id = await place(sim, api)
        await sim.until(lambda: not sim.world.calls[call_id].live)
        assert names_of(sim, call_id) == ["connect", "RINGING", "REJECTED", "terminate"]
        assert "start_time" not in events_of(sim, call_id)[-1]


@pytest.mark.parametrize(
    ("behaviour", "names"),
    [
        (Behaviour.NO_ANSWER, ["connect", "RINGING", "terminate"]),
        (Behaviour.OFFLINE, ["connect", "terminate"]),
    ],
)
async def test_an_unanswered_call_just_ends(behaviour: Behaviour, names: list[str]) -> None:
    timers = replace(QUICK, business_initiated_ring_s=0.08)
    async with running(users=ana(behaviour=behaviour), timers=timers) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        call_id = await place(sim, api)
        await sim.until(lambda: not sim.world.calls[call_id].live)
        assert names_of(sim, call_id) == names
        assert events_of(sim, call_id)[-1]["status"] == "COMPLETED"


async def test_ringing_may_come_before_connect() -> None:
    timers = replace(QUICK, answer_after_s=0.03, ringing_after_s=0.0)
    async with running(users=ana(behaviour=Behaviour.AUTO_ACCEPT), timers=timers) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        call_id = await place(sim, api)
        await sim.until(lambda: len(names_of(sim, call_id)) == 3)
        assert names_of(sim, call_id) == ["RINGING", "ACCEPTED", "connect"]


async def test_four_unanswered_calls_revoke_with_a_webhook() -> None:
    timers = replace(QUICK, business_initiated_ring_s=0.03)
    async with running(users=ana(behaviour=Behaviour.NO_ANSWER), timers=timers) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        for _ in range(4):
            call_id = await place(sim, api)
            await sim.until(lambda: not sim.world.calls[call_id].live)  # noqa: B023  awaited at once
        assert [line["what"] for line in sim.world.log].count("nudged") == 1
        message = sim.webhooks.sent[-1].change["value"]["messages"][0]
        assert message["interactive"]["call_permission_reply"] == {
            "response": "reject",
            "response_source": "automatic",
        }
        assert "context" not in message
        assert (await api.connect())[1]["error"]["code"] == 138006


@pytest.mark.parametrize(("profile", "streak"), [(Profile.META, 1), (Profile.GUIDE, 0)])
async def test_whether_a_decline_counts_as_unanswered(profile: Profile, streak: int) -> None:
    users = ana(behaviour=Behaviour.AUTO_DECLINE)
    async with running(users=users, profile=profile) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        call_id = await place(sim, api)
        await sim.until(lambda: not sim.world.calls[call_id].live)
        assert sim.world.contact(sim.number, sim.user(ANA).spec).unanswered == streak


async def test_a_user_who_does_not_answer_need_not_be_waited_for() -> None:
    async with running() as sim, graph(sim) as api:
        sim.user(ANA).grant()
        call_id = await place(sim, api)
        await sim.until(lambda: sim.world.calls[call_id].state.value == "ringing")
        call = sim.user(ANA).let_it_ring_out()
        assert (call.live, call.end_reason) == (False, "no_answer")
        assert sim.world.contact(sim.number, sim.user(ANA).spec).unanswered == 1
        with pytest.raises(NotPossible):
            sim.user(ANA).let_it_ring_out()


async def test_a_users_call_rings_until_nobody_answered() -> None:
    async with running(timers=replace(QUICK, user_initiated_ring_s=0.03)) as sim:
        call = sim.user(ANA).call()
        await sim.until(lambda: not call.live)
        assert names_of(sim, call.id) == ["connect", "terminate"]
        assert call.end_reason == "no_answer"


async def test_an_answered_call_stops_ringing_and_ends_after_talking() -> None:
    timers = replace(QUICK, user_initiated_ring_s=0.1)
    async with running(users=ana(talk_s=0.25), timers=timers) as sim, graph(sim) as api:
        call = sim.user(ANA).call()
        await api.answer("accept", call.id, answer_sdp(), biz_opaque_callback_data="t-1")
        await sim.until(lambda: not call.live)
        end = events_of(sim, call.id)[-1]
        assert (call.end_reason, end["biz_opaque_callback_data"]) == ("user_hung_up", "t-1")
        assert "duration" in end


@pytest.mark.parametrize(("callback", "kinds"), [(True, ["automatic"]), (False, [])])
async def test_a_missed_call_grants_only_if_the_number_says_so(callback: bool, kinds: list[str]) -> None:
    async with running(numbers=(NumberSpec(callback_permission=callback),)) as sim:
        call = sim.user(ANA).call()
        sim.user(ANA).hang_up()
        messages = [one.change["value"]["messages"][0] for one in list(sim.webhooks.sent)[2:]]
        assert [one["interactive"]["call_permission_reply"]["response_source"] for one in messages] == kinds
        if callback:
            assert messages[0]["context"]["id"] == call.id


async def test_a_users_call_opens_the_window_even_if_missed() -> None:
    async with running() as sim, graph(sim) as api:
        sim.user(ANA).call()
        sim.user(ANA).hang_up()
        assert (await api.ask())[0] == 200


async def test_calls_that_cannot_be_placed_send_nothing() -> None:
    cases: list[dict[str, Any]] = [
        {"numbers": (NumberSpec(calling_enabled=False),)},
        {"limits": Limits(concurrent_in=0)},
    ]
    for case in cases:
        async with running(**case) as sim:
            with pytest.raises(NotPossible):
                sim.user(ANA).call()
            assert not sim.webhooks.sent


async def test_inbound_and_outbound_are_counted_apart() -> None:
    users = (*ana(), UserSpec(wa_id="5511900000002", name="Bruno"))
    async with (
        running(users=users, limits=Limits(concurrent_in=1, concurrent_out=1)) as sim,
        graph(sim) as api,
    ):
        sim.user("5511900000002").call()
        sim.user(ANA).grant()
        assert (await api.connect())[0] == 200


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (PermissionAnswer.ACCEPT, "temporary"),
        (PermissionAnswer.ACCEPT_PERMANENT, "permanent"),
        (PermissionAnswer.REJECT, "no_permission"),
    ],
)
async def test_permission_requests_can_be_answered_automatically(answer: PermissionAnswer, status: str) -> None:
    async with running(users=ana(permission_answer=answer)) as sim, graph(sim) as api:
        await api.ask_by_template()
        # sent, delivered, the reply
        await sim.until(lambda: len(sim.webhooks.sent) == 3)
        described = sim.state()["users"][0]["numbers"][sim.number.spec.phone_number_id]
        assert described["status"] == status


async def test_no_media_after_accept_fails_the_call_with_138021() -> None:
    async with running(timers=replace(QUICK, no_media_at_start_s=0.1)) as sim, graph(sim) as api:
        call = sim.user(ANA).call()
        await api.answer("accept", call.id, answer_sdp())
        await sim.until(lambda: not call.live)
        end = events_of(sim, call.id)[-1]
        assert (end["status"], end["errors"][0]["code"]) == ("FAILED", 138021)
        assert "duration" in end


async def test_old_calls_are_forgotten() -> None:
    async with running(history=3) as sim:
        for _ in range(5):
            sim.user(ANA).call()
            sim.user(ANA).hang_up()
        assert len(sim.world.calls) == 3
