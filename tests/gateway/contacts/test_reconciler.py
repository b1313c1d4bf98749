"""What Meta has on record: asked for before a stranger is refused, after a contradiction, and on demand."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.calls.driver import CallDriver
from gateway.common.errors import GraphRefused
from gateway.common.ids import OperatorId, PhoneNumberId, UserRef
from gateway.common.rate_limit import Rate
from gateway.contacts import reconciler
from gateway.contacts.directory import Contact
from gateway.contacts.reconciler import TooOften
from gateway.meta.answers import ActionLimit, Permissions, ReportedAction, ReportedPermission
from gateway.store.records import ContactRecord, FactRecord
from gateway.wire import messages as msg
from policy.decision import Allow, Refusal
from policy.facts import CallConnected, Direction
from policy.reasons import Reason
from tests.support.fakes.graph import refused, unreachable
from tests.support.harness.doors import KEYED, Doors, doors
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

TO = "+5511900000001"
RECONCILE = f"/v1/numbers/{NUMBER_ID}/contacts/{TO}/reconcile"


def meta_knows(world: World, status: ReportedPermission = ReportedPermission.TEMPORARY, **more: Any) -> None:
    """Let Meta answer this about whoever is asked for by ANA's number."""
    ends = world.clock.now() + timedelta(days=3) if status is ReportedPermission.TEMPORARY else None
    assert ANA.wa_id is not None
    for name in (ANA.wa_id, ANA.key):
        world.graph.permissions[name] = Permissions(status=status, expires_at=ends, **more)


def asked(world: World) -> int:
    return world.graph.ops().count("call_permissions")


async def may_call(world: World, to: str = TO) -> bool:
    checked = await world.admission.check(NUMBER_ID, to)
    assert not isinstance(checked, Refusal)
    return isinstance(checked.overview.place, Allow)


async def place(world: World) -> CallDriver | Refusal:
    return await world.admission.place(NUMBER_ID, TO, operator=OperatorId("ana"))


async def known(world: World, *, granted: bool = True) -> Contact:
    contact = await world.contacts.get(world.number, ANA, "Ana")
    if granted:
        world.grant()
    return contact


def drift_of(world: World, rule: str) -> float:
    return float(world.metrics.policy_drift_total.labels(rule=rule)._value.get())


# --- strangers ---------------------------------------------------------------------------------------


async def test_a_permission_that_only_meta_knows_of_lets_the_first_dial_pass() -> None:
    async with a_world() as world:
        await world.login()
        meta_knows(world)
        assert isinstance(await place(world), CallDriver)
        assert asked(world) == 1


async def test_a_check_shows_what_meta_knows() -> None:
    async with a_world() as world:
        meta_knows(world)
        checked = await world.admission.check(NUMBER_ID, TO)
        assert not isinstance(checked, Refusal)
        assert isinstance(checked.overview.place, Allow)
        assert checked.overview.place.permission_expires_at == world.clock.now() + timedelta(days=3)


async def test_who_has_only_written_to_us_is_still_a_stranger() -> None:
    async with a_world() as world:
        at = str(int(world.clock.now().timestamp()))
        await world.deliver(messages=[{"id": "wamid.1", "from": ANA.wa_id, "timestamp": at, "type": "text"}])
        meta_knows(world)
        assert await may_call(world)


async def test_a_stranger_is_looked_up_once_in_24_hours() -> None:
    async with a_world() as world:
        assert not await may_call(world)
        meta_knows(world)
        world.clock.advance(86_399)
        assert not await may_call(world)
        assert asked(world) == 1
        world.clock.advance(1)
        assert await may_call(world)
        assert asked(world) == 2


async def test_after_a_restart_nobody_is_looked_up_until_somebody_asks_about_them() -> None:
    async with a_world() as before:
        for n in range(50):
            assert not await may_call(before, f"+55119000001{n:02d}")
    async with a_world(store=before.store, clock=before.clock) as world:
        assert asked(world) == 0
        for _ in range(2):
            assert not await may_call(world, "+5511900000100")
        assert asked(world) == 1
        assert not [row for group in world.store.written for row in group if isinstance(row, ContactRecord)]


async def test_a_lookup_that_failed_is_made_again_after_a_minute() -> None:
    async with a_world() as world:
        meta_knows(world)
        world.graph.fail("call_permissions", unreachable("call_permissions"))
        assert not await may_call(world)
        world.clock.advance(59)
        assert not await may_call(world)
        world.clock.advance(1)
        assert await may_call(world)


@pytest.mark.parametrize("error", [unreachable("call_permissions"), refused("call_permissions", 613, http_status=429)])
async def test_without_metas_answer_our_own_stands(error: Any) -> None:
    async with a_world() as world:
        await world.login()
        world.graph.fail("call_permissions", error)
        answer = await place(world)
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.NO_PERMISSION


