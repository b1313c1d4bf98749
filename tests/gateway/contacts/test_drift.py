"""Meta's records against ours: what is a contradiction, what becomes of it, and what merely reads differently."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contacts.drift import drifts
from gateway.meta.answers import ActionLimit, Permissions, ReportedAction, ReportedPermission
from policy.contact import ContactState, apply, fold
from policy.decision import Allow, Refusal
from policy.facts import Action, Fact, LimitReported, PermissionGranted, PermissionRevoked, ReplySource, UsageReported
from policy.gate import evaluate
from policy.pack import Pack, load_pack
from policy.permission import permission_at
from policy.reasons import Reason
from policy.request import AskPermission, PlaceCall
from tests.policy.make import (
    DAY,
    GOOD,
    T0,
    TICK,
    WEEK,
    answered,
    callback,
    contact,
    declined,
    granted,
    hours,
    limit,
    message,
    requested,
    revoked,
    unanswered,
    usage,
)
from tests.policy.strategies import histories

GUIDE, META, SANDBOX = (load_pack(name) for name in ("guide", "meta", "sandbox"))
NO, TEMPORARY, PERMANENT = ReportedPermission.NO_PERMISSION, ReportedPermission.TEMPORARY, ReportedPermission.PERMANENT
MINUTE = timedelta(minutes=1)


def counted(day: int | None, week: int | None = None, *, allowed: bool | None = None, **more: object) -> ReportedAction:
    """What Meta says of an action; `day_max`, `day_until`, `week_max`, `week_until` say that a limit is reached."""
    found = []
    for name, seconds, used in (("day", 86_400, day), ("week", 604_800, week)):
        if used is not None:
            until = more.get(f"{name}_until")
            assert until is None or isinstance(until, datetime)
            most = more.get(f"{name}_max", 100)
            assert isinstance(most, int)
            found.append(ActionLimit(period_s=seconds, max_allowed=most, current_usage=used, expires_at=until))
    return ReportedAction(allowed=allowed, limits=tuple(found))


def says(
    status: ReportedPermission = NO,
    expires_at: datetime | None = None,
    *,
    calls: ReportedAction | None = None,
    requests: ReportedAction | None = None,
) -> Permissions:
    return Permissions(
        status=status,
        expires_at=expires_at,
        start_call=calls or ReportedAction(),
        send_request=requests or ReportedAction(),
    )


def after(pack: Pack, state: ContactState, metas: Permissions, *, counts: bool = True) -> ContactState:
    """The state when Meta's word has been taken over."""
    for drift in drifts(pack, state, metas, asked_at=T0, counts=counts):
        for fact in drift.facts:
            state = apply(state, fact)
    return state


def rules(pack: Pack, state: ContactState, metas: Permissions) -> list[str]:
    return [drift.rule for drift in drifts(pack, state, metas, asked_at=T0)]


#: Enough under any pack.
TEN = tuple(unanswered(hours(-n / 2)) for n in range(1, 11))

#: (what we know, what Meta says, what we say of the permission afterwards; None: nothing is recorded)
PERMISSIONS: list[tuple[str, list[Fact], Permissions, str | None]] = [
    ("nobody, nothing", [], says(NO), None),
    ("nobody, granted", [], says(TEMPORARY, hours(50)), "temporary"),
    ("nobody, permanent", [], says(PERMANENT), "permanent"),
    ("nobody, a word we do not know", [], says(ReportedPermission.UNKNOWN), None),
    ("nobody, granted and over on the way", [], says(TEMPORARY, T0), None),
    ("asked, nothing", [requested(hours(-1))], says(NO), None),
    ("asked, granted", [requested(hours(-1))], says(TEMPORARY, hours(160)), "temporary"),
    ("live, gone", [granted(hours(-1))], says(NO), "revoked"),
    ("live, same end", [granted(hours(-1))], says(TEMPORARY, hours(167)), None),
    ("live, end a few seconds off", [granted(hours(-1))], says(TEMPORARY, hours(167) + MINUTE - TICK), None),
    ("live, end a minute later", [granted(hours(-1))], says(TEMPORARY, hours(167) + MINUTE), "temporary"),
    ("live, ends sooner", [granted(hours(-1))], says(TEMPORARY, hours(3)), "temporary"),
    ("live, end not told", [granted(hours(-1))], says(TEMPORARY), None),
    ("live, permanent", [granted(hours(-1))], says(PERMANENT), "permanent"),
    ("permanent, permanent", [granted(hours(-1), permanent=True)], says(PERMANENT), None),
    ("permanent, temporary", [granted(hours(-1), permanent=True)], says(TEMPORARY, hours(9)), "temporary"),
    ("permanent, temporary, end not told", [granted(hours(-1), permanent=True)], says(TEMPORARY), "temporary"),
    ("permanent, gone", [granted(hours(-1), permanent=True)], says(NO), "revoked"),
    ("declined, nothing", [granted(hours(-9)), declined(hours(-1))], says(NO), None),
    ("declined, granted", [granted(hours(-9)), declined(hours(-1))], says(TEMPORARY, hours(159)), "temporary"),
    ("revoked, granted", [granted(hours(-9)), revoked(hours(-1))], says(TEMPORARY, hours(159)), "temporary"),
    ("all unanswered, gone", [granted(hours(-9)), *TEN], says(NO), None),
    ("all unanswered, still there", [granted(hours(-9)), *TEN], says(TEMPORARY, hours(159)), "temporary"),
    ("expired, gone", [granted(hours(-169))], says(NO), None),
    ("expired, granted anew", [granted(hours(-169))], says(TEMPORARY, hours(5)), "temporary"),
    ("a fact of this very instant", [granted(T0)], says(NO), "revoked"),
    ("Meta's clock is ahead", [granted(T0 + MINUTE)], says(NO), "revoked"),
]


