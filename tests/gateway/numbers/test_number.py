"""A business number between its settings, Meta and the gate: call hours, what is set by hand, and how it is shown."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.common.ids import OperatorId
from gateway.config.settings import NumberSettings
from gateway.meta.answers import NumberCallingSettings
from gateway.numbers.facts import state_of
from gateway.numbers.number import Number, by_hand, country_of
from gateway.numbers.views import status_view
from gateway.wire import messages as msg
from policy.decision import Refusal
from policy.hours import CallHours, Opening
from policy.number import CallingStatus
from policy.reasons import Reason
from tests.support.fakes.graph import refused, unreachable
from tests.support.harness.doors import doors
from tests.support.harness.world import API_KEY, NUMBER_ID, World, a_world

OFFICE = {
    "timezone": "America/Sao_Paulo",
    "weekly": [{"day": "monday", "opens": "09:00", "closes": "18:00"}],
    "holidays": [{"date": "2026-11-23"}, {"date": "2026-12-24", "opens": "08:00", "closes": "12:00"}],
}
BOTH = ["USER_INITIATED", "BUSINESS_INITIATED"]
KEYED = {"Authorization": f"Bearer {API_KEY}"}


def settings(**given: Any) -> NumberSettings:
    return NumberSettings(phone_number_id=NUMBER_ID, phone_number="+551155550100", **given)


def set_up(world: World, **given: Any) -> Number:
    """Give the world's number other settings."""
    number = world.number
    number.hand = by_hand(settings(**given))
    number.state = state_of(number.facts, number.hand)
    return number


# --- by hand -----------------------------------------------------------------------------------------


def test_what_is_not_set_is_left_to_meta() -> None:
    hand = by_hand(settings())
    assert (hand.calling, hand.sip_enabled, hand.coexistence, hand.messaging_limit, hand.hours) == (None,) * 5
    assert hand.country == "BR"


def test_everything_can_be_set() -> None:
    hand = by_hand(
        settings(country="PT", calling="DISABLED", sip=False, coexistence=True, messaging_limit=5, call_hours=OFFICE)
    )
    assert (hand.country, hand.calling, hand.sip_enabled) == ("PT", CallingStatus.DISABLED, False)
    assert (hand.coexistence, hand.messaging_limit) == (True, 5)
    assert hand.hours is not None


@pytest.mark.parametrize(
    ("number", "country"),
    [("+18765550100", "JM"), ("+12025550100", "US"), ("+16135550100", "CA"), ("+5511955550100", "BR"), ("+1", None)],
)
def test_the_country_is_the_numbering_plans(number: str, country: str | None) -> None:
    assert country_of(number) == country


# --- call hours --------------------------------------------------------------------------------------


async def dial(world: World) -> Refusal | None:
    answer = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OperatorId("ana"))
    return answer if isinstance(answer, Refusal) else None


async def test_outside_enforced_hours_no_call_leaves_until_the_exact_opening() -> None:
    async with a_world() as world:
        set_up(world, call_hours=OFFICE, enforce_hours=BOTH)
        await world.login()
        await world.allow_calls()
        no = await dial(world)  # a Sunday; the Monday after is a holiday
        assert no is not None
        opens_at = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
        assert (no.reason, no.rule) == (Reason.OUTSIDE_HOURS, "number/hours")
        # The permission of 7 days is over by then: waiting alone does not help.
        assert no.retry_at is None
        status = status_view(world.number, now=world.clock.now())
        assert status.place is not None
        assert status.receive is not None
        assert status.place.retry_at == status.receive.retry_at == opens_at
        world.clock.set(opens_at - timedelta(microseconds=1))
        assert status_view(world.number, now=world.clock.now()).place is not None
        world.clock.set(opens_at)
        assert status_view(world.number, now=world.clock.now()).place is None


async def test_users_are_rejected_outside_the_hours_only_if_that_is_wanted() -> None:
    async with a_world() as world:
        set_up(world, call_hours=OFFICE, enforce_hours=["BUSINESS_INITIATED"])
        driver = await world.user_calls("wacid.1")
        assert driver is not None
        await world.graph.arrival("pre_accept")
        set_up(world, call_hours=OFFICE, enforce_hours=["USER_INITIATED"])
        await world.user_calls("wacid.2")
        sent = await world.graph.arrival("reject")
        assert sent.args["call"] == "wacid.2"
        (refusal,) = (kept.refusal for kept in await world.store.decisions(NUMBER_ID) if kept.refusal)
        assert refusal["retry_at"] == "2026-11-30T12:00:00+00:00"


