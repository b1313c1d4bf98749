"""How often somebody may be wrong: a bucket of failures for each source, that empties with time.

Responsible for counting and for forgetting. Not responsible for who a source is nor for what is refused (see
`doorkeeper`). A bucket is one number (the instant at which it will be empty), the table is bounded,
and what was failed longest ago is forgotten first.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final

PERIOD_S: Final = 60.0
#: Sources that are remembered.
MOST_SOURCES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Source:
    """Whose failures are counted together, and how many of them a minute are borne."""

    key: Hashable
    failures: int

    @property
    def step_s(self) -> float:
        return PERIOD_S / self.failures


class Attempts:
    """Failures of the last minute. All instants are loop time."""

    def __init__(self, *, most: int = MOST_SOURCES) -> None:
        self._most = most
        self._empty_at: OrderedDict[Hashable, float] = OrderedDict()  # the one that failed longest ago is the first

    def __len__(self) -> int:
        return len(self._empty_at)

    def wait_s(self, sources: Iterable[Source], *, now: float) -> float:
        """Return how long to wait until another attempt is heard; 0: now."""
        waits = [self._empty_at.get(source.key, 0.0) - now - PERIOD_S + source.step_s for source in sources]
        wait_s = max(0.0, *waits)
        return wait_s if wait_s > 0.001 else 0.0  # sums of steps are not exact

    def failed(self, sources: Iterable[Source], *, now: float) -> None:
        """Count one failed attempt at each of its sources."""
        for source in sources:
            self._empty_at[source.key] = max(self._empty_at.get(source.key, 0.0), now) + source.step_s
            self._empty_at.move_to_end(source.key)
        while len(self._empty_at) > self._most:
            self._empty_at.popitem(last=False)

    def forgive(self, source: Source) -> None:
        """Forget the failures of a source: it has proved who it is."""
        self._empty_at.pop(source.key, None)
