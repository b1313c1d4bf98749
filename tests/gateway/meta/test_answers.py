import re
from datetime import UTC, date, datetime, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.meta.answers import (
    UNLIMITED,
    ActionLimit,
    NumberCallingSettings,
    NumberInfo,
    Permissions,
    ReportedAction,
    ReportedPermission,
    read_call_id,
    read_message_id,
    read_number_info,
    read_period,
    read_permissions,
    read_settings,
    read_tier,
)
from policy.hours import Holiday, Opening
from policy.number import CallingStatus, Restriction, RestrictionType

UNIX = 1790604800
AT = datetime.fromtimestamp(UNIX, UTC)

PERMISSIONS: dict[str, Any] = {
    "messaging_product": "whatsapp",
    "permission": {"status": "temporary", "expiration_time": UNIX},
    "actions": [
        {
            "action_name": "send_call_permission_request",
            "can_perform_action": True,
            "limits": [{"time_period": "P7D", "max_allowed": 2, "current_usage": 1}],
        },
        {
            "action_name": "start_call",
            "can_perform_action": False,
            "limits": [
                {
                    "time_period": "PT24H",
                    "max_allowed": 100,
                    "current_usage": 100,
                    "limit_expiration_time": UNIX,
                }
            ],
        },
    ],
}


def settings(**calling: Any) -> NumberCallingSettings:
    return read_settings({"calling": calling})


# --- ids -----------------------------------------------------------------------------------------


def test_ids_of_calls_and_messages_are_found() -> None:
    assert read_call_id({"calls": [{"id": "wacid.A"}]}) == "wacid.A"
    assert read_message_id({"messages": [{"id": "wamid.A"}]}) == "wamid.A"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"calls": []},
        {"calls": {}},
        {"calls": [{}]},
        {"calls": [{"id": ""}]},
        {"calls": [{"id": 5}]},
        {"calls": [1]},
    ],
)
def test_an_absent_id_is_none(body: dict[str, Any]) -> None:
    assert read_call_id(body) is None


# --- permissions ---------------------------------------------------------------------------------


def test_permissions_are_read_as_in_metas_sample() -> None:
    assert read_permissions(PERMISSIONS) == Permissions(
        status=ReportedPermission.TEMPORARY,
        expires_at=AT,
        start_call=ReportedAction(
            allowed=False,
            limits=(ActionLimit(period_s=86_400, max_allowed=100, current_usage=100, expires_at=AT),),
        ),
        send_request=ReportedAction(
            allowed=True,
            limits=(ActionLimit(period_s=604_800, max_allowed=2, current_usage=1, expires_at=None),),
        ),
    )


@pytest.mark.parametrize("name", ["expiration_time", "expiration"])
@pytest.mark.parametrize("value", [UNIX, str(UNIX), AT.isoformat(), "2026-09-28T11:13:20-03:00"])
def test_both_spellings_and_all_types_of_the_expiry_are_read(name: str, value: object) -> None:
    permissions = read_permissions({"permission": {"status": "temporary", name: value}})
    assert permissions.expires_at == (AT if "-03" not in str(value) else datetime.fromisoformat(str(value)))


@pytest.mark.parametrize("value", [None, "", "soon", "2026-11-22T00:00:00", -5, 0, 10**12, True, 1.5, [], {}])
def test_an_expiry_that_makes_no_sense_is_unknown(value: object) -> None:
    assert read_permissions({"permission": {"status": "temporary", "expiration_time": value}}).expires_at is None


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("no_permission", ReportedPermission.NO_PERMISSION),
        ("permanent", ReportedPermission.PERMANENT),
        ("brand_new", ReportedPermission.UNKNOWN),
        (None, ReportedPermission.UNKNOWN),
        (5, ReportedPermission.UNKNOWN),
    ],
)
def test_a_status_is_a_word_of_metas_or_unknown(word: object, status: ReportedPermission) -> None:
    assert read_permissions({"permission": {"status": word}}).status is status


def test_an_action_that_is_not_there_is_not_known() -> None:
    permissions = read_permissions({"permission": {"status": "permanent"}, "actions": [{"action_name": "dance"}]})
    assert permissions.start_call == permissions.send_request == ReportedAction()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("PT24H", 86_400),
        ("P7D", 604_800),
        ("P1DT2H3M4S", 93_784),
        ("PT90S", 90),
        ("P", None),
        ("PT", None),
        ("P1M", None),
        ("24H", None),
        ("", None),
        (None, None),
    ],
)
def test_periods_are_iso_8601(text: str | None, seconds: int | None) -> None:
    assert read_period(text) == seconds


# --- settings ------------------------------------------------------------------------------------


def test_settings_are_read_as_in_metas_sample() -> None:
    read = settings(
        status="ENABLED",
        call_icon_visibility="DEFAULT",
        call_hours={
            "status": "ENABLED",
            "timezone_id": "America/Sao_Paulo",
            "weekly_operating_hours": [{"day_of_week": "MONDAY", "open_time": "0900", "close_time": "1800"}],
            "holiday_schedule": [{"date": "2026-12-25", "start_time": "0000", "end_time": "2359"}],
        },
        sip={"status": "DISABLED", "servers": []},
        restrictions={
            "restrictions_list": [{"type": "RESTRICTED_BUSINESS_INITIATED_CALLING", "reason": "x", "expiration": UNIX}]
        },
    )
    assert read.calling is CallingStatus.ENABLED
    assert read.hours is not None
    assert read.hours.timezone == "America/Sao_Paulo"
    assert read.hours.weekly == (Opening(weekday=0, opens=time(9), closes=time(18)),)
    assert read.hours.holidays == (Holiday(day=date(2026, 12, 25), opens=time(0), closes=time(23, 59)),)
    assert not read.sip_enabled
    assert read.icon_visibility == "DEFAULT"
    assert read.restrictions == (Restriction(type=RestrictionType.BUSINESS_INITIATED, expires_at=AT),)
    assert read.unread == ()


