"""What all readers of webhooks share: the base of events, and ways to look into JSON that may be anything. [P]

Not responsible for any kind of event (see `events`, `number_events`).
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from gateway.ids import PhoneNumberId

NOT_BEFORE: Final = datetime(2020, 1, 1, tzinfo=UTC)
NUMBER_ID: Final = re.compile(r"[0-9]{1,32}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvent:
    """What every event has."""

    number_id: PhoneNumberId  #: "" where the change names none
    at: datetime | None
    kind: str  #: a metric label: from a closed set
    dedupe_key: str
    body: bytes  #: the JSON of this one item, as kept in the journal


def hashed(body: bytes) -> str:
    """Return the dedupe key of what has no id of its own."""
    return "hash/" + hashlib.sha256(body).hexdigest()


def get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def each(value: object) -> list[Any]:
    """Return a list's elements; one that stands without its list is taken for a list of one."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def instant(seconds: int) -> datetime:
    """Read UNIX seconds. Raises: ValueError."""
    at = datetime.fromtimestamp(seconds, UTC)
    if at < NOT_BEFORE:
        raise ValueError("a time before the Calling API")
    return at


def number_id(found: object) -> PhoneNumberId:
    """Return Meta's id of a number, "" for what is none."""
    return PhoneNumberId(found if isinstance(found, str) and NUMBER_ID.match(found) else "")
