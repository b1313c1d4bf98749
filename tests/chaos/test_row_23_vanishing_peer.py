"""A peer that is not heard any more ends its leg ten seconds later, and not before eight have passed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from loadtest.net.udp_chaos import UdpChaos, UdpFaults, Way, udp_chaos
from media.leg import MediaLeg
from media.model import LegConnected, LegFailed, LegFailure, LegId, MediaEvent
from tests.loopback.peers import CONFIG, Peer, Stage, until
from tests.support.generators.hostile import candidate_port, gather_on_loopback, media_port, with_candidates
from tests.support.harness.chaos import Chaos

PROMISE = "a leg whose peer is not heard any more ends 8 to 10 s after the last packet, as media_timeout"


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


@dataclass(slots=True, kw_only=True)
class Call:
    """An operator and a user with a leg each, and a relay before each leg."""

    legs: dict[str, LegId]
    peers: dict[str, Peer]
    relays: dict[str, UdpChaos]
    #: When a peer could speak no more, because its own stack had closed the connection.
    mute_at: dict[str, float] = field(default_factory=dict)

    def vanish(self, side: str, *, one_way: bool) -> None:
        """Let nothing come from a peer any more; unless one-way, nothing goes to it either."""
        relay = self.relays[side]
        if one_way:
            relay.cut(FROM_PEER[side])
        else:
            relay.cut()

    def last_sign_at(self, side: str) -> float:
        """Return when the leg last had a sign of life: of a browser its checks count, of Meta media only."""
        passage = self.relays[side].ways[FROM_PEER[side]]
        at = passage.last_at if side == "browser" else passage.last_media_at
        assert at is not None
        return at


#: The relay of a browser leg stands before our port, that of a Meta leg before Meta's.
FROM_PEER = {"browser": Way.IN, "meta": Way.OUT}


class TimedStage(Stage):
    """A stage that notes when it was told of each failure."""

    def __init__(self, media_timeout_s: float) -> None:
        super().__init__(replace(CONFIG, media_timeout_s=media_timeout_s))
        self.failed_at: dict[LegId, float] = {}
        self.host._emit = self._told

    def _told(self, event: MediaEvent) -> None:
        self.events.append(event)
        if isinstance(event, LegFailed):
            self.failed_at[event.leg] = asyncio.get_running_loop().time()

    async def call(self, name: str, stack: AsyncExitStack, *, seed: int) -> Call:
        relays = {side: await stack.enter_async_context(udp_chaos(None, seed=seed)) for side in ("browser", "meta")}
        legs = {side: LegId(f"{name} {side}") for side in relays}
        operator, user = self.peer(), self.peer()
        answer = await self.host.answer_browser(legs["browser"], await operator.offer())
        relays["browser"].target = ("127.0.0.1", media_port(answer))
        await operator.answered(with_candidates(answer, f"127.0.0.1 {relays['browser'].port}"))
        offer = await user.offer(lite=True)
        relays["meta"].target = ("127.0.0.1", candidate_port(offer))
        offer = with_candidates(offer, f"127.0.0.1 {relays['meta'].port}")
        answer = await self.host.answer_meta(legs["meta"], offer)
        await user.answered(with_candidates(answer, "127.0.0.1 9"))  # lite: it waits for our checks
        peers = {"browser": operator, "meta": user}
        await until(lambda: all(LegConnected(leg) in self.events for leg in legs.values()))
        await until(lambda: all(peer.pc.connectionState == "connected" for peer in peers.values()))
        return Call(legs=legs, peers=peers, relays=relays)


@asynccontextmanager
async def talking(stage: TimedStage, count: int, *, pace_s: float, seed: int) -> AsyncIterator[list[Call]]:
    """Yield calls in which both sides talk all the time."""
    done = asyncio.Event()

    async def talk(call: Call, side: str) -> None:
        try:
            while not done.is_set():
                await call.peers[side].say("x", pace_s=pace_s)
        except ConnectionError:
            call.mute_at[side] = asyncio.get_running_loop().time()

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        calls = [await stage.call(str(n), stack, seed=seed + n) for n in range(count)]
        for call in calls:
            stage.host.join(*call.legs.values())
            for side in call.peers:
                group.create_task(talk(call, side))
        try:
            yield calls
        finally:
            done.set()


@pytest.mark.row(23, PROMISE)
async def test_a_peer_that_vanishes_ends_its_leg(chaos: Chaos) -> None:
    limit_s = chaos.size(test=0.6, short=8.0, long=8.0)
    count = chaos.size(test=4, short=50, long=200)
    late: list[float] = []
    async with TimedStage(limit_s) as stage:
        pace_s = chaos.size(test=0.02, short=0.1, long=0.25)
        async with talking(stage, count, pace_s=pace_s, seed=chaos.seed) as calls:
            await asyncio.sleep(pace_s)
            early = len(stage.failed_at)
            gone = {}
            for n, call in enumerate(calls):
                side = ("browser", "meta")[n % 2]
                call.vanish(side, one_way=n % 4 > 1)
                gone[call.legs[side]] = call.last_sign_at(side)
            await until(lambda: all(leg in stage.failed_at for leg in gone), timeout_s=3 * limit_s + 10)
            late = [stage.failed_at[leg] - last_at for leg, last_at in gone.items()]
            others = [leg for leg in stage.failed_at if leg not in gone]
            reasons = {reason for leg in gone for reason in stage.failures(leg)}

    chaos.note("legs whose peer vanished, every other pair one way only", len(gone))
    chaos.promise("first end after the last packet", min(late), at_least=limit_s, unit="s")
    chaos.promise("last end after the last packet", max(late), at_most=max(1.25 * limit_s, limit_s + 0.5), unit="s")
    chaos.promise("legs that ended before, or whose peer was there", early + len(others), at_most=0)
    assert reasons == {LegFailure.MEDIA_TIMEOUT}


@pytest.mark.row(23, "a path that loses, repeats and reorders ends no leg, and no frame is heard twice")
async def test_a_bad_path_ends_no_leg(chaos: Chaos) -> None:
    limit_s = chaos.size(test=0.6, short=2.0, long=8.0)
    seconds = chaos.size(test=0.8, short=10.0, long=60.0)
    bad = UdpFaults(drop=0.1, duplicate=0.05, delay_s=0.02, jitter_s=0.01, reorder=0.05, held_s=0.05)
    async with TimedStage(limit_s) as stage:
        async with talking(stage, chaos.size(test=2, short=6, long=10), pace_s=0.04, seed=chaos.seed) as calls:
            for call in calls:
                for relay in call.relays.values():
                    relay.set(bad)
            await asyncio.sleep(seconds)
        heard = [[packet.sequence for packet in peer.heard] for call in calls for peer in call.peers.values()]
        twice = sum(len(one) - len(set(one)) for one in heard)
        sides = [(call, side) for call in calls for side in call.legs]
        # The stock stack at the far end gives up after six checks without an answer, which ten percent make possible.
        gave_up = {call.legs[side] for call, side in sides if ended_before(stage, call, side, limit_s)}
        ended = [e for e in stage.events if isinstance(e, LegFailed) and e.leg not in gave_up]

    chaos.note(
        "frames heard of what was said, two paths with 10 % loss", 100 * sum(map(len, heard)) / said(calls), unit="%"
    )
    chaos.note("peers that gave up by themselves", len(gave_up))
    chaos.promise("legs ended", len(ended), at_most=0)
    chaos.promise("frames heard twice", twice, at_most=0)
    assert ended == []
    assert sum(map(len, heard)) > 0


def ended_before(stage: TimedStage, call: Call, side: str, limit_s: float) -> bool:
    """Return whether a peer had gone before its leg ended: for as long as the leg waits for a sign of it."""
    mute_at, failed_at = call.mute_at.get(side), stage.failed_at.get(call.legs[side])
    return mute_at is not None and (failed_at is None or failed_at - mute_at > limit_s / 2)


def said(calls: list[Call]) -> int:
    return sum(peer.sequence - 65_530 for call in calls for peer in call.peers.values())


async def test_a_leg_without_a_watchdog_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MediaLeg, "_watch", lambda leg: None)
    async with TimedStage(0.2) as stage, talking(stage, 1, pace_s=0.02, seed=1) as (call,):
        call.vanish("meta", one_way=False)
        with pytest.raises(TimeoutError):
            await until(lambda: bool(stage.failed_at), timeout_s=0.5)