@pytest.mark.parametrize("pack", [GUIDE, META, SANDBOX], ids=lambda pack: pack.name)
@pytest.mark.parametrize(
    ("facts", "metas", "expected"), [row[1:] for row in PERMISSIONS], ids=[r[0] for r in PERMISSIONS]
)
def test_of_a_permission_meta_has_the_last_word(
    pack: Pack, facts: list[Fact], metas: Permissions, expected: str | None
) -> None:
    state = contact(*facts)
    found = drifts(pack, state, metas, asked_at=T0)
    assert [drift.rule for drift in found] == (["contact/permission"] if expected else [])
    if expected:
        known = permission_at(pack, after(pack, state, metas), now=T0 + 2 * MINUTE)
        assert known.status.value == expected
        if metas.status is TEMPORARY and metas.expires_at:
            assert known.expires_at == metas.expires_at


def test_what_is_found_in_metas_records_says_so() -> None:
    (drift,) = drifts(GUIDE, contact(), says(TEMPORARY, hours(50)), asked_at=T0)
    (fact,) = drift.facts
    assert isinstance(fact, PermissionGranted)
    assert (fact.at, fact.expires_at, fact.source) == (T0, hours(50), ReplySource.META_RECORD)
    assert (drift.ours, drift.metas) == ("none", f"temporary until {hours(50).isoformat()}")
    (drift,) = drifts(GUIDE, contact(granted(hours(-1))), says(NO), asked_at=T0)
    (fact,) = drift.facts
    assert isinstance(fact, PermissionRevoked)
    assert fact.source is ReplySource.META_RECORD
    assert (drift.ours, drift.metas) == (f"temporary until {hours(167).isoformat()}", "no_permission")


def test_a_grant_found_at_meta_ends_the_streak() -> None:
    state = after(GUIDE, contact(granted(hours(-9)), *TEN), says(TEMPORARY, hours(159)))
    assert permission_at(GUIDE, state, now=T0).streak == 0


@pytest.mark.parametrize(
    ("pack", "metas", "expected"),
    [
        (GUIDE, says(TEMPORARY, hours(-1) + WEEK), []),  # the pack takes no automatic permission, on purpose (R11)
        (GUIDE, says(TEMPORARY), []),
        (GUIDE, says(TEMPORARY, hours(99)), ["contact/permission"]),  # this is another one
        (GUIDE, says(PERMANENT), ["contact/permission"]),
        (META, says(TEMPORARY, hours(-1) + WEEK), []),
        (META, says(NO), ["contact/permission"]),
    ],
)
def test_an_automatic_permission_that_the_pack_leaves_out_is_no_contradiction(
    pack: Pack, metas: Permissions, expected: list[str]
) -> None:
    assert rules(pack, contact(callback(hours(-1))), metas) == expected


def test_a_permanent_permission_that_the_pack_takes_for_a_week_is_no_contradiction() -> None:
    pack = replaced(GUIDE, permanent_permissions=False)
    forever = granted(hours(-1), permanent=True)
    assert rules(pack, contact(forever), says(PERMANENT)) == []
    assert rules(pack, contact(granted(hours(-169), permanent=True)), says(PERMANENT)) == []
    assert rules(pack, contact(forever, declined(T0 - MINUTE)), says(PERMANENT)) == ["contact/permission"]


def replaced(pack: Pack, **values: object) -> Pack:
    return replace(pack, **values)  # type: ignore[arg-type]


# --- counts ------------------------------------------------------------------------------------------

LIVE = granted(hours(-40), expires_at=hours(100))


