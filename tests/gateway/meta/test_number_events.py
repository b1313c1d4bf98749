"""What Meta says of a business number itself: every sample of its pages, and what may stand in their place."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.meta import number_events as ne
from gateway.meta.events import Event, UnknownEvent, read_delivery
from policy.number import Restriction, RestrictionType

PAYLOADS = Path(__file__).resolve().parents[2] / "data" / "webhooks"
SENT_AT = 1_790_000_400


def payload(name: str) -> Event:
    (event,) = read_delivery((PAYLOADS / f"{name}.json").read_bytes())
    return event


def deliver(field: str, value: Any, *, sent_at: Any = SENT_AT) -> Event:
    entry = {"id": "0", "time": sent_at, "changes": [{"field": field, "value": value}]}
    (event,) = read_delivery(orjson.dumps({"object": "whatsapp_business_account", "entry": [entry]}))
    return event


def restricted(*entries: Any, **more: Any) -> Event:
    value = {"phone_number": "15550100001", "event": "ACCOUNT_RESTRICTION", "restriction_info": list(entries)}
    return deliver("account_update", value | more)


def settings(**changes: Any) -> Event:
    value: dict[str, Any] = {
        "messaging_product": "whatsapp",
        "timestamp": "1790000000",
        "type": "phone_number_settings",
        "phone_number_settings": {"phone_number_id": "200000000000002", "calling": {"status": "ENABLED"}},
    }
    return deliver("account_settings_update", value | changes)


def test_a_quality_warning() -> None:
    event = payload("account_quality_warning")
    assert isinstance(event, ne.NumberWarned)
    assert (event.display_number, event.violation) == ("15550100001", "LOW_BUSINESS_INITIATED_CALLING_QUALITY")
    assert event.remediation is None
    assert event.at == datetime.fromtimestamp(SENT_AT, UTC)
    assert event.number_id == ""


def test_a_warning_may_say_what_helps() -> None:
    violation = {"violation_type": "USER_INITIATED_CALLS_LOW_PICKUP_RATE", "remediation": "Answer more calls."}
    event = deliver(
        "account_update",
        {"phone_number": "+15550100001", "event": "ACCOUNT_VIOLATION", "violation_info": violation},
    )
    assert isinstance(event, ne.NumberWarned)
    assert event.display_number == "15550100001"
    assert event.remediation == "Answer more calls."


def test_a_restriction_wrapped_in_an_array() -> None:
    event = payload("account_restriction_in_an_array")
    assert isinstance(event, ne.NumberRestricted)
    until = datetime.fromtimestamp(1_790_604_800, UTC)
    assert event.restrictions == (Restriction(type=RestrictionType.BUSINESS_INITIATED, expires_at=until),)


@pytest.mark.parametrize(
    ("expiration", "until"),
    [
        (1_790_604_800, datetime.fromtimestamp(1_790_604_800, UTC)),
        ("1790604800", datetime.fromtimestamp(1_790_604_800, UTC)),
        (None, None),
        ("soon", None),
        (0, None),
        (10**15, None),
    ],
)
def test_an_expiry_is_read_however_it_is_written(expiration: object, until: datetime | None) -> None:
    event = restricted({"restriction_type": "restricted_user_initiated_calling", "expiration": expiration})
    assert isinstance(event, ne.NumberRestricted)
    assert event.restrictions == (Restriction(type=RestrictionType.USER_INITIATED, expires_at=until),)


def test_a_hidden_call_button_has_no_expiry_and_other_restrictions_are_not_ours() -> None:
    event = restricted(
        {"restriction_type": "RESTRICTED_USER_INITIATED_CALLING_CALL_BUTTON_HIDDEN", "remediation": "Pick up."},
        {"restriction_type": "RESTRICTED_ADD_PHONE_NUMBER_ACTION", "expiration": 1_790_604_800},
        "nonsense",
    )
    assert isinstance(event, ne.NumberRestricted)
    assert event.restrictions == (Restriction(type=RestrictionType.CALL_BUTTON_HIDDEN),)


def test_one_entry_may_stand_without_its_list() -> None:
    event = restricted(restriction_info={"restriction_type": "RESTRICTED_USER_INITIATED_CALLING"})
    assert isinstance(event, ne.NumberRestricted)


@pytest.mark.parametrize("name", ["account_settings", "account_settings_upper_case"])
def test_changed_settings(name: str) -> None:
    event = payload(name)
    assert isinstance(event, ne.NumberSettingsChanged)
    assert (event.number_id, event.calling) == ("200000000000002", {"status": "ENABLED"})
    assert event.at == datetime.fromtimestamp(1_790_000_000, UTC)


def test_settings_of_something_else_change_nothing() -> None:
    event = settings(phone_number_settings={"phone_number_id": "200000000000002", "calling": None})
    assert isinstance(event, ne.NumberSettingsChanged)
    assert event.calling == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account_update", {"phone_number": "15550100001", "event": "VOLUME_BASED_PRICING_TIER_UPDATE"}),
        ("account_update", {"phone_number": "15550100001", "event": "ACCOUNT_VIOLATION"}),
        ("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": []}),
        ("account_update", {"phone_number": "15550100001", "event": "ACCOUNT_RESTRICTION", "restriction_info": []}),
        ("account_update", {"phone_number": "no number", "event": "ACCOUNT_VIOLATION"}),
        ("account_update", None),
        ("account_settings_update", {"type": "phone_number_settings"}),
        ("account_settings_update", []),
    ],
)
def test_what_is_not_known_is_kept_and_otherwise_left_alone(field: str, value: Any) -> None:
    event = deliver(field, value)
    assert isinstance(event, UnknownEvent)
    assert event.kind == f"field.{field}"
    assert event.dedupe_key.startswith("hash/")


def test_other_types_of_settings_and_ids_that_are_none_are_left_alone() -> None:
    assert isinstance(settings(type="account_settings"), UnknownEvent)
    assert isinstance(settings(phone_number_settings={"phone_number_id": "abc"}), UnknownEvent)


def test_the_same_change_twice_is_one_event_and_months_later_another() -> None:
    entry = {"restriction_type": "RESTRICTED_USER_INITIATED_CALLING_CALL_BUTTON_HIDDEN"}
    value = {"phone_number": "15550100001", "event": "ACCOUNT_RESTRICTION", "restriction_info": [entry]}
    first, again = deliver("account_update", value), deliver("account_update", value)
    later = deliver("account_update", value, sent_at=SENT_AT + 5_000_000)
    assert first.dedupe_key == again.dedupe_key != later.dedupe_key
    assert first.dedupe_key.startswith("hash/")


@pytest.mark.parametrize("sent_at", [None, "yesterday", 0, {}])
def test_an_entry_without_a_usable_time_is_read_all_the_same(sent_at: object) -> None:
    violation = {"violation_type": "LOW_USER_INITIATED_CALLING_QUALITY"}
    value = {"phone_number": "15550100001", "event": "ACCOUNT_VIOLATION", "violation_info": violation}
    event = deliver("account_update", value, sent_at=sent_at)
    assert isinstance(event, ne.NumberWarned)
    assert event.at is None
