"""Where settings come from, and what is said when they cannot work.

`load` returns a `Settings` or raises `SettingsError` with every mistake at once, each one plain line that names the
variable, key or flag, the wrong value (never a secret's) and what was expected. `check` says the same without raising,
with every setting and where it came from. Not responsible for types and defaults (see `settings`).

Theory of operation. Each layer becomes a dictionary of field -> `Found`; later layers win field by field: file,
environment, flags. A secret X may be given as X_FILE (`app_secret_file` in TOML), the name of a file that holds it.
`phone_number_id`, `phone_number` and `number_name` are short for the first of `numbers`. When a field is wrong by
itself, the others are still checked against one another, with the default in its place.

pydantic checks what was found; the finding is ours, and not of pydantic-settings: its sources stop at the first JSON
that cannot be read, merge a file's operators into the environment's, pass over misspelt variables, and do not say where
a value came from.
"""

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gateway.common.errors import SettingsError
from gateway.config import values
from gateway.config.call_hours import HolidaySettings, HoursSettings, OpeningSettings
from gateway.config.checks import CHECKS
from gateway.config.settings import (
    PREFIX,
    SECRETS,
    SHORT_NAMES,
    NumberSettings,
    Settings,
    TemplateSettings,
)

DEFAULT_FILE: Final = "gateway.toml"
MASK: Final = "•••"
_MAX_FILE_BYTES: Final = 1_000_000

_LISTS: Final = frozenset({"public_origins", "meta_candidate_networks"})
_KNOWN: Final = frozenset(Settings.model_fields) | SHORT_NAMES.keys()
_KNOWN_WITH_FILES: Final = _KNOWN | {f"{name}_file" for name in SECRETS}

_SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "numbers": NumberSettings,
    "permission_template": TemplateSettings,
    "call_hours": HoursSettings,
    "weekly": OpeningSettings,
    "holidays": HolidaySettings,
}

#: The value of a field that was given and cannot be read; the problem is told already.
_UNREAD: Final = object()
#: Stand in for a required field that is wrong, so that the rest can be checked.
_STAND_INS: Final[Mapping[str, Any]] = {
    "app_secret": "stand-in",
    "verify_token": "stand-in",
    "operators": {"stand-in": "stand-in"},
    "numbers": [{"phone_number_id": "0", "phone_number": "+15550100001"}],
}


_NAME: Final = "a name of letters, digits and . _ @ -"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A value, and what an operator would call the place where it stands."""

    value: Any
    label: str  #: `GATEWAY_PORT`, `port in gateway.toml`, `--port`


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting as `gateway check` shows it."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `check` found. `settings` is None if there are problems."""

    settings: Settings | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]


def load(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    folder: Path | None = None,
) -> Settings:
    """Return the settings. Flags that are None were not given. Raises: SettingsError with every mistake."""
    report = check(flags=flags, environ=environ, config=config, folder=folder)
    if report.settings is None:
        raise SettingsError(report.problems)
    return report.settings


def check(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    folder: Path | None = None,
) -> Report:
    """Return the settings, where each came from, and everything that is wrong with them."""
    env = os.environ if environ is None else environ
    problems: list[str] = []
    found = _from_file(_config_path(config, env, folder or Path(), problems), problems)
    found |= _from_environment(env, problems)
    found |= _from_flags(flags or {}, problems)
    found.setdefault("data_dir", Found(value=values.default_data_dir(env), label="default"))
    shorts = _fold_short_names(found, problems)
    valid, settings, wrong = _validate(found, shorts)
    problems += wrong
    problems += _contradictions(settings, unchecked=found.keys() - valid)
    usable = None if problems else settings
    return Report(
        settings=usable,
        problems=tuple(dict.fromkeys(problems)),
        warnings=() if usable is None else usable.warnings(),
        rows=tuple(_rows(settings, found, valid)),
    )


# --- layers --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Layer:
    """Collects the fields of one layer; `label` names a key as the operator wrote it."""

    problems: list[str]
    label: Callable[[str], str]
    found: dict[str, Found] = field(default_factory=dict)

    def put(self, key: str, value: Any) -> None:
        label = self.label(key)
        if key in _KNOWN:
            self._keep(key, value, label)
        elif key in _KNOWN_WITH_FILES:
            text = _read_secret(Path(str(value)), label, self.problems)
            self._keep(key.removesuffix("_file"), _UNREAD if text is None else text, label)
        else:
            self.problems.append(f"{label}: unknown{self._suggest(key)}")

    def _keep(self, name: str, value: Any, label: str) -> None:
        if name in self.found:
            self.problems.append(f"{label}: {self.found[name].label} is set as well; expected one of them")
        else:
            self.found[name] = Found(value=_decode(name, value, label, self.problems), label=label)

    def _suggest(self, key: str) -> str:
        if key.removesuffix("_file") in _KNOWN:
            return f"; did you mean {self.label(key.removesuffix('_file'))}?"
        near = difflib.get_close_matches(key, sorted(_KNOWN_WITH_FILES | {"config"}), n=1, cutoff=0.6)
        return f"; did you mean {self.label(near[0])}?" if near else ""