async def test_a_bug_in_a_lookup_costs_that_lookup_only() -> None:
    async with a_world() as world:

        async def broken(number: PhoneNumberId, user: UserRef) -> Permissions:
            raise RuntimeError("a bug")

        world.graph.call_permissions = broken  # type: ignore[method-assign]
        with capture_logs() as logs:
            assert not await may_call(world)
        assert [line["event"] for line in logs] == ["reconcile_broken"]


async def test_nobody_waits_long_and_an_answer_that_comes_late_is_shown() -> None:
    async with a_world() as world:
        _, line = await world.login()
        meta_knows(world)
        held = world.graph.hold("call_permissions")
        assert not await may_call(world)
        held.set()
        await world.until(lambda: bool(line.of_type(msg.ContactChanged)))
        (push,) = line.of_type(msg.ContactChanged)
        assert push.decision.allowed
        assert await may_call(world)


async def test_two_who_ask_about_a_stranger_at_once_wait_for_one_answer() -> None:
    async with a_world() as world:
        meta_knows(world)
        held = world.graph.hold("call_permissions")
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(may_call(world)) for _ in range(2)]
            await world.graph.arrival("call_permissions")
            held.set()
        assert [each.result() for each in both] == [True, True]
        assert asked(world) == 1


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_meta_is_asked_25_times_at_once_and_then_50_times_a_second_and_nobody_waits_for_a_turn() -> None:
    async with a_world() as world:
        for n in range(60):
            assert not await may_call(world, f"+55119000001{n:02d}")
        assert asked(world) == 25
        await asyncio.sleep(0.5)
        for n in range(40):
            assert not await may_call(world, f"+55119000002{n:02d}")
        assert asked(world) == 50
        contact = await known(world)
        with pytest.raises(TooOften):
            await world.reconciler.reconcile(world.number, contact)


@pytest.mark.parametrize("why", ["known", "draining", "no_such_user"])
async def test_meta_is_not_asked_where_it_could_not_change_the_answer(why: str) -> None:
    async with a_world() as world:
        await known(world, granted=why == "known")
        world.gate.draining = why == "draining"
        await world.admission.check(NUMBER_ID, "12" if why == "no_such_user" else TO)
        assert asked(world) == 0


async def test_a_contact_whose_history_we_know_is_not_a_stranger() -> None:
    async with a_world() as world:
        contact = await known(world, granted=False)
        now = world.clock.now()
        fact = CallConnected(at=now, key="connected/1", direction=Direction.USER_INITIATED)
        world.contacts.apply(contact, fact, seen_at=now)
        assert not await may_call(world)
        assert asked(world) == 0


async def test_asking_for_permission_asks_nothing_else() -> None:
    async with a_world() as world:
        await world.admission.ask_permission(NUMBER_ID, TO, asked_by="ana")
        assert asked(world) == 0


# --- Meta wins ---------------------------------------------------------------------------------------


async def test_a_contradiction_is_counted_logged_and_kept() -> None:
    async with a_world() as world:
        contact = await known(world)
        with capture_logs() as logs:
            (drift,) = await world.reconciler.reconcile(world.number, contact)
        assert (drift.rule, drift.metas) == ("contact/permission", "no_permission")
        assert drift_of(world, "contact/permission") == 1
        (line,) = (line for line in logs if line["event"] == "policy_drift")
        assert (line["rule"], line["metas"]) == ("contact/permission", "no_permission")
        assert line["ours"].startswith("temporary until ")
        assert "+55" not in str(line)
        kept = [row.fact for row in await world.store.facts(contact.contact_id)]
        assert [(fact["kind"], fact["source"]) for fact in kept] == [("permission_revoked", "meta_record")]
        assert not await may_call(world)


async def test_where_meta_agrees_nothing_is_kept() -> None:
    async with a_world() as world:
        contact = await known(world, granted=False)
        assert await world.reconciler.reconcile(world.number, contact) == ()
        assert not [row for group in world.store.written for row in group if isinstance(row, FactRecord)]


async def test_after_a_contradiction_meta_is_asked_about_all() -> None:
    async with a_world() as world:
        contact = await known(world)
        usage = ReportedAction(
            limits=(ActionLimit(period_s=86_400, max_allowed=5, current_usage=5, expires_at=None),), allowed=False
        )
        meta_knows(world, start_call=usage)
        world.reconciler.reconcile_soon(world.number, contact)
        world.reconciler.reconcile_soon(world.number, contact)  # is under way already
        await world.until(lambda: drift_of(world, "contact/connected_per_24h") == 1)
        assert asked(world) == 1
        checked = await world.admission.check(NUMBER_ID, TO)
        assert not isinstance(checked, Refusal)
        assert checked.overview.connected_24h.used == 5