@pytest.mark.parametrize(
    ("facts", "metas", "counts", "expected"),
    [
        ([], says(calls=counted(0), requests=counted(0, 0)), True, []),
        ([], says(), True, []),
        ([], says(calls=counted(None), requests=counted(None)), True, []),
        ([answered(hours(-1))], says(calls=counted(1)), True, []),
        ([answered(hours(-24))], says(calls=counted(0)), True, []),
        ([answered(hours(-1))], says(calls=counted(3)), True, ["contact/connected_per_24h"]),
        ([answered(hours(-1))], says(calls=counted(0)), True, ["contact/connected_per_24h"]),
        ([answered(hours(-1))], says(calls=counted(3)), False, []),
        ([requested(hours(-30))], says(requests=counted(0, 1)), True, []),
        ([requested(hours(-30))], says(requests=counted(1, 1)), True, ["request/per_24h"]),
        ([requested(hours(-30))], says(requests=counted(0, 0)), True, ["request/per_7d"]),
        ([requested(hours(-30))], says(requests=counted(None, 2)), True, ["request/per_7d"]),
        ([requested(hours(-30))], says(requests=counted(1)), True, ["request/per_24h"]),
        ([], says(requests=counted(1, 2)), True, ["request/per_24h", "request/per_7d"]),
        ([], says(requests=counted(1, 2)), False, []),
    ],
)
def test_counts_are_taken_over_where_they_differ(
    facts: list[Fact], metas: Permissions, counts: bool, expected: list[str]
) -> None:
    state = contact(*facts)
    found = drifts(GUIDE, state, metas, asked_at=T0, counts=counts)
    assert [drift.rule for drift in found] == expected
    assert len({fact for drift in found for fact in drift.facts}) == min(len(expected), 1)
    assert drifts(GUIDE, after(GUIDE, state, metas), metas, asked_at=T0 + MINUTE, counts=counts) == ()


def test_a_count_that_differs_says_both_figures() -> None:
    (drift,) = drifts(GUIDE, contact(answered(hours(-1))), says(calls=counted(3)), asked_at=T0)
    assert (drift.ours, drift.metas) == ("1", "3")
    (fact,) = drift.facts
    assert isinstance(fact, UsageReported)
    assert (fact.action, fact.used_24h, fact.at) == (Action.START_CALL, 3, T0)


def test_an_absurd_count_is_kept_as_the_most_that_can_matter() -> None:
    state = after(GUIDE, contact(), says(calls=counted(10**9)))
    assert state.call_usage is not None
    assert rules(GUIDE, state, says(calls=counted(10**9))) == []


@pytest.mark.parametrize("action", [Action.START_CALL, Action.SEND_REQUEST])
def test_a_limit_of_metas_that_the_pack_does_not_know_holds_until_meta_lets_go(action: Action) -> None:
    reached = counted(3, 3, allowed=False, day_max=3, day_until=hours(5), week_max=9)
    asking = action is Action.SEND_REQUEST
    metas = says(TEMPORARY, hours(100), **{"requests" if asking else "calls": reached})
    state = after(SANDBOX, contact(LIVE), metas)
    request = AskPermission() if asking else PlaceCall()
    answer = evaluate(SANDBOX, GOOD, state, request, now=T0)
    assert isinstance(answer, Refusal)
    assert answer.reason is (Reason.REQUEST_LIMIT if asking else Reason.CONNECTED_LIMIT)
    assert answer.retry_at == hours(5)
    assert drifts(SANDBOX, state, metas, asked_at=T0 + MINUTE) == ()


def test_the_latest_of_two_limits_that_are_reached_holds_and_none_longer_than_a_week() -> None:
    metas = says(requests=counted(3, 3, day_max=3, day_until=hours(5), week_max=3, week_until=T0 + 3 * WEEK))
    *_, drift = drifts(SANDBOX, contact(), metas, asked_at=T0)
    (fact,) = drift.facts
    assert isinstance(fact, LimitReported)
    assert (drift.rule, fact.until) == ("request/by_meta", T0 + WEEK)


@pytest.mark.parametrize(
    "calls",
    [
        counted(1, allowed=False, day_max=3, day_until=hours(5)),  # not reached
        counted(1, allowed=False, day_max=1, day_until=T0),  # over on the way
        counted(1, allowed=False, day_max=1),  # no end told
        counted(1, allowed=True, day_max=1, day_until=hours(5)),  # Meta contradicts itself
        ReportedAction(
            allowed=False, limits=(ActionLimit(period_s=None, max_allowed=None, current_usage=1, expires_at=hours(5)),)
        ),
    ],
)
def test_what_is_no_reached_limit_limits_nothing(calls: ReportedAction) -> None:
    known = contact(LIVE, answered(hours(-1)))
    assert rules(META, known, says(TEMPORARY, hours(100), calls=calls)) == []


