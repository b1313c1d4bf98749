"""Nonsense at the doors, and clocks that jump where the number itself is judged: a defined answer each time.

`test_bad_input.py` asks the same of everything behind the doors.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from policy.decision import Refusal
from policy.facts import (
    EARLIEST,
    MAX_AHEAD,
    CallConnected,
    Direction,
    PermissionGranted,
    PermissionRequested,
    RequestForm,
)
from policy.number import NumberState, Restriction, RestrictionType
from policy.reasons import Reason
from tests.support.harness.doors import KEYED, doors
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

TO = "+5511900000001"
#: Every door that takes a number and a user: method, path, body.
DOORS: list[tuple[str, str, str, dict[str, str] | None]] = [
    ("contact", "GET", "/v1/numbers/{number}/contacts/{user}", None),
    ("permission request", "POST", "/v1/numbers/{number}/contacts/{user}/permission-requests", None),
    ("reconcile", "POST", "/v1/numbers/{number}/contacts/{user}/reconcile", None),
    ("decisions", "GET", "/v1/numbers/{number}/decisions?user={user}", None),
    ("dial", "POST", "/v1/numbers/{number}/calls", {"operator": "ana"}),
]
NONSENSE = ["ana", "12", "BR.", "%00", "9" * 400, "'; drop table contacts; --", "\U0001f600", "null"]


async def knock(world: World, door: tuple[str, str, str, dict[str, str] | None], number: str, user: str) -> Any:
    _, method, path, body = door
    async with doors(world) as opened:
        await world.login()
        url = path.format(number=quote(number, safe=""), user=quote(user, safe=""))
        json = {**body, "to": user} if body is not None else None
        async with opened.client.request(method, url, headers=KEYED, json=json) as response:
            return response.status, await response.json(content_type=None)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door[0])
@pytest.mark.parametrize("user", NONSENSE, ids=range(len(NONSENSE)))
async def test_a_user_that_is_no_number_and_no_bsuid(door: tuple[str, str, str, Any], user: str) -> None:
    async with a_world() as world:
        status, body = await knock(world, door, NUMBER_ID, user)
        too_long = door[0] == "dial" and len(user) > 64  # its body is refused before anybody reads the number
        assert (status, body["code"]) == (422, "bad_request" if too_long else "invalid_user")
        assert body["title"]
        assert not world.graph.ops()


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door[0])
@pytest.mark.parametrize("number", ["9", "0", "200000000000002x", "-1", "9" * 400])
async def test_a_number_that_this_gateway_does_not_serve(door: tuple[str, str, str, Any], number: str) -> None:
    async with a_world() as world:
        status, body = await knock(world, door, number, TO)
        assert (status, body["code"]) == (404, "unknown_number")
        assert body["title"]
        assert not world.graph.ops()


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door[0])
async def test_a_store_that_is_away_is_said_and_nothing_goes_out(door: tuple[str, str, str, Any]) -> None:
    async with a_world() as world:
        world.store.fail_with()
        status, body = await knock(world, door, NUMBER_ID, TO)
        assert (status, body["code"]) == (503, "store_down")
        assert not {"connect", "request_permission_template", "request_permission_free_form"} & set(world.graph.ops())


# Times that facts may have, whoever wrote them down


@pytest.mark.parametrize(
    ("off", "taken"),
    [
        (MAX_AHEAD, True),
        (MAX_AHEAD + timedelta(microseconds=1), False),
        (timedelta(days=-9), True),  # late, and in no window any more
        (timedelta(days=-4000), True),
    ],
)
async def test_a_fact_from_the_past_or_the_future(off: timedelta, taken: bool) -> None:
    async with a_world() as world:
        contact = await world.contacts.get(world.number, ANA)
        now = world.clock.now()
        world.contacts.apply(contact, PermissionGranted(at=now + off, key="g", permanent=True), seen_at=now)
        assert (contact.state.granted is not None) is taken


async def test_a_fact_from_before_whatsapp() -> None:
    async with a_world() as world:
        contact = await world.contacts.get(world.number, ANA)
        early = EARLIEST - timedelta(seconds=1)
        assert world.contacts.apply(contact, PermissionGranted(at=early, key="g"), seen_at=world.clock.now())
        assert contact.state.granted is None


# A clock that jumps an hour, back and forth, where the number is judged


async def answer(world: World) -> Reason | None:
    checked = await world.admission.check(NUMBER_ID, TO)
    assert not isinstance(checked, Refusal)
    place = checked.overview.place
    return place.reason if isinstance(place, Refusal) else None


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
async def test_a_restriction_is_judged_by_the_hands_and_comes_back_with_them(jump: timedelta) -> None:
    async with a_world() as world:
        await world.allow_calls()
        start = world.clock.now()
        ends = start + timedelta(minutes=30)
        world.number.state = _restricted(world, ends)
        heard = []
        for now in (start, start + jump, start, start - jump, start):
            world.clock.set(now)
            heard.append((now < ends, await answer(world)))
        assert all((no is Reason.NUMBER_RESTRICTED) is before for before, no in heard)


def _restricted(world: World, ends: datetime) -> NumberState:
    restriction = Restriction(type=RestrictionType.BUSINESS_INITIATED, expires_at=ends)
    return replace(world.number.state, restrictions=(restriction,))


@pytest.mark.parametrize("jump_s", [3_600.0, -3_600.0])
async def test_what_happened_on_a_clock_an_hour_off_is_counted_once_and_longer_if_at_all(jump_s: float) -> None:
    """Five calls and a request are noted while the clock is wrong; put right, all of them count, and none is forgotten
    before its day is over on either clock."""
    async with a_world() as world:
        await world.allow_calls()
        contact = await world.contacts.get(world.number, ANA)
        right = world.clock.now()
        wrong = world.clock.advance(jump_s)
        talks = [CallConnected(at=wrong, key=f"c{n}", direction=Direction.BUSINESS_INITIATED) for n in range(5)]
        asked = PermissionRequested(at=wrong, key="r", form=RequestForm.TEMPLATE)
        world.contacts.apply(contact, *talks, asked, seen_at=wrong)
        for now in (right, wrong, right):
            world.clock.set(now)
            assert await answer(world) is Reason.CONNECTED_LIMIT
        world.clock.set(wrong + timedelta(hours=24))
        assert await answer(world) is None
