"""Facts: what can be written down, and read again."""

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given

from policy.facts import (
    EARLIEST,
    KINDS,
    MAX_AHEAD,
    Action,
    CallUnanswered,
    Fact,
    FactError,
    LimitReported,
    PermissionGranted,
    UsageReported,
    check_time,
    fact_from_dict,
    fact_to_dict,
)
from tests.policy.make import DAY, HOUR, T0, TICK, granted, message, requested, unanswered
from tests.policy.strategies import histories


@given(histories())
def test_a_fact_survives_json(facts: list[Fact]) -> None:
    for fact in facts:
        assert fact_from_dict(json.loads(json.dumps(fact_to_dict(fact)))) == fact


def test_a_stored_fact_is_flat_and_readable() -> None:
    fact = PermissionGranted(at=T0, key="wamid.X", expires_at=T0 + DAY, request_id="wamid.R")
    assert fact_to_dict(fact) == {
        "kind": "permission_granted",
        "at": "2026-11-22T12:00:00+00:00",
        "key": "wamid.X",
        "permanent": False,
        "expires_at": "2026-11-23T12:00:00+00:00",
        "source": "user_action",
        "request_id": "wamid.R",
    }
    assert all(type(value) in (str, bool) for value in fact_to_dict(fact).values())


def test_every_kind_of_fact_has_a_stored_name() -> None:
    assert set(KINDS.values()) == set(Fact.__args__)


def test_fields_with_a_default_may_be_left_out() -> None:
    plain = {"kind": "window_opened", "at": T0.isoformat(), "key": "k"}
    assert fact_from_dict(plain) == fact_from_dict(plain | {"source": "message"})


def test_other_time_zones_are_read_as_utc() -> None:
    fact = fact_from_dict({"kind": "call_rejected", "at": "2026-11-22T09:00:00-03:00", "key": "k"})
    assert fact.at == T0
    assert fact.at.utcoffset() == timedelta(0)


GOOD = {"kind": "permission_granted", "at": T0.isoformat(), "key": "k"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "birthday"}, "unknown kind"),
        ({"kind": ["call_rejected"]}, "unknown kind"),
        ({"at": 5}, "at: not an instant"),
        ({"at": None}, "at: not an instant"),
        ({"at": "yesterday"}, "at:"),
        ({"at": "2026-11-22T12:00:00"}, "at: no time zone"),
        ({"at": "0001-01-01T00:00:00+23:00"}, "at:"),
        ({"key": 7}, "key: not a string"),
        ({"key": ""}, "needs a key"),
        ({"key": None}, "key: not a string"),
        ({"permanent": 1}, "permanent: not true or false"),
        ({"permanent": True, "expires_at": T0.isoformat()}, "has no expiry"),
        ({"source": "rumour"}, "source:"),
        ({"source": ["user_action"]}, "source:"),
        ({"mood": "good"}, "unknown fields"),
    ],
)
def test_what_is_no_fact_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(FactError, match=message):
        fact_from_dict({**GOOD, **change})


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"kind": "call_connected", "at": T0.isoformat(), "key": "k"},
        {
            "kind": "usage_reported",
            "at": T0.isoformat(),
            "key": "k",
            "action": "start_call",
            "used_24h": True,
        },
        {"kind": "usage_reported", "at": T0.isoformat(), "key": "k", "action": "start_call", "used_24h": "1"},
        {"kind": "permission_requested", "at": T0.isoformat(), "key": "k", "form": "song"},
    ],
)
def test_half_a_fact_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(FactError):
        fact_from_dict(plain)


def test_an_instant_must_be_utc() -> None:
    with pytest.raises(FactError):
        unanswered(T0.replace(tzinfo=None))
    with pytest.raises(FactError):
        unanswered(T0.astimezone(timezone(HOUR)))
    with pytest.raises(FactError):
        granted(expires_at=T0.replace(tzinfo=None))
    with pytest.raises(FactError):
        LimitReported(at=T0, key="k", action=Action.START_CALL, until=T0.replace(tzinfo=None))


def test_a_limit_of_metas_lasts_seven_days_at_most() -> None:
    LimitReported(at=T0, key="k", action=Action.START_CALL, until=T0 + 7 * DAY)
    with pytest.raises(FactError):
        LimitReported(at=T0, key="k", action=Action.START_CALL, until=T0 + 7 * DAY + TICK)


@pytest.mark.parametrize(("day", "week"), [(-1, 0), (0, -1)])
def test_a_usage_is_never_negative(day: int, week: int) -> None:
    with pytest.raises(FactError):
        UsageReported(at=T0, key="k", action=Action.START_CALL, used_24h=day, used_7d=week)


@pytest.mark.parametrize(
    ("at", "fits"),
    [
        (T0 + HOUR, True),  # our clock was set back
        (T0 + MAX_AHEAD, True),
        (T0 + MAX_AHEAD + TICK, False),
        (EARLIEST, True),
        (EARLIEST - TICK, False),
    ],
)
def test_times_that_no_clock_error_explains_are_refused(at: datetime, fits: bool) -> None:
    fact = CallUnanswered(at=at, key="k")
    if fits:
        check_time(fact, now=T0)
    else:
        with pytest.raises(FactError):
            check_time(fact, now=T0)


def test_facts_are_values() -> None:
    assert requested() != requested()
    assert len({message(), message()}) == 2
