"""The correctness score: what Meta and networks eventually do to a webhook, done to every peer in the same way.

Probes do not disturb each other: each uses its own users and ends its calls. A peer that dies is restarted, and the
probe in which it died has failed. Speed is not judged here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import aiohttp

from loadtest.compare.contest import Tell
from loadtest.compare.desk import Change, Desk, desk
from loadtest.compare.peers import Peer, Target, running
from loadtest.compare.results import Probed, Score
from loadtest.loads.job import OK
from loadtest.measure.process import Cores
from loadtest.simulator.config import Profile, Timers, crowd
from loadtest.simulator.faults import Fault, GraphFault
from loadtest.simulator.payloads import CallFacts, Direction, PermissionReply, call_status, permission_reply
from loadtest.simulator.state import Call, EndReason

#: A call not answered within this time counts as not answered.
_ANSWER_S: Final = 4.0
#: An effect that does not come within this time counts as absent.
_NOTHING_S: Final = 1.5
#: Delay of a slow Graph, and the time within which a webhook must be answered nevertheless.
_SLOW_S: Final = 3.0
_ACK_S: Final = 1.0
#: Time for a compensation, including retries.
_COMPENSATED_S: Final = 10.0
_LET_GO_S: Final = 3.0
_PROBE_S: Final = 30.0
_OPERATORS: Final = 6
_MANY: Final = 1_000

WORLD: Final = {
    "users": crowd(100),
    "profile": Profile.GUIDE,
    "timers": Timers(listen_every_s=None),
    "silent": True,
}

#: Whether the probe passed, and what was observed.
Verdict: TypeAlias = tuple[bool, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One thing that is done to a peer."""

    name: str
    run: Callable[[Desk], Awaitable[Verdict]]


# --- many at once, and again -------------------------------------------------------------------------


async def _batch(at: Desk) -> Verdict:
    (one, connect_one), (two, connect_two) = at.call(), at.call()
    async with asyncio.TaskGroup() as tasks:
        posting = tasks.create_task(at.post(connect_one, connect_two))
        answered = [await at.answers(call, timeout_s=_ANSWER_S) for call in (one, two)]
    return all(answered), f"{sum(answered)} of 2 calls answered, webhook {posting.result()}"


async def _duplicate(at: Desk) -> Verdict:
    call, connect = at.call()
    first = await at.post(connect)
    again = await at.post(connect)
    answered = await at.answers(call, timeout_s=_ANSWER_S)
    await asyncio.sleep(_NOTHING_S)
    once = sorted(_actions(at, call)) in (["accept"], ["accept", "pre_accept"])
    good = answered and once and first.status == again.status == OK
    return good, f"webhooks {first.status} and {again.status}; Graph was asked {_list(at.asked(call))}"


# --- other webhooks ----------------------------------------------------------------------------------


async def _status(at: Desk) -> Verdict:
    call, _ = at.call()
    facts = CallFacts(
        id=call.id + "b",
        direction=Direction.BUSINESS_INITIATED,
        number=call.facts.number,
        user=call.facts.user,
    )
    reply = await at.post(call_status(facts, "RINGING", at.sim.world.clock()))
    return reply.status == OK, f"{reply}"


async def _permission(at: Desk) -> Verdict:
    call, _ = at.call()
    now = at.sim.world.clock()
    said = PermissionReply(accept=True, automatic=False, expires_at=now + 7 * 86_400)
    change = permission_reply(call.facts.number, call.facts.user, at.sim.world.new_id("wamid"), said, now)
    reply = await at.post(change)
    return reply.status == OK, f"{reply}"


async def _no_direction(at: Desk) -> Verdict:
    call, connect = at.call()
    del connect["value"]["calls"][0]["direction"]
    return await _is_answered(at, call, connect)


async def _no_contacts(at: Desk) -> Verdict:
    call, connect = at.call()
    del connect["value"]["contacts"]
    return await _is_answered(at, call, connect)


async def _is_answered(at: Desk, call: Call, connect: Change) -> Verdict:
    async with asyncio.TaskGroup() as tasks:
        posting = tasks.create_task(at.post(connect))
        answered = await at.answers(call, timeout_s=_ANSWER_S)
    return answered, f"{'answered' if answered else 'not answered'}, webhook {posting.result()}"


# --- ends that cross ---------------------------------------------------------------------------------


async def _ended_before(at: Desk) -> Verdict:
    call, connect = at.call()
    first = await at.post(at.hang_up(call))
    second = await at.post(connect)
    await asyncio.sleep(_NOTHING_S)
    asked = at.asked(call)
    return not asked, f"webhooks {first.status} and {second.status}; Graph was asked {_list(asked)}"


