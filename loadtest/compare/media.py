"""The part "media": what a forwarded packet costs, and how many calls one core carries, for each media server.

All servers have the same far ends and the same pump; they are started in `media_peers.py`.
"""

from typing import Final

from loadtest.compare.contest import Contest, Tell
from loadtest.compare.media_peers import MOST_CALLS, MediaServer, media_server
from loadtest.compare.results import Column, Part, Row
from loadtest.compare.rtpengine import find_program
from loadtest.loads.generator import percentile
from loadtest.loads.media_talk import CARRIED_MS, PACKETS_PER_CALL_AND_S, Stretch, talk
from loadtest.measure.process import Cores
from loadtest.measure.results import Check

#: The goals: how many times as many calls per core as the others.
_TIMES_RELAY: Final = 30.0
_TIMES_RTPENGINE: Final = 0.6
_FIRST: Final = 2
_WARM_UP_S: Final = 1.0
_TALK_S: Final = 3.0
#: The next step uses this share of the core, at the present cost of a packet; but it grows at most by the factor below.
_SHARE: Final = 0.9
_LEAST_MORE: Final = 1.15
_MOST_MORE: Final = 4.0
#: Number of tries before a step counts as not carried: other programs run on the machine too.
_TRIES: Final = 3
#: Costs below this are too small to be measured.
_LEAST_US: Final = 1e-3

METHOD: Final = (
    "Calls with two WebRTC legs (ICE, DTLS-SRTP, Opus), 50 packets a second each way. Each step has as many more calls"
    " as the core seems to have room for. A server runs on one core; the far ends, in one process, run on another,"
    " encrypt before they send, and read once a millisecond. 'Calls carried' is the highest number of calls at which"
    f" every packet arrived and the p99 of the added delay was at most {CARRIED_MS:g} ms above the server's own p50"
    f" with {_FIRST} calls: aiortc holds back four packets by design. CPU is user and system time of the process that"
    " carries RTP, with the most calls at which every packet arrived. 'By CPU' is the number of calls that would fill"
    " the core at this cost; use it for the comparison where the far ends limited the number of calls carried. The"
    " gateway's calls are set up through the whole gateway, and its worker also polices, counts and reports each"
    " stream; rtpengine runs in user space (no kernel module), like the others; MediaRelay decodes and encodes each"
    " packet."
)


def _part() -> Part:
    return Part(
        name="media",
        title="Calls with media",
        method=METHOD,
        columns=[
            Column(key="cpu_us", heading="CPU us a packet"),
            Column(key="calls_per_core", heading="calls a core, by CPU", form=".0f"),
            Column(key="held", heading="calls carried", form=".0f"),
            Column(key="share", heading="of a core at most", form=".2f"),
            Column(key="delay_p50_ms", heading="added delay p50 ms", form=".2f"),
            Column(key="delay_p99_ms", heading="added delay p99 ms", form=".2f"),
        ],
        ratios=[
            Column(key="calls_per_core", heading="calls a core, by CPU", form=".2f"),
            Column(key="held", heading="calls carried", form=".2f"),
        ],
    )


async def _prepare(name: str, tell: Tell) -> None:
    if name == "rtpengine":
        await find_program(tell)


def _checks(part: Part) -> list[Check]:
    goals = {"mediarelay": _TIMES_RELAY, "rtpengine": _TIMES_RTPENGINE}
    if part.row("gateway") is None:
        return []
    return [part.at_least(goal, "calls_per_core", name) for name, goal in goals.items() if part.row(name)]


async def _round(name: str, row: Row, cores: Cores, seed: int, tell: Tell) -> None:
    """Measure one server once. Raises: PeerFailed, GatewayDied and network errors."""
    figures: dict[str, float] = {}
    row.rounds.append(figures)
    tell("starting")
    async with media_server(name, cores, seed) as server:
        remark = await ramp(server, figures, tell)
        if remark:
            row.remark(remark)


async def ramp(server: MediaServer, figures: dict[str, float], tell: Tell) -> str:
    """Add calls until a packet is missing or the core is full; fill in the figures and return a remark.

    Lateness alone does not end the ramp: on a machine that runs other programs, these may be the cause.
    """
    count, usual_ms, remark = _FIRST, 0.0, ""
    while True:
        tell(f"{count} calls")
        await server.add(count - len(server.pairs))
        await talk(server.pump, server.pairs, seconds=_WARM_UP_S, pid=server.pid)
        found, tries = await talk(server.pump, server.pairs, seconds=_TALK_S, pid=server.pid), 1
        usual_ms = usual_ms or percentile(found.delays_ms, 0.5)
        while not (good := carried(found, usual_ms)) and tries < _TRIES:
            found, tries = await talk(server.pump, server.pairs, seconds=_TALK_S, pid=server.pid), tries + 1
        if good:
            figures |= {"held": float(count)} | _delays(found)
        if not whole(found):
            return remark if figures else f"not even {count} calls were carried"
        figures |= _costs(found)
        if not good:  # the cost per packet can be computed nevertheless
            late = f"{count} calls were late, p99 {percentile(found.delays_ms, 0.99):.0f} ms"
            remark = "the far ends were the limit of what was carried" if found.generator_was_the_limit else late
            if found.server_share > _SHARE:
                return remark
        if count == MOST_CALLS:
            return remark or f"more than {MOST_CALLS} calls were not tried"
        count = following(count, figures["calls_per_core"])


def whole(found: Stretch) -> bool:
    """Return whether all packets arrived, and no others."""
    return not found.missing and not found.to_user.strange and not found.to_operator.strange


def carried(found: Stretch, usual_ms: float) -> bool:
    """Return whether all packets arrived in time, and the far ends kept up."""
    in_time = bool(found.delays_ms) and percentile(found.delays_ms, 0.99) <= usual_ms + CARRIED_MS
    return whole(found) and in_time and not found.generator_was_the_limit


def following(count: int, calls_per_core: float) -> int:
    """Return how many calls to try after this many were carried."""
    least, most = max(count + 1, round(count * _LEAST_MORE)), round(count * _MOST_MORE)
    return min(max(least, min(most, int(calls_per_core * _SHARE))), MOST_CALLS)


def _costs(found: Stretch) -> dict[str, float]:
    per_core = 1e6 / (max(found.cpu_us, _LEAST_US) * PACKETS_PER_CALL_AND_S)
    return {"cpu_us": found.cpu_us, "calls_per_core": per_core, "share": found.server_share}


def _delays(found: Stretch) -> dict[str, float]:
    return {f"delay_p{share}_ms": percentile(found.delays_ms, share / 100) for share in (50, 99)}


CARRYING: Final = Contest(
    part=_part,
    peers=(
        ("gateway", "this gateway's media worker; its calls are set up through the whole gateway"),
        ("mediarelay", "aiortc 1.16.0: RTCPeerConnection and MediaRelay"),
        ("rtpengine", "Debian's rtpengine, in user space, by its ng protocol"),
    ),
    prepare=_prepare,
    round=_round,
    checks=_checks,
)
