"""Read the named SQL statements from `sql/queries.sql`."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def _named(text: str) -> dict[str, str]:
    """Split a file into statements, each headed by `-- name: x`. Raises: ValueError if two share a name."""
    _, *parts = _NAME.split(text)
    names, statements = parts[::2], parts[1::2]
    if len(set(names)) != len(names):
        raise ValueError("two statements share a name")
    return {name: text.strip() for name, text in zip(names, statements, strict=True)}


#: Statements of `queries.sql` by name.
QUERIES: Final[Mapping[str, str]] = _named(files("gateway.store").joinpath("sql/queries.sql").read_text("utf-8"))
