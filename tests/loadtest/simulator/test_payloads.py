"""What the webhooks carry, against the fields that Meta documents."""

import json
from typing import Any

import pytest

from loadtest.simulator import payloads
from loadtest.simulator.config import NumberSpec, UserSpec
from loadtest.simulator.payloads import CallEnd, CallFacts, Direction, PermissionReply

USER = UserSpec(wa_id="5511900000001", name="João")
HIDDEN = UserSpec(wa_id="5511900000001", name="Ana", hides_number=True)
NUMBER = NumberSpec()
AT = 1_790_000_000.7


def facts(direction: Direction = Direction.USER_INITIATED, **more: Any) -> CallFacts:
    values: dict[str, Any] = {"id": "wacid.X", "direction": direction, "number": NUMBER, "user": USER}
    return CallFacts(**values | more)


@pytest.mark.parametrize(
    ("body", "digest"),
    [
        (
            b'{"object":"whatsapp_business_account","entry":[]}',
            "dec6a680679a968e7e0319355b23599cbfc54502c0784668e9618baa0c633756",
        ),
        (
            b'{"object": "whatsapp_business_account", "entry": []}',
            "56cbbaf4961c6cfdae48b7f116c047e5eb513d2c931baae63a2bc1afd26f803a",
        ),
        (
            '{"name":"João"}'.encode(),
            "32d5397dbff8bbedee87eb4bf5a7a0d313fa8b79c91474115bf46992c3c73dfd",
        ),
        (
            b'{"name":"Jo\\u00e3o"}',
            "45a771be8d1660113853f95de824b7bf3a07aea0d4e1373fb104cc8ab84f819b",
        ),
    ],
)
def test_the_signature_covers_the_raw_bytes(body: bytes, digest: str) -> None:
    assert payloads.signature(body, "test_app_secret") == f"sha256={digest}"


def test_a_users_call_comes_as_an_offer() -> None:
    change = payloads.connect(facts(cta_payload="order-42", deeplink_payload="spring"), "v=0\r\n", AT)
    assert change["field"] == "calls"
    value = change["value"]
    assert value["messaging_product"] == "whatsapp"
    assert value["metadata"] == {
        "display_phone_number": "551155550100",
        "phone_number_id": "200000000000002",
    }
    assert value["contacts"] == [{"profile": {"name": "João"}, "user_id": USER.user_id, "wa_id": "5511900000001"}]
    assert value["calls"] == [
        {
            "id": "wacid.X",
            "from": "5511900000001",
            "from_user_id": USER.user_id,
            "to": "551155550100",
            "event": "connect",
            "timestamp": "1790000000",
            "direction": "USER_INITIATED",
            "deeplink_payload": "spring",
            "cta_payload": "order-42",
            "session": {"sdp_type": "offer", "sdp": "v=0\r\n"},
        }
    ]


def test_a_business_call_comes_as_an_answer() -> None:
    change = payloads.connect(facts(Direction.BUSINESS_INITIATED, biz_opaque_callback_data="t"), "v=0\r\n", AT)
    call = change["value"]["calls"][0]
    assert (call["from"], call["to"], call["to_user_id"]) == ("551155550100", "5511900000001", USER.user_id)
    assert call["session"]["sdp_type"] == "answer"
    assert call["biz_opaque_callback_data"] == "t"


def test_times_and_duration_only_of_an_answered_call() -> None:
    unanswered = CallEnd(failed=False, started_at=None, ended_at=AT)
    call = payloads.terminate(facts(), unanswered)["value"]["calls"][0]
    assert call["status"] == "COMPLETED"
    assert not {"start_time", "end_time", "duration", "errors"} & set(call)
    answered = CallEnd(failed=False, started_at=AT - 130, ended_at=AT)
    call = payloads.terminate(facts(), answered)["value"]["calls"][0]
    assert (call["start_time"], call["end_time"], call["duration"]) == ("1789999870", "1790000000", 130)


def test_a_failed_call_carries_its_errors_twice() -> None:
    value = payloads.terminate(facts(), CallEnd(failed=True, started_at=None, ended_at=AT, error_code=138021))["value"]
    assert value["calls"][0]["status"] == "FAILED"
    assert value["errors"] == value["calls"][0]["errors"]
    assert value["errors"][0]["code"] == 138021


def test_a_status_names_the_recipient() -> None:
    status = payloads.call_status(facts(Direction.BUSINESS_INITIATED), "RINGING", AT)["value"]["statuses"][0]
    assert status == {
        "id": "wacid.X",
        "type": "call",
        "status": "RINGING",
        "timestamp": "1790000000",
        "recipient_user_id": USER.user_id,
        "recipient_id": "5511900000001",
    }


@pytest.mark.parametrize("direction", list(Direction))
def test_a_user_with_a_username_has_no_number_anywhere(direction: Direction) -> None:
    hidden = facts(direction, user=HIDDEN)
    end = CallEnd(failed=False, started_at=None, ended_at=AT)
    changes = [
        payloads.connect(hidden, "v=0", AT),
        payloads.terminate(hidden, end),
        payloads.call_status(hidden, "RINGING", AT),
        payloads.text_message(NUMBER, HIDDEN, "wamid.X", "hi", AT),
        payloads.message_status(NUMBER, HIDDEN, "wamid.X", "sent", AT),
    ]
    text = json.dumps(changes).replace(HIDDEN.user_id, "")
    assert HIDDEN.wa_id not in text
    assert HIDDEN.user_id in json.dumps(changes)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            PermissionReply(accept=True, automatic=False, expires_at=AT + 5),
            {
                "response": "accept",
                "is_permanent": False,
                "expiration_timestamp": "1790000005",
                "response_source": "user_action",
            },
        ),
        (
            PermissionReply(accept=True, automatic=False, permanent=True),
            {"response": "accept", "is_permanent": True, "response_source": "user_action"},
        ),
        (
            PermissionReply(accept=False, automatic=True),
            {"response": "reject", "response_source": "automatic"},
        ),
    ],
)
def test_a_permission_reply_has_the_documented_members(reply: PermissionReply, expected: dict[str, Any]) -> None:
    message = payloads.permission_reply(NUMBER, USER, "wamid.Y", reply, AT)["value"]["messages"][0]
    assert message["type"] == "interactive"
    assert message["interactive"] == {"type": "call_permission_reply", "call_permission_reply": expected}
    assert "context" not in message


def test_a_reply_names_the_request_it_answers() -> None:
    reply = PermissionReply(accept=False, automatic=False, context_id="wamid.REQ")
    message = payloads.permission_reply(NUMBER, USER, "wamid.Y", reply, AT)["value"]["messages"][0]
    assert message["context"] == {"from": "551155550100", "id": "wamid.REQ"}
