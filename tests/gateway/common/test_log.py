import asyncio
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

import orjson
import pytest
import stamina.instrumentation
import structlog
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.common.ids import CallId, PhoneNumberId, UserRef
from gateway.common.log import (
    HIDDEN,
    SDP_HIDDEN,
    configure_logging,
    hide_values,
    mask,
    mask_number,
    mask_text,
)
from tests.support.fakes.clock import FakeClock

CALL = CallId("0123456789abcdef0123456789abcdef")
NUMBER = PhoneNumberId("200000000000002")
USER = "5511900000001"
SDP = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\na=ice-pwd:CanaryIcePassword\r\na=fingerprint:sha-256 CA:NA:RY\r\n"

#: Nothing of these may ever come out.
CANARIES = (USER, "900000001", "13491208655302741918", "CanaryToken", "CanaryIcePassword", "CA:NA:RY")


# --- our own secrets -----------------------------------------------------------------------------


@pytest.fixture
def own_secrets() -> Iterator[None]:
    hide_values(["plain-words-are-a-key", "plain-words-are-a-key-2", "a.*b(c", "short"])
    yield
    hide_values(())


@pytest.mark.usefixtures("own_secrets")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no plain-words-are-a-key fits", f"no {HIDDEN} fits"),
        ("xplain-words-are-a-key-2x", f"x{HIDDEN}x"),  # the longer one whole
        ("a.*b(c and aaab(c", f"{HIDDEN} and aaab(c"),
        ("in short", "in short"),  # a word like any other
        ("plain words", "plain words"),
    ],
)
def test_our_own_secrets_are_hidden_whatever_they_look_like(text: str, shown: str) -> None:
    assert mask_text(text) == shown
    assert mask("anything", [{"x": text}]) == [{"x": shown}]


def test_what_was_our_secret_is_one_no_more() -> None:
    hide_values(["was-a-secret-once"])
    hide_values(())
    assert mask_text("was-a-secret-once") == "was-a-secret-once"


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("5511900000001", "55•••••••01"),
        ("+5511900000001", "+55•••••••01"),
        ("call from 5511900000001 ended", "call from 55•••••••01 ended"),
        ("tel:+5511900000001;phone-context=x", "tel:+55•••••••01;phone-context=x"),
        ("+55 (11) 90000-0001", "+55•••••••01"),
        ("+55-11-90000-0001, twice", "+55•••••••01, twice"),
        ("(11) 90000-0001", "•••••••01"),
        ("wa5511900000001x", "wa55•••••••01x"),
        ("15550100001", "1•••••••01"),
        ("351900000001", "351•••••••01"),
        ("BR.13491208655302741918", "BR.•••••••18"),
        ("US.ENT.11815799212886844830", "US.•••••••30"),
        ("wacid.HBgLNTUxMTkwMDAwMDAwMVAgASGCAz", "wacid.•••••••AgASGCAz"),
        ("wamid.HBgL", "wamid.•••••••"),
        ("Authorization: Bearer abc.def-1", f"Authorization: {HIDDEN}"),
        ("got bearer abc.def-1 instead", f"got bearer {HIDDEN} instead"),
        ("Malformed access token EAAabcdefghijklmnopqrst", f"Malformed access token {HIDDEN}"),
        ("GET /?hub.verify_token=abc&x=1", f"GET /?hub.verify_token={HIDDEN}&x=1"),
        ('{"access_token": "abc", "x": 1}', f'{{"access_token": "{HIDDEN}", "x": 1}}'),
        ("App(secret='abc', port=1)", f"App(secret='{HIDDEN}', port=1)"),
        ("postgresql://joe:pw@db/x", f"postgresql://{HIDDEN}@db/x"),
        (SDP, SDP_HIDDEN),
        ("  v=0 cut", SDP_HIDDEN),
        (f"bad: {SDP}", f"bad: {SDP_HIDDEN}"),
        (f"bad: {SDP!r}", f"bad: '{SDP_HIDDEN}"),
        ("line a=crypto:1 AES inline:xyz\nnext", f"line {SDP_HIDDEN}\nnext"),
        ("a=candidate:1 1 udp 1 10.0.0.1 5000 typ host", SDP_HIDDEN),
    ],
)
def test_what_must_not_be_read_is_masked(text: str, shown: str) -> None:
    assert mask_text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "call ended",
        "2026-11-22T12:00:00.123+00:00",
        "2026-11-22 12:00:00",
        "127.0.0.1:50000-50999",
        "0.12345678901 s",
        CALL,
        "550e8400-e29b-41d4-a716-446655440000",
        "answer lacks a=fingerprint and a=ice-pwd",
        "http://127.0.0.1:8080/v1/softphone",
        "KeyError: 'x'",
        "(138006) No approved call permission",
        "1234567",
        "at 1790000000",
    ],
)
def test_what_says_nothing_about_anybody_is_left_alone(text: str) -> None:
    assert mask_text(text) == text


