"""The gate, the slots and the operator's phone are asked before anything begins; every answer is kept."""

import asyncio
from dataclasses import replace

import pytest

from gateway.admission.gate import Checked
from gateway.admission.permission_requests import Asked
from gateway.callflow.outcome import EndReason, Result
from gateway.calls.driver import CallDriver
from gateway.common.errors import CannotDial
from gateway.common.ids import OperatorId
from policy.decision import Refusal
from policy.facts import RequestForm
from policy.reasons import Reason
from tests.support.fakes.graph import refused
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

OPERATOR = OperatorId("ana")


async def place(world: World, to: str = "+5511900000001", operator: str = "ana") -> CallDriver | Refusal:
    return await world.admission.place(NUMBER_ID, to, operator=OperatorId(operator))


async def test_a_contact_without_permission_is_not_called() -> None:
    async with a_world() as world:
        await world.login()
        answer = await place(world)
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.rule) == (Reason.NO_PERMISSION, "contact/permission")
        assert world.graph.ops() == ["call_permissions"]
        (kept,) = await world.store.decisions(NUMBER_ID)
        assert (kept.allowed, kept.asked_by, kept.request) == (False, "ana", "place")
        assert kept.refusal is not None
        assert kept.refusal["reason"] == "no_permission"


@pytest.mark.parametrize(
    ("to", "reason"),
    [("", Reason.INVALID_USER), ("abc", Reason.INVALID_USER), ("12", Reason.INVALID_USER)],
)
async def test_what_is_no_user_is_refused(to: str, reason: Reason) -> None:
    async with a_world() as world:
        await world.login()
        answer = await place(world, to)
        assert isinstance(answer, Refusal)
        assert answer.reason is reason


@pytest.mark.parametrize("to", ["+5511900000001", "5511900000001", "(11) 90000-0001", " 11 90000 0001 "])
async def test_a_number_may_be_typed_as_people_type_it(to: str) -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        assert isinstance(await place(world, to), CallDriver)
        sent = await world.graph.arrival("connect")
        assert sent.args["to"].wa_id == ANA.wa_id


async def test_an_unknown_number_is_refused() -> None:
    async with a_world() as world:
        answer = await world.admission.place("123", "+5511900000001", operator=OPERATOR)
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.UNKNOWN_NUMBER


async def test_no_outbound_call_while_the_store_is_away() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.store.fail_with()
        answer = await place(world)
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.STORE_DOWN
        assert not world.graph.ops()


async def test_nothing_goes_out_while_acknowledged_webhooks_wait_in_the_spool() -> None:
    """They may tell of a revoked permission, or of a call that counts."""
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.spooled.is_empty = False
        placed = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OperatorId("ana"))
        asked = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
        checked = await world.admission.check(NUMBER_ID, "+5511900000001")
        assert isinstance(checked, Checked)
        for answer in (placed, asked, checked.overview.place):
            assert isinstance(answer, Refusal)
            assert answer.reason is Reason.STORE_DOWN
        assert not world.graph.ops()
        world.spooled.is_empty = True
        assert isinstance(
            await world.admission.place(NUMBER_ID, "+5511900000001", operator=OperatorId("ana")), CallDriver
        )


async def test_a_draining_gateway_takes_and_places_no_calls() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.gate.draining = True
        answer = await place(world)
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.DRAINING
        assert await world.user_calls() is None
        await world.graph.arrival("reject")
        (record,) = await world.store.recent_calls(phone_number_ids=[NUMBER_ID], limit=5)
        assert (record.state, record.result, record.reason) == ("ended", Result.REFUSED, EndReason.DRAINED)


@pytest.mark.parametrize(
    ("leg", "code"),
    [(True, "busy"), (False, "no_leg")],
)
async def test_an_operator_needs_a_free_phone_with_audio(leg: bool, code: str) -> None:
    async with a_world() as world:
        phone, _ = await world.login(leg=leg)
        await world.allow_calls()
        if code == "busy":
            world.hub.take(phone, "another")  # type: ignore[arg-type]
        with pytest.raises(CannotDial) as caught:
            await place(world)
        assert caught.value.reason == code
        assert world.number.outgoing.in_use == 0


async def test_an_operator_who_is_not_logged_in_cannot_dial() -> None:
    async with a_world() as world:
        await world.allow_calls()
        with pytest.raises(CannotDial) as caught:
            await place(world)
        assert caught.value.reason == "gone"


