"""When Meta is asked about a number, what becomes of its answer, and who is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import orjson
import pytest

from gateway.callflow.outcome import Result
from gateway.common.backoff import Backoff
from gateway.common.errors import GraphRefused
from gateway.common.ids import CallId, MetaCallId, OperatorId, PhoneNumberId
from gateway.config.settings import NumberSettings
from gateway.meta.answers import NumberCallingSettings, NumberInfo
from gateway.meta.events import read_delivery
from gateway.numbers import monitor
from gateway.numbers.facts import NumberFacts, facts_to_json
from gateway.numbers.monitor import LOOK_S, NumberMonitor
from gateway.numbers.number import Number, Numbers
from gateway.numbers.views import number_view, status_view
from gateway.store.records import NumberSaved
from gateway.wire import messages as msg
from policy.decision import Refusal
from policy.facts import Direction
from policy.number import CallingStatus, Restriction, RestrictionType
from policy.pack import load_pack
from policy.reasons import Reason
from tests.support.fakes.graph import refused, unreachable
from tests.support.generators import records as make
from tests.support.harness.world import ANA, NUMBER_ID, FakeLine, World, a_world

OPERATOR = OperatorId("ana")
OUT = RestrictionType.BUSINESS_INITIATED
ENABLED = CallingStatus.ENABLED


@asynccontextmanager
async def kept() -> AsyncIterator[World]:
    """A world whose keeper runs and has asked Meta once."""
    async with a_world() as world:
        await world.monitor.load(world.numbers)
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.graph.arrival("number_info")
        await world.until(lambda: world.number.facts.read_at is not None)
        yield world


async def account_update(world: World, **value: Any) -> None:
    now = int(world.clock.now().timestamp())
    change = {"field": "account_update", "value": {"phone_number": "551155550100", **value}}
    await world.inbox.deliver(read_delivery(orjson.dumps({"entry": [{"id": "0", "time": now, "changes": [change]}]})))


async def restrict(world: World, *, hours: float = 1, kind: RestrictionType = OUT) -> None:
    until = int(world.clock.now().timestamp() + hours * 3_600)
    entry = {"restriction_type": kind.value, "expiration": until}
    await account_update(world, event="ACCOUNT_RESTRICTION", restriction_info=[entry])


async def change_settings(world: World, **calling: Any) -> None:
    value = {
        "timestamp": str(int(world.clock.now().timestamp())),
        "type": "PHONE_NUMBER_SETTINGS",
        "phone_number_settings": {"phone_number_id": NUMBER_ID, "calling": calling or None},
    }
    change = {"field": "account_settings_update", "value": value}
    await world.inbox.deliver(read_delivery(orjson.dumps({"entry": [{"id": "0", "changes": [change]}]})))


def statuses(line: FakeLine) -> list[msg.NumberStatusView]:
    return [push.status for push in line.of_type(msg.NumberChanged)]


def gauge(world: World, kind: RestrictionType = OUT) -> float | None:
    labels = {"number": NUMBER_ID, "type": kind.value}
    return world.metrics.registry.get_sample_value("wacg_number_restricted", labels)


async def ask(world: World) -> Refusal | None:
    """Try a permission request; return the gate's no."""
    answer = await world.admission.ask_permission(NUMBER_ID, "+5511900000001", asked_by="ana")
    return answer if isinstance(answer, Refusal) else None


# --- the start ---------------------------------------------------------------------------------------


async def test_meta_is_asked_once_at_the_start_even_if_it_tells_no_limit() -> None:
    async with kept() as world:
        assert world.number.state.calling is ENABLED
        assert world.number.state.messaging_limit is None
        for _ in range(3):
            await world.admission.check(NUMBER_ID, "+5511900000001")
        await asyncio.sleep(0.1)
        assert world.graph.ops().count("number_info") == world.graph.ops().count("settings") == 1


async def test_a_messaging_limit_below_the_rule_refuses_with_figures() -> None:
    async with a_world() as world:
        world.graph.info = NumberInfo(messaging_limit=250)
        await world.monitor.refresh(world.number)
        no = await ask(world)
        assert no is not None
        assert (no.reason, no.observed, no.limit) == (Reason.NOT_ELIGIBLE, 250, 2_000)


async def test_meta_is_asked_again_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "AGAIN", Backoff((0.01,)))
    async with a_world() as world:
        world.graph.fail("settings", unreachable("settings"), unreachable("settings"))
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.until(lambda: world.number.state.calling is ENABLED)
        assert world.graph.ops().count("settings") == 3


