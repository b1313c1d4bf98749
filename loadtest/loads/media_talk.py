"""A measured stretch of talk on many lines: what was sent and received, how late, and what forwarding it cost.

Used by the load `media` and by the comparison with other media servers, so that each figure means the same in both.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from loadtest.common.clock import instant
from loadtest.loads.generator import percentile
from loadtest.loads.media_pump import Line, Pump
from loadtest.measure.process import busy_s

#: A carried call has 50 packets a second each way.
PACKETS_PER_CALL_AND_S: Final = 100
#: Added delay up to which calls count as carried.
CARRIED_MS: Final = 15.0
#: If the generator is slower than its schedule, later, or busier than this, it measures itself.
_PACE: Final = 0.95
_LATE_MS: Final = 15.0
_BUSY: Final = 0.9
_QUIET_S: Final = 0.25
_DRAIN_S: Final = 5.0


class Pair(NamedTuple):
    """The two far ends of a call."""

    user: Line
    operator: Line


def paired(user: Line, operator: Line) -> Pair:
    """Return the pair; from now on each should receive the other."""
    user.partner, operator.partner = operator, user
    return Pair(user, operator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One direction of all calls."""

    sent: int
    heard: int
    delays_ms: Sequence[float]
    #: Sampled packets that were not what the partner sent.
    strange: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One stretch in which everyone talked."""

    to_operator: Direction
    to_user: Direction
    #: Actual and planned duration.
    seconds: float
    wanted_s: float
    server_cpu_s: float
    generator_cpu_s: float
    late_p99_ms: float

    @property
    def heard(self) -> int:
        """Packets that arrived."""
        return self.to_operator.heard + self.to_user.heard

    @property
    def missing(self) -> int:
        """Packets that were sent and did not arrive."""
        return self.to_operator.sent + self.to_user.sent - self.heard

    @property
    def delays_ms(self) -> list[float]:
        """Added delays of sampled packets, both ways."""
        return [*self.to_operator.delays_ms, *self.to_user.delays_ms]

    @property
    def cpu_us(self) -> float:
        """CPU time of the server per forwarded packet."""
        return 1e6 * self.server_cpu_s / max(1, self.heard)

    @property
    def server_share(self) -> float:
        """Share of a core that the server used."""
        return self.server_cpu_s / self.seconds

    @property
    def pace(self) -> float:
        """Packet rate sent, as a share of the wanted one."""
        return self.wanted_s / self.seconds

    @property
    def generator_was_the_limit(self) -> bool:
        """Whether the generator fell behind its schedule, or had no idle time left."""
        busy = self.generator_cpu_s / self.seconds
        return self.pace < _PACE or self.late_p99_ms > _LATE_MS or busy > _BUSY


async def talk(pump: Pump, pairs: Sequence[Pair], *, seconds: float, pid: int) -> Stretch:
    """Let everyone talk and wait until all packets have arrived; `pid` is the server's. Raises: OSError if it ended."""
    users, operators = [pair.user for pair in pairs], [pair.operator for pair in pairs]
    lines = users + operators
    await pump.prepare(lines, seconds=seconds)
    before = [(line.sent, line.heard, line.strange) for line in lines]
    for line in lines:
        line.delays.clear()
    cpu, own, began_at = busy_s(pid), busy_s(os.getpid()), instant()
    late_s = await pump.play(lines)
    took_s, cpu, own = instant() - began_at, busy_s(pid) - cpu, busy_s(os.getpid()) - own
    await until_quiet(lines)
    changes = [
        (line.sent - sent, line.heard - heard, line.strange - strange)
        for line, (sent, heard, strange) in zip(lines, before, strict=True)
    ]
    half = len(users)
    said_by_users, said_by_operators = changes[:half], changes[half:]
    return Stretch(
        to_operator=_direction(said_by_users, said_by_operators, operators),
        to_user=_direction(said_by_operators, said_by_users, users),
        seconds=took_s,
        wanted_s=seconds,
        server_cpu_s=cpu,
        generator_cpu_s=own,
        late_p99_ms=1_000 * percentile(late_s, 0.99),
    )


def _direction(
    speakers: Sequence[tuple[int, int, int]], hearers: Sequence[tuple[int, int, int]], lines: Sequence[Line]
) -> Direction:
    return Direction(
        sent=sum(sent for sent, _, _ in speakers),
        heard=sum(heard for _, heard, _ in hearers),
        strange=sum(strange for _, _, strange in hearers),
        delays_ms=[1_000 * delay_s for line in lines for delay_s in line.delays],
    )


async def until_quiet(lines: Sequence[Line]) -> None:
    """Wait until no more packets arrive, for a limited time."""
    give_up_at, before = instant() + _DRAIN_S, -1
    while instant() < give_up_at and (heard := sum(line.heard for line in lines)) != before:
        before = heard
        await asyncio.sleep(_QUIET_S)
