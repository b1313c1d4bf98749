"""Meta's payloads become events; whatever else arrives is kept, and nothing raises."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.common.ids import UserRef
from gateway.meta import events as ev
from gateway.meta.events import read_delivery
from policy.facts import Direction

DATA = Path(__file__).resolve().parents[2] / "data" / "webhooks"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
ANA = UserRef(wa_id="5511900000001", user_id="BR.00000000000000000001")
OPAQUE = "00000000000000000000000000000abc"

KINDS = {
    "account_quality_warning": ["number.warned"],
    "account_restriction_in_an_array": ["number.restricted"],
    "account_settings": ["number.settings"],
    "account_settings_upper_case": ["number.settings"],
    "batch": ["call.offered", "call.offered", "permission.reply", "call.terminated"],
    "capability_update": ["field.other"],
    "connect_business_initiated": ["call.answered"],
    "connect_business_initiated_no_direction": ["call.answered"],
    "connect_user_initiated": ["call.offered"],
    "connect_user_initiated_from_and_to_swapped": ["call.offered"],
    "connect_user_initiated_no_contacts": ["call.offered"],
    "connect_user_initiated_no_direction": ["call.offered"],
    "connect_user_initiated_timestamp_integer": ["call.offered"],
    "connect_user_initiated_username_only": ["call.offered"],
    "message_status_delivered": ["statuses.other"],
    "message_text": ["message"],
    "message_voicemail": ["message"],
    "permission_accepted_permanent": ["permission.reply"],
    "permission_accepted_temporary": ["permission.reply"],
    "permission_after_users_call": ["permission.reply"],
    "permission_declined": ["permission.reply"],
    "permission_expiration_integer": ["permission.reply"],
    "permission_granted_from_profile": ["permission.reply"],
    "permission_reply_without_type": ["permission.reply"],
    "permission_revoked_by_meta": ["permission.reply"],
    "recording_available": ["calls.other"],
    "status_accepted": ["call.accepted"],
    "status_rejected": ["call.rejected"],
    "status_ringing": ["call.ringing"],
    "terminate_completed": ["call.terminated"],
    "terminate_failed_errors_beside": ["call.terminated"],
    "terminate_failed_errors_in_both_places": ["call.terminated"],
    "terminate_no_direction": ["call.terminated"],
    "terminate_status_list": ["call.terminated"],
    "terminate_status_unknown": ["call.terminated"],
    "terminate_unanswered": ["call.terminated"],
    "transcription_available": ["calls.other"],
}


def payload(name: str) -> bytes:
    return (DATA / f"{name}.json").read_bytes()


def read(name: str) -> Any:
    (event,) = read_delivery(payload(name))
    return event


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def calls(*items: Any, **value: Any) -> list[ev.Event]:
    """Read a delivery of the given `calls[]`."""
    metadata = {"phone_number_id": "200000000000002"}
    change = {"field": "calls", "value": {"metadata": metadata, "calls": list(items), **value}}
    return read_delivery(orjson.dumps({"entry": [{"id": "1", "changes": [change]}]}))


def connect(**changes: Any) -> dict[str, Any]:
    call: dict[str, Any] = orjson.loads(payload("connect_user_initiated"))["entry"][0]["changes"][0]["value"]["calls"][
        0
    ]
    return {name: value for name, value in {**call, **changes}.items() if value is not None}


def test_every_payload_is_expected() -> None:
    assert list(KINDS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_of_metas_is_read_as_what_it_is(name: str) -> None:
    events = read_delivery(payload(name))
    assert [event.kind for event in events] == KINDS[name]
    for event in events:
        is_kept(event)


def is_kept(event: ev.Event) -> None:
    """Hold an event against what the journal needs."""
    assert event.dedupe_key
    assert len(event.dedupe_key) < 1_000
    assert "\0" not in event.dedupe_key + event.number_id + event.kind
    orjson.loads(event.body)


# --- calls -------------------------------------------------------------------------------------------


def test_a_users_call_carries_who_calls_and_the_offer() -> None:
    event = read("connect_user_initiated")
    assert isinstance(event, ev.CallOffered)
    assert (event.number_id, event.meta_call_id) == ("200000000000002", "wacid.EXAMPLEUIC0001=")
    assert (event.user, event.user_name, event.at) == (ANA, "Ana", at(1790000000))
    assert event.sdp.startswith("v=0\r\n")
    assert event.dedupe_key == "calls/wacid.EXAMPLEUIC0001=/connect"


def test_a_user_with_a_username_has_no_number() -> None:
    assert read("connect_user_initiated_username_only").user == UserRef(user_id=ANA.user_id)


def test_a_call_without_contacts_has_no_name() -> None:
    event = read("connect_user_initiated_no_contacts")
    assert (event.user, event.user_name) == (ANA, None)


def test_a_timestamp_may_be_a_number() -> None:
    assert read("connect_user_initiated_timestamp_integer").at == at(1790000000)


def test_a_missing_direction_is_told_by_the_sdp() -> None:
    assert isinstance(read("connect_user_initiated_no_direction"), ev.CallOffered)
    assert isinstance(read("connect_business_initiated_no_direction"), ev.CallAnswered)


def test_a_sample_with_from_and_to_swapped_does_not_mix_two_people() -> None:
    """Real traffic has the user in `from`; the contact of somebody else lends its number to nobody."""
    event = read("connect_user_initiated_from_and_to_swapped")
    assert event.user == UserRef(wa_id="15550100001", user_id=ANA.user_id)
    assert event.user_name is None


def test_the_answer_to_our_call_is_no_pick_up() -> None:
    event = read("connect_business_initiated")
    assert isinstance(event, ev.CallAnswered)
    assert (event.opaque, event.meta_call_id) == (OPAQUE, "wacid.EXAMPLEBIC0001")


@pytest.mark.parametrize("status", ["ringing", "accepted", "rejected"])
def test_a_status_names_our_call(status: str) -> None:
    event = read(f"status_{status}")
    assert (event.status, event.opaque) == (status.upper(), OPAQUE)
    assert event.dedupe_key == f"statuses/wacid.EXAMPLEBIC0001/{status.upper()}"


def test_a_terminate_of_a_conversation_has_metas_figures() -> None:
    event = read("terminate_completed")
    assert isinstance(event, ev.CallTerminated)
    assert (event.direction, event.user) == (Direction.USER_INITIATED, UserRef(wa_id="5511900000001"))
    assert (event.start_at, event.end_at, event.duration_s) == (at(1790000010), at(1790000140), 130)
    assert (event.status, event.error, event.opaque) == ("COMPLETED", None, OPAQUE)


def test_completed_is_not_answered() -> None:
    event = read("terminate_unanswered")
    assert (event.status, event.start_at, event.duration_s) == ("COMPLETED", None, None)
    assert event.user == UserRef(wa_id="5511900000001")  # `to`: the call was ours


def test_a_status_may_stand_in_a_list() -> None:
    assert read("terminate_status_list").status == "FAILED"
    (event,) = calls(connect(event="terminate", status=[]))
    assert isinstance(event, ev.CallTerminated)
    assert event.status is None


def test_a_status_that_nobody_knows_ends_the_call_all_the_same() -> None:
    assert read("terminate_status_unknown").status == "REJECTED"


def test_without_a_direction_nobody_is_named() -> None:
    event = read("terminate_no_direction")
    assert (event.direction, event.user) == (None, None)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("terminate_failed_errors_in_both_places", "(138021) No media for a long time."),
        ("terminate_failed_errors_beside", "(138020) Could not reach the relay"),
    ],
)
def test_an_error_is_found_in_either_place(name: str, error: str) -> None:
    event = read(name)
    assert (event.status, event.error) == ("FAILED", error)


@pytest.mark.parametrize("errors", ["oops", [5], [{"code": "x"}], {"code": []}, [{"message": "no code"}]])
def test_a_terminate_is_not_lost_for_an_unreadable_error(errors: Any) -> None:
    (event,) = calls(connect(event="terminate", errors=errors))
    assert isinstance(event, ev.CallTerminated)
    assert event.error is None


def test_a_terminate_that_names_nobody_is_still_a_terminate() -> None:
    (event,) = calls({"id": "wacid.1", "event": "terminate", "timestamp": "1790000000", "direction": "USER_INITIATED"})
    assert isinstance(event, ev.CallTerminated)
    assert event.user is None


# --- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "accepted", "permanent", "expires", "automatic", "request_id"),
    [
        ("accepted_temporary", True, False, 1790604800, False, "wamid.EXAMPLEREQUEST"),
        ("accepted_permanent", True, True, None, False, "wamid.EXAMPLEREQUEST"),
        ("granted_from_profile", True, True, None, False, None),
        ("declined", False, False, None, False, "wamid.EXAMPLEREQUEST"),
        ("after_users_call", True, False, 1790604800, True, "wacid.EXAMPLEUIC0001="),
        ("revoked_by_meta", False, False, None, True, None),
        ("expiration_integer", True, False, 1790604800, False, "wamid.EXAMPLEREQUEST"),
        ("reply_without_type", True, False, 1790604800, False, "wamid.EXAMPLEREQUEST"),
    ],
)
def test_each_row_of_metas_table_of_replies(
    name: str, accepted: bool, permanent: bool, expires: int | None, automatic: bool, request_id: str | None
) -> None:
    event = read(f"permission_{name}")
    assert isinstance(event, ev.PermissionReply)
    assert (event.accepted, event.permanent, event.automatic) == (accepted, permanent, automatic)
    assert event.expires_at == (at(expires) if expires else None)
    assert (event.request_id, event.user) == (request_id, ANA)


def test_an_answer_that_is_neither_yes_nor_no_takes_no_permission_away() -> None:
    body = payload("permission_declined").replace(b'"reject"', b'"maybe"')
    assert [event.kind for event in read_delivery(body)] == ["messages.other"]


def test_a_voicemail_does_not_repeat_its_call() -> None:
    assert read("message_voicemail").dedupe_key == "messages/wacid.EXAMPLEUIC0001="


# --- who ---------------------------------------------------------------------------------------------


def test_each_call_of_a_batch_finds_its_own_contact() -> None:
    first, second, *_ = read_delivery(payload("batch"))
    assert isinstance(first, ev.CallOffered)
    assert isinstance(second, ev.CallOffered)
    assert (first.user, first.user_name) == (ANA, "Ana")
    assert second.user == UserRef(wa_id="5511900000002", user_id="BR.00000000000000000009")
    assert second.user_name == "Bia"


def test_the_events_of_a_batch_keep_their_order_and_their_numbers() -> None:
    numbers = [event.number_id for event in read_delivery(payload("batch"))]
    assert numbers == ["200000000000002"] * 3 + ["200000000000003"]


def contacts(*entries: dict[str, Any]) -> Any:
    (event,) = calls(connect(from_user_id=None), contacts=list(entries))
    return event


def test_a_contact_lends_what_the_call_leaves_out() -> None:
    assert contacts({"wa_id": "5511900000001", "user_id": "BR.7"}).user.user_id == "BR.7"


def test_a_plus_in_a_contact_is_not_part_of_the_number() -> None:
    event = contacts({"wa_id": "+5511900000001", "user_id": "BR.7"}, {"wa_id": "+5511900000002"})
    assert event.user == UserRef(wa_id="5511900000001", user_id="BR.7")


def test_somebody_elses_contact_lends_nothing() -> None:
    event = contacts({"wa_id": "5511900000002", "user_id": "BR.8", "profile": {"name": "Bia"}})
    assert (event.user, event.user_name) == (UserRef(wa_id="5511900000001"), None)


def test_of_several_contacts_that_name_nobody_none_is_taken() -> None:
    event = contacts({"profile": {"name": "Ana"}}, {"profile": {"name": "Bia"}})
    assert (event.user, event.user_name) == (UserRef(wa_id="5511900000001"), None)


@pytest.mark.parametrize("contact", [5, None, {"wa_id": "not a number"}, {"profile": {"name": "x" * 5_000}}])
def test_an_unreadable_contact_does_not_cost_the_call(contact: Any) -> None:
    assert isinstance(contacts(contact), ev.CallOffered)


# --- what is kept only -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": ""},
        {"id": "x" * 513},
        {"id": "wacid.\0"},
        {"id": "wacid.é"},
        {"timestamp": "soon"},
        {"timestamp": "-1"},
        {"timestamp": "1"},
        {"timestamp": "1577836799"},
        {"timestamp": "4102444801"},
        {"timestamp": 10**18},
        {"timestamp": 1e300},
        {"timestamp": True},
        {"from": "ana"},
        {"from": None, "from_user_id": None},
        {"from_user_id": "BR.\0"},
        {"event": "terminate", "duration": 2**31},
        {"event": "terminate", "start_time": "12"},
        {"session": {"sdp_type": "offer"}},
        {"session": "v=0"},
    ],
)
def test_a_call_that_cannot_be_read_is_kept_as_it_came(changes: dict[str, Any]) -> None:
    call = connect() | changes
    (event,) = calls(call)
    assert isinstance(event, ev.UnknownEvent)
    assert (event.kind, event.number_id) == ("calls.unreadable", "200000000000002")
    assert orjson.loads(event.body) == call


@pytest.mark.parametrize("call", [5, "x", [], None])
def test_an_element_that_is_no_call_does_not_disturb_the_next(call: Any) -> None:
    kinds = [event.kind for event in calls(call, connect())]
    assert kinds == ["calls.unreadable", "call.offered"]


def test_a_connect_without_sdp_is_kept() -> None:
    (event,) = calls(connect(session=None))
    assert event.kind == "calls.other"


def test_a_call_that_stands_without_its_list_is_a_call() -> None:
    metadata = {"phone_number_id": "200000000000002"}
    value = {"field": "calls", "value": {"metadata": metadata, "calls": connect()}}
    (event,) = read_delivery(orjson.dumps({"entry": {"changes": value}}))
    assert isinstance(event, ev.CallOffered)


@pytest.mark.parametrize("number_id", [None, 5, ["2"], "", "2" * 33, "2\0", "2\n", "../2"])
def test_a_number_id_that_is_none_is_empty(number_id: Any) -> None:
    (event,) = calls(connect(), metadata={"phone_number_id": number_id})
    assert event.number_id == ""


@pytest.mark.parametrize("field", [[], {}, None, 5, "x" * 100_000, "security"])
def test_a_metric_label_comes_from_a_closed_set(field: Any) -> None:
    body = orjson.dumps({"entry": [{"changes": [{"field": field, "value": {}}]}]})
    assert [event.kind for event in read_delivery(body)] == ["field.other"]


def test_nothing_beside_a_readable_change_is_lost() -> None:
    good = {"field": "calls", "value": {"calls": [connect()]}}
    body = orjson.dumps([{"entry": [{"changes": [good, 1]}, 2, {"id": "3"}]}, 4, {"entry": []}])
    kept = [orjson.loads(event.body) for event in read_delivery(body)]
    assert kept == [connect(), 1, 2, {"id": "3"}, 4, {"entry": []}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"entry": NaN}',
        b'{"entry": Infinity}',
        b'{"entry": 1e999}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"entry":[{"changes":[{"field":"calls","value":' + b"[" * 900 + b"]" * 900 + b"}]}]}",
        b'{"entry":[{"changes":[{"field":"x","value":{"metadata":' + b"[" * 900 + b"]" * 900 + b"}}]}]}",
        b'{"a":"\\ud8',
        b"x" * 3_000_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_no_json_of_ours_is_kept_as_text(body: bytes) -> None:
    (event,) = read_delivery(body)
    assert event.kind == "malformed"
    assert orjson.loads(event.body) == body.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("body", [b"null", b"5", b'"x"', b"{}", b'{"entry": {}}', b'{"entry": [[]]}'])
def test_json_without_a_change_is_kept(body: bytes) -> None:
    (event,) = read_delivery(body)
    assert event.kind == "field.other"


def test_the_same_unknown_has_the_same_key() -> None:
    assert read("capability_update").dedupe_key == read("capability_update").dedupe_key
    assert read("account_settings").dedupe_key != read("account_settings_upper_case").dedupe_key


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (rb"Ana \ud83d", "Ana \ufffd"),
        (rb"\ude00Ana", "\ufffdAna"),
        (rb"\ud83d\ude00 \ud83d", "\U0001f600 \ufffd"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (rb"\u00e3\n\ud83dx", "ã\n\ufffdx"),
    ],
)
def test_half_an_emoji_in_a_name_does_not_cost_the_call(written: bytes, name: str) -> None:
    body = payload("connect_user_initiated").replace(b'"name": "Ana"', b'"name": "' + written + b'"')
    (event,) = read_delivery(body)
    assert isinstance(event, ev.CallOffered)
    assert event.user_name == name


def test_of_a_key_twice_the_last_counts() -> None:
    body = payload("connect_user_initiated").replace(b'"event": "connect"', b'"event": "x", "event": "connect"')
    (event,) = read_delivery(body)
    assert isinstance(event, ev.CallOffered)


def test_a_thousand_events_of_3_mb_are_read() -> None:
    events = calls(*(connect(id=f"wacid.{n}", cta_payload="x" * 2_500) for n in range(1_000)))
    assert {type(event) for event in events} == {ev.CallOffered}
    assert len({event.dedupe_key for event in events}) == 1_000


# --- anything ----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["entry", "changes", "field", "value", "calls", "statuses", "messages", "contacts", "id"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


def is_total(body: bytes) -> None:
    events = read_delivery(body)
    assert events
    for event in events:
        is_kept(event)


@given(st.binary(max_size=300))
def test_any_bytes_are_kept(body: bytes) -> None:
    is_total(body)


@given(JSON.filter(lambda value: "\\ud" not in ascii(value)))
def test_any_json_is_kept(value: Any) -> None:
    is_total(orjson.dumps(value))


@given(st.sampled_from(NAMES), st.data())
def test_a_payload_with_another_value_somewhere_is_kept(name: str, data: st.DataObject) -> None:
    document = orjson.loads(payload(name))
    places = list(_places(document))
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(JSON.filter(lambda value: "\\ud" not in ascii(value)))
    is_total(orjson.dumps(document))


@given(st.sampled_from(NAMES), st.data())
def test_a_payload_with_broken_bytes_is_kept(name: str, data: st.DataObject) -> None:
    body = bytearray(payload(name))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    is_total(bytes(body))


def _places(value: Any) -> Any:
    """Yield every (container, key) in a document."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