async def test_the_call_above_the_limit_is_refused_at_once_in_its_direction_only() -> None:
    async with a_world(incoming_slots=2, outgoing_slots=1) as world:
        for n in range(3):
            await world.user_calls(f"wacid.{n}")
        await world.graph.arrival("reject")
        assert world.graph.only("reject").args["call"] == "wacid.2"
        assert world.number.incoming.in_use == 2
        for operator, to in (("ana", "+5511900000098"), ("bia", "+5511900000099")):
            await world.login(operator)
            user = world.number.read_user(to)
            assert user is not None
            await world.allow_calls(user)
        assert isinstance(await place(world, "+5511900000098"), CallDriver)
        answer = await place(world, "+5511900000099", "bia")
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.observed, answer.limit) == (Reason.NUMBER_BUSY, 1, 1)


async def test_the_1001st_incoming_call_is_rejected_and_the_other_direction_still_dials() -> None:
    async with a_world(incoming_slots=1_000, outgoing_slots=1_000) as world:
        for n in range(1_001):
            await world.user_calls(f"wacid.{n}")
        await world.graph.arrival("reject")
        assert world.graph.only("reject").args["call"] == "wacid.1000"
        assert world.number.incoming.in_use == 1_000
        await world.login()
        user = world.number.read_user("+5511900000098")
        assert user is not None
        await world.allow_calls(user)
        assert isinstance(await place(world, "+5511900000098"), CallDriver)


async def test_a_slot_that_comes_back_is_used_again() -> None:
    async with a_world(incoming_slots=1) as world:
        for n in range(5):
            driver = await world.user_calls(f"wacid.{n}")
            assert driver is not None
            assert world.number.incoming.in_use == 1
            await world.meta_terminates(f"wacid.{n}")
            await world.ended(driver)
        assert world.number.incoming.in_use == 0


async def test_of_many_dials_to_one_contact_at_once_one_passes() -> None:
    async with a_world(outgoing_slots=100) as world:
        await world.allow_calls()
        for n in range(20):
            await world.login(f"op{n}")
        answers = await asyncio.gather(*(place(world, operator=f"op{n}") for n in range(20)))
        assert sum(isinstance(answer, CallDriver) for answer in answers) == 1
        assert {a.reason for a in answers if isinstance(a, Refusal)} == {Reason.USER_BUSY}


# --- permission requests ---------------------------------------------------------------------------


async def test_permission_is_asked_in_the_form_that_the_window_allows() -> None:
    async with a_world() as world:
        asked = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
        assert isinstance(asked, Asked)
        assert asked.form is RequestForm.TEMPLATE
        assert world.graph.ops() == ["request_permission_template"]


async def test_inside_the_window_it_is_asked_free_form() -> None:
    async with a_world() as world:
        at = str(int(world.clock.now().timestamp()))
        await world.deliver(messages=[{"id": "wamid.1", "from": ANA.wa_id, "timestamp": at, "type": "text"}])
        asked = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
        assert isinstance(asked, Asked)
        assert asked.form is RequestForm.FREE_FORM


async def test_the_second_request_of_a_day_is_refused_and_says_when_again() -> None:
    async with a_world() as world:
        first = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
        assert isinstance(first, Asked)
        again = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
        assert isinstance(again, Refusal)
        assert again.reason is Reason.REQUEST_LIMIT
        assert again.retry_at is not None
        assert (again.retry_at - world.clock.now()).total_seconds() == 86_400


async def test_two_requests_at_once_send_one() -> None:
    async with a_world() as world:
        held = world.graph.hold("request_permission_template")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana"))
            await world.graph.arrival("request_permission_template")
            second = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="bia")
            held.set()
        assert isinstance(second, Refusal)
        assert isinstance(first.result(), Asked)


async def test_a_request_that_meta_refused_is_not_counted() -> None:
    async with a_world() as world:
        world.graph.fail("request_permission_template", refused("messages", 138001))
        with pytest.raises(Exception, match="138001"):
            await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
        again = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
        assert isinstance(again, Asked)


# --- the way of a decision -------------------------------------------------------------------------


async def test_checking_keeps_no_decision() -> None:
    async with a_world() as world:
        await world.admission.check(NUMBER_ID, "+5511900000001")
        assert not await world.store.decisions(NUMBER_ID)


async def test_a_coexistence_number_takes_no_calls() -> None:
    async with a_world() as world:
        world.number.state = replace(world.number.state, coexistence=True)
        driver = await world.user_calls()
        assert driver is not None
        await world.graph.arrival("reject")
        (kept,) = await world.store.decisions(NUMBER_ID)
        assert kept.refusal is not None
        assert kept.refusal["reason"] == "coexistence"
