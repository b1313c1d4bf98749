"""What operators and clients are told while Meta is away or refuses the token, and what goes on all the same."""

import asyncio
import random
from datetime import timedelta

import pytest

from gateway.callflow.call import CallInput, CallState, InputKind
from gateway.callflow.outcome import EndReason, Result
from gateway.calls.driver import CallDriver
from gateway.calls.performer import END_AGAIN_S
from gateway.common.errors import GraphError, GraphPaused
from gateway.common.ids import OperatorId
from gateway.meta.circuit_breaker import FAILURES
from gateway.meta.health import MetaHealth
from policy.decision import Refusal
from policy.reasons import Reason
from tests.gateway.http.test_api import ASK, CALLS, CONTACT, DIAL, ask, is_problem
from tests.support.fakes.clock import FakeClock
from tests.support.fakes.graph import refused, unreachable
from tests.support.harness.doors import doors
from tests.support.harness.world import NUMBER_ID, WACID, World, a_world

TO = "+5511900000001"


class Trouble:
    """A world's clock and what is known of Meta."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.health = MetaHealth(token_for=lambda number: "token", clock=self.clock, rng=random.Random(1))

    def meta_is_away(self) -> None:
        for _ in range(FAILURES):
            self._ended(unreachable("connect"))

    def token_is_refused(self) -> None:
        self._ended(refused("connect", 190))

    def meta_works(self) -> None:
        self.health.end(self.health.begin("terminate", NUMBER_ID), None)

    def _ended(self, error: GraphError) -> None:
        self.health.end(self.health.begin("connect", NUMBER_ID), error)

    def paused(self) -> GraphPaused:
        """What the client would raise now."""
        with pytest.raises(GraphPaused) as raised:
            self.health.begin("connect", NUMBER_ID)
        return raised.value


async def dial(world: World) -> CallDriver | Refusal:
    return await world.admission.place(NUMBER_ID, TO, operator=OperatorId("ana"))


async def test_a_dial_is_refused_with_the_next_try_and_not_counted_as_placed() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world:
        await world.login()
        await world.allow_calls()
        trouble.meta_is_away()
        answer = await dial(world)
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.rule) == (Reason.META_AWAY, "gateway/meta")
        assert answer.retry_at is not None
        assert timedelta(0) < answer.retry_at - world.clock.now() <= timedelta(seconds=2)
        assert (world.number.placed.count(now=world.clock.now()), world.number.outgoing.in_use) == (0, 0)
        assert "connect" not in world.graph.ops()
        (kept,) = await world.store.decisions(NUMBER_ID)
        assert kept.refusal is not None
        assert kept.refusal["reason"] == "meta_away"
        trouble.meta_works()
        assert isinstance(await dial(world), CallDriver)


async def test_a_refused_token_refuses_dials_and_requests() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world:
        await world.login()
        await world.allow_calls()
        trouble.token_is_refused()
        answers = [await dial(world), await world.admission.ask_permission(NUMBER_ID, TO, asked_by="api")]
        for answer in answers:
            assert isinstance(answer, Refusal)
            assert (answer.reason, answer.rule) == (Reason.TOKEN_REFUSED, "gateway/token")


async def test_the_api_answers_503_with_the_seconds_to_wait() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world, doors(world) as opened:
        await world.login()
        await world.allow_calls()
        trouble.token_is_refused()
        for path, body in ((CALLS, DIAL), (ASK, None)):
            answer = await ask(opened, "POST", path, json=body)
            is_problem(answer, 503, "token_refused")
            assert answer.headers["Retry-After"] == "30"
            assert answer.body["refusal"]["remedy"] == "fix_token"


async def test_what_the_client_holds_back_reads_the_same() -> None:
    """Between the gate's yes and the request Meta may have gone away; and a look at Meta asks no gate."""
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world, doors(world) as opened:
        trouble.meta_is_away()
        world.graph.fail("call_permissions", trouble.paused())
        answer = await ask(opened, "POST", CONTACT + "/reconcile")
        is_problem(answer, 503, "meta_away")
        assert answer.headers["Retry-After"] == "2"
        assert answer.body["title"].startswith("Meta has not answered the last 10 requests; the next try is in 2 s")


