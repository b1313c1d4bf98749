"""Meta's error catalogue as data, and the mapping from a Graph API answer to one of our errors. [P]

For each code: what it means, who must act, whether the same request may succeed later (`retryable`) or within a second
(`transient`), whether it is a definite no, and the gate's reason for the same refusal. Only codes decide, never titles.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

import orjson

from gateway.common.errors import GraphError, GraphRefused, GraphUnreachable
from gateway.common.log import HIDDEN, mask_text
from policy.reasons import Reason


class Who(StrEnum):
    """Who can do something about an error."""

    OPERATOR = "operator"  #: the person who dials
    ADMIN = "administrator"  #: the person who manages the settings, here or in Meta's console
    USER = "user"  #: the person on WhatsApp
    GATEWAY = "gateway"  #: the gateway sent a wrong request: a bug
    META = "meta"
    NOBODY = "nobody"  #: only waiting helps


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaCode:
    """One code of Meta's catalogue."""

    meaning: str
    who: Who
    retryable: bool = False
    transient: bool = False  #: may succeed within a second
    definite: bool = True  #: False: Meta itself does not know whether it acted
    reason: Reason | None = None  #: the gate's reason for the same refusal


def _config(meaning: str, reason: Reason | None = None) -> MetaCode:
    return MetaCode(meaning=meaning, who=Who.ADMIN, reason=reason)


def _wait(meaning: str, reason: Reason | None = None, *, transient: bool = False) -> MetaCode:
    return MetaCode(meaning=meaning, who=Who.NOBODY, retryable=True, transient=transient, reason=reason)


def _meta(meaning: str, *, definite: bool = True) -> MetaCode:
    return MetaCode(meaning=meaning, who=Who.META, retryable=True, transient=True, definite=definite)


def _ours(meaning: str) -> MetaCode:
    return MetaCode(meaning=meaning, who=Who.GATEWAY)


def _operator(meaning: str, reason: Reason | None = None, *, retryable: bool = False) -> MetaCode:
    return MetaCode(meaning=meaning, who=Who.OPERATOR, reason=reason, retryable=retryable)


# Source: Meta, "Calling API troubleshooting" (138xxx) and "Error codes" (the rest), read 2026-11-22. Meta's tables do
# not list 138008; clients report it for an SDP that Meta does not accept.
CODES: Final[Mapping[int, MetaCode]] = MappingProxyType(
    {
        0: _config("the access token was not accepted"),
        1: _meta("unknown error at Meta", definite=False),
        2: _meta("Meta's service is down", definite=False),
        3: _config("the app lacks a capability"),
        4: _wait("too many requests from this app"),
        10: _config("the access token lacks a permission"),
        33: _config("the business number was deleted"),
        100: _ours("invalid parameter"),
        190: _config("the access token has expired or was revoked"),
        368: _config("the account is blocked for breaking a policy"),
        613: _wait("too many reads of call permissions", transient=True),
        80007: _wait("too many requests from this WhatsApp Business account"),
        130429: _wait("too many messages from this number", transient=True),
        130472: _operator("the user is part of a Meta experiment and does not get this message"),
        131000: _meta("something went wrong at Meta", definite=False),
        131005: _config("access denied"),
        131008: _ours("a parameter is missing"),
        131009: _ours("a parameter has a wrong value"),
        131016: _meta("Meta's service is unavailable"),
        131021: _operator("the number cannot call itself", Reason.INVALID_USER),
        131026: _operator("the user cannot receive this message"),
        131030: _config("the user is not on the list of recipients of the test number"),
        131031: _config("the account is locked"),
        131042: _config("there is a problem with payment", Reason.NO_PAYMENT),
        131044: _config("there is no valid payment method", Reason.NO_PAYMENT),
        131045: _config("the number is not registered"),
        131047: _operator("the customer service window is closed: use a template", Reason.WINDOW_CLOSED),
        131048: _wait("too many messages from this number were reported as spam"),
        131049: _wait("Meta did not deliver the message, to protect the user from too many"),
        131055: _config("the number is in SIP mode", Reason.SIP_MODE),
        131056: _wait("too many messages to this user in a short time"),
        131057: _wait("the account is in maintenance", transient=True),
        131062: _operator("the user is known only by a user id, which this kind of message does not support"),
        132001: _config("the template does not exist in this language"),
        138000: _config("calling is not enabled on the number", Reason.CALLING_OFF),
        138001: _operator("the user cannot be called: no WhatsApp, terms not accepted, or an old client"),
        138002: _wait("the number has reached its limit of concurrent calls", Reason.NUMBER_BUSY),
        138003: _operator("there is already a call with this user", Reason.USER_BUSY, retryable=True),
        138004: _meta("connection error at Meta"),
        138005: _wait("the number has reached its limit of placed calls", Reason.NUMBER_RATE),
        138006: _operator("the user has given no permission to be called", Reason.NO_PERMISSION),
        138007: _ours("the SDP was not applied, or the answer was not sent, in time"),
        138008: _ours("the SDP was not accepted"),
        138009: _operator("the limit of permission requests is reached", Reason.REQUEST_LIMIT, retryable=True),
        138011: _operator("the user must first be in a conversation with the number"),
        138012: _operator("the limit of connected calls is reached", Reason.CONNECTED_LIMIT, retryable=True),
        138013: _config("numbers of this country may not place calls", Reason.COUNTRY_EXCLUDED),
        138014: _config("Meta has restricted calling on this number", Reason.NUMBER_RESTRICTED),
        138015: _config("the number's messaging limit is too low for calls", Reason.NOT_ELIGIBLE),
        138017: _operator("the user has already given a permanent permission", Reason.PERMISSION_EXISTS),
        138018: _config("no app is subscribed to the webhook field `calls`"),
        138019: MetaCode(meaning="the user's client failed to set up the call", who=Who.USER, retryable=True),
        138020: MetaCode(meaning="the user's client did not reach Meta's relay", who=Who.USER, retryable=True),
        138021: _ours("the user's client received no media for too long"),
        138022: MetaCode(meaning="the user's client sent no media for too long", who=Who.USER, retryable=True),
        138023: MetaCode(meaning="the call was accepted, but no audio came", who=Who.USER, retryable=True),
    }
)

