import re
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.common.errors import GraphError, GraphRefused, GraphUnreachable
from gateway.meta.error_codes import (
    CODES,
    Answer,
    Who,
    already_accepted,
    already_ended,
    error_from,
    lookup,
    read_json,
)
from policy.reasons import META_CODE, Reason

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TOKEN = "CanaryToken0123456789"


def answer(
    code: int = 138006,
    details: str | None = None,
    *,
    status: int = 400,
    message: str = "(#138006) Refused",
    headers: dict[str, str] | None = None,
    **more: Any,
) -> Answer:
    error: dict[str, Any] = {
        "message": message,
        "type": "OAuthException",
        "code": code,
        "fbtrace_id": "x",
        **more,
    }
    if details is not None:
        error["error_data"] = {"messaging_product": "whatsapp", "details": details}
    return Answer(op="connect", status=status, body={"error": error}, headers=headers or {})


def error_of(given: Answer) -> GraphError:
    error = error_from(given, token=TOKEN, now=NOW)
    assert error is not None
    return error


def refusal_of(given: Answer) -> GraphRefused:
    error = error_of(given)
    assert isinstance(error, GraphRefused)
    return error


# --- the table -----------------------------------------------------------------------------------


def test_every_code_of_the_gates_has_an_entry_with_the_gates_reason() -> None:
    for code in META_CODE.values():
        reason = CODES[code].reason
        assert reason is not None
        assert META_CODE[reason] == code


def test_of_several_reasons_with_one_code_the_plainest_is_said() -> None:
    assert CODES[138006].reason is Reason.NO_PERMISSION


def test_what_helps_at_once_helps_later_as_well() -> None:
    assert [code for code, entry in CODES.items() if entry.transient and not entry.retryable] == []


def test_what_may_have_happened_is_metas_business() -> None:
    assert {code for code, entry in CODES.items() if not entry.definite} == {1, 2, 131000}


def test_no_meaning_is_empty_or_said_twice_for_the_calling_codes() -> None:
    calling = [entry.meaning for code, entry in CODES.items() if code >= 138000]
    assert len(set(calling)) == len(calling)
    assert all(entry.meaning for entry in CODES.values())


@pytest.mark.parametrize("code", [200, 250, 299])
def test_two_hundred_to_two_ninety_nine_are_missing_permissions(code: int) -> None:
    assert lookup(code, 403).who is Who.ADMIN


def test_a_code_in_no_list_is_definite_only_below_500() -> None:
    assert lookup(999_999, 400).definite
    assert not lookup(999_999, 500).definite
    assert not lookup(999_999, 400).retryable


# --- answers -------------------------------------------------------------------------------------


def test_success_is_no_error() -> None:
    given = Answer(op="accept", status=200, body={"success": True}, headers={})
    assert error_from(given, token=TOKEN, now=NOW) is None


def test_a_refusal_carries_code_words_meaning_and_who_must_act() -> None:
    error = refusal_of(answer(138006, "No approved call permission from the recipient", status=401))
    assert (error.code, error.http_status, error.op) == (138006, 401, "connect")
    assert error.public == "Meta refused: (138006) No approved call permission from the recipient"
    assert error.meaning == CODES[138006].meaning
    assert error.who_must_act == "operator"
    assert not error.retryable
    assert not error.maybe_sent


def test_without_details_the_message_speaks() -> None:
    assert refusal_of(answer(100, message="(#100) Invalid parameter")).details == "Invalid parameter"


@pytest.mark.parametrize("data", [None, [], "text", {"details": 5}, {"details": "  "}, 7])
def test_odd_details_do_not_matter(data: object) -> None:
    error = refusal_of(answer(100, message="told", error_data=data))
    assert error.details == ("text" if data == "text" else "told")


@pytest.mark.parametrize("code", ["138006", None, [], 1.5])
def test_an_error_without_a_number_is_still_a_refusal(code: Any) -> None:
    assert refusal_of(answer(code, "told")).code == -1


def test_an_empty_error_is_still_a_refusal() -> None:
    error = refusal_of(Answer(op="accept", status=400, body={"error": {}}, headers={}))
    assert error.public == "Meta refused: (-1) an error code that the gateway does not know"


def test_an_error_in_a_200_is_an_error() -> None:
    assert refusal_of(answer(100, "told", status=200)).code == 100


@pytest.mark.parametrize(("code", "status"), [(1, 500), (2, 503), (131000, 500), (424242, 500)])
def test_a_server_error_that_says_nothing_definite_leaves_the_request_in_doubt(code: int, status: int) -> None:
    error = error_of(answer(code, "Something went wrong", status=status))
    assert isinstance(error, GraphUnreachable)
    assert error.maybe_sent
    assert (error.code, error.http_status, error.status) == (code, status, str(status))
    assert error.public == f"Meta gave no clear answer: HTTP {status}: ({code}) Something went wrong"


@pytest.mark.parametrize(("code", "status"), [(1, 400), (138004, 500), (131016, 500), (138006, 500)])
def test_a_definite_code_is_a_no_whatever_the_status(code: int, status: int) -> None:
    assert not refusal_of(answer(code, status=status)).maybe_sent


@pytest.mark.parametrize(
    ("status", "body", "maybe_sent"),
    [
        (502, None, True),
        (500, {}, True),
        (302, None, True),
        (200, None, True),
        (200, {"success": False}, True),
        (403, None, False),
        (404, {}, False),
        (429, None, False),
    ],
)
def test_an_answer_without_metas_words_says_only_whether_it_came_from_meta(
    status: int, body: dict[str, Any] | None, maybe_sent: bool
) -> None:
    error = error_of(Answer(op="connect", status=status, body=body, headers={}))
    assert isinstance(error, GraphUnreachable)
    assert error.maybe_sent is maybe_sent
    assert error.status == str(status)