def test_a_limit_that_our_own_count_knows_is_not_recorded_again() -> None:
    known = contact(LIVE, *(answered(hours(-n)) for n in range(1, 6)))
    calls = counted(5, allowed=False, day_max=5, day_until=hours(19))
    assert rules(GUIDE, known, says(TEMPORARY, hours(100), calls=calls)) == []


def test_a_limit_that_we_were_told_and_that_meta_has_lifted_is_lifted() -> None:
    known = contact(LIVE, limit(hours(-1), hours(23)))
    metas = says(TEMPORARY, hours(100), calls=counted(0, allowed=True))
    assert rules(META, known, metas) == ["contact/connected_by_meta"]
    assert isinstance(evaluate(META, GOOD, known, PlaceCall(), now=T0), Refusal)
    assert isinstance(evaluate(META, GOOD, after(META, known, metas), PlaceCall(), now=T0), Allow)
    assert rules(META, known, says(TEMPORARY, hours(100), calls=counted(0))) == []  # Meta did not say
    assert rules(META, contact(LIVE, limit(hours(-9), hours(-1))), metas) == []  # it is over anyway


def test_a_count_that_is_put_right_lifts_what_was_told_before_it_unless_meta_tells_it_again() -> None:
    known = contact(LIVE, limit(hours(-1), hours(5)))
    free = says(TEMPORARY, hours(100), calls=counted(2, allowed=True))
    assert rules(SANDBOX, known, free) == ["contact/connected_per_24h"]
    assert isinstance(evaluate(SANDBOX, GOOD, after(SANDBOX, known, free), PlaceCall(), now=T0), Allow)
    reached = says(TEMPORARY, hours(100), calls=counted(3, allowed=False, day_max=3, day_until=hours(5)))
    assert rules(SANDBOX, known, reached) == ["contact/connected_per_24h", "contact/connected_by_meta"]
    answer = evaluate(SANDBOX, GOOD, after(SANDBOX, known, reached), PlaceCall(), now=T0)
    assert isinstance(answer, Refusal)
    assert answer.retry_at == hours(5)


@pytest.mark.parametrize("until", [hours(5), hours(23) + 2 * MINUTE])
def test_the_end_of_a_limit_is_the_one_that_meta_tells_now(until: datetime) -> None:
    known = contact(LIVE, limit(hours(-1), hours(23)))
    metas = says(TEMPORARY, hours(100), calls=counted(0, allowed=False, day_max=0, day_until=until))
    assert rules(META, known, metas) == ["contact/connected_by_meta"]
    answer = evaluate(META, GOOD, after(META, known, metas), PlaceCall(), now=T0)
    assert isinstance(answer, Refusal)
    assert answer.retry_at == until


# --- properties --------------------------------------------------------------------------------------


@st.composite
def actions(draw: st.DrawFn) -> ReportedAction:
    found = [
        ActionLimit(
            period_s=seconds,
            max_allowed=draw(st.none() | st.integers(0, 6)),
            current_usage=draw(st.none() | st.integers(0, 6)),
            expires_at=draw(st.none() | st.integers(-30, 200).map(hours)),
        )
        for seconds in draw(st.lists(st.sampled_from([86_400, 604_800, None]), unique=True))
    ]
    return ReportedAction(allowed=draw(st.none() | st.booleans()), limits=tuple(found))


@st.composite
def answers(draw: st.DrawFn) -> Permissions:
    status = draw(st.sampled_from(ReportedPermission))
    ends = draw(st.none() | st.integers(-30, 200).map(hours)) if status is TEMPORARY else None
    return Permissions(status=status, expires_at=ends, start_call=draw(actions()), send_request=draw(actions()))


@settings(max_examples=400)
@given(histories(), answers(), st.sampled_from([GUIDE, META, SANDBOX]))
def test_after_metas_word_is_taken_over_nothing_differs(facts: list[Fact], metas: Permissions, pack: Pack) -> None:
    state = fold(fact for fact in facts if fact.at <= T0)
    taken = after(pack, state, metas)
    assert drifts(pack, taken, metas, asked_at=T0 + TICK) == ()


@settings(max_examples=400)
@given(histories(), answers(), st.sampled_from([GUIDE, META, SANDBOX]))
def test_what_meta_denies_is_denied(facts: list[Fact], metas: Permissions, pack: Pack) -> None:
    state = after(pack, fold(fact for fact in facts if fact.at <= T0), metas)
    answer = evaluate(pack, GOOD, state, PlaceCall(), now=T0 + DAY / 10_000)
    if metas.status is NO:
        assert isinstance(answer, Refusal)


def test_that_somebody_wrote_or_that_a_report_is_old_changes_nothing() -> None:
    state = contact(message(hours(-1)), usage(hours(-30), 3), LIVE)
    assert rules(GUIDE, state, says(TEMPORARY, hours(100), calls=counted(0))) == []