_PERMISSION: Final = _config("the access token lacks a permission")
_UNKNOWN: Final = MetaCode(meaning="an error code that the gateway does not know", who=Who.META)
_UNKNOWN_5XX: Final = MetaCode(
    meaning="an error code that the gateway does not know",
    who=Who.META,
    retryable=True,
    transient=True,
    definite=False,
)

_MAX_DETAILS: Final = 300
#: Longest wait that we believe: Meta's longest window is seven days.
_MAX_WAIT: Final = timedelta(days=8)

# Meta does not document which code says "this call is over": 100 was seen, others are possible. So we require a code
# without a more specific meaning, and text that says it.
# Source: Meta, "User-initiated calls" and "Troubleshooting", read 2026-11-22.
_VAGUE: Final = frozenset({100, 131009, 138004, 138007})
_ENDED: Final = re.compile(
    r"\b(?:already|has|was|been|is)\b[^.]*\b(?:ended|terminated|completed|rejected|failed|hung up|in progress)\b"
    r"|no longer|not active|not found|does not exist|unknown call|invalid call.?id|no such call",
    re.IGNORECASE,
)
_ACCEPTED: Final = re.compile(r"\b(?:already|is)\b[^.]*\b(?:accepted|answered|in progress|ongoing)\b", re.IGNORECASE)
_OVER: Final = re.compile(r"ended|terminated|completed|rejected|failed|hung up", re.IGNORECASE)
_INSTANT: Final = re.compile(
    r"(?<!\d)(?:(?P<unix>1\d{9})(?!\d)|(?P<iso>20\d\d-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:?\d\d)))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The HTTP answer to one try of a request."""

    op: str
    status: int
    body: Mapping[str, Any] | None  #: None: not a JSON object
    headers: Mapping[str, str]


def lookup(code: int, http_status: int) -> MetaCode:
    """Return the entry of a code; a code that is not in the catalogue gets a general one."""
    if 200 <= code <= 299:
        return _PERMISSION
    return CODES.get(code) or (_UNKNOWN_5XX if http_status >= 500 else _UNKNOWN)


def refuses_token(code: int | None) -> bool:
    """Tell whether a code means that the token itself is invalid: no request with it can succeed."""
    return code in (0, 190)


def lacks_permission(code: int | None) -> bool:
    """Tell whether a code means that the token lacks the permission for this request; others may still work."""
    return code is not None and (code in (3, 10, 131005) or 200 <= code <= 299)


def error_from(answer: Answer, *, token: str, now: datetime) -> GraphError | None:
    """Return the error that an answer means; None for success."""
    body = answer.body
    if body is not None and isinstance(body.get("error"), Mapping):
        return _from_catalogue(answer, body["error"], token=token, now=now)
    if body is None or not 200 <= answer.status <= 299 or body.get("success") is False:
        return GraphUnreachable(
            f"HTTP {answer.status} without an answer of the Graph API",
            op=answer.op,
            # A proxy between us and Meta that answers 4xx has not forwarded the request.
            maybe_sent=not 400 <= answer.status <= 499,
            status=str(answer.status),
            http_status=answer.status,
        )
    return None


def _from_catalogue(answer: Answer, error: Mapping[str, Any], *, token: str, now: datetime) -> GraphError:
    code = error["code"] if isinstance(error.get("code"), int) else -1
    known = lookup(code, answer.status)
    raw = _words(error)
    details = mask_text(raw.replace(token, HIDDEN) if token else raw)[:_MAX_DETAILS]
    if not known.definite and answer.status >= 500:
        return GraphUnreachable(
            f"HTTP {answer.status}: ({code}) {details}",
            op=answer.op,
            maybe_sent=True,
            status=str(answer.status),
            http_status=answer.status,
            code=code,
        )
    transient = known.transient or error.get("is_transient") is True
    return GraphRefused(
        op=answer.op,
        code=code,
        http_status=answer.status,
        details=details,
        meaning=known.meaning,
        who_must_act=known.who.value,
        retryable=known.retryable or transient or answer.status == 429,
        transient=transient,
        retry_at=_retry_at(raw, answer.headers, now=now),
    )


def _words(error: Mapping[str, Any]) -> str:
    """Return Meta's error text: the details if there are any, else the message without its "(#code)"."""
    data = error.get("error_data")
    for text in (data.get("details") if isinstance(data, Mapping) else data, error.get("message")):
        if isinstance(text, str) and text.strip():
            return re.sub(r"^\(#\d+\)\s*", "", text.strip())
    return ""


def _retry_at(words: str, headers: Mapping[str, str], *, now: datetime) -> datetime | None:
    """Return the instant from which Meta would accept the request; the latest if it names several."""
    told = [now + timedelta(seconds=seconds) for seconds in _header_waits(headers)]
    for found in _INSTANT.finditer(words):
        with suppress(ValueError):  # has the form of a date, but is not a valid one
            unix, iso = found["unix"], found["iso"]
            told.append(datetime.fromtimestamp(int(unix), UTC) if unix else datetime.fromisoformat(iso))
    return max((at.astimezone(UTC) for at in told if now < at <= now + _MAX_WAIT), default=None)


def _header_waits(headers: Mapping[str, str]) -> list[float]:
    after = re.fullmatch(r"\d{1,7}", headers.get("Retry-After", ""))
    usage = headers.get("X-Business-Use-Case-Usage", "")
    minutes = re.findall(r'"estimated_time_to_regain_access"\s*:\s*(\d{1,6})', usage)
    return [*([float(after[0])] if after else []), *(60.0 * int(each) for each in minutes)]


def already_ended(error: GraphRefused) -> bool:
    """Tell whether a refused `terminate` or `reject` means that the call is over already: the wanted result."""
    return _text_says(error, _ENDED)


def already_accepted(error: GraphRefused) -> bool:
    """Tell whether a refused `accept` or `pre_accept` means that an earlier try succeeded."""
    return _text_says(error, _ACCEPTED) and not _OVER.search(error.details)


def _text_says(error: GraphRefused, pattern: re.Pattern[str]) -> bool:
    vague = error.code in _VAGUE or lookup(error.code, error.http_status) is _UNKNOWN
    return vague and error.http_status != 429 and bool(pattern.search(error.details))


def read_json(raw: bytes) -> Mapping[str, Any] | None:
    """Parse the body of an answer; None if it is not a JSON object."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None
