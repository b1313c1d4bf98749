"""Logging: one line per event, with phone numbers masked and without secrets.

`mask_text` and `mask` are also used for Meta's error texts, which may echo what we sent.

Theory of operation: every line, ours or a library's (`logging`), passes through the same chain of processors and is
masked just before it becomes text, so no call site has to think of it. A value is masked because of its key
(`SECRET_KEYS`), because it is one of our own secrets (`hide_values`), because it matches `_PATTERN`, or, if it is not a
plain value, because its `repr` does. When in doubt, too much is masked. Meta's call and message ids are shortened as
well: their base64 contains the user's number.

Most values are short and repeat, so their masked form is cached until the secrets change.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Final, TextIO

import orjson
import stamina.instrumentation
import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import EventDict, Processor, WrappedLogger

from gateway.common.clock import Clock, SystemClock

HIDDEN: Final = "[hidden]"
SDP_HIDDEN: Final = "[sdp hidden]"
DOTS: Final = "•" * 7  #: always the same count, because the length of a number reveals something

#: Keys whose value is never shown, by the last word of the key.
SECRET_KEYS: Final = frozenset(
    {"sdp", "token", "tokens", "secret", "secrets", "ticket", "key", "keys", "resume"}
    | {"authorization", "pwd", "password", "cookie", "signature"}
)
#: Keys that end in such a word but do not hold a secret.
_HARMLESS_KEYS: Final = frozenset({"dedupe_key", "idempotency_key"})
#: Keys that hold Meta's id of a business number, which only looks like a phone number.
_NUMBER_ID_KEYS: Final = frozenset({"number", "number_id", "phone_number_id"})

_MAX_READ: Final = 65_536  #: characters of a text that are examined; the rest is dropped
_MAX_TEXT: Final = 8_192  #: characters of a text that are shown, from its beginning and its end
_MAX_DEPTH: Final = 6
_MAX_ITEMS: Final = 100
_MAX_REMEMBERED: Final = 4_096  #: cached values
_MAX_REMEMBERED_TEXT: Final = 128  #: characters of a value that is cached

#: Country codes of two digits; 1 and 7 have one, all others three (ITU-T E.164, list of assigned codes).
_TWO_DIGIT_CODES: Final = frozenset(
    {"20", "27", "36", "39", "40", "41", "81", "82", "84", "86", "98"}
    | {
        str(code)
        for first, last in ((30, 34), (43, 49), (51, 58), (60, 66), (90, 95))
        for code in range(first, last + 1)
    }
)

# Ten digits that begin with 1 are a Unix time: numbers of country code 1 have eleven digits.
_SDP: Final = re.compile(r"v=0(?:\\+[rn]|\s).*", re.DOTALL)
_SDP_LINE: Final = re.compile(r"a=(?:ice-pwd|ice-ufrag|fingerprint|crypto|candidate):[^\r\n\\]*")
_PATTERN: Final = re.compile(
    r"""
      (?P<ours>\b[0-9a-f]{32}\b|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b)
    | (?P<login>(?<=://)[^/\s@]+(?=@))
    | (?P<scheme>\b(?:bearer|basic)\s+)[^\s"',;]+
    | (?P<meta>(?-i:\bEAA)[0-9A-Za-z]{16,})
    | (?P<named>["']?\b\w*(?:token|secret|ticket|password|pwd|_key|authorization)["']?\s?[=:]\s?(?:b?["'])?)
      (?P<scheme2>(?:bearer|basic)\s+)?[^\s"'&,;)}]+
    | (?P<wa>\bwa[cm]id\.)[\w+/=.-]+
    | (?P<bsuid>(?-i:\b[A-Z]{2}\.))(?:ENT\.)?(?=[A-Za-z]*\d)[0-9A-Za-z]{8,}
    | (?P<plus>\+\d(?:[\s().-]{0,2}\d){6,14}(?!\d))
    | (?P<local>\(\d{2,4}\)\s?\d{3,5}[\s.-]?\d{3,4}(?!\d))
    | (?P<digits>(?<!\d)(?<!\d\.)(?!1\d{9}(?!\d))\d{8,15}(?!\d))
    """,
    re.VERBOSE | re.IGNORECASE,
)
#: A quick check: a text without any of these matches none of the patterns above. Most texts have none.
_SUSPECT: Final = re.compile(
    r"v=0|a=|\d[\d\s().-]{6}|://|bearer|basic|EAA|token|secret|ticket|password|pwd|_key|authorization"
    r"|wa[cm]id|[A-Z]{2}\.",
    re.IGNORECASE,
)


#: Matches our own secrets, which may have any form; None: none are known.
_OURS: re.Pattern[str] | None = None
#: A shorter secret is not hidden, because it could be an ordinary word.
_SHORTEST_SECRET: Final = 6


# --- masking -------------------------------------------------------------------------------------


def hide_values(secrets: Iterable[str]) -> None:
    """Hide these secrets in all texts from now on, instead of those given before. Applies to the whole process."""
    global _OURS, _remembered
    found = sorted({re.escape(secret) for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)
    _OURS = re.compile("|".join(found)) if found else None
    _remembered = lru_cache(_MAX_REMEMBERED)(_mask_string)  # a new cache, after `_OURS` is set


def mask_number(digits: str) -> str:
    """Keep the country code and the last two digits of an E.164 number: `55•••••••01`."""
    size = 1 if digits[0] in "17" else 2 if digits[:2] in _TWO_DIGIT_CODES else 3
    return f"{digits[:size]}{DOTS}{digits[-2:]}"


def mask_text(text: str) -> str:
    """Return the text without phone numbers, BSUIDs, tokens, passwords and SDP; a long text loses its middle."""
    if len(text) > _MAX_READ:
        text = text[:_MAX_READ].rstrip("+0123456789 ().-")
    if not text.isascii():  # lone surrogates, which no output can encode
        text = text.encode(errors="replace").decode()
    if _OURS is not None:
        text = _OURS.sub(HIDDEN, text)
    if _SUSPECT.search(text):
        if "v=0" in text:
            text = SDP_HIDDEN if text.lstrip().startswith("v=0") else _SDP.sub(SDP_HIDDEN, text)
        text = _PATTERN.sub(_replace, _SDP_LINE.sub(SDP_HIDDEN, text))
    if len(text) > _MAX_TEXT:
        text = f"{text[: _MAX_TEXT // 2]} … {text[-_MAX_TEXT // 2 :]}"
    return text


def _replace(found: re.Match[str]) -> str:
    kind, text = found.lastgroup, found[0]
    if kind == "ours":
        return text
    if kind in {"scheme", "named", "scheme2"}:
        return (found["scheme"] or found["named"]) + HIDDEN
    if kind in {"login", "meta"}:
        return HIDDEN
    if kind in {"wa", "bsuid"}:
        keep = 8 if kind == "wa" else 2
        return f"{found[kind]}{DOTS}{text[-keep:]}" if len(text) > keep + 8 else f"{found[kind]}{DOTS}"
    if kind == "local":
        return DOTS + text[-2:]
    return ("+" if kind == "plus" else "") + mask_number(re.sub(r"\D", "", text))


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    last = re.split(r"[-_. ]", key.lower())[-1]
    return last in SECRET_KEYS and key.lower() not in _HARMLESS_KEYS


def mask(key: str, value: Any, depth: int = 0) -> Any:
    """Return the masked form of a value that is logged under a key, as plain JSON values."""
    if type(value) is str and len(value) <= _MAX_REMEMBERED_TEXT:  # a subclass may define equality differently
        return _remembered(key, value)
    if _is_secret(key):
        return None if value is None else HIDDEN
    if isinstance(value, str):
        return _mask_string(key, value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 10**10 else mask_text(str(value))  # a shorter int is a count, not a number
    return _mask_compound(key, value, depth)


def _mask_string(key: str, value: str) -> str:
    if _is_secret(key):
        return HIDDEN
    if key in _NUMBER_ID_KEYS and value.isdecimal() and len(value) >= 14:
        return str(value)
    return mask_text(value)


_remembered = lru_cache(_MAX_REMEMBERED)(_mask_string)


def _mask_compound(key: str, value: Any, depth: int) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        pairs = list(value.items())[:_MAX_ITEMS]
        return {mask_text(str(k)): mask(str(k), v, depth + 1) for k, v in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask(key, item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    return mask_text(repr(value))


# --- the chain -----------------------------------------------------------------------------------


def _mask_event(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    shown: EventDict = {"at": event_dict.pop("at"), "level": event_dict.pop("level")}
    shown["event"] = mask("event", event_dict.pop("event", ""))
    for key, value in event_dict.items():
        shown[key] = mask(key, value)
    return shown


def _stamp(clock: Clock) -> Processor:
    def stamp(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        event_dict["at"] = clock.now().isoformat(timespec="milliseconds")
        return event_dict

    return stamp


def _render_json(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> str:
    return orjson.dumps(event_dict).decode()


def _render_console(_logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
    event_dict["timestamp"] = event_dict.pop("at")[11:23]  # only the time, not the date
    return str(_CONSOLE(None, method, event_dict))


_CONSOLE: Final = structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)


def configure_logging(
    *,
    level: str = "info",
    log_format: str = "auto",
    stream: TextIO | None = None,
    clock: Clock | None = None,
    secrets: Iterable[str] = (),
) -> None:
    """Send all logs of this process, ours and the libraries', to one stream. May be called again.

    `secrets`: our own secrets, which are hidden in all texts.
    `log_format`: `json`, `console`, or `auto`, which is coloured text on a terminal and JSON lines elsewhere.
    """
    hide_values(secrets)
    out = stream or sys.stdout
    console = log_format == "console" or (log_format == "auto" and out.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _stamp(clock or SystemClock()),
        structlog.processors.format_exc_info,
    ]
    render: list[Processor] = [_mask_event, _render_console if console else _render_json]
    writer = structlog.WriteLogger(out)  # a shared one: every line asks for a logger
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    _route_stdlib(out, number, shared, render)
    stamina.instrumentation.set_on_retry_hooks([_log_retry])


def _route_stdlib(out: TextIO, level: int, shared: list[Processor], render: list[Processor]) -> None:
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    logging.getLogger("aiohttp.server").addFilter(_shorten_bad_request)  # adding it again has no effect


def _shorten_bad_request(record: logging.LogRecord) -> bool:
    """Turn aiohttp's error and traceback for a malformed HTTP request into one info line: it is the client's fault."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "request_unreadable", ()
        record.exc_info = record.exc_text = None
    return record.levelno >= logging.getLogger().level


def _log_retry(details: stamina.instrumentation.RetryDetails) -> None:
    structlog.get_logger().info("graph_retry", op=details.name, tries=details.retry_num, error=str(details.caused_by))