def test_is_transient_is_believed() -> None:
    assert refusal_of(answer(100, is_transient=True)).transient
    assert refusal_of(answer(100, is_transient=True)).retryable
    assert not refusal_of(answer(100, is_transient=False)).transient


def test_too_many_requests_are_retryable_whatever_the_code() -> None:
    assert refusal_of(answer(555_555, status=429)).retryable


@pytest.mark.parametrize(
    ("details", "headers", "seconds"),
    [
        ("no more", {}, None),
        ("no more", {"Retry-After": "30"}, 30),
        ("no more", {"Retry-After": "soon"}, None),
        ("no more", {"Retry-After": "9" * 30}, None),
        ("no more", {"X-Business-Use-Case-Usage": '{"1":[{"estimated_time_to_regain_access":5}]}'}, 300),
        ("no more", {"X-Business-Use-Case-Usage": '{"1":[{"estimated_time_to_regain_access":0}]}'}, None),
        ("no more", {"X-Business-Use-Case-Usage": "broken"}, None),
        (f"again at {int(NOW.timestamp()) + 60}.", {}, 60),
        (f"again at {int(NOW.timestamp()) + 60}", {"Retry-After": "90"}, 90),
        ("again at 2026-11-22T12:01:00Z", {}, 60),
        ("again at 2026-11-22 09:01:00-0300", {}, 60),
        ("again at 2026-11-22T11:59:00+00:00", {}, None),
        ("again at 2027-11-22T11:59:00+00:00", {}, None),
        ("again at 2026-99-99T11:59:00+00:00", {}, None),
    ],
)
def test_the_instant_of_the_next_yes_is_read_from_words_and_headers(
    details: str, headers: dict[str, str], seconds: int | None
) -> None:
    expected = None if seconds is None else NOW + timedelta(seconds=seconds)
    assert refusal_of(answer(138012, details, headers=headers)).retry_at == expected


@pytest.mark.parametrize(
    "words",
    [
        f"Malformed access token {TOKEN}",
        "Malformed access token EAACanaryToken0123456789",
        "Bearer CanaryToken0123456789",
        "user 5511900000001 is busy",
        "bad SDP: v=0\r\no=- CanaryToken",
    ],
)
def test_what_meta_echoes_of_ours_does_not_come_through(words: str) -> None:
    for error in (error_of(answer(190, words)), error_of(answer(131000, words, status=500))):
        for text in (str(error), repr(error), error.public):
            assert "CanaryToken" not in text
            assert "900000001" not in text


def test_long_words_are_cut() -> None:
    assert len(refusal_of(answer(100, "x" * 5_000)).details) == 300


# --- settled -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "details",
    [
        "Call has already been terminated",
        "The user already terminated the call",
        "This call is already in progress, completed or failed",
        "Call is no longer active",
        "Call does not exist",
        "Unknown call",
        "Invalid call id",
        "Invalid call_id",
        "the call has ended",
    ],
)
@pytest.mark.parametrize("code", [100, 138004, 138099])
def test_a_call_that_is_over_is_recognised_by_the_words(code: int, details: str) -> None:
    assert already_ended(refusal_of(answer(code, details)))


@pytest.mark.parametrize(
    ("code", "details", "status"),
    [
        (100, "Invalid parameter", 400),
        (100, "SDP validation error", 400),
        (190, "The session has ended", 401),
        (368, "Your account has been terminated", 403),
        (138000, "Calling is no longer enabled", 401),
        (100, "the limit has already been completed", 429),
    ],
)
def test_other_refusals_do_not_mean_that_a_call_is_over(code: int, details: str, status: int) -> None:
    assert not already_ended(refusal_of(answer(code, details, status=status)))


@pytest.mark.parametrize(
    ("details", "heard"),
    [
        ("Call is already accepted", True),
        ("The call is already in progress", True),
        ("The call is ongoing", True),
        ("The call is already in progress, completed or failed", False),
        ("Call was already terminated", False),
        ("Invalid SDP", False),
    ],
)
def test_an_accept_that_was_heard_is_recognised_by_the_words(details: str, heard: bool) -> None:
    assert already_accepted(refusal_of(answer(100, details))) is heard


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[1]", b"1", b'"x"', b"null", b"[" * 5_000, b"\xff", b'{"a":NaN}'])
def test_what_is_no_json_object_is_none(raw: bytes) -> None:
    assert read_json(raw) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
ERROR = st.fixed_dictionaries(
    {},
    optional={
        "code": JSON | st.sampled_from(sorted(CODES)),
        "message": JSON,
        "error_data": JSON | st.fixed_dictionaries({"details": JSON}),
        "is_transient": JSON,
    },
)


@given(st.integers(100, 599), JSON | st.fixed_dictionaries({"error": JSON | ERROR}), st.text())
def test_any_answer_is_an_error_or_a_success_and_never_an_exception(status: int, body: Any, header: str) -> None:
    given = Answer(
        op="connect",
        status=status,
        body=read_json(orjson.dumps(body)),
        headers={"Retry-After": header, "X-Business-Use-Case-Usage": header},
    )
    error = error_from(given, token=TOKEN, now=NOW)
    assert error is None or re.match(r"Meta (refused|gave)", error.public)
    if isinstance(error, GraphRefused):
        already_ended(error)
        already_accepted(error)