async def test_a_token_that_may_not_read_settings_still_reads_the_number() -> None:
    async with a_world() as world:
        world.graph.info = NumberInfo(messaging_limit=10_000, coexistence=True)
        world.graph.fail("settings", refused("settings", 10, http_status=403))
        with pytest.raises(GraphRefused):
            await world.monitor.refresh(world.number)
        assert (world.number.state.messaging_limit, world.number.state.coexistence) == (10_000, True)
        assert world.number.state.calling is CallingStatus.UNKNOWN


async def test_a_bug_in_one_look_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world:
        broken, read = [True], world.number.read_from_meta

        async def breaking(*args: Any, **more: Any) -> None:
            if broken:
                broken.clear()
                world.monitor.in_doubt(world.number)
                raise RuntimeError("a bug")
            await read(*args, **more)

        monkeypatch.setattr(world.number, "read_from_meta", breaking)
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.until(lambda: world.number.state.calling is ENABLED)


# --- what is kept ------------------------------------------------------------------------------------


async def test_what_is_known_outlives_a_restart() -> None:
    async with a_world() as world:
        await restrict(world, hours=48)
        (saved,) = await world.store.numbers()
        async with a_world() as later:
            await later.store.write(saved, msgspec.structs.replace(saved, phone_number_id=PhoneNumberId("999")))
            await later.monitor.load(later.numbers)
            assert later.number.facts == world.number.facts
            assert gauge(later) == 1
            await later.monitor.refresh(later.number)  # Graph lists nothing, and the restriction still lives
            no = await ask(later)
            assert no is not None
            assert (no.reason, no.retry_at) == (Reason.NUMBER_RESTRICTED, world.clock.now() + timedelta(hours=48))


async def test_facts_of_another_version_are_asked_for_anew() -> None:
    async with a_world() as world:
        state = {**facts_to_json(NumberFacts(calling=ENABLED)), "version": 99}
        saved = NumberSaved(phone_number_id=NUMBER_ID, state=state, updated_at=world.clock.now())
        await world.store.write(saved)
        await world.monitor.load(world.numbers)
        assert world.number.facts == NumberFacts()


async def test_a_store_that_is_away_does_not_keep_a_webhook_from_taking_effect() -> None:
    async with kept() as world:
        world.store.fail_with()
        world.number.learn(replace(world.number.facts, listed=(Restriction(type=OUT, expires_at=None),)))
        assert world.number.state.restrictions
        world.store.heal()
        (saved,) = await world.store.numbers()
        assert saved.state["listed"]


# --- webhooks ----------------------------------------------------------------------------------------


async def test_a_restriction_is_shown_counted_and_obeyed_until_it_ends() -> None:
    async with kept() as world:
        _, line = await world.login()
        await world.allow_calls()
        assert gauge(world) == 0
        await restrict(world, hours=1)
        ends = world.clock.now() + timedelta(hours=1)
        assert gauge(world) == 1
        shown = statuses(line)[-1]
        assert [(each.type, each.until) for each in shown.restrictions] == [(OUT.value, ends)]
        assert shown.place is not None
        assert (shown.place.reason, shown.place.retry_at) == ("number_restricted", ends)
        assert shown.receive is None
        checked = await world.admission.check(NUMBER_ID, "+5511900000001")
        assert not isinstance(checked, Refusal)
        assert isinstance(checked.overview.place, Refusal)
        assert checked.overview.place.retry_at == ends
        world.clock.advance(3_600)
        await world.until(lambda: statuses(line)[-1].place is None)
        assert gauge(world) == 0
        assert await ask(world) is None


async def test_users_of_a_number_restricted_for_them_are_refused() -> None:
    async with kept() as world:
        await restrict(world, kind=RestrictionType.USER_INITIATED)
        await world.user_calls()
        await world.graph.arrival("reject")
        (kept_decision,) = await world.store.decisions(NUMBER_ID)
        assert (kept_decision.refusal or {})["reason"] == "number_restricted"
        assert gauge(world, RestrictionType.USER_INITIATED) == 1


async def test_a_warning_is_shown_and_forbids_nothing() -> None:
    async with kept() as world:
        _, line = await world.login()
        violation = {"violation_type": "LOW_USER_INITIATED_CALLING_QUALITY", "remediation": "Call less."}
        await account_update(world, event="ACCOUNT_VIOLATION", violation_info=violation)
        (warning,) = statuses(line)[-1].warnings
        assert (warning.violation, warning.remediation) == ("LOW_USER_INITIATED_CALLING_QUALITY", "Call less.")
        assert statuses(line)[-1].place is None


async def test_changed_settings_take_effect_at_once_and_meta_is_asked_for_the_rest() -> None:
    async with kept() as world:
        world.graph.number_settings = NumberCallingSettings(calling=CallingStatus.DISABLED, sip_enabled=True)
        world.clock.advance(1)
        await change_settings(world, status="DISABLED")
        assert world.number.state.calling is CallingStatus.DISABLED
        await world.until(lambda: world.number.state.sip_enabled)
        assert world.graph.ops().count("settings") == 2


