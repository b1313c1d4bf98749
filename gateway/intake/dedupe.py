"""Which events have taken effect lately, in bounded memory.

Not responsible for what came before a restart or long ago (see `inbox`, which asks the journal).
"""

from hashlib import blake2b
from typing import Final

_DIGEST_BYTES: Final = 16


class Seen:
    """Dedupe keys, and whether each event is durable, too. Remembers the last `most` keys, and up to twice as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        # Digests: keys are long, and of most of them nobody ever hears again.
        self._young: dict[bytes, bool] = {}
        self._old: dict[bytes, bool] = {}

    def __contains__(self, key: str) -> bool:
        digest = _digest(key)
        return digest in self._young or digest in self._old

    def add(self, key: str, *, durable: bool) -> None:
        """Remember an event, or that it is durable now."""
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