def test_a_long_text_loses_its_middle() -> None:
    shown = mask_text("a" * 5_000 + "b" * 5_000)
    assert len(shown) < 8_200
    assert shown.startswith("aaaa")
    assert shown.endswith("bbbb")


def test_a_number_at_the_cut_does_not_come_out_in_part() -> None:
    for shift in range(16):
        text = "x" * (65_536 - shift) + USER
        assert not any(part in mask_text(text) for part in ("551", "900"))


@given(
    st.sampled_from(["1", "7", "55", "44", "351", "598"]),
    st.integers(10**9, 10**10 - 1),
    st.sampled_from(["", "+", "wa_id=", "<", "tel:", "'", "\n", "ü", "_"]),
    st.sampled_from(["", " ", ">", "'", "@s.whatsapp.net", "\n", ", x", "_"]),
)
def test_no_number_survives_whatever_stands_around_it(code: str, rest: int, before: str, after: str) -> None:
    number = f"{code}{rest}"
    shown = mask_text(f"{before}{number}{after}")
    assert number[len(code) : -2] not in shown
    assert shown.startswith(f"{before}{code}")


@given(st.text(max_size=200))
def test_masking_never_fails_and_masking_twice_changes_nothing_more(text: str) -> None:
    once = mask_text(text)
    assert mask_text(once) == once


def test_masked_numbers_are_equally_long() -> None:
    assert len(mask_number("5511900000001")) == len(mask_number("551190000001"))


# --- values --------------------------------------------------------------------------------------


class Word(StrEnum):
    HELLO = "hello"


@dataclass
class Thing:
    user: UserRef
    token: str


@pytest.mark.parametrize(
    "key",
    [
        "sdp",
        "offer_sdp",
        "access_token",
        "app_secret",
        "Authorization",
        "ticket",
        "api_key",
        "ice-pwd",
        "key",
    ],
)
def test_a_key_that_names_a_secret_hides_any_value(key: str) -> None:
    assert mask(key, "plain") == HIDDEN
    assert mask(key, ["plain"]) == HIDDEN


def test_an_absent_secret_is_shown_as_absent() -> None:
    assert mask("ticket", None) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (138006, 138006),
        (1790000000, 1790000000),
        (5511900000001, "55•••••••01"),
        (Word.HELLO, "hello"),
        (b"secret", "<6 bytes>"),
        (datetime(2026, 11, 22, tzinfo=UTC), "2026-11-22T00:00:00+00:00"),
        (date(2026, 11, 22), "2026-11-22"),
        ([USER, 1], ["55•••••••01", 1]),
        ({"to": USER, "token": "x"}, {"to": "55•••••••01", "token": HIDDEN}),
        ({USER: 1}, {"55•••••••01": 1}),
        ({"a": [{"b": (USER,)}]}, {"a": [{"b": ["55•••••••01"]}]}),
        (ValueError(USER), "ValueError('55•••••••01')"),
    ],
)
def test_values_become_plain_and_masked(value: object, shown: object) -> None:
    assert mask("value", value) == shown


def test_an_object_is_masked_by_its_looks() -> None:
    shown = mask("thing", Thing(user=UserRef(wa_id=USER), token="CanaryToken"))
    assert USER not in shown
    assert "CanaryToken" not in shown
    assert "Thing(" in shown


def test_metas_id_of_the_business_number_stays_readable() -> None:
    assert mask("number", NUMBER) == NUMBER
    assert mask("number", USER) == "55•••••••01"
    assert mask("user", NUMBER) != NUMBER


def test_endless_nesting_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "…" in repr(mask("loop", loop))
    assert len(mask("many", list(range(1_000)))) == 100


def test_a_dedupe_key_is_no_secret() -> None:
    assert mask("dedupe_key", "abc") == "abc"


# --- what is remembered --------------------------------------------------------------------------


class Liar(str):
    """Equal to a text that it is not."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("hello")


def test_what_was_shown_is_hidden_once_it_is_our_secret() -> None:
    text = "remembered-words"
    assert (mask("text", text), mask("text", text)) == (text, text)
    hide_values([text])
    assert (mask("text", text), mask("text", f"no {text}"), mask("text", [text])) == (HIDDEN, f"no {HIDDEN}", [HIDDEN])
    hide_values(["another-secret"])
    assert mask("text", text) == text
    hide_values(())


def test_what_is_shown_under_one_key_is_still_hidden_under_another() -> None:
    assert mask("number_id", NUMBER) == NUMBER
    assert mask("user", NUMBER) == "20•••••••02"
    assert mask("number_id", NUMBER) == NUMBER
    assert mask("text", "plain") == "plain"
    assert mask("token", "plain") == HIDDEN
    assert mask("text", "plain") == "plain"


def test_a_text_that_is_equal_to_another_is_still_looked_at() -> None:
    assert mask("text", "hello") == "hello"
    assert mask("text", Liar(f"call {USER}")) == "call 55•••••••01"
    assert mask("text", "hello") == "hello"


def test_a_number_is_masked_however_often_and_among_however_many_others() -> None:
    for number in range(5511900000000, 5511900010000):
        assert mask("user", str(number)) == f"55•••••••{number % 100:02}"
    assert mask("user", "5511900000000") == "55•••••••00"


# --- lines ---------------------------------------------------------------------------------------


@pytest.fixture
def restored() -> Iterator[None]:
    """Give the process its logging back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    stamina.instrumentation.set_on_retry_hooks(None)


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(restored: None) -> Lines:
    out = io.StringIO()
    configure_logging(level="info", stream=out, clock=FakeClock())
    return lambda: [orjson.loads(line) for line in out.getvalue().splitlines()]