async def test_settings_of_something_else_are_no_reason_to_ask() -> None:
    async with kept() as world:
        await change_settings(world)
        await asyncio.sleep(0.1)
        assert world.graph.ops().count("settings") == 1


async def test_the_numbers_of_others_are_left_alone() -> None:
    async with kept() as world:
        before = world.number.facts
        await account_update(
            world, phone_number="15550100009", event="ACCOUNT_VIOLATION", violation_info={"violation_type": "LOW"}
        )
        assert world.number.facts == before


async def test_the_same_webhook_again_shows_nothing_new() -> None:
    async with kept() as world:
        _, line = await world.login()
        await restrict(world)
        await restrict(world)
        assert len(statuses(line)) == 1


# --- what Meta answers to our requests ---------------------------------------------------------------


ERRORS = [
    (138000, Reason.CALLING_OFF),
    (138013, Reason.COUNTRY_EXCLUDED),
    (138014, Reason.NUMBER_RESTRICTED),
    (138015, Reason.NOT_ELIGIBLE),
    (131044, Reason.NO_PAYMENT),
    (131055, Reason.SIP_MODE),
]


@pytest.mark.parametrize(("code", "reason"), ERRORS)
async def test_what_meta_refused_to_one_request_the_gate_refuses_to_the_next(code: int, reason: Reason) -> None:
    async with a_world() as world:
        world.graph.fail("request_permission_template", refused("request_template", code))
        with pytest.raises(GraphRefused):
            await ask(world)
        no = await ask(world)
        assert no is not None
        assert no.reason is reason
        assert world.graph.ops().count("request_permission_template") == 1


@pytest.mark.parametrize(("code", "reason"), [*ERRORS, (138005, Reason.NUMBER_RATE)])
async def test_what_meta_refused_to_one_call_the_gate_refuses_to_the_next(code: int, reason: Reason) -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.graph.fail("connect", refused("connect", code))
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert not isinstance(driver, Refusal)
        await world.ended(driver)
        no = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert isinstance(no, Refusal)
        assert no.reason is reason


async def test_calling_that_meta_says_is_on_again_is_on_again() -> None:
    async with kept() as world:
        world.number.meta_refused(refused("connect", 138000), now=world.clock.now())
        assert world.number.state.calling is CallingStatus.DISABLED
        await world.until(lambda: world.number.state.calling is ENABLED)
        assert world.graph.ops().count("settings") == 2


@pytest.mark.parametrize("mended", ["refresh", "a call passed"])
async def test_payment_trouble_lasts_until_somebody_asks_anew_or_a_call_passes(mended: str) -> None:
    async with kept() as world:
        world.number.meta_refused(refused("connect", 131044), now=world.clock.now())
        before = world.number.state
        watch = world.monitor._watches[world.number.id]
        await world.monitor._read_from_meta(world.number, watch)  # no settings tell it
        assert (before.payment_ok, world.number.state.payment_ok) == (False, False)
        if mended == "refresh":
            await world.monitor.refresh(world.number)
        else:
            world.number.meta_took()
        after = world.number.state
        assert after.payment_ok


async def test_a_users_call_that_failed_for_payment_tells_it_too() -> None:
    async with a_world() as world:
        error = {"code": 131044, "title": "Business eligibility payment issue"}
        await world.meta_terminates("wacid.PAY", errors=[error])
        assert not world.number.state.payment_ok


async def test_while_calls_are_ruled_out_meta_is_asked_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "DOUBT_S", 0.01)
    async with a_world() as world:
        world.graph.number_settings = NumberCallingSettings(calling=CallingStatus.DISABLED)
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.graph.arrival("settings", count=3)
        world.graph.number_settings = NumberCallingSettings(calling=ENABLED)
        await world.until(lambda: world.number.state.calling is ENABLED)


# --- calls of a day ----------------------------------------------------------------------------------


