"""Remember which events have taken effect recently, in bounded memory.

For older events, `inbox` asks the journal in the database.
"""

from hashlib import blake2b
from typing import Final

_DIGEST_BYTES: Final = 16


class SeenEvents:
    """Dedupe keys of events, and whether each is durable: at least the last `most` keys, at most twice as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        # Digests, because keys are long and most of them never come again.
        self._young: dict[bytes, bool] = {}
        self._old: dict[bytes, bool] = {}

    def __contains__(self, key: str) -> bool:
        digest = _digest(key)
        return digest in self._young or digest in self._old

    def add(self, key: str, *, durable: bool) -> None:
        """Remember an event, or that an event is durable now."""
        self._young[_digest(key)] = durable
        if len(self._young) >= self._most:
            self._old, self._young = self._young, {}

    def is_durable(self, key: str) -> bool:
        digest = _digest(key)
        return self._young.get(digest, self._old.get(digest, False))

    def clear(self) -> None:
        self._young, self._old = {}, {}


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
