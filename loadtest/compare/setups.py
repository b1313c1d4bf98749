"""The part "calls": user-initiated set-ups, peer after peer: cost, duration, and how many a second one core handles.

Open loop as in a load run (see `loads/generator.py`). The peers are started in `peers.py`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from loadtest.common.clock import instant
from loadtest.compare.contest import Contest, Tell
from loadtest.compare.desk import Desk, desk
from loadtest.compare.environments import interpreter
from loadtest.compare.peers import PEERS_OF_CALLS, Peer, running
from loadtest.compare.results import Column, Part, Row
from loadtest.loads.generator import NO_ANSWER, open_loop, percentile
from loadtest.loads.job import OK, operators_for
from loadtest.loads.scenarios import Step
from loadtest.measure.process import Cores, busy_s, machine_busy_s, pin
from loadtest.measure.results import Check
from loadtest.simulator.config import Profile, Timers, crowd
from loadtest.simulator.errors import NotPossible
from loadtest.simulator.state import CallState

#: The goal: how many times as many set-ups per second of signalling CPU.
_TIMES_PIPECAT: Final = 5.0
#: Warm-up that is not counted.
_WARM_UP_S: Final = 1.0
#: A ramp starts slightly above what the CPU time at a low rate promises, then goes up or down by a quarter.
_FASTER: Final = 1.25
_SLOWER: Final = 0.8
_STEPS: Final = 8
_STEP_S: Final = 2.0
_STEP_CALLS: Final = 30
#: A rate was not held if calls were slower than this, or if more were lost or more users had no media than this.
_HELD_MS: Final = 250.0
_HELD_LOST: Final = 0.001
_HELD_UNCONNECTED: Final = 0.01
#: If the generator is later, or busier, than this, it measures itself.
_LATE_MS: Final = _HELD_MS / 5
_BUSY: Final = 0.85
#: Cores that other programs may use without a remark.
_DISTURBED: Final = 0.2
_PATIENCE_S: Final = 5.0
#: Time for a peer's remaining work after the last call.
_SETTLE_S: Final = 0.3
_USERS: Final = 4_000
#: Spans shorter than this are too short to be measured.
_LEAST_S: Final = 1e-6

WORLD: Final = {
    "users": crowd(_USERS),
    "profile": Profile.GUIDE,
    "timers": Timers(listen_every_s=None),
    # A garbage collection would scan all kept calls at once, in the middle of a measurement.
    "history": 200,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Calls to offer at one rate."""

    per_s: float
    count: int
    talk_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Calls with media, or without."""

    #: Prefix of the names of its figures.
    prefix: str
    said: str
    #: A rate that all peers hold. Calls last long enough for ICE and DTLS, or are short, so that few operators suffice.
    common: Rate
    silent: bool


_MEDIA: Final = Kind(prefix="media_", said="with media", common=Rate(per_s=20.0, count=60, talk_s=0.25), silent=False)
_SILENT: Final = Kind(prefix="", said="without media", common=Rate(per_s=40.0, count=160, talk_s=0.05), silent=True)

METHOD: Final = (
    "Users call, with the same offers for all peers; each call is answered, and ended by the user a moment later. A"
    " peer and all its processes (media workers, PostgreSQL) run on one core, the generator (simulated Meta, users and,"
    " for the gateway, operators who answer) on another. With media, the user does ICE and DTLS and sends audio."
    " Without media, nothing is behind the media address in Meta's offer, so no peer pays for DTLS and audio; this"
    " favours peers that do those in their signalling process. 'Held' is the highest rate of a ramp at which no call"
    f" was lost, the p99 of accept was at most {_HELD_MS:g} ms and, with media, 99 % of users had completed ICE and"
    f" DTLS {_MEDIA.common.talk_s:g} s after they were answered. CPU is user and system time per call, including its"
    " end: 'signalling' is the process that takes the webhooks, 'all' are all processes; a peer with one process does"
    f" everything there. 'Busy' is at the rate held; the other figures are at {_SILENT.common.per_s:g}/s without media."
    " Times count from when a call was due to when the simulated Graph had read `accept`; ack is the response to"
    " `connect`. Ratios say how many times as many set-ups a second the first peer handles, by CPU time or by the rate"
    " held."
)
COLUMNS: Final = [
    Column(key="media_busy_cpu_ms", heading="with media: CPU ms, busy, signalling", form=".2f"),
    Column(key="media_busy_all_cpu_ms", heading="with media: CPU ms, busy, all", form=".2f"),
    Column(key="media_held_per_s", heading="with media: set-ups/s held", form=".0f"),
    Column(key="busy_cpu_ms", heading="CPU ms, busy, signalling", form=".2f"),
    Column(key="busy_all_cpu_ms", heading="CPU ms, busy, all", form=".2f"),
    Column(key="held_per_s", heading="set-ups/s held", form=".0f"),
    Column(key="cpu_ms", heading="CPU ms, signalling", form=".2f"),
    Column(key="all_cpu_ms", heading="CPU ms, all", form=".2f"),
    Column(key="ack_p50_ms", heading="ack p50 ms"),
    Column(key="ack_p99_ms", heading="ack p99 ms"),
    Column(key="accept_p50_ms", heading="accept p50 ms"),
    Column(key="accept_p99_ms", heading="accept p99 ms"),
]
RATIOS: Final = [
    Column(key="media_busy_per_s", heading="set-ups/s with media, by CPU of signalling"),
    Column(key="media_busy_all_per_s", heading="set-ups/s with media, by CPU of all"),
    Column(key="media_held_per_s", heading="set-ups/s with media, held"),
    Column(key="busy_per_s", heading="set-ups/s by CPU of signalling"),
    Column(key="busy_all_per_s", heading="set-ups/s by CPU of all"),
    Column(key="held_per_s", heading="set-ups/s held"),
]


def _part() -> Part:
    title = "User-initiated set-ups"
    return Part(name="calls", title=title, method=METHOD, columns=list(COLUMNS), ratios=list(RATIOS))


async def _prepare(name: str, tell: Tell) -> None:
    await interpreter(_peer(name).requirements, tell)


def _peer(name: str) -> Peer:
    return next(peer for peer in PEERS_OF_CALLS if peer.name == name)


def _checks(part: Part) -> list[Check]:
    both = part.row("gateway") and part.row("pipecat")
    return [part.at_least(_TIMES_PIPECAT, "media_busy_per_s", "pipecat")] if both else []


async def _round(name: str, row: Row, cores: Cores, seed: int, tell: Tell) -> None:
    """Measure one peer once, without media and with. Raises: PeerFailed, GatewayDied and network errors."""
    peer = _peer(name)
    figures: dict[str, float] = {}
    row.rounds.append(figures)
    for kind in (_MEDIA, _SILENT) if peer.media else (_SILENT,):
        tell(f"starting, {kind.said}")
        async with _open(peer, cores, WORLD | {"silent": kind.silent}) as at:
            await _measure(at, kind, row, seed, tell)


@asynccontextmanager
async def _open(peer: Peer, cores: Cores, world: Mapping[str, Any]) -> AsyncIterator[Desk]:
    ours = os.sched_getaffinity(0) if cores.generator else set()
    async with running(peer, cores, world) as target:
        pin(os.getpid(), cores.generator)
        try:
            async with desk(target) as at:
                yield at
        finally:
            pin(os.getpid(), frozenset(ours))


async def _measure(at: Desk, kind: Kind, row: Row, seed: int, tell: Tell) -> None:
    """Offer a rate that all peers hold, after a warm-up; then a ramp of rates."""
    figures, common = row.rounds[-1], kind.common
    tell(f"{common.per_s:g} calls/s {kind.said}")
    await offer(at, replace(common, count=round(_WARM_UP_S * common.per_s)), seed)
    found = await offer(at, common, seed)
    at.target.check()
    figures |= found.figures(kind.prefix)
    if found.lost:
        row.remark(f"{kind.said}: {found.lost} of {common.count} calls were not answered at {common.per_s:g}/s")
    if found.connected < common.count - found.lost:
        row.remark(f"{kind.said}: only {found.connected} of {common.count} users completed ICE and DTLS")
    if found.others_share > _DISTURBED:
        row.remark("disturbed: other programs, or other machines on the same host, were busy during the measurement")
    held, remark = await _ramp(at, _FASTER * found.costs()["all_per_s"], common.talk_s, seed, tell)
    figures |= {f"{kind.prefix}{name}": value for name, value in held.items()}
    if remark:
        row.remark(f"{kind.said}: {remark}")


async def _ramp(at: Desk, first_per_s: float, talk_s: float, seed: int, tell: Tell) -> tuple[dict[str, float], str]:
    """Raise the rate until it is not held; return the figures of the last rate held, and a remark."""
    figures: dict[str, float] = {}
    per_s, lower = first_per_s, False
    for _ in range(_STEPS):
        tell(f"{per_s:.0f} calls/s")
        found = await offer(at, Rate(per_s=per_s, count=max(_STEP_CALLS, round(_STEP_S * per_s)), talk_s=talk_s), seed)
        at.target.check()
        if not found.held and figures:
            return figures, "the generator was the limit of what was held" if found.generator_was_the_limit else ""
        if found.held:
            figures = {"held_per_s": per_s} | found.costs("busy_")
            if lower:
                return figures, ""
        lower = not found.held
        per_s *= _SLOWER if lower else _FASTER
    return figures, f"more than {figures['held_per_s']:.0f}/s was not tried" if figures else "no rate was held"


@dataclass(slots=True, kw_only=True)
class Offered:
    """What became of calls offered at one rate."""

    count: int
    #: In ms: responses to `connect`; and by index of the call, from when it was due to when Graph had read `accept`.
    acks: list[float] = field(default_factory=list)
    accepts: dict[int, float] = field(default_factory=dict)
    #: Calls whose user completed ICE and DTLS.
    connected: int = 0
    #: Per call: CPU time of the process that does the signalling, and of all processes.
    cpu_ms: float = 0.0
    all_cpu_ms: float = 0.0
    late_p99_ms: float = 0.0
    #: Cores used by the generator, and by unrelated programs.
    generator_share: float = 0.0
    others_share: float = 0.0

    @property
    def lost(self) -> int:
        """Number of calls that were not answered."""
        return self.count - len(self.accepts)

    @property
    def held(self) -> bool:
        """Whether the peer kept up."""
        kept_up = bool(self.accepts) and percentile(self.accepts.values(), 0.99) <= _HELD_MS
        unconnected = self.count - self.lost - self.connected
        return kept_up and self.lost <= _HELD_LOST * self.count and unconnected <= _HELD_UNCONNECTED * self.count

    @property
    def generator_was_the_limit(self) -> bool:
        """Whether the generator, not the peer, limited the figures."""
        return self.late_p99_ms > _LATE_MS or self.generator_share > _BUSY

    def costs(self, prefix: str = "") -> dict[str, float]:
        """Return the cost of a call, and the calls per second that this allows."""
        costs = {"": self.cpu_ms, "all_": self.all_cpu_ms}
        figures = {f"{prefix}{whose}cpu_ms": cost for whose, cost in costs.items()}
        return figures | {f"{prefix}{whose}per_s": 1_000 / cost for whose, cost in costs.items()}

    def figures(self, prefix: str = "") -> dict[str, float]:
        """Return all figures, for a round."""
        figures = self.costs(prefix) | {f"{prefix}lost": float(self.lost)}
        for name, values in (("ack", self.acks), ("accept", self.accepts.values())):
            if values:
                figures |= {f"{prefix}{name}_p{share}_ms": percentile(values, share / 100) for share in (50, 99)}
        return figures


async def offer(at: Desk, rate: Rate, seed: int) -> Offered:
    """Let this many users call; return when the last call has ended everywhere."""
    found, target = Offered(count=rate.count), at.target
    crew = operators_for(Step(rate_per_s=rate.per_s, seconds=1), rate.talk_s)
    async with target.crew(crew):
        before, own_s, busy, began_at = target.cpu_s(), busy_s(os.getpid()), machine_busy_s(), instant()
        shots = await open_loop(
            lambda index: _one(at, found, index, rate.talk_s), rate_per_s=rate.per_s, count=rate.count, seed=seed
        )
        found.generator_share = (busy_s(os.getpid()) - own_s) / (instant() - began_at)
        await asyncio.sleep(_SETTLE_S)
        after = target.cpu_s()
        others_s = machine_busy_s() - busy - (after[1] - before[1]) - (busy_s(os.getpid()) - own_s)
        found.others_share = others_s / (instant() - began_at)
    found.cpu_ms, found.all_cpu_ms = (
        1_000 * max(late_s - early_s, _LEAST_S) / rate.count for early_s, late_s in zip(before, after, strict=True)
    )
    found.late_p99_ms = 1_000 * percentile([shot.late_s for shot in shots], 0.99)
    for index in found.accepts:
        found.accepts[index] += 1_000 * shots[index].late_s
    return found


async def _one(at: Desk, found: Offered, index: int, talk_s: float) -> int:
    """Let one user call, talk and hang up."""
    try:
        call, connect = at.call()
    except NotPossible:  # Meta's limit of concurrent calls is reached: the peer has not kept up
        return NO_ANSWER
    due_at = instant()
    async with asyncio.TaskGroup() as tasks:
        posting = tasks.create_task(at.post(connect))
        await at.hears(call, "accept", timeout_s=_PATIENCE_S)
        if call.state is CallState.ACTIVE:
            found.accepts[index] = 1_000 * (at.heard[call.id, "accept"] - due_at)
            await asyncio.sleep(talk_s)
    reply = posting.result()
    if reply.status == OK:
        found.acks.append(1_000 * reply.took_s)
    found.connected += call.media.connected.is_set()
    if call.live:
        await at.post(at.hang_up(call))
    return OK if index in found.accepts else NO_ANSWER


SETUPS: Final = Contest(
    part=_part,
    peers=tuple((peer.name, peer.what) for peer in PEERS_OF_CALLS),
    prepare=_prepare,
    round=_round,
    checks=_checks,
)
