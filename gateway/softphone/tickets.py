"""One-time login tickets for softphones: valid for 30 seconds, used once, never in a URL."""

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from gateway.common.ids import OperatorId

TICKET_S: Final = 30.0
#: More open tickets than this mean that a client requests them in a loop.
MAX_OPEN: Final = 10_000


class Tickets:
    """The open tickets, and the keys that entitle to one."""

    def __init__(self, *, operators: Mapping[str, str], api_key: str | None) -> None:
        self._salt = secrets.token_bytes(32)
        self._keys = {name: self._digest(key) for name, key in operators.items()}
        self._api_key = self._digest(api_key) if api_key else None
        self._open: OrderedDict[str, tuple[OperatorId, float]] = OrderedDict()  # the first to expire is the first

    def operator_with_key(self, operator: str, key: str) -> OperatorId | None:
        """Return the operator's id if the key is theirs."""
        expected = self._keys.get(operator, secrets.token_bytes(32))
        return OperatorId(operator) if hmac.compare_digest(expected, self._digest(key)) else None

    def is_operator(self, name: str) -> bool:
        return name in self._keys

    def is_api_key(self, key: str) -> bool:
        return self._api_key is not None and hmac.compare_digest(self._api_key, self._digest(key))

    def issue(self, operator: OperatorId, *, now: float) -> str | None:
        """Return a new ticket; None if too many are open. `now` is loop time in seconds."""
        while self._open and next(iter(self._open.values()))[1] <= now:
            self._open.popitem(last=False)
        if len(self._open) >= MAX_OPEN:
            return None
        ticket = secrets.token_urlsafe(24)
        self._open[ticket] = (operator, now + TICKET_S)
        return ticket

    def use(self, ticket: str, *, now: float) -> OperatorId | None:
        """Use up a ticket; return its operator, or None if it is unknown, used or expired. `now` is loop time."""
        operator, valid_until = self._open.pop(ticket, (None, 0.0))
        return operator if now < valid_until else None

    def _digest(self, key: str) -> bytes:
        """Return a digest of fixed length, so that comparing takes equally long whether or not a name exists.

        A key that is not valid Unicode (from a header or a body) is a wrong key, not an error.
        """
        return hmac.digest(self._salt, key.encode("utf-8", "surrogatepass"), "sha256")