async def test_metas_hours_are_taken_where_none_are_set_and_enforced_only_if_wanted() -> None:
    hours = CallHours(
        timezone="UTC",
        weekly=(
            Opening(
                weekday=0,
                opens=datetime(2026, 1, 1, 9).time(),  # noqa: DTZ001 - a wall clock
                closes=datetime(2026, 1, 1, 18).time(),  # noqa: DTZ001
            ),
        ),
    )
    async with a_world() as world:
        world.graph.number_settings = NumberCallingSettings(calling=CallingStatus.ENABLED, hours=hours)
        await world.monitor.refresh(world.number)
        status = status_view(world.number, now=world.clock.now())
        assert status.hours is not None
        assert (status.hours.open, status.hours.enforced, status.place) == (False, [], None)
        assert status.hours.opens_at == datetime(2026, 11, 23, 9, tzinfo=UTC)
        set_up(world, enforce_hours=["USER_INITIATED"])
        status = status_view(world.number, now=world.clock.now())
        assert status.receive is not None
        assert status.place is None
        set_up(world, enforce_hours=["USER_INITIATED"], call_hours=OFFICE)
        status = status_view(world.number, now=world.clock.now())
        assert status.hours is not None
        assert status.hours.timezone == "America/Sao_Paulo"


async def test_hours_that_begin_are_shown_by_themselves() -> None:
    async with a_world() as world:
        set_up(world, call_hours=OFFICE, enforce_hours=BOTH)
        _, line = await world.login()
        world.clock.set(datetime(2026, 11, 30, 11, 59, 59, tzinfo=UTC))
        world.tasks.create_task(world.monitor.run(world.numbers))
        await world.graph.arrival("number_info")
        await world.until(lambda: world.number.facts.read_at is not None)
        world.clock.advance(1)
        await world.until(lambda: any(push.status.place is None for push in line.of_type(msg.NumberChanged)))
        assert line.of_type(msg.NumberChanged)[-1].status.hours.open


# --- shown -------------------------------------------------------------------------------------------


async def test_a_number_is_shown_with_all_that_is_known_of_it() -> None:
    async with a_world() as world, doors(world) as opened:
        async with opened.client.get(f"/v1/numbers/{NUMBER_ID}", headers=KEYED) as response:
            assert response.status == 200
            shown = await response.json()
        async with opened.client.get("/v1/numbers", headers=KEYED) as response:
            assert await response.json() == [shown]
        assert shown["placed_24h"] == {"used": 0, "limit": 10_000, "next_frees_at": None}
        assert shown["status"] == {
            "country": "BR",
            "calling": "UNKNOWN",
            "coexistence": False,
            "sip": False,
            "payment_ok": True,
            "messaging_limit": None,
            "restrictions": [],
            "warnings": [],
            "hours": None,
            "place": None,
            "receive": None,
            "read_at": None,
        }


async def test_a_number_is_read_anew_by_hand() -> None:
    async with a_world() as world, doors(world) as opened:
        world.number.meta_refused(refused("connect", 131044), now=world.clock.now())
        url = f"/v1/numbers/{NUMBER_ID}/refresh"
        async with opened.client.post(url, headers=KEYED) as response:
            status = (await response.json())["status"]
            assert (response.status, status["calling"], status["payment_ok"]) == (200, "ENABLED", True)
            assert status["read_at"] == "2026-11-22T12:00:00Z"
        world.graph.fail("settings", unreachable("settings"))
        async with opened.client.post(url, headers=KEYED) as response:
            assert (response.status, (await response.json())["code"]) == (502, "graph_error")


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/refresh")])
async def test_a_number_of_nobody_is_not_found_and_nobody_sees_ours_without_the_key(method: str, path: str) -> None:
    async with a_world() as world, doors(world) as opened:
        async with opened.client.request(method, f"/v1/numbers/9{path}", headers=KEYED) as response:
            assert (response.status, (await response.json())["code"]) == (404, "unknown_number")
        async with opened.client.request(method, f"/v1/numbers/{NUMBER_ID}{path}") as response:
            assert response.status == 401
        assert world.graph.ops() == []


async def test_a_softphone_learns_of_a_number_that_changes() -> None:
    async with a_world() as world, doors(world) as opened:
        await world.monitor.load(world.numbers)
        socket, welcome = await opened.login(leg=False)
        assert welcome["numbers"][0]["status"]["place"] is None
        world.number.meta_refused(refused("connect", 138000), now=world.clock.now())
        push = await socket.push("number")
        assert push["number_id"] == NUMBER_ID
        assert push["status"]["place"]["reason"] == push["status"]["receive"]["reason"] == "calling_off"