def _config_path(flag: Path | None, environ: Mapping[str, str], folder: Path, problems: list[str]) -> Path | None:
    """Return the TOML file to read: `--config`, GATEWAY_CONFIG, or gateway.toml if it is there."""
    named = flag or environ.get(f"{PREFIX}CONFIG")
    if named:
        path = folder / Path(named).expanduser()
        if not path.exists():
            problems.append(f"{'--config' if flag else f'{PREFIX}CONFIG'}={named}: no such file")
            return None
        return path
    path = folder / DEFAULT_FILE
    return path if path.is_file() else None


def _from_file(path: Path | None, problems: list[str]) -> dict[str, Found]:
    if path is None:
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path.name}: cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path.name}: is no TOML: {error}")
        return {}
    layer = _Layer(problems=problems, label=lambda key: f"{key} in {path.name}")
    for key, value in data.items():
        layer.put(key, value)
    return layer.found


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Found]:
    layer = _Layer(problems=problems, label=lambda key: f"{PREFIX}{key.upper()}")
    for name in sorted(environ):
        key = name.removeprefix(PREFIX).lower()
        # An empty variable is how compose files write "not set"; an empty secret is a mistake all the same.
        if name.startswith(PREFIX) and key != "config" and (environ[name] or key in SECRETS):
            layer.put(key, environ[name])
    plain = _Layer(problems=problems, label=lambda key: key.upper())
    if "database_url" not in layer.found:
        for key in ("database_url", "database_url_file"):
            if environ.get(key.upper()):
                plain.put(key, environ[key.upper()])
    return plain.found | layer.found


def _from_flags(flags: Mapping[str, Any], problems: list[str]) -> dict[str, Found]:
    layer = _Layer(problems=problems, label=lambda key: f"--{key.replace('_', '-')}")
    for key, value in flags.items():
        if value is not None:
            layer.put(key, value)
    return layer.found


def _read_secret(path: Path, label: str, problems: list[str]) -> str | None:
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no text"
        problems.append(f"{label}={path}: cannot be read: {why}")
        return None
    if not text.strip():
        problems.append(f"{label}={path}: is empty")
        return None
    return text.strip()


def _decode(name: str, value: Any, label: str, problems: list[str]) -> Any:
    """Turn the text of a compound field into data; `_UNREAD` (with a problem) if that cannot be."""
    if not isinstance(value, str) or name not in _LISTS | {"numbers", "operators"}:
        return value
    if name in _LISTS and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        shown = f"={MASK}" if name in SECRETS else f"={value!r:.80}"
        problems.append(
            f"{label}{shown}: is no JSON at character {error.pos + 1}: expected {_expected(Settings, name)}"
        )
        return _UNREAD


def _fold_short_names(found: dict[str, Found], problems: list[str]) -> dict[str, str]:
    """Make the short names the first number, in place; return the label of each of its fields."""
    short = {name: found.pop(name) for name in SHORT_NAMES if name in found}
    numbers = found.get("numbers")
    if numbers is not None and isinstance(numbers.value, list):
        numbers = replace(numbers, value=[_with_token(each, numbers.label, problems) for each in numbers.value])
        found["numbers"] = numbers
    if not short:
        return {}
    first = {SHORT_NAMES[name]: each.value for name, each in short.items()}
    more = numbers.value if numbers is not None and isinstance(numbers.value, list) else []
    label = numbers.label if numbers is not None else next(iter(short.values())).label
    found["numbers"] = Found(value=[first, *more], label=label)
    labels = {SHORT_NAMES[name]: each.label for name, each in short.items()}
    return {plain: labels.get(plain, PREFIX + name.upper()) for name, plain in SHORT_NAMES.items()}


def _with_token(number: Any, label: str, problems: list[str]) -> Any:
    """Read a number's `access_token_file`."""
    if not isinstance(number, dict) or "access_token_file" not in number:
        return number
    path = Path(str(number["access_token_file"]))
    token = _read_secret(path, f"{label}: access_token_file", problems)
    rest = {key: value for key, value in number.items() if key != "access_token_file"}
    return rest if token is None else rest | {"access_token": token}


# --- checks --------------------------------------------------------------------------------------


