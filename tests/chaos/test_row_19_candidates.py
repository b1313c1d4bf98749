"""A peer's candidates make us write to nobody who did not ask for it: no inner network, no name, no multicast."""

import asyncio
import random
from dataclasses import replace
from typing import Final

import pytest

from media import sdp
from media.errors import SdpRefused
from media.model import LegFailure, LegId
from tests.loopback.peers import CONFIG, Stage, until
from tests.support.generators.hostile import SocketWatch, Wire, gather_on_loopback, socket_watch, with_candidates
from tests.support.generators.sdp_mutations import documents
from tests.support.harness.chaos import Chaos

PROMISE = "no packet to an address that a browser named; from Meta only global unicast, at most 16; no name looked up"

#: As of no configuration that allows networks of its own.
STRICT: Final = replace(CONFIG, candidate_networks=(), setup_timeout_s=0.25)
HOSTILE: Final = (
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "224.0.0.1", "239.255.255.250", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "ff02::fb",
    "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "2002:7f00:1::1", "2001:0:7f00:1::1", "localhost",
    "localhost.localdomain", "printer.local", "0c0ffee0-1111-4222-8333-444444444444.local", "metadata.internal",
    "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "192.0.2.1", "203.0.113.9",
)  # fmt: skip


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


def on_our_own_loop(work: object) -> None:
    """Run on asyncio's own loop at every size of the row: the watch does not see into uvloop."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(work)  # type: ignore[arg-type]


@pytest.mark.row(19, PROMISE)
def test_nobody_whom_a_description_names_is_written_to(chaos: Chaos) -> None:
    rng = random.Random(chaos.seed)
    rounds = chaos.size(test=4, short=40, long=400)

    async def run() -> tuple[int, SocketWatch]:
        reached = 0
        with socket_watch() as watch:
            async with Stage(STRICT) as stage:
                offers = await prepare(stage)
                watch.sent.clear()  # what the peers did to write their offers
                watch.looked_up.clear()
                for n in range(0, rounds, 4):
                    reached += sum(await asyncio.gather(*(one_round(stage, offers, rng, n + i) for i in range(4))))
        return reached, watch

    async def prepare(stage: Stage) -> tuple[str, str]:
        return await stage.peer().offer(lite=True), await stage.peer().offer()

    async def one_round(stage: Stage, offers: tuple[str, str], rng: random.Random, n: int) -> int:
        lite, full = (with_candidates(offer, *some(rng)) for offer in offers)
        host = stage.host
        with pytest.raises(SdpRefused, match="no usable candidate"):
            await host.answer_meta(LegId(f"lite {n}"), lite)
        legs = [LegId(f"{kind} {n}") for kind in ("full", "browser", "called")]
        await host.answer_meta(legs[0], full)
        await host.answer_browser(legs[1], full)
        await host.offer_meta(legs[2])
        await host.accept_meta_answer(legs[2], full)
        for leg in legs:
            assert await stage.failed(leg) is LegFailure.SETUP_TIMEOUT
        return len(legs) + 1

    done: list[tuple[int, SocketWatch]] = []

    async def keep() -> None:
        done.append(await run())

    on_our_own_loop(keep())
    tried, watch = done[0]
    chaos.note("legs tried", tried)
    chaos.note("kinds of addresses", len(HOSTILE))
    chaos.promise("datagrams to whom a description names", len(watch.sent), at_most=0)
    chaos.promise("names looked up", len(watch.looked_up), at_most=0)


def some(rng: random.Random) -> list[str]:
    """Return candidates: all hostile kinds, shuffled, some with port 0; within the limit on lines of a kind."""
    chosen = [f"{address} {rng.choice((0, 80, 3478, 65_535))}" for address in HOSTILE]
    rng.shuffle(chosen)
    return chosen


@pytest.mark.row(19, PROMISE)
async def test_of_the_addresses_that_meta_names_the_global_ones_are_tried_and_no_more_than_sixteen(
    chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire.tap(monkeypatch)
    offer = documents()["meta_offer"].decode()
    good = [f"8.8.{n}.{n} {3480 + n}" for n in range(chaos.size(test=24, short=24, long=24))]
    bad = [f"{address} 3478" for address in HOSTILE]
    rng = random.Random(chaos.seed)
    mixed = [*good, *bad]
    rng.shuffle(mixed)
    async with Stage(replace(STRICT, setup_timeout_s=1.0)) as stage:
        await stage.host.answer_meta(LegId("meta"), with_candidates(offer, *mixed))
        assert await stage.failed(LegId("meta")) is LegFailure.SETUP_TIMEOUT

    named = {(host, int(port)) for host, port in (candidate.split(" ") for candidate in good)}
    chaos.promise("addresses tried", len(wire.addresses), at_most=sdp.MAX_CANDIDATES, at_least=sdp.MAX_CANDIDATES)
    chaos.promise("addresses tried that are not global", len(wire.addresses - named), at_most=0)


@pytest.mark.row(19, PROMISE)
async def test_five_thousand_candidates_are_refused_before_one_is_looked_at(
    chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire.tap(monkeypatch)
    refused = 0
    async with Stage(STRICT) as stage:
        offer = with_candidates(await stage.peer().offer(lite=True), *["8.8.8.8 3478"] * 5_000)
        for door in (stage.host.answer_meta, stage.host.answer_browser):
            with pytest.raises(SdpRefused, match="longer than"):
                await door(LegId("a"), offer)
            refused += 1
        assert stage.host.legs == 0

    chaos.promise("descriptions refused", refused, at_least=2)
    chaos.promise("datagrams to 5,000 candidates", len(wire.sent), at_most=0)


def test_a_leg_that_tries_them_all_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdp, "usable_candidates", lambda candidates, networks=(): tuple(candidates))

    async def run() -> None:
        async with Stage(replace(STRICT, setup_timeout_s=2.0)) as stage:
            offer = with_candidates(await stage.peer().offer(lite=True), "127.1.2.3 9")
            with socket_watch() as watch:
                await stage.host.answer_meta(LegId("a"), offer)
                await until(lambda: ("127.1.2.3", 9) in watch.sent)

    on_our_own_loop(run())


def test_a_name_that_is_looked_up_would_be_seen() -> None:
    async def run() -> None:
        with socket_watch() as watch:
            await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 9)
            assert watch.looked_up == ["127.0.0.1"]

    on_our_own_loop(run())