@pytest.mark.parametrize(("code", "looked"), [(138006, 1), (138012, 1), (138001, 0), (138000, 0)])
async def test_a_dial_that_meta_refuses_although_the_gate_let_it_through_is_looked_into(code: int, looked: int) -> None:
    async with a_world() as world:
        await world.login()
        await known(world)
        world.graph.fail("connect", refused("connect", code))
        driver = await place(world)
        assert isinstance(driver, CallDriver)
        await world.ended(driver)
        await world.until(lambda: asked(world) == looked)
        if looked:
            await world.until(lambda: drift_of(world, "contact/permission") >= 1)
            assert not await may_call(world)


async def test_a_request_that_meta_refuses_although_the_gate_let_it_through_is_looked_into() -> None:
    async with a_world() as world:
        await known(world, granted=False)
        meta_knows(world, ReportedPermission.PERMANENT)
        world.graph.fail("request_permission_template", refused("messages", 138017))
        with pytest.raises(GraphRefused):
            await world.admission.ask_permission(NUMBER_ID, TO, asked_by="ana")
        await world.until(lambda: asked(world) == 1)
        assert await may_call(world)  # which waits for the answer
        assert asked(world) == 1


async def test_while_a_call_is_on_its_way_counts_are_not_compared() -> None:
    async with a_world() as world:
        await world.login()
        contact = await known(world)
        assert isinstance(await place(world), CallDriver)
        usage = ReportedAction(limits=(ActionLimit(period_s=86_400, max_allowed=5, current_usage=1, expires_at=None),))
        meta_knows(world, start_call=usage)
        found = await world.reconciler.reconcile(world.number, contact)
        assert [drift.rule for drift in found] == ["contact/permission"]  # its end


async def test_an_answer_that_the_contact_has_overtaken_is_asked_for_again() -> None:
    async with a_world() as world:
        contact = await known(world, granted=False)
        held = world.graph.hold("call_permissions")
        asking = world.tasks.create_task(world.reconciler.reconcile(world.number, contact))
        await world.graph.arrival("call_permissions")
        world.grant()  # Meta's answer, which is no, is from before
        held.set()
        found = await asking
        assert asked(world) == 2
        assert [drift.metas for drift in found] == ["no_permission"]


async def test_what_changes_all_the_time_is_left_alone() -> None:
    async with a_world() as world:
        contact = await known(world, granted=False)

        async def changing(number: PhoneNumberId, user: UserRef) -> Permissions:
            world.clock.advance(1)
            now = world.clock.now()
            fact = CallConnected(at=now, key=f"connected/{now}", direction=Direction.USER_INITIATED)
            world.contacts.apply(contact, fact, seen_at=now)
            return Permissions(status=ReportedPermission.PERMANENT)

        world.graph.call_permissions = changing  # type: ignore[method-assign]
        assert await world.reconciler.reconcile(world.number, contact) == ()


async def test_a_gateway_that_stops_asks_no_more() -> None:
    async with a_world() as world:
        contact = await known(world, granted=False)
        world.graph.hold("call_permissions")
        check = world.tasks.create_task(world.admission.check(NUMBER_ID, TO))
        await world.graph.arrival("call_permissions")
        world.reconciler.close()
        await check
        world.reconciler.reconcile_soon(world.number, contact)
        world.clock.advance(86_400)
        assert not await may_call(world)
        assert asked(world) == 1


# --- on demand ---------------------------------------------------------------------------------------


async def reconcile(opened: Doors, path: str = RECONCILE) -> tuple[int, Any]:
    async with opened.client.post(path, headers=KEYED) as response:
        return response.status, await response.json(content_type=None)


async def test_the_api_asks_meta_and_says_in_what_it_differed() -> None:
    async with a_world() as world, doors(world) as opened:
        await known(world)
        status, body = await reconcile(opened)
        assert status == 200
        (drift,) = body["drift"]
        assert (drift["rule"], drift["metas"]) == ("contact/permission", "no_permission")
        assert body["contact"]["permission"] == "revoked"
        assert body["contact"]["decision"]["allowed"] is False
        status, body = await reconcile(opened)
        assert (status, body["drift"]) == (200, [])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (RECONCILE.replace(str(NUMBER_ID), "1"), 404, "unknown_number"),
        (RECONCILE.replace(TO, "12"), 422, "invalid_user"),
    ],
)
async def test_the_api_refuses_what_is_nobody(path: str, status: int, code: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answered, body = await reconcile(opened, path)
        assert (answered, body["code"]) == (status, code)


async def test_the_api_says_when_meta_did_not_answer_or_must_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "READS", Rate(per_s=1e-3, burst=3))
    async with a_world() as world, doors(world) as opened:
        world.graph.fail("call_permissions", unreachable("call_permissions", maybe_sent=False))
        assert (await reconcile(opened))[0] == 502
        for _ in range(2):
            assert (await reconcile(opened))[0] == 200
        status, body = await reconcile(opened)
        assert (status, body["code"]) == (429, "too_many")
