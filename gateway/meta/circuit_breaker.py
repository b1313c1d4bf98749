"""Stops asking somebody who does not answer, and asks again by and by. [P]

Theory of operation. A breaker is closed until so many requests in a row have failed; then it opens, and whoever asks
is told how long to wait. When the wait is over, one request goes through as a probe: its success closes the breaker,
its failure doubles the wait (with jitter, up to a limit). Requests that are sent whatever the breaker says (a call is
to be ended) and those that were under way when it opened tell it how they ended, too: a success closes it at once, a
failure changes nothing while it is open, for it is no news.

Not responsible for what counts as a failure (see `meta_health`).
"""

import random
from typing import Final

from gateway.common.backoff import Backoff

FAILURES: Final = 10
WAITS: Final = Backoff((2.0, 4.0, 8.0, 16.0, 30.0), jitter=0.2)
#: What is told while a probe is under way: it has failed or succeeded soon.
PROBE_S: Final = 1.0


class Breaker:
    """One for everything that fails together. `now` is loop time everywhere."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._failed = 0  # in a row
        self._opened = 0  # since the last success
        self._until: float | None = None  # None: closed
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._until is not None

    @property
    def failed(self) -> int:
        """How many requests in a row have failed."""
        return self._failed

    def wait_s(self, *, now: float) -> float:
        """Return how long a request has to wait; 0: it may go."""
        if self._until is None:
            return 0.0
        if self._probing:
            return max(PROBE_S, self._until - now)
        return max(0.0, self._until - now)

    def begin(self) -> bool:
        """Note that a request goes which did not have to wait; return whether it is the probe."""
        if self._until is None:
            return False
        self._probing = True
        return True

    def end(self, *, ok: bool | None, probe: bool, now: float) -> None:
        """Note how a request ended; `ok` None: it was cut by ourselves, and says nothing."""
        if probe:
            self._probing = False
        if ok:
            self._failed, self._opened, self._until = 0, 0, None
        elif ok is False:
            self._failed += 1
            opens = probe if self.is_open else self._failed >= FAILURES
            if opens:
                self._until = now + WAITS.pause_s(self._opened, chance=self._rng.random())
                self._opened += 1
