"""Backoff: the pauses between retries, which grow with each failure in a row. Nothing here waits. [P]

Retries of requests to Meta for which a caller waits use `stamina` instead (see `meta.graph_http`).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses after the first failure, the second and so on; the last one repeats."""

    pauses_s: tuple[float, ...]
    #: The share of a pause that may be cut at random: clients that failed at the same moment must not retry together.
    jitter: float = 0.0

    def pause_s(self, before: int, *, chance: float = 0.0) -> float:
        """Return the pause after a failure that follows `before` others; `chance` is a random number from 0 to 1."""
        pause_s = self.pauses_s[min(before, len(self.pauses_s) - 1)]
        return pause_s * (1.0 - self.jitter * chance)