async def _ended_meanwhile(at: Desk) -> Verdict:
    """Hang up while `accept` is in flight: the call has ended, whatever Graph then answers."""
    call, connect = at.call()
    at.order(GraphFault(fault=Fault.DELAY, action="accept", seconds=_ACK_S))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(at.post(connect))
        if not await at.hears(call, "accept", timeout_s=_ANSWER_S):
            return False, "the call was never accepted"
        ended = await at.post(at.hang_up(call))
    await asyncio.sleep(_ACK_S + _NOTHING_S)
    accepts = _actions(at, call).count("accept")
    still_live = not await _lets_go(at.target)
    after, _ = await _is_answered(at, *at.call())
    good = ended.status == OK and accepts == 1 and not still_live and after
    observed = [f"webhook {ended.status}", f"{accepts} accept"]
    observed += ["the peer still holds the call"] * still_live + ["the next call is not answered"] * (not after)
    return good, ", ".join(observed)


async def _lets_go(target: Target) -> bool:
    """Return whether the peer soon has no live call."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _LET_GO_S
    while await target.live():
        if loop.time() > give_up_at:
            return False
        await asyncio.sleep(0.1)
    return True


# --- forged ------------------------------------------------------------------------------------------


async def _bad_signature(at: Desk) -> Verdict:
    return await _is_refused(at, "sha256=" + 64 * "0")


async def _no_signature(at: Desk) -> Verdict:
    return await _is_refused(at, "")


async def _is_refused(at: Desk, signed: str) -> Verdict:
    call, connect = at.call()
    reply = await at.post(connect, signed=signed)
    await asyncio.sleep(_NOTHING_S)
    asked = at.asked(call)
    return reply.status >= 400 and not asked, f"webhook {reply.status}; Graph was asked {_list(asked)}"


# --- a bad day at Graph ------------------------------------------------------------------------------


async def _graph_fails(at: Desk) -> Verdict:
    """Let `accept` fail permanently: the caller must not be left ringing."""
    call, connect = at.call()
    at.order(GraphFault(fault=Fault.FAIL, action="accept", times=_MANY))
    by_business = (EndReason.BUSINESS_REJECTED, EndReason.BUSINESS_TERMINATED)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(at.post(connect))
        try:
            await at.sim.until(lambda: not call.live, timeout_s=_COMPENSATED_S)
        except TimeoutError:
            return False, f"the caller keeps ringing; Graph was asked {_list(at.asked(call))}"
    return call.end_reason in by_business, f"Graph was asked {_list(at.asked(call))}"


async def _graph_is_slow(at: Desk) -> Verdict:
    call, connect = at.call()
    at.order(GraphFault(fault=Fault.DELAY, times=_MANY, seconds=_SLOW_S))
    reply = await at.post(connect)
    at.clear_faults()
    answered = await at.answers(call, timeout_s=_SLOW_S + _ANSWER_S)
    observed = f"webhook {reply}, {'answered' if answered else 'not answered'}"
    return reply.status == OK and reply.took_s < _ACK_S, observed


PROBES: Final = (
    Probe(name="both calls of a batch are answered", run=_batch),
    Probe(name="a webhook that comes twice is answered once", run=_duplicate),
    Probe(name="a status webhook is accepted", run=_status),
    Probe(name="a permission webhook is accepted", run=_permission),
    Probe(name="connect without direction is answered", run=_no_direction),
    Probe(name="connect without contacts is answered", run=_no_contacts),
    Probe(name="terminate before connect: not answered", run=_ended_before),
    Probe(name="terminate while accept is in flight: let go, and the next call is answered", run=_ended_meanwhile),
    Probe(name="a bad signature is refused", run=_bad_signature),
    Probe(name="a missing signature is refused", run=_no_signature),
    Probe(name="Graph fails at accept: the call is ended at Meta", run=_graph_fails),
    Probe(name=f"a slow Graph ({_SLOW_S:g} s) does not hold the webhook ({_ACK_S:g} s)", run=_graph_is_slow),
)


def _actions(at: Desk, call: Call) -> list[str]:
    return [asked.split()[0] for asked in at.asked(call)]


def _list(asked: list[str]) -> str:
    return ", ".join(asked) or "nothing"


async def probe(peer: Peer, score: Score, cores: Cores, tell: Tell = lambda what: None) -> None:
    """Run all probes on one peer; observations are added to its score as they come.

    Raises: PeerFailed, GatewayDied, NotInstalled, aiohttp.ClientError, OSError.
    """
    while len(score.probed) < len(PROBES):
        tell("starting")
        async with running(peer, cores, WORLD) as target, target.crew(_OPERATORS), desk(target) as at:
            if not score.probed and not (await _is_answered(at, *at.call()))[0]:
                score.failure = f"it does not answer a plain call{target.last_words()}"
                return
            await at.clear_up()
            await probe_target(at, score, tell)


async def probe_target(at: Desk, score: Score, tell: Tell = lambda what: None) -> None:
    """Run the remaining probes on a running peer, until it dies."""
    for one in PROBES[len(score.probed) :]:
        tell(one.name)
        try:
            async with asyncio.timeout(_PROBE_S):
                passed, observed = await one.run(at)
        except (aiohttp.ClientError, OSError) as failure:  # OSError includes TimeoutError
            passed, observed = False, f"{type(failure).__name__}: {failure}"
        await at.clear_up()
        died = at.target.process.returncode is not None
        if died:
            passed, observed = False, f"{observed}; the process ended"
        score.probed.append(Probed(probe=one.name, passed=passed, observed=observed))
        if died:
            return
