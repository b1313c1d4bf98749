"""The life of a permission: a total table, and statuses at every edge."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.contact import EMPTY, fold
from policy.facts import Fact, ReplySource
from policy.pack import Pack
from policy.permission import (
    IGNORED,
    LIVE,
    TRANSITIONS,
    Permission,
    PermissionEvent,
    PermissionStatus,
    permission_at,
    streak_of,
)
from tests.policy import naive
from tests.policy.make import (
    DAY,
    GUIDE,
    HOUR,
    META,
    SANDBOX,
    SECOND,
    T0,
    TICK,
    WEEK,
    answered,
    callback,
    contact,
    declined,
    granted,
    hours,
    rejected,
    requested,
    revoked,
    unanswered,
    user_call,
)
from tests.policy.strategies import histories, instants

S = PermissionStatus


def at(now: datetime, *facts: Fact, pack: Pack = GUIDE) -> Permission:
    return permission_at(pack, contact(*facts), now=now)


def test_the_table_says_something_about_every_pair_and_only_once() -> None:
    pairs = {(status, event) for status in S for event in PermissionEvent}
    assert set(TRANSITIONS) | IGNORED == pairs
    assert not set(TRANSITIONS) & IGNORED


def test_only_a_permission_that_lives_can_expire() -> None:
    assert [status for status in S if TRANSITIONS.get((status, PermissionEvent.EXPIRED))] == [S.TEMPORARY]


def test_a_refusal_ends_every_permission() -> None:
    for event in (PermissionEvent.DECLINED, PermissionEvent.REVOKED):
        assert not any(TRANSITIONS[(status, event)] in LIVE for status in S)


def test_of_somebody_unknown_there_is_none() -> None:
    assert at(T0) == Permission(
        status=S.NONE, granted_at=None, expires_at=None, streak=0, notice_sent=False, pending=None
    )


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (T0, S.TEMPORARY),
        (T0 + 168 * HOUR - TICK, S.TEMPORARY),
        (T0 + 168 * HOUR, S.EXPIRED),  # exactly 168 h old: no longer valid
        (T0 + 168 * HOUR + TICK, S.EXPIRED),
        (T0 - HOUR, S.TEMPORARY),  # our clock is behind Meta's
    ],
)
def test_a_permission_lives_168_hours(now: datetime, expected: PermissionStatus) -> None:
    permission = at(now, granted(T0))
    assert permission.status is expected
    assert permission.expires_at == T0 + WEEK
    assert permission.live is (expected is S.TEMPORARY)


@pytest.mark.parametrize(("now", "live"), [(hours(3) - TICK, True), (hours(3), False)])
def test_metas_expiry_goes_first(now: datetime, live: bool) -> None:
    assert at(now, granted(T0, expires_at=hours(3))).live is live


def test_metas_expiry_may_also_be_later() -> None:
    assert at(T0 + 8 * DAY, granted(T0, expires_at=T0 + 9 * DAY)).live


def test_a_permanent_permission_does_not_expire() -> None:
    permission = at(T0 + 1000 * DAY, granted(T0, permanent=True))
    assert permission.status is S.PERMANENT
    assert permission.expires_at is None


def test_a_pack_can_hold_permanent_permissions_to_seven_days() -> None:
    strict = _with(GUIDE, permanent_permissions=False)
    assert at(T0 + WEEK - TICK, granted(permanent=True), pack=strict).status is S.TEMPORARY
    assert at(T0 + WEEK, granted(permanent=True), pack=strict).status is S.EXPIRED


def _with(pack: Pack, **changes: object) -> Pack:
    values = {name: getattr(pack, name) for name in pack.__dataclass_fields__}
    return Pack(**{**values, **changes})


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([requested(T0)], S.REQUESTED),
        ([requested(T0), granted(hours(1))], S.TEMPORARY),
        ([requested(T0), declined(hours(1))], S.DECLINED),
        ([requested(T0), declined(hours(1)), granted(hours(2))], S.TEMPORARY),  # changed their mind
        ([requested(T0), granted(hours(1)), declined(hours(2))], S.DECLINED),
        ([granted(T0), revoked(hours(1))], S.REVOKED),
        ([granted(T0), revoked(T0)], S.REVOKED),  # at a tie the stricter reading wins
        ([granted(T0), declined(T0)], S.DECLINED),
        ([granted(T0, permanent=True), revoked(hours(1))], S.REVOKED),
        ([granted(T0, permanent=True), granted(hours(1))], S.TEMPORARY),  # the newest word
        ([granted(T0), revoked(hours(1)), requested(hours(2))], S.REQUESTED),
        ([granted(T0), requested(hours(2))], S.TEMPORARY),  # asking takes nothing away
        ([granted(hours(1)), revoked(T0)], S.TEMPORARY),  # a revocation that came late
        ([declined(T0)], S.DECLINED),  # of a request that we do not know
        ([revoked(T0)], S.NONE),  # nothing was granted, as far as we know
        ([granted(T0, source=ReplySource.META_RECORD)], S.TEMPORARY),
        ([granted(T0), revoked(hours(1), source=ReplySource.META_RECORD)], S.REVOKED),
        ([user_call(T0)], S.NONE),  # R11
    ],
)
def test_where_facts_lead(facts: list[Fact], expected: PermissionStatus) -> None:
    assert at(hours(3), *facts).status is expected


def test_a_permission_granted_unasked_counts() -> None:
    assert at(hours(1), granted(T0)).live


@pytest.mark.parametrize(("now", "expected"), [(T0 + WEEK - TICK, S.REQUESTED), (T0 + WEEK, S.NONE)])
def test_a_request_lapses_after_seven_days(now: datetime, expected: PermissionStatus) -> None:
    permission = at(now, requested(T0))
    assert permission.status is expected
    assert (permission.pending is not None) is (expected is S.REQUESTED)


def test_a_request_is_pending_until_it_is_answered() -> None:
    ask = requested(hours(1))
    assert at(hours(2), declined(T0), ask).pending == ask
    assert at(hours(2), granted(T0), ask).pending == ask
    assert at(hours(2), ask, granted(hours(1))).pending is None
    assert at(hours(2), ask, declined(hours(2))).pending is None
    assert at(hours(2), ask, callback(hours(2)), pack=META).pending == ask  # not the contact's answer


@pytest.mark.parametrize(("reply", "expected"), [(granted, S.TEMPORARY), (declined, S.DECLINED)])
@pytest.mark.parametrize("behind", [SECOND, HOUR])
def test_a_reply_that_names_its_request_answers_it_also_if_metas_clock_is_behind_ours(
    reply: Callable[..., Fact], expected: PermissionStatus, behind: timedelta
) -> None:
    ask, older = requested(T0, request_id="wamid.B"), requested(T0 - 3 * HOUR, request_id="wamid.A")
    permission = at(hours(1), older, ask, reply(T0 - behind, request_id="wamid.B"))
    assert (permission.status, permission.pending) == (expected, None)
    other = at(hours(1), older, ask, reply(T0 - behind, request_id="wamid.A"))
    assert other.pending == ask


def test_a_request_sent_while_a_permission_lived_is_still_pending_after_its_end() -> None:
    permission = at(hours(3), granted(T0, expires_at=hours(2)), requested(hours(1)))
    assert permission.status is S.EXPIRED
    assert permission.pending is not None


# R11


def test_under_the_guide_a_users_call_grants_nothing_even_if_meta_says_so() -> None:
    assert at(hours(1), user_call(T0), callback(T0)).status is S.NONE


def test_under_metas_pack_only_the_automatic_reply_grants() -> None:
    assert at(hours(1), user_call(T0), pack=META).status is S.NONE
    assert at(hours(1), user_call(T0), callback(T0), pack=META).status is S.TEMPORARY


def test_a_callback_permission_neither_grants_nor_ends_a_streak_under_the_guide() -> None:
    misses = [unanswered(hours(hour)) for hour in (1, 2, 3)]
    assert at(hours(9), granted(T0), *misses, callback(hours(4))).streak == 3
    assert at(hours(9), granted(T0), *misses, callback(hours(4)), pack=META).streak == 0


# R9 and R10


def test_a_streak_ends_what_lives_and_nothing_else() -> None:
    misses = [unanswered(hours(hour)) for hour in (1, 2, 3, 4)]
    assert at(hours(9), granted(), declined(hours(3.5)), *misses).status is S.DECLINED
    assert at(hours(9), granted(expires_at=hours(4)), *misses).status is S.EXPIRED
    assert at(hours(9), granted(expires_at=hours(4) + TICK), *misses).status is S.REVOKED


@pytest.mark.parametrize(
    ("pack", "misses", "notice", "status"),
    [
        (GUIDE, 1, False, S.TEMPORARY),
        (GUIDE, 2, True, S.TEMPORARY),
        (GUIDE, 3, True, S.TEMPORARY),
        (GUIDE, 4, True, S.REVOKED),
        (META, 3, True, S.TEMPORARY),
        (META, 4, True, S.REVOKED),
        (SANDBOX, 4, False, S.TEMPORARY),
        (SANDBOX, 5, True, S.TEMPORARY),
        (SANDBOX, 9, True, S.TEMPORARY),
        (SANDBOX, 10, True, S.REVOKED),
    ],
)
def test_notice_and_revocation(pack: Pack, misses: int, notice: bool, status: PermissionStatus) -> None:
    permission = at(hours(20), granted(), *(unanswered(hours(1 + n)) for n in range(misses)), pack=pack)
    assert (permission.streak, permission.notice_sent, permission.status) == (misses, notice, status)


def test_a_permanent_permission_is_revoked_as_well() -> None:
    misses = [unanswered(hours(hour)) for hour in (1, 2, 3, 4)]
    assert at(hours(5), granted(permanent=True), *misses).status is S.REVOKED


def test_one_answered_call_breaks_the_streak() -> None:
    facts = [granted(), unanswered(hours(1)), unanswered(hours(2)), unanswered(hours(3)), answered(hours(4))]
    assert at(hours(9), *facts, unanswered(hours(5))).streak == 1


def test_a_users_call_between_two_unanswered_ones_leaves_the_streak_alone() -> None:
    facts = [granted(), unanswered(hours(1)), user_call(hours(2)), unanswered(hours(3))]
    assert at(hours(9), *facts).streak == 2


def test_rejected_calls_count_where_the_pack_says_so_and_break_nothing_elsewhere() -> None:
    facts = [granted(), unanswered(hours(1)), rejected(hours(2)), unanswered(hours(3)), rejected(hours(4))]
    assert at(hours(9), *facts).streak == 2
    assert at(hours(9), *facts, pack=META).status is S.REVOKED
    assert streak_of(META, contact(*facts)) == [hours(1), hours(2), hours(3), hours(4)]


def test_a_grant_after_the_revocation_starts_at_nothing() -> None:
    misses = [unanswered(hours(hour)) for hour in (1, 2, 3, 4)]
    permission = at(hours(9), granted(), *misses, granted(hours(5)))
    assert (permission.status, permission.streak) == (S.TEMPORARY, 0)
    again = at(hours(9), granted(), *misses, granted(hours(5)), *(unanswered(hours(6)) for _ in range(3)))
    assert (again.status, again.streak) == (S.TEMPORARY, 3)


def test_metas_own_revocation_changes_nothing_that_ours_did_not() -> None:
    misses = [unanswered(hours(hour)) for hour in (1, 2, 3, 4)]
    ours = at(hours(9), granted(), *misses)
    theirs = at(hours(9), granted(), *misses, revoked(hours(4), source=ReplySource.AUTOMATIC))
    assert ours == theirs


def test_a_grant_while_a_call_of_ours_rings_unanswered() -> None:
    # The call ended after the grant, so it counts against it.
    assert at(hours(9), granted(hours(1)), unanswered(hours(2))).streak == 1
    assert at(hours(9), granted(hours(1)), unanswered(hours(1))).streak == 1
    assert at(hours(9), granted(hours(1)), unanswered(hours(1) - TICK)).streak == 0


def test_unanswered_calls_without_any_grant_are_a_streak_too() -> None:
    assert at(T0, unanswered(T0)).streak == 1
    assert streak_of(GUIDE, EMPTY) == []


@given(histories(), instants(-8, 30), st.sampled_from([GUIDE, META, SANDBOX]))
def test_the_naive_model_agrees(facts: list[Fact], now: datetime, pack: Pack) -> None:
    now += timedelta(hours=1)
    permission = permission_at(pack, fold(facts), now=now)
    status, streak = naive.permission(pack, facts, now)
    assert permission.streak == streak
    if permission.status is S.REQUESTED:
        assert status not in ("temporary", "permanent")
    elif permission.status is not S.NONE:
        assert permission.status == status
