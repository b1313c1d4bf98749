"""The limits of the rules as dated data with sources, and how a pack is read.

A pack is a TOML file: a name, a version, a date, and one table for each value with `value`, `effective_from`, `source`
and, where sources disagree, a `note`. Three packs are built in; a custom pack has the same format. What the values mean
is in `rules.py` and `permission.py`.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

#: The built-in packs; the first is the default.
BUILT_IN: Final = ("guide", "meta", "sandbox")
#: Highest limit allowed: `contact.py` keeps this many facts of one kind, so every count up to it is exact.
MAX_LIMIT: Final = 500
MAX_WAIT_S: Final = 366 * 24 * 3600
MAX_BIG: Final = 1_000_000_000


class PackError(ValueError):
    """An unusable pack; `mistakes` lists everything that is wrong with it."""

    def __init__(self, mistakes: tuple[str, ...]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a value comes from and since when it is effective."""

    effective_from: date
    source: str
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One set of values. A limit is the highest allowed count; a wait of 0 means no wait."""

    name: str
    version: int
    effective_from: date
    provenance: Mapping[str, Provenance] = field(repr=False, hash=False)  #: by name of the value

    messaging_limit_min: int  #: R1, conversations per 24 h; 0: not required
    excluded_countries: frozenset[str]  #: R12, of the business number, ISO 3166-1 alpha-2
    slots_user_initiated: int  #: R14, concurrent calls
    slots_business_initiated: int  #: R14
    calls_per_24h: int  #: placed by the number, to all contacts together
    meta_recording: bool  #: R13, whether Meta offers recordings

    requests_per_24h: int  #: R4
    requests_per_7d: int  #: R4
    after_decline_s: int  #: R7
    service_window_s: int  #: R3, how long the contact's last message or call opens the free form
    request_lifetime_s: int  #: how long a request can be answered

    permission_lifetime_s: int  #: R6, used if Meta gives no expiry
    permanent_permissions: bool  #: whether a permission can be permanent; if not, it lasts as long as any other
    automatic_permissions: bool  #: R11, whether Meta's `automatic` reply after a user's call grants one

    connected_per_24h: int  #: R8
    streak_notice: int  #: R9, consecutive unanswered calls
    streak_revoke: int  #: R10
    streak_counts_rejected: bool  #: R9, R10

    @property
    def after_decline(self) -> timedelta:
        """How long to wait after a decline."""
        return timedelta(seconds=self.after_decline_s)

    @property
    def service_window(self) -> timedelta:
        """How long the customer service window stays open."""
        return timedelta(seconds=self.service_window_s)

    @property
    def request_lifetime(self) -> timedelta:
        """How long a request can be answered."""
        return timedelta(seconds=self.request_lifetime_s)

    @property
    def permission_lifetime(self) -> timedelta:
        """How long a permission lasts if Meta gives no expiry."""
        return timedelta(seconds=self.permission_lifetime_s)


def load_pack(name_or_text: str = BUILT_IN[0]) -> Pack:
    """Load a built-in pack by its name, or a custom pack from its TOML text.

    Raises:
        PackError: no such pack, not TOML, or not a usable pack.
    """
    if name_or_text in BUILT_IN:
        return _read_text(_built_in_text(name_or_text))
    if "=" not in name_or_text:
        raise PackError((f"unknown pack {name_or_text!r}: the built-in packs are {', '.join(BUILT_IN)}",))
    return _read_text(name_or_text)


def parse_pack(data: Mapping[str, object]) -> Pack:
    """Check everything in a pack, then build it.

    Raises:
        PackError: lists every mistake at once.
    """
    mistakes: list[str] = []
    head = {name: _checked(name, data.get(name), check, mistakes) for name, check in _HEAD.items()}
    mistakes += [f"{name}: unknown" for name in data if name not in _HEAD and name != "values"]
    tables = data.get("values")
    if not isinstance(tables, Mapping):
        raise PackError((*mistakes, "values: missing, or not a table"))
    values, provenance = _parse_values(tables, mistakes)
    mistakes += _contradictions(values)
    if mistakes:
        raise PackError(tuple(mistakes))
    # The checks above guarantee the names and types.
    known: dict[str, Any] = {**head, **values}
    return Pack(provenance=MappingProxyType(provenance), **known)


def _built_in_text(name: str) -> str:
    return files("policy").joinpath("packs", f"{name}.toml").read_text(encoding="utf-8")


def _read_text(text: str) -> Pack:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PackError((f"not TOML: {error}",)) from error
    return parse_pack(data)


def _parse_values(tables: Mapping[str, object], mistakes: list[str]) -> tuple[dict[str, object], dict[str, Provenance]]:
    values: dict[str, object] = {}
    provenance: dict[str, Provenance] = {}
    for name, check in _VALUES.items():
        table = tables.get(name)
        if not isinstance(table, Mapping):
            mistakes.append(f"values.{name}: missing, or not a table")
            continue
        before = len(mistakes)
        value = _checked(f"values.{name}.value", table.get("value"), check, mistakes)
        where = _parse_provenance(name, table, mistakes)
        if len(mistakes) == before:
            values[name], provenance[name] = value, where
    mistakes += [f"values.{name}: unknown" for name in tables if name not in _VALUES]
    return values, provenance


def _parse_provenance(name: str, table: Mapping[str, object], mistakes: list[str]) -> Provenance:
    known: dict[str, Any] = {
        part: _checked(f"values.{name}.{part}", table.get(part), check, mistakes) for part, check in _PROVENANCE.items()
    }
    mistakes += [f"values.{name}.{part}: unknown" for part in table if part not in (*_PROVENANCE, "value")]
    return Provenance(**known)


def _contradictions(values: Mapping[str, object]) -> list[str]:
    return [
        f"values.{larger}: smaller than {smaller}"
        for smaller, larger in _ORDERED
        if isinstance(low := values.get(smaller), int) and isinstance(high := values.get(larger), int) and high < low
    ]


Check = Callable[[object], object]


def _checked(path: str, raw: object, check: Check, mistakes: list[str]) -> object:
    try:
        return check(raw)
    except ValueError as error:
        mistakes.append(f"{path}: {error}")
        return None


def _whole(low: int, high: int) -> Check:
    def check(raw: object) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError(f"not a whole number from {low} to {high}: {raw!r}")
        return raw

    return check


def _flag(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError(f"neither true nor false: {raw!r}")
    return raw


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError(f"not a string: {raw!r}")
    return raw


def _optional_text(raw: object) -> str | None:
    return None if raw is None else _text(raw)


def _date(raw: object) -> date:
    if isinstance(raw, str):
        return date.fromisoformat(raw)
    if not isinstance(raw, date) or isinstance(raw, datetime):
        raise ValueError(f"not a date: {raw!r}")
    return raw


def _countries(raw: object) -> frozenset[str]:
    if not isinstance(raw, list):
        raise ValueError(f"not a list of countries: {raw!r}")
    wrong = [code for code in raw if not _is_country(code)]
    if wrong:
        raise ValueError(f"not two capital letters: {', '.join(map(repr, wrong))}")
    return frozenset(raw)


def _is_country(code: object) -> bool:
    return isinstance(code, str) and len(code) == 2 and code.isascii() and code.isalpha() and code.isupper()


_LIMIT: Final = _whole(1, MAX_LIMIT)
_BIG: Final = _whole(0, MAX_BIG)
_WAIT: Final = _whole(0, MAX_WAIT_S)

_HEAD: Final[Mapping[str, Check]] = MappingProxyType(
    {"name": _text, "version": _whole(1, MAX_BIG), "effective_from": _date}
)
_PROVENANCE: Final[Mapping[str, Check]] = MappingProxyType(
    {"effective_from": _date, "source": _text, "note": _optional_text}
)
_VALUES: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "messaging_limit_min": _BIG,
        "excluded_countries": _countries,
        "slots_user_initiated": _BIG,
        "slots_business_initiated": _BIG,
        "calls_per_24h": _whole(1, MAX_BIG),
        "meta_recording": _flag,
        "requests_per_24h": _LIMIT,
        "requests_per_7d": _LIMIT,
        "after_decline_s": _WAIT,
        "service_window_s": _WAIT,
        "request_lifetime_s": _WAIT,
        "permission_lifetime_s": _WAIT,
        "permanent_permissions": _flag,
        "automatic_permissions": _flag,
        "connected_per_24h": _LIMIT,
        "streak_notice": _LIMIT,
        "streak_revoke": _LIMIT,
        "streak_counts_rejected": _flag,
    }
)
#: Pairs of values of which the second must not be smaller than the first.
_ORDERED: Final = (("requests_per_24h", "requests_per_7d"), ("streak_notice", "streak_revoke"))
