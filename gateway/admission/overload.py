"""How much the gateway takes on, and who is refused first when there is more than it can do. [P]

Responsible for the ceiling of set-ups a second, for what the loop's lag means, and for the order of mercy. Not
responsible for a number's slots (see `numbers.slots`), nor for what a refused caller or client is told (see
`calls.overflow`, `http.problems`).

Theory of operation
-------------------
Whatever ends a call, carries a permission, or answers a call that rings never asks here: it gets through. All other
work asks first, before it has cost anything, and is refused in this order, the last first::

    LOOK_UP    refused while the loop is STUCK
    INCOMING   refused above the ceiling, or while the loop is LATE
    OUTGOING   the same, and leaves the last quarter of the ceiling's allowance to calls that come in
    REPORT     refused as soon as an OUTGOING call would be

The ceiling is a token bucket, filled by the second. The lag is what `metrics.LoopLag` samples: one late sample is a
pause and says nothing; LATE is late for a second, STUCK very late for half of one. A level is left by one step after a
second in which no sample was over half of its limit, so that it does not flap. Time is the loop's, and an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from typing import Final

from gateway.common.rate_limit import Rate, RateLimit
from policy.decision import Refusal
from policy.reasons import Reason, Remedy

#: A ceiling that nobody reaches.
UNLIMITED: Final = 1e9
#: How much of a second's set-ups may come at the same instant.
BURST_S: Final = 0.5
#: The share of the burst that calls which come in keep for themselves.
RESERVE: Final = 0.25
#: A level is left when the lag was under this share of its limit for so long.
CALM_SHARE: Final = 0.5
CALM_FOR_S: Final = 1.0
#: Who is refused is told to come again after this, each at another instant.
RETRY_S: Final = (2.0, 6.0)


class Work(Enum):
    """What may be refused."""

    LOOK_UP = "look_up"  #: one contact, one number, one permission request
    INCOMING = "incoming"
    OUTGOING = "outgoing"
    REPORT = "report"  #: lists of what has been


class Level(IntEnum):
    """How late the loop is; the values are the metric's."""

    CALM = 0
    LATE = 1
    STUCK = 2


#: How long a lag must last to be a level's.
LASTS_S: Final = {Level.LATE: 1.0, Level.STUCK: 0.5}
#: From when on the loop is LATE; STUCK is four times as late.
MAX_LAG_S: Final = 0.050
STUCK_TIMES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Overloaded:
    """Why something is refused now."""

    rule: str
    observed: int  #: set-ups asked for in the last second, or the lag in ms
    limit: int
    retry_in_s: float  #: nobody knows when there will be room: jittered, so that not all come back at once

    def refusal(self, *, now: datetime) -> Refusal:
        """Return it as the gate's answers are."""
        return Refusal(
            reason=Reason.OVERLOADED,
            rule=self.rule,
            observed=self.observed,
            limit=self.limit,
            retry_at=now + timedelta(seconds=self.retry_in_s),
            remedy=Remedy.TRY_AGAIN_SOON,
        )


class Overload:
    """What one gateway can take on now. `now` is loop time everywhere."""

    def __init__(
        self,
        *,
        max_setups_per_s: float = UNLIMITED,
        max_lag_s: float = MAX_LAG_S,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.level = Level.CALM
        self._jitter = jitter
        self._setups = RateLimit(Rate(per_s=max_setups_per_s, burst=max(1.0, max_setups_per_s * BURST_S)))
        self._asked = _AskedLately()
        self._lag_s = 0.0
        self._limits = {Level.LATE: max_lag_s, Level.STUCK: STUCK_TIMES * max_lag_s}
        self._late_since: dict[Level, float | None] = dict.fromkeys(self._limits)
        self._calm_since: float | None = None

    # --- asking ------------------------------------------------------------------------------------

    def refusal(self, work: Work, *, now: float) -> Overloaded | None:
        """Say whether such work would be refused now; nothing is taken."""
        limiting = Level.STUCK if work is Work.LOOK_UP else Level.LATE
        if self.level >= limiting:
            return self._refused("gateway/loop_lag", self._lag_s * 1_000, self._limits[self.level] * 1_000)
        if work is Work.LOOK_UP or not self._setups.wait_s(now=now, spare=_RESERVED[work] * self._setups.rate.burst):
            return None
        return self._refused("gateway/setups_per_s", self._asked.in_a_second(now=now), self._setups.rate.per_s)

    def take(self, work: Work, *, now: float) -> Overloaded | None:
        """Begin a set-up, or say why not."""
        refused = self.refusal(work, now=now)
        self._asked.add(now=now)
        if refused is None:
            self._setups.count(now=now)
        return refused

    def _refused(self, rule: str, observed: float, limit: float) -> Overloaded:
        soonest, latest = RETRY_S
        retry_in_s = soonest + (latest - soonest) * self._jitter()
        return Overloaded(rule=rule, observed=round(observed), limit=round(limit), retry_in_s=retry_in_s)

    # --- the loop ----------------------------------------------------------------------------------

    def sampled(self, lag_s: float, *, now: float) -> bool:
        """Take one sample of the loop's lag; return whether the level changed."""
        before, self._lag_s = self.level, lag_s
        level = max((level for level in self._limits if self._is_late(level, lag_s, now)), default=Level.CALM)
        if level > self.level:
            self._enter(level)
        elif self.level is not Level.CALM:
            self._perhaps_calm(lag_s, now)
        return self.level is not before

    def _is_late(self, level: Level, lag_s: float, now: float) -> bool:
        since = self._late_since[level]
        if lag_s <= self._limits[level]:
            self._late_since[level] = None
            return False
        if since is None:
            self._late_since[level] = since = now
        return now - since >= LASTS_S[level]

    def _perhaps_calm(self, lag_s: float, now: float) -> None:
        if lag_s > self._limits[self.level] * CALM_SHARE:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= CALM_FOR_S:
            self._enter(Level(self.level - 1))

    def _enter(self, level: Level) -> None:
        self.level = level
        self._calm_since = None


class _AskedLately:
    """How many set-ups were asked for in a second, for the words of a refusal."""

    def __init__(self) -> None:
        self._second = 0
        self._asked = [0, 0]  # in the second before, in this one

    def add(self, *, now: float) -> None:
        self._turn_to(int(now))
        self._asked[1] += 1

    def in_a_second(self, *, now: float) -> int:
        """Return the count of the second before this, or of this one if it has more already."""
        self._turn_to(int(now))
        return max(self._asked)

    def _turn_to(self, second: int) -> None:
        if second != self._second:
            self._asked = [self._asked[1] if second == self._second + 1 else 0, 0]
            self._second = second


#: The share of the burst that such work leaves to others.
_RESERVED: Final = {Work.INCOMING: 0.0, Work.OUTGOING: RESERVE, Work.REPORT: RESERVE}
