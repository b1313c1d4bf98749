"""Meta's own counts: one instant before, at and after each edge."""

import pytest

from loadtest.simulator.config import DAY_S, LIMITS, Limits, Profile
from loadtest.simulator.errors import GraphError
from loadtest.simulator.rules import Contact, PermissionKind, Streak

T = 1_790_000_000.0
HOUR = 3600.0


def contact(profile: Profile = Profile.META) -> Contact:
    return Contact(LIMITS[profile])


def may_ask(one: Contact, now: float, *, free_form: bool = False) -> int:
    """Return 0, or the code of the refusal."""
    try:
        one.check_request(now=now, free_form=free_form)
    except GraphError as error:
        return error.code
    return 0


def may_call(one: Contact, now: float) -> int:
    try:
        one.check_call(now=now)
    except GraphError as error:
        return error.code
    return 0


@pytest.mark.parametrize(("after", "code"), [(DAY_S - 1, 138009), (DAY_S, 0), (DAY_S + 1, 0)])
def test_one_request_in_24_hours(after: float, code: int) -> None:
    one = contact()
    one.add_request("wamid.1", "", now=T)
    assert may_ask(one, T + after) == code


@pytest.mark.parametrize(("after", "code"), [(7 * DAY_S - 1, 138009), (7 * DAY_S, 0)])
def test_two_requests_in_7_days(after: float, code: int) -> None:
    one = contact()
    one.add_request("wamid.1", "", now=T)
    one.add_request("wamid.2", "", now=T + 25 * HOUR)
    assert may_ask(one, T + after) == code


@pytest.mark.parametrize("by_business", [True, False])
def test_a_connected_call_in_either_direction_resets_the_request_limits(by_business: bool) -> None:
    one = contact()
    one.add_request("wamid.1", "", now=T)
    one.call_connected(by_business=by_business, now=T + 1)
    assert may_ask(one, T + 2) == 0


@pytest.mark.parametrize(("after", "code"), [(0.0, 0), (DAY_S - 1, 0), (DAY_S, 131047)])
def test_a_free_form_request_needs_an_open_window(after: float, code: int) -> None:
    one = contact()
    assert may_ask(one, T, free_form=True) == 131047
    one.open_window(now=T)
    assert may_ask(one, T + after, free_form=True) == code


def test_a_permanent_permission_makes_requests_pointless() -> None:
    one = contact()
    one.grant(permanent=True, now=T)
    assert may_ask(one, T) == 138017


@pytest.mark.parametrize(("after", "code"), [(0.0, 0), (7 * DAY_S - 1, 0), (7 * DAY_S, 138006)])
def test_a_temporary_permission_lasts_168_hours(after: float, code: int) -> None:
    one = contact()
    one.grant(permanent=False, now=T)
    assert may_call(one, T + after) == code


def test_no_permission_no_call() -> None:
    assert may_call(contact(), T) == 138006


@pytest.mark.parametrize(("profile", "limit"), [(Profile.META, 100), (Profile.GUIDE, 5), (Profile.SANDBOX, 100)])
def test_connected_calls_are_limited_per_rolling_24_hours(profile: Profile, limit: int) -> None:
    one = contact(profile)
    one.grant(permanent=False, now=T)
    for index in range(limit):
        assert may_call(one, T + index) == 0
        one.call_connected(by_business=True, now=T + index)
    assert may_call(one, T + limit) == 138012
    assert may_call(one, T + DAY_S - 1) == 138012
    assert may_call(one, T + DAY_S) == 0
    with pytest.raises(GraphError, match=str(int(T + DAY_S))):
        one.check_call(now=T + limit)


def test_a_users_call_is_not_a_connected_call_of_the_business() -> None:
    one = contact()
    one.call_connected(by_business=False, now=T)
    assert one.connected == []


@pytest.mark.parametrize(("profile", "nudge", "revoke"), [(Profile.META, 2, 4), (Profile.SANDBOX, 5, 10)])
def test_unanswered_calls_nudge_and_then_revoke(profile: Profile, nudge: int, revoke: int) -> None:
    one = contact(profile)
    one.grant(permanent=True, now=T)
    seen = [one.call_unanswered() for _ in range(revoke)]
    assert seen.index(Streak.NUDGE) == nudge - 1
    assert seen[-1] is Streak.REVOKED
    assert may_call(one, T) == 138006
    assert one.unanswered == 0


