"""Meta refuses what the gate let through: the operator hears both, and the next answer is Meta's."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from gateway.callflow.outcome import EndReason, Result
from gateway.calls.driver import CallDriver
from gateway.common.errors import GraphRefused
from gateway.common.ids import OperatorId
from gateway.wire import messages as msg
from gateway.wire.views import TITLES
from policy.decision import Refusal
from policy.facts import LimitReported, WindowClosed
from policy.reasons import Reason
from tests.support.fakes.graph import refused
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

NUMBER = "+5511900000001"


async def dial(world: World) -> CallDriver | Refusal:
    return await world.admission.place(NUMBER_ID, NUMBER, operator=OperatorId("ana"))


def drift(world: World, rule: str) -> float:
    return float(world.metrics.policy_drift_total.labels(rule=rule)._value.get())


async def test_a_refused_dial_tells_the_operator_what_meta_said_and_what_the_gate_says_now() -> None:
    async with a_world() as world:
        _, line = await world.login()
        await world.allow_calls()
        retry_at = world.clock.now() + timedelta(hours=5)
        error = refused("connect", 138012, "Call limit reached")
        error.retry_at = retry_at
        world.graph.fail("connect", error)
        with capture_logs() as logs:
            driver = await dial(world)
            assert isinstance(driver, CallDriver)
            record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.META, EndReason.GRAPH_ERROR)
        assert record.detail is not None
        assert "(138012) Call limit reached" in record.detail
        assert TITLES[Reason.CONNECTED_LIMIT] in record.detail
        (push,) = line.of_type(msg.ContactChanged)
        assert (push.decision.refusal.reason, push.decision.refusal.retry_at) == ("connected_limit", retry_at)
        (line_,) = [entry for entry in logs if entry["event"] == "policy_drift"]
        assert (line_["rule"], line_["metas"]) == ("contact/connected_per_24h", 138012)
        assert drift(world, "contact/connected_per_24h") == 1
        again = await dial(world)
        assert isinstance(again, Refusal)
        assert (again.reason, again.retry_at) == (Reason.CONNECTED_LIMIT, retry_at)
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        kept = await world.store.facts(contact.contact_id)
        assert [fact.fact["kind"] for fact in kept if fact.key.startswith("meta_refused/")] == ["limit_reported"]


async def test_a_permission_that_meta_does_not_know_is_none_from_the_next_dial_on() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.graph.fail("connect", refused("connect", 138006))
        driver = await dial(world)
        assert isinstance(driver, CallDriver)
        await world.ended(driver)
        again = await dial(world)
        assert isinstance(again, Refusal)
        assert again.reason is Reason.PERMISSION_REVOKED
        assert drift(world, "contact/permission") == 1
        await world.graph.arrival("call_permissions")  # whether that is all


async def test_an_error_that_is_not_about_the_contact_leaves_them_alone() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        before = contact.state
        world.graph.fail("connect", refused("connect", 138001, "no WhatsApp"))
        driver = await dial(world)
        assert isinstance(driver, CallDriver)
        record = await world.ended(driver)
        assert record.detail == "Meta refused: (138001) no WhatsApp"
        assert contact.state == before


async def test_a_refused_request_carries_the_gates_own_no() -> None:
    async with a_world() as world:
        at = str(int(world.clock.now().timestamp()))
        await world.deliver(messages=[{"id": "wamid.1", "from": ANA.wa_id, "timestamp": at, "type": "text"}])
        world.graph.fail("request_permission_free_form", refused("request_free_form", 131047))
        with pytest.raises(GraphRefused) as caught:
            await world.admission.ask_permission(NUMBER_ID, NUMBER, asked_by="ana")
        assert caught.value.refusal is not None
        assert caught.value.refusal.reason is Reason.WINDOW_CLOSED
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        assert isinstance(contact.state.window_closed, WindowClosed)
        assert not contact.state.requests
        again = await world.admission.ask_permission(NUMBER_ID, NUMBER, asked_by="ana")
        assert not isinstance(again, Refusal)  # in the form that Meta takes now
        assert world.graph.ops()[-1] == "request_permission_template"


async def test_a_limit_on_requests_is_kept_and_refused_by_ourselves_next_time() -> None:
    async with a_world() as world:
        await world.admission.look_up(NUMBER_ID, NUMBER)
        world.graph.fail("request_permission_template", refused("request_template", 138009))
        with pytest.raises(GraphRefused):
            await world.admission.ask_permission(NUMBER_ID, NUMBER, asked_by="ana")
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        (limit,) = contact.state.limits
        assert isinstance(limit, LimitReported)
        assert limit.until - limit.at == timedelta(days=1)
        again = await world.admission.ask_permission(NUMBER_ID, NUMBER, asked_by="ana")
        assert isinstance(again, Refusal)
        assert (again.reason, again.retry_at) == (Reason.REQUEST_LIMIT, limit.until)
        assert world.graph.ops().count("request_permission_template") == 1