def test_an_event_is_one_line_with_what_is_bound(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(call_id=CALL):
        structlog.get_logger().info("call_ended", result="completed", duration_s=12)
    assert lines() == [
        {
            "at": "2026-11-22T12:00:00.000+00:00",
            "level": "info",
            "event": "call_ended",
            "result": "completed",
            "duration_s": 12,
            "call_id": CALL,
        }
    ]


def test_levels_below_the_chosen_one_are_silent(lines: Lines) -> None:
    structlog.get_logger().debug("quiet")
    logging.getLogger("aiohttp").debug("quiet")
    assert lines() == []


def test_a_librarys_log_takes_the_same_way(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(call_id=CALL):
        logging.getLogger("aiohttp.server").error("cannot reach %s", USER)
    (line,) = lines()
    assert line["event"] == "cannot reach 55•••••••01"
    assert line["logger"] == "aiohttp.server"
    assert (line["level"], line["call_id"]) == ("error", CALL)


def test_no_canary_comes_out_by_any_way(lines: Lines) -> None:
    secrets = {
        "to": USER,
        "sdp": SDP,
        "nested": [{"user": "BR.13491208655302741918", "token": "CanaryToken"}],
    }
    log = structlog.get_logger()
    hello = f"hello {USER}"
    log.info(hello, **secrets, thing=Thing(user=UserRef(wa_id=USER), token="CanaryToken"))
    try:
        try:
            raise RuntimeError(f"Bearer CanaryToken for {USER}")
        except RuntimeError as cause:
            raise ValueError(f"cannot parse {SDP!r}") from cause
    except ValueError:
        log.exception("failed", **secrets)
        logging.getLogger("asyncio").exception("Task exception %r", secrets)
    text = repr(lines())
    assert len(lines()) == 3
    assert [canary for canary in CANARIES if canary in text] == []
    assert "RuntimeError" in text


def test_an_exception_keeps_its_traceback(lines: Lines) -> None:
    try:
        raise KeyError("missing")
    except KeyError:
        structlog.get_logger().exception("failed")
        here = traceback.format_exc().splitlines()[1].strip()
    assert here in lines()[0]["exception"]


def test_what_json_cannot_say_does_not_stop_the_line(lines: Lines) -> None:
    structlog.get_logger().info("odd", obj=object(), big=10**30, text="\ud800", nan=float("nan"), keys={1: {2}})
    assert lines()[0]["event"] == "odd"


def test_what_utf_8_cannot_say_does_not_stop_a_terminal(restored: None) -> None:
    out = io.StringIO()
    configure_logging(log_format="console", stream=out)
    structlog.get_logger().info("odd", text="\ud800")
    assert "odd" in out.getvalue().encode().decode()


def test_configuring_twice_does_not_log_twice(restored: None) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(stream=first)
    configure_logging(stream=second)
    logging.getLogger("aiohttp").warning("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "log_format", "is_json"),
    [
        (Terminal(), "auto", False),
        (Terminal(), "json", True),
        (io.StringIO(), "auto", True),
        (io.StringIO(), "console", False),
    ],
)
def test_the_format_follows_the_terminal_unless_told(
    restored: None, stream: io.StringIO, log_format: str, is_json: bool
) -> None:
    configure_logging(log_format=log_format, stream=stream, clock=FakeClock())
    structlog.get_logger().info("hello", to=USER)
    assert stream.getvalue().startswith("{") == is_json
    assert USER not in stream.getvalue()
    assert "12:00:00.000" in stream.getvalue()


def test_a_retry_is_logged_in_our_words(lines: Lines) -> None:
    for attempt in stamina.retry_context(on=ValueError, attempts=2, wait_initial=0, wait_jitter=0).with_name(
        "accept", (), {}
    ):
        with attempt:
            if attempt.num == 1:
                raise ValueError(f"cut {USER}")
    assert lines()[0] | {"at": ""} == {
        "at": "",
        "level": "info",
        "event": "graph_retry",
        "op": "accept",
        "tries": 1,
        "error": "cut 55•••••••01",
    }


async def test_what_is_no_http_is_one_line_and_no_error(lines: Lines) -> None:
    runner = web.AppRunner(web.Application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        writer.write(b"GET / HTTP/1.1\r\nno header\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"400" in await reader.readline()
        writer.close()
        await writer.wait_closed()
    finally:
        await runner.cleanup()
    (line,) = (line for line in lines() if line.get("logger") == "aiohttp.server")
    assert (line["level"], line["event"]) == ("info", "request_unreadable")
    assert "exception" not in line
