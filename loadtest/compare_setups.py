"""User-initiated set-ups, peer after peer: what one costs, how long it takes, how many a second one core does.

Open loop as in a load run (see `generator`). Not responsible for who the peers are nor for starting them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from loadtest.clock import instant
from loadtest.compare_contest import Contest, Tell
from loadtest.compare_desk import Desk, desk
from loadtest.compare_environments import interpreter
from loadtest.compare_peers import PEERS_OF_CALLS, Peer, running
from loadtest.compare_results import Column, Part, Row
from loadtest.generator import NO_ANSWER, open_loop, percentile
from loadtest.loads import OK, operators_for
from loadtest.measure import Cores, busy_s, pin
from loadtest.results import Check
from loadtest.scenarios import Step
from loadtest.sim_config import Profile, Timers, crowd
from loadtest.sim_errors import NotPossible
from loadtest.sim_state import CallState

#: The goal: so many times as many set-ups per second of the CPU that does the signalling.
_TIMES_PIPECAT: Final = 5.0
#: All peers hold these, without media and with.
_COMMON_PER_S: Final = 40.0
_COMMON_CALLS: Final = 160
_MEDIA_PER_S: Final = 20.0
_MEDIA_CALLS: Final = 60
#: A second goes before and is not counted.
_WARM_UP_S: Final = 1.0
#: Long enough for ICE and DTLS where there is media; else short, so that few operators do.
_TALK_S: Final = 0.05
_MEDIA_TALK_S: Final = 0.25
#: A ramp begins with what CPU time promises, and goes on by a quarter, or down.
_FASTER: Final = 1.25
_SLOWER: Final = 0.8
_STEPS: Final = 8
_STEP_S: Final = 2.0
_STEP_CALLS: Final = 30
#: Slower than this, or with more lost, a rate was not held.
_HELD_MS: Final = 250.0
_HELD_LOST: Final = 0.001
#: Later, or busier, than this, the generator measures itself.
_LATE_MS: Final = _HELD_MS / 5
_BUSY: Final = 0.85
_PATIENCE_S: Final = 5.0
#: Whatever a peer still does after the last call.
_SETTLE_S: Final = 0.3
_USERS: Final = 4_000
#: What is too short to be measured.
_LEAST_S: Final = 1e-6

WORLD: Final = {
    "users": crowd(_USERS),
    "profile": Profile.GUIDE,
    "timers": Timers(listen_every_s=None),
    # Ended calls that are kept would be looked through by the garbage collector, in one go, in mid-measurement.
    "history": 200,
}
METHOD: Final = (
    "Users call, the same offers to all; each call is answered, and a moment later ended by the user. A peer and"
    " everything that belongs to it (media workers, PostgreSQL) run on one core, the generator (simulated Meta, users"
    " and, for the gateway, operators who pick up) on another. CPU is user and system time per call, its end included:"
    " 'signalling' of the process that takes the webhooks, 'all' of all processes; a peer in one process does all of it"
    f" there. 'With media', at {_MEDIA_PER_S:g}/s: the user does ICE and DTLS and speaks. In the other figures nobody"
    " is behind the media address that Meta offers, so nobody pays for DTLS and audio; that favours those who do these"
    f" where they do signalling. 'Held' is the highest rate of a ramp at which no call was lost and accept p99 was"
    f" {_HELD_MS:g} ms at most, with all that belongs to the peer on the one core; 'busy' is at that rate. The other"
    f" figures are at {_COMMON_PER_S:g}/s. Times count from when a call was due to when the simulated Graph had read"
    " `accept`; ack is the answer to `connect`. Ratios: how many times as many set-ups a second the first peer does, by"
    " CPU time or by the rate held."
)
COLUMNS: Final = [
    Column(key="media_cpu_ms", heading="CPU ms with media, signalling", form=".2f"),
    Column(key="media_all_cpu_ms", heading="CPU ms with media, all", form=".2f"),
    Column(key="cpu_ms", heading="CPU ms, signalling", form=".2f"),
    Column(key="all_cpu_ms", heading="CPU ms, all", form=".2f"),
    Column(key="busy_cpu_ms", heading="CPU ms when busy, signalling", form=".2f"),
    Column(key="busy_all_cpu_ms", heading="CPU ms when busy, all", form=".2f"),
    Column(key="held_per_s", heading="set-ups/s held", form=".0f"),
    Column(key="ack_p50_ms", heading="ack p50 ms"),
    Column(key="ack_p99_ms", heading="ack p99 ms"),
    Column(key="accept_p50_ms", heading="accept p50 ms"),
    Column(key="accept_p99_ms", heading="accept p99 ms"),
]
RATIOS: Final = [
    Column(key="media_per_s", heading="set-ups/s by CPU with media, signalling"),
    Column(key="media_all_per_s", heading="set-ups/s by CPU with media, all"),
    Column(key="busy_per_s", heading="set-ups/s by CPU when busy, signalling"),
    Column(key="busy_all_per_s", heading="set-ups/s by CPU when busy, all"),
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
    return [part.at_least(_TIMES_PIPECAT, "media_per_s", "pipecat")] if both else []


async def _round(name: str, row: Row, cores: Cores, seed: int, tell: Tell) -> None:
    """Measure one peer once, without media and with. Raises: PeerFailed, GatewayDied and whatever a network does."""
    peer = _peer(name)
    figures: dict[str, float] = {}
    row.rounds.append(figures)
    tell("starting")
    async with _open(peer, cores, WORLD | {"silent": True}) as at:
        found = await _common(at, row, Rate(per_s=_COMMON_PER_S, count=_COMMON_CALLS, talk_s=_TALK_S), seed, tell)
        figures |= found.figures()
        remark = await _ramp(at, figures, seed, tell)
        if remark:
            row.remark(remark)
    if peer.media:
        tell("starting, with media")
        async with _open(peer, cores, WORLD) as at:
            rate = Rate(per_s=_MEDIA_PER_S, count=_MEDIA_CALLS, talk_s=_MEDIA_TALK_S)
            found = await _common(at, row, rate, seed, tell)
            figures |= found.costs("media_")
            if found.connected < _MEDIA_CALLS:
                row.remark(f"with media: of {_MEDIA_CALLS} users only {found.connected} got ICE and DTLS through")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Calls to offer."""

    per_s: float
    count: int
    talk_s: float


