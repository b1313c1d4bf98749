"""As much of JSON Schema as our own documents use: to hold an answer against them, and to make what fits or does not.

Not a validator for anybody's schema: a keyword that it does not know is an error, so that none is passed over.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

_NOTES: Final = {"title", "description", "default", "format", "discriminator", "$ref"}
_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_LIMITS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "minLength": lambda value, limit: not isinstance(value, str) or len(value) >= limit,
    "maxLength": lambda value, limit: not isinstance(value, str) or len(value) <= limit,
    "minimum": lambda value, limit: not isinstance(value, int | float) or value >= limit,
    "maximum": lambda value, limit: not isinstance(value, int | float) or value <= limit,
    "pattern": lambda value, limit: not isinstance(value, str) or re.search(limit, value) is not None,
}


def resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference into its document."""
    while "$ref" in schema:
        place: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        schema = place
    return schema


def faults(value: Any, schema: Mapping[str, Any], document: Mapping[str, Any], at: str = "$") -> Iterator[str]:
    """Yield in what a value does not fit."""
    schema = resolved(schema, document)
    for keyword, wanted in schema.items():
        if keyword in _NOTES:
            continue
        if keyword == "anyOf":
            if all(any(faults(value, one, document)) for one in wanted):
                yield f"{at}: fits none of {len(wanted)}"
        elif keyword == "type":
            if not any(_TYPES[name](value) for name in ([wanted] if isinstance(wanted, str) else wanted)):
                yield f"{at}: {type(value).__name__} is no {wanted}"
        elif keyword in ("enum", "const"):
            if value not in (wanted if keyword == "enum" else [wanted]):
                yield f"{at}: {value!r} is not in {wanted}"
        elif keyword in _LIMITS:
            if not _LIMITS[keyword](value, wanted):
                yield f"{at}: {keyword} {wanted}"
        else:
            yield from _within(keyword, value, schema, document, at)


def _within(keyword: str, value: Any, schema: Mapping[str, Any], document: Mapping[str, Any], at: str) -> Iterator[str]:
    wanted = schema[keyword]
    match keyword, value:
        case "properties", dict():
            for name in wanted.keys() & value.keys():
                yield from faults(value[name], wanted[name], document, f"{at}.{name}")
        case "required", dict():
            yield from (f"{at}: no {name}" for name in wanted if name not in value)
        case "additionalProperties", dict() if wanted is False:
            yield from (f"{at}: {name} is too much" for name in value.keys() - schema.get("properties", {}).keys())
        case "items", list():
            for n, item in enumerate(value):
                yield from faults(item, wanted, document, f"{at}[{n}]")
        case (("properties" | "required" | "additionalProperties" | "items"), _):
            return
        case _:
            raise NotImplementedError(keyword)


#: What is put where something else belongs.
NONSENSE: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, 10**400, 2**63, -(2**53) - 1, "", " ", "\x00", "null", "é", "\U0001f4de", "‮x",
    "x" * 129, "x" * 20_000, "../../etc/passwd", "%00", "'; drop table calls; --", "{{7*7}}", "<script>", "${jndi:x}",
    [], {}, [[]], {"": ""}, ["x"] * 500, "+5511900000001", "NaN", "1e999", "v=0\r\n",
)  # fmt: skip


def made(schema: Mapping[str, Any], document: Mapping[str, Any], rng: random.Random) -> Any:
    """Make a value that fits."""
    schema = resolved(schema, document)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return made(rng.choice(schema["anyOf"]), document, rng)
    match schema.get("type"):
        case "object":
            needed = set(schema.get("required", ()))
            parts = schema.get("properties", {}).items()
            return {name: made(part, document, rng) for name, part in parts if name in needed or rng.random() < 0.5}
        case "array":
            return [made(schema["items"], document, rng) for _ in range(rng.randrange(3))]
        case "integer" | "number":
            return rng.randint(schema.get("minimum", -5), min(schema.get("maximum", 100), 10**6))
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case _:
            low = schema.get("minLength", 0)
            return "".join(rng.choices("ab0+ é.", k=rng.randint(low, min(schema.get("maxLength", 40), low + 20))))


def spoiled(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """Return a value with something wrong in it: missing, more, of another type, huge, deep."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        rest = {key: part for key, part in value.items() if key != name}
        match rng.randrange(5):
            case 0:
                return rest
            case 1:
                return value | {rng.choice(["more", "__proto__", "", "id", "type", "x" * 300]): rng.choice(NONSENSE)}
            case 2:
                return rest | {name.upper(): value[name]}
            case _:
                return value | {name: spoiled(value[name], rng, depth + 1)}
    if rng.random() < 0.1:
        for _ in range(rng.choice([10, 100, 900])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(NONSENSE)