def _validate(found: Mapping[str, Found], shorts: Mapping[str, str]) -> tuple[frozenset[str], Settings, list[str]]:
    """Return the fields that are right by themselves, settings to check further, and what is wrong."""
    given = {name: each.value for name, each in found.items() if each.value is not _UNREAD}
    wrong = {name for name in found if name not in given}
    lines = []
    try:
        settings = Settings(**given, **_stand_ins(wrong))
    except ValidationError as error:
        details = _without_echoes(error.errors(include_url=False))
        lines = [_line(each, found, shorts) for each in details]
        wrong |= {str(each["loc"][0]) for each in details}
        rest = {name: value for name, value in given.items() if name not in wrong}
        settings = Settings(**rest, **_stand_ins(wrong))
    return frozenset(Settings.model_fields) - wrong, settings, lines


def _stand_ins(names: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in _STAND_INS.items() if name in names}


def _without_echoes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out that a list is too short when that is so because its entries are wrong."""
    wrong_inside = {each["loc"][0] for each in errors if len(each["loc"]) > 1}
    return [each for each in errors if each["type"] != "too_short" or each["loc"][0] not in wrong_inside]


def _line(error: ErrorDetails, found: Mapping[str, Found], shorts: Mapping[str, str]) -> str:
    """Say in one line which value is wrong and what was expected."""
    loc = error["loc"]
    label, secret = _label(loc, found, shorts)
    expected = _NAME if loc[-1] == "[key]" else _expected(Settings, *loc)
    if error["type"] == "missing":
        return f"{label} is not set: expected {expected}"
    if error["type"] == "extra_forbidden":
        section = next(_SECTIONS[str(part)] for part in reversed(loc[:-1]) if part in _SECTIONS)
        near = difflib.get_close_matches(str(loc[-1]), [*section.model_fields], n=1)
        return f"{label}: unknown" + (f"; did you mean {near[0]}?" if near else "")
    shown = "" if isinstance(error["input"], dict | list) else f"={MASK if secret else repr(error['input'])[:80]}"
    why = str(error["ctx"]["error"]) if error["type"] == "value_error" else f"expected {expected}"
    return f"{label}{shown}: {why}"


def _label(loc: tuple[int | str, ...], found: Mapping[str, Found], shorts: Mapping[str, str]) -> tuple[str, bool]:
    """Return what an operator calls the place of an error, and whether its value is secret."""
    top, *rest = loc
    secret = top in SECRETS - {"numbers"} or "access_token" in rest
    label = found[str(top)].label if top in found else PREFIX + str(top).upper()
    if top == "numbers" and rest and isinstance(rest[0], int):
        if shorts and rest[0] == 0:
            return (shorts[str(rest[1])] if len(rest) > 1 else label), secret
        rest[0] -= bool(shorts)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest if part != "[key]")
    name, _, place = label.partition(" ")
    return f"{name}{path} {place}".rstrip(), secret


def _expected(model: type[BaseModel], *loc: int | str) -> str:
    """Return what the innermost field on a path says that it expects."""
    expected = "something else"
    fields: Mapping[str, FieldInfo] = model.model_fields
    for part in loc:
        known = fields.get(str(part))
        if known is None:
            continue
        extra = known.json_schema_extra
        if isinstance(extra, dict):
            expected = str(extra["expected"])
        fields = _SECTIONS.get(str(part), model).model_fields
    return expected


def _contradictions(settings: Settings, *, unchecked: Set[str]) -> Iterator[str]:
    for fields, say in CHECKS:
        if not fields & unchecked:
            yield from say(settings)


# --- telling -------------------------------------------------------------------------------------


def _rows(settings: Settings, found: Mapping[str, Found], valid: frozenset[str]) -> Iterator[Row]:
    for name in Settings.model_fields:
        source = found[name].label if name in found else "default"
        if name not in valid:
            yield Row(name=name, value="wrong" if name in found else "not set", source=source)
        elif name == "numbers":
            for index, number in enumerate(settings.numbers):
                yield Row(name=f"numbers[{index}]", value=_show_number(number), source=source)
        else:
            yield Row(name=name, value=_show(getattr(settings, name)), source=source)


def _show(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, SecretStr):
        return "set, hidden"
    if isinstance(value, dict):
        return f"{', '.join(value)} (keys hidden)"
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def _show_number(number: NumberSettings) -> str:
    rules = number.pack if number.pack_file is None else str(number.pack_file)
    incoming, outgoing = number.slots(number.pack_loaded())
    slots = f"{incoming} in, {outgoing} out"
    token = ", own token" if number.access_token else ""
    name = f" {number.name!r}" if number.name else ""
    return f"{number.phone_number_id} {number.phone_number}{name}: pack {rules}, {slots}{token}"