def test_an_answered_call_or_a_grant_breaks_the_streak() -> None:
    one = contact()
    one.call_unanswered()
    one.call_connected(by_business=True, now=T)
    assert one.unanswered == 0
    one.call_unanswered()
    one.grant(permanent=False, now=T)
    assert one.unanswered == 0


def test_a_users_call_does_not_touch_the_streak() -> None:
    one = contact()
    one.call_unanswered()
    one.call_connected(by_business=False, now=T)
    assert one.unanswered == 1


@pytest.mark.parametrize(("after", "code"), [(DAY_S - 1, 138009), (DAY_S, 0)])
def test_the_guide_waits_24_hours_after_a_decline(after: float, code: int) -> None:
    one = contact(Profile.GUIDE)
    request = one.add_request("wamid.1", "", now=T - 2 * DAY_S)
    one.answer(request, accept=False, permanent=False, now=T)
    one.call_connected(by_business=False, now=T + 1)  # resets the request limits, not this wait
    assert may_ask(one, T + after) == code


def test_the_guide_knows_no_permanent_permission() -> None:
    one = contact(Profile.GUIDE)
    assert one.grant(permanent=True, now=T).kind is PermissionKind.TEMPORARY


def test_a_decision_can_be_changed_until_the_request_expires() -> None:
    one = contact()
    request = one.add_request("wamid.1", "", now=T)
    one.answer(request, accept=False, permanent=False, now=T + HOUR)
    assert may_call(one, T + HOUR) == 138006
    one.answer(request, accept=True, permanent=False, now=T + 2 * HOUR)
    assert may_call(one, T + 2 * HOUR) == 0
    assert one.open_requests(now=T + 2 * HOUR + 7 * DAY_S) == []


def test_the_wait_after_a_decline_is_not_shortened_by_a_later_yes() -> None:
    one = contact(Profile.GUIDE)
    request = one.add_request("wamid.1", "", now=T)
    one.answer(request, accept=False, permanent=False, now=T)
    one.grant(permanent=False, now=T + 1)
    one.call_connected(by_business=False, now=T + 2)
    assert [may_ask(one, T + after) for after in (DAY_S - 1, DAY_S)] == [138009, 0]


def test_acting_on_a_newer_request_ends_the_older() -> None:
    one = contact()
    one.add_request("wamid.1", "", now=T)
    newer = one.add_request("wamid.2", "", now=T + DAY_S)
    one.answer(newer, accept=True, permanent=False, now=T + DAY_S)
    assert [request.id for request in one.open_requests(now=T + DAY_S)] == ["wamid.2"]


def test_an_unanswered_request_expires_7_days_after_delivery() -> None:
    one = contact()
    one.add_request("wamid.1", "", now=T)
    assert one.open_requests(now=T + 7 * DAY_S - 1)
    assert not one.open_requests(now=T + 7 * DAY_S)


def test_call_permissions_tells_the_counts() -> None:
    one = Contact(Limits(connected_per_24h=1))
    one.grant(permanent=False, now=T)
    one.add_request("wamid.1", "", now=T)
    one.call_connected(by_business=True, now=T + 5)
    one.add_request("wamid.2", "", now=T + 6)
    body = one.permissions_body(now=T + 7, may_call=True)
    assert body["permission"] == {"status": "temporary", "expiration_time": int(T + 7 * DAY_S)}
    ask, start = body["actions"]
    assert ask["action_name"] == "send_call_permission_request"
    assert ask["can_perform_action"] is False
    assert ask["limits"] == [
        {
            "time_period": "PT24H",
            "max_allowed": 1,
            "current_usage": 1,
            "limit_expiration_time": int(T + 6 + DAY_S),
        },
        {"time_period": "P7D", "max_allowed": 2, "current_usage": 1},
    ]
    assert start["can_perform_action"] is False
    assert start["limits"][0]["limit_expiration_time"] == int(T + 5 + DAY_S)


def test_call_permissions_of_a_permanent_permission_has_no_expiry() -> None:
    one = contact()
    one.grant(permanent=True, now=T)
    body = one.permissions_body(now=T, may_call=True)
    assert body["permission"] == {"status": "permanent"}
    assert [action["can_perform_action"] for action in body["actions"]] == [False, True]


def test_an_uncallable_user_has_no_permission() -> None:
    one = contact()
    one.grant(permanent=True, now=T)
    body = one.permissions_body(now=T, may_call=False)
    assert body["permission"] == {"status": "no_permission"}
    assert not any(action["can_perform_action"] for action in body["actions"])