def test_a_number_that_was_never_set_is_off_and_silence_is_not_known() -> None:
    assert settings(status="NOT_SET").calling is CallingStatus.NOT_SET
    assert settings(status="disabled").calling is CallingStatus.DISABLED
    assert settings(status="LATER").calling is CallingStatus.UNKNOWN
    assert read_settings({}) == NumberCallingSettings()
    assert read_settings({"calling": None}) == NumberCallingSettings()


@pytest.mark.parametrize("name", ["restrictions_list", "restriction_list"])
def test_both_spellings_of_restrictions_are_read(name: str) -> None:
    read = settings(restrictions={name: [{"type": "restricted_user_initiated_calling"}, {"type": "NEW"}, 5]})
    assert read.restrictions == (Restriction(type=RestrictionType.USER_INITIATED, expires_at=None),)


def hours(**changes: Any) -> NumberCallingSettings:
    week = [{"day_of_week": "FRIDAY", "open_time": "09:00", "close_time": "18:00"}]
    return settings(call_hours={"status": "ENABLED", "timezone_id": "UTC", "weekly_operating_hours": week, **changes})


def test_both_spellings_of_a_holidays_times_are_read() -> None:
    day = {"date": "2026-12-25", "open_time": "1000", "close_time": "1200"}
    read = hours(holiday_schedule=[day]).hours
    assert read is not None
    assert read.holidays == (Holiday(day=date(2026, 12, 25), opens=time(10), closes=time(12)),)


def test_hours_that_are_off_are_none() -> None:
    assert hours(status="DISABLED").hours is None
    assert hours(status="DISABLED").unread == ()


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", None, "../etc"])
def test_an_unknown_time_zone_leaves_the_hours_unread(zone: object) -> None:
    read = hours(timezone_id=zone)
    assert (read.hours, read.unread) == (None, ("timezone_id",))


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"day_of_week": "SOMEDAY", "open_time": "0900", "close_time": "1800"},
        {"day_of_week": "MONDAY", "open_time": "1800", "close_time": "0900"},
        {"day_of_week": "MONDAY", "open_time": "2500", "close_time": "2600"},
        {"day_of_week": "MONDAY", "open_time": "noon", "close_time": "1800"},
    ],
)
def test_a_week_with_a_day_that_cannot_be_read_refuses_nobody(entry: dict[str, str]) -> None:
    read = hours(
        weekly_operating_hours=[
            {"day_of_week": "SUNDAY", "open_time": "0000", "close_time": "2359"},
            entry,
            entry,
        ]
    )
    assert (read.hours, read.unread) == (None, ("weekly_operating_hours",))


def test_a_holiday_that_cannot_be_read_is_told_and_left_out() -> None:
    read = hours(holiday_schedule=[{"date": "yesterday", "start_time": "0900", "end_time": "1000"}])
    assert read.hours is not None
    assert read.hours.holidays == ()
    assert read.unread == ("holiday_schedule",)


# --- the number ----------------------------------------------------------------------------------


def test_the_number_is_read() -> None:
    body = {
        "messaging_limit_tier": "TIER_2K",
        "is_on_biz_app": False,
    }
    assert read_number_info(body) == NumberInfo(messaging_limit=2_000, coexistence=False)


def test_the_newer_name_of_the_messaging_limit_wins() -> None:
    body = {"messaging_limit_tier": "TIER_250", "whatsapp_business_manager_messaging_limit": "TIER_10K"}
    assert read_number_info(body).messaging_limit == 10_000


def test_a_number_that_says_nothing_is_not_known() -> None:
    assert read_number_info({"messaging_limit_tier": 250, "is_on_biz_app": "no"}) == NumberInfo()


@pytest.mark.parametrize(
    ("word", "limit"),
    [
        ("TIER_250", 250),
        ("TIER_1K", 1_000),
        ("tier_100k", 100_000),
        ("TIER_UNLIMITED", UNLIMITED),
        ("TIER_NOT_SET", None),
        ("2000", None),
        (None, None),
    ],
)
def test_tiers_are_numbers(word: str | None, limit: int | None) -> None:
    assert read_tier(word) == limit


# --- anything ------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    re.findall(
        r"\w+",
        """
        permission status expiration_time expiration actions action_name can_perform_action
        limits time_period max_allowed calling call_hours timezone_id weekly_operating_hours
        day_of_week open_time close_time holiday_schedule date start_time end_time
        sip voicemail triggers audio default timeout_seconds restrictions
        restrictions_list type call_icons restrict_to_user_countries display_phone_number calls messages
        id
        """,
    )
)
WORDS = st.sampled_from(
    ["ENABLED", "MONDAY", "0900", "1800", "UTC", "TIMEOUT", "2026-12-25", "temporary", str(UNIX), ""]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)


@given(st.dictionaries(KEYS, ANYTHING))
def test_whatever_meta_answers_reading_it_never_raises(body: dict[str, Any]) -> None:
    for read in (read_call_id, read_message_id, read_permissions, read_settings, read_number_info):
        read(body)
