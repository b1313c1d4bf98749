"""A circuit breaker: stop sending to a peer that does not answer, and probe it from time to time. [P]

Theory of operation. The breaker is closed until `FAILURES` requests in a row have failed. Then it opens, and callers
are told how long to wait. After the wait, one request goes through as a probe: success closes the breaker, failure
doubles the wait (with jitter, up to a limit). Requests that ignore the breaker (to end a call) and requests that were
under way when it opened also report how they ended: a success closes it at once; a failure changes nothing while it
is open, because it says nothing new.

`health` decides what counts as a failure.
"""

import random
from typing import Final

from gateway.common.backoff import Backoff

FAILURES: Final = 10
#: Jitter: gateways that lost Meta at the same moment must not come back at the same moment.
WAITS: Final = Backoff((2.0, 4.0, 8.0, 16.0, 30.0), jitter=0.2)
#: The wait while a probe is under way; its result comes soon.
PROBE_S: Final = 1.0


class Breaker:
    """One breaker for everything that fails together. `now` is loop time everywhere."""

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
        """The number of requests in a row that failed."""
        return self._failed

    def wait_s(self, *, now: float) -> float:
        """Return how long a request has to wait; 0 if it may be sent now."""
        if self._until is None:
            return 0.0
        if self._probing:
            return max(PROBE_S, self._until - now)
        return max(0.0, self._until - now)

    def begin(self) -> bool:
        """Record that a request is sent that did not have to wait; return whether it is the probe."""
        if self._until is None:
            return False
        self._probing = True
        return True

    def end(self, *, ok: bool | None, probe: bool, now: float) -> None:
        """Record how a request ended; `ok` is None if we cancelled it, which says nothing about the peer."""
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