async def test_the_calls_of_a_day_are_limited_and_a_refused_one_is_not_counted() -> None:
    async with a_world() as world:
        world.number.placed.limit = 1
        world.number.pack = replace(world.number.pack, calls_per_24h=1)
        await world.login()
        await world.allow_calls()
        world.graph.fail("connect", refused("connect", 138001))
        first = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert not isinstance(first, Refusal)
        assert world.number.placed.count(now=world.clock.now()) == 1  # on its way, it counts
        await world.ended(first)
        assert world.number.placed.count(now=world.clock.now()) == 0
        placed_at = world.clock.now()
        second = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert not isinstance(second, Refusal)
        await world.graph.arrival("connect", count=2)
        await world.meta_terminates("wacid.FAKE0002", direction="BUSINESS_INITIATED")
        await world.ended(second)
        no = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert isinstance(no, Refusal)
        assert (no.reason, no.observed, no.limit) == (Reason.NUMBER_RATE, 1, 1)
        assert no.retry_at == placed_at + timedelta(days=1)
        world.clock.advance(86_400)
        again = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert not isinstance(again, Refusal)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_call_of_which_nobody_knows_counts() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.graph.fail("connect", unreachable("connect"))
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert not isinstance(driver, Refusal)
        await asyncio.sleep(600)
        assert (await world.ended(driver)).result is Result.INDETERMINATE
        assert world.number.placed.count(now=world.clock.now()) == 1


async def test_calls_of_an_earlier_process_count() -> None:
    async with a_world() as world:
        now = world.clock.now()
        call = make.call(
            call_id=CallId("1"),
            meta_call_id=MetaCallId("wacid.1"),
            phone_number_id=NUMBER_ID,
            direction=Direction.BUSINESS_INITIATED,
            created_at=now - timedelta(hours=23),
            user=ANA,
        )
        await world.store.write(call)
        await world.monitor.load(world.numbers)
        assert world.number.placed.count(now=now) == 1
        view = number_view(world.number, now=now)
        assert (view.placed_24h.used, view.placed_24h.next_frees_at) == (1, now + timedelta(hours=1))


async def test_doubt_while_meta_is_being_asked_lets_it_be_asked_once_more() -> None:
    async with a_world() as world:
        world.graph.number_settings = NumberCallingSettings(calling=CallingStatus.DISABLED)  # asked again, but later
        answer = world.graph.hold("settings")
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.graph.arrival("settings")
        world.monitor.in_doubt(world.number)
        answer.set()
        await world.graph.arrival("settings", count=2)
        await asyncio.sleep(0.1)
        assert world.graph.ops().count("settings") == 2


async def test_to_be_asked_without_news_is_no_news() -> None:
    async with kept() as world:
        _, line = await world.login()
        world.clock.advance(60)
        await world.monitor.refresh(world.number)
        assert world.number.facts.read_at == world.clock.now()
        assert statuses(line) == []


async def test_a_call_that_passes_ends_payment_trouble() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        answer = world.graph.hold("connect")
        await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        await world.graph.arrival("connect")
        world.number.meta_reported(131044)
        assert world.number.facts.payment_ok is False
        answer.set()
        await world.until(lambda: world.number.state.payment_ok)


async def test_a_request_that_passes_ends_payment_trouble() -> None:
    async with a_world() as world:
        answer = world.graph.hold("request_permission_template")
        asking = world.tasks.create_task(ask(world))
        await world.graph.arrival("request_permission_template")
        world.number.meta_reported(131044)
        answer.set()
        assert await asking is None
        assert world.number.state.payment_ok


async def test_who_logs_in_is_shown_what_the_last_look_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world:
        keeper, number = world.monitor, world.number
        assert keeper.status_of(number) == status_view(number, now=world.clock.now())
        await keeper.load(world.numbers)
        monkeypatch.setattr(monitor, "status_view", lambda *_, **__: pytest.fail("it is made anew"))
        before = keeper.status_of(number)
        assert before.calling == number.state.calling.value
        monkeypatch.undo()
        await restrict(world)
        assert [each.type for each in keeper.status_of(number).restrictions] == [OUT.value]


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_many_numbers_are_looked_at_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, looks = asyncio.get_running_loop(), dict[str, list[float]]()

    def look(number: Number, *, now: datetime) -> msg.NumberStatusView:
        looks.setdefault(number.id, []).append(loop.time())
        return status_view(number, now=now)

    monkeypatch.setattr(monitor, "status_view", look)
    pack = load_pack("guide")
    numbers = Numbers(
        Number(NumberSettings(phone_number_id=f"{n:015}", phone_number=f"+5511555{n:05}"), pack) for n in range(10)
    )
    async with a_world() as world:
        keeper = NumberMonitor(
            graph=world.graph,
            store=world.store,
            metrics=world.metrics,
            clock=world.clock,
            tell=lambda push: None,
        )
        began_at = loop.time()
        world.tasks.create_task(keeper.run(numbers))
        await asyncio.sleep(LOOK_S + 0.01)
        later = sorted(at - began_at for times in looks.values() for at in times if at > began_at)
        assert later == pytest.approx([LOOK_S * place / 10 for place in range(1, 11)])
        await asyncio.sleep(LOOK_S)
        assert all(times[-1] - times[-2] == pytest.approx(LOOK_S) for times in looks.values())