async def _common(at: Desk, row: Row, rate: Rate, seed: int, tell: Tell) -> "Offered":
    """Offer a rate that all hold, after some calls that do not count."""
    tell(f"{rate.per_s:g} calls/s")
    await offer(at, replace(rate, count=round(_WARM_UP_S * rate.per_s)), seed)
    found = await offer(at, rate, seed)
    at.target.check()
    if found.lost:
        row.remark(f"{found.lost} of {rate.count} calls were not answered at {rate.per_s:g}/s")
    return found


async def _ramp(at: Desk, figures: dict[str, float], seed: int, tell: Tell) -> str:
    """Offer more and more until it is not held; fill in what held, and return what is to be said of it."""
    per_s, held_per_s, lower = figures["all_per_s"], 0.0, False
    for _ in range(_STEPS):
        tell(f"{per_s:.0f} calls/s")
        rate = Rate(per_s=per_s, count=max(_STEP_CALLS, round(_STEP_S * per_s)), talk_s=_TALK_S)
        found = await offer(at, rate, seed)
        at.target.check()
        if not found.held and held_per_s:
            return "the generator was the limit of what was held" if found.generator_was_the_limit else ""
        if found.held:
            figures["held_per_s"] = held_per_s = per_s
            figures |= found.costs("busy_")
            if lower:
                return ""
        lower = not found.held
        per_s *= _SLOWER if lower else _FASTER
    return f"held: more than {held_per_s:.0f}/s was not tried" if held_per_s else "no rate was held"


@dataclass(slots=True, kw_only=True)
class Offered:
    """What became of calls that were offered at one rate."""

    count: int
    #: In ms: the answer to `connect`; from when a call was due, by its index, to when Graph had read `accept`.
    acks: list[float] = field(default_factory=list)
    accepts: dict[int, float] = field(default_factory=dict)
    #: Calls whose user got ICE and DTLS through.
    connected: int = 0
    #: Per call: of the process that does the signalling, of all.
    cpu_ms: float = 0.0
    all_cpu_ms: float = 0.0
    late_p99_ms: float = 0.0
    #: Of a core, used by the generator.
    generator_share: float = 0.0

    @property
    def lost(self) -> int:
        """How many calls were not answered."""
        return self.count - len(self.accepts)

    @property
    def held(self) -> bool:
        """Whether the peer kept up."""
        kept_up = bool(self.accepts) and percentile(self.accepts.values(), 0.99) <= _HELD_MS
        return kept_up and self.lost <= _HELD_LOST * self.count

    @property
    def generator_was_the_limit(self) -> bool:
        """Whether the figures are the generator's own."""
        return self.late_p99_ms > _LATE_MS or self.generator_share > _BUSY

    def costs(self, kind: str = "") -> dict[str, float]:
        """Return what a call cost, and how many a second that makes."""
        costs = {"": self.cpu_ms, "all_": self.all_cpu_ms}
        figures = {f"{kind}{whose}cpu_ms": cost for whose, cost in costs.items()}
        return figures | {f"{kind}{whose}per_s": 1_000 / cost for whose, cost in costs.items()}

    def figures(self) -> dict[str, float]:
        """Return the figures of a round."""
        figures = self.costs() | {"lost": float(self.lost)}
        for name, values in (("ack", self.acks), ("accept", self.accepts.values())):
            if values:
                figures |= {f"{name}_p{share}_ms": percentile(values, share / 100) for share in (50, 99)}
        return figures


async def offer(at: Desk, rate: Rate, seed: int) -> Offered:
    """Let so many users call; return when the last call has ended everywhere."""
    found, target = Offered(count=rate.count), at.target
    crew = operators_for(Step(rate_per_s=rate.per_s, seconds=1), rate.talk_s)
    async with target.crew(crew):
        before, own_s, began_at = target.cpu_s(), busy_s(os.getpid()), instant()
        shots = await open_loop(
            lambda index: _one(at, found, index, rate.talk_s), rate_per_s=rate.per_s, count=rate.count, seed=seed
        )
        found.generator_share = (busy_s(os.getpid()) - own_s) / (instant() - began_at)
        await asyncio.sleep(_SETTLE_S)
        after = target.cpu_s()
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
    except NotPossible:  # as many calls are up as Meta lets through: the peer has not kept up
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