async def test_the_softphone_is_told_why_and_when() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world, doors(world) as opened:
        socket, _ = await opened.login()
        await world.allow_calls()
        trouble.meta_is_away()
        answer = await socket.ask("dial", number_id=NUMBER_ID, to=TO)
        assert (answer["code"], answer["refusal"]["reason"]) == ("refused", "meta_away")
        assert answer["refusal"]["retry_at"] is not None
        paused = trouble.paused()
        trouble.meta_works()
        world.graph.fail("request_permission_template", paused)
        answer = await socket.ask("ask_permission", number_id=NUMBER_ID, to=TO.replace("1", "2"))
        assert (answer["code"], answer["refusal"]["reason"]) == ("refused", "meta_away")


async def test_a_dial_that_the_client_holds_back_ends_as_metas_error_and_does_not_count() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world:
        await world.login()
        await world.allow_calls()
        trouble.meta_is_away()
        world.graph.fail("connect", trouble.paused())
        trouble.meta_works()
        driver = await dial(world)
        assert isinstance(driver, CallDriver)
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.META, EndReason.GRAPH_ERROR)
        assert "the next try is in" in (record.detail or "")
        assert world.number.placed.count(now=world.clock.now()) == 0


async def test_calls_that_come_in_are_answered_while_meta_seems_away() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world:
        trouble.meta_is_away()
        driver = await world.user_calls()
        assert driver is not None
        await world.until(lambda: driver.call.state is CallState.RINGING)
        await world.meta_terminates()
        await world.ended(driver)


# --- an end that Meta does not hear ----------------------------------------------------------------


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize(
    "error",
    [unreachable("terminate"), refused("terminate", 190), refused("terminate", 131005), refused("terminate", 4)],
)
async def test_an_end_is_told_again_after_the_call_is_over_until_meta_has_heard(error: GraphError) -> None:
    async with a_world() as world:
        driver = await world.user_calls()
        assert driver is not None
        await world.until(lambda: driver.call.state is CallState.RINGING)
        world.graph.fail("terminate", *[error] * 6)
        driver.feed(CallInput(kind=InputKind.ALL_DECLINED))
        await asyncio.sleep(END_AGAIN_S - 0.1)
        assert world.graph.ops().count("terminate") == 1
        await asyncio.sleep(15)
        assert driver.is_over  # its slot is free, whatever Meta heard
        assert len(world.owed_hangups) == 1
        await world.graph.arrival("terminate", count=7, timeout_s=600)
        await asyncio.sleep(1)
        assert len(world.owed_hangups) == 0
        await asyncio.sleep(600)
        assert world.graph.ops().count("terminate") == 7


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_terminate_webhook_says_it_too() -> None:
    async with a_world() as world:
        driver = await world.user_calls()
        assert driver is not None
        await world.until(lambda: driver.call.state is CallState.RINGING)
        world.graph.fail("terminate", *[unreachable("terminate")] * 100)
        driver.feed(CallInput(kind=InputKind.ALL_DECLINED))
        await asyncio.sleep(20)
        await world.meta_terminates(WACID)
        await asyncio.sleep(1)
        asked = world.graph.ops().count("terminate")
        assert len(world.owed_hangups) == 0
        await asyncio.sleep(600)
        assert world.graph.ops().count("terminate") == asked


# --- the keeper finds out --------------------------------------------------------------------------


async def test_while_meta_is_in_trouble_the_keeper_looks_whether_it_still_is() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world:
        await world.monitor.load(world.numbers)
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.graph.arrival("number_info")
        trouble.token_is_refused()
        await world.graph.arrival("settings", count=2)


async def test_what_the_client_holds_back_is_asked_again_when_its_time_has_come() -> None:
    trouble = Trouble()
    async with a_world(clock=trouble.clock, health=trouble.health) as world:
        trouble.token_is_refused()
        world.graph.fail("settings", trouble.paused())
        trouble.meta_works()
        trouble.clock.advance(30)
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.graph.arrival("settings", count=2)
        await world.until(lambda: world.number.facts.read_at is not None)
