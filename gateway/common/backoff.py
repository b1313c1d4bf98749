"""How long to wait before the next try: pauses that grow with each failure in a row. Nothing here waits. [P]

Requests to Meta that are tried again while somebody waits have `stamina` for it (see `meta.graph_http`).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses after the first failure, the second and so on; after the last, it is the last for ever."""

    pauses_s: tuple[float, ...]
    #: The share of a pause that chance may take: those who lost something at one moment do not come back at one moment.
    jitter: float = 0.0

    def pause_s(self, before: int, *, chance: float = 0.0) -> float:
        """Return the pause after a failure with so many `before` it; `chance` is a random number from 0 to 1."""
        pause_s = self.pauses_s[min(before, len(self.pauses_s) - 1)]
        return pause_s * (1.0 - self.jitter * chance)
