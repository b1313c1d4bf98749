"""Calls are added until a server carries them no longer; what was found is told from what the far ends could not do."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtest.compare import media
from loadtest.compare.contest import NotInstalled, PeerFailed
from loadtest.compare.environments import cache_folder
from loadtest.compare.media import CARRYING, carried, following, ramp, whole
from loadtest.compare.media_peers import MOST_CALLS, media_server
from loadtest.compare.results import Row
from loadtest.loads.media_talk import Direction, Stretch, talk
from loadtest.measure.process import Cores

ANYWHERE = Cores(generator=frozenset(), gateway=frozenset())


class Server:
    """Carries so many calls; each costs this share of a core."""

    def __init__(self, carries: int, share: float) -> None:
        self.carries, self.share = carries, share
        self.pump: Any = None
        self.pairs: Sequence[Any] = []
        self.pid = 0
        self.asked: list[int] = []

    async def add(self, count: int) -> None:
        self.pairs = [None] * (len(self.pairs) + count)
        self.asked.append(len(self.pairs))


def stretch(
    calls: int, *, missing: int = 0, delay_ms: float = 1.0, share: float = 0.1, late_ms: float = 1.0
) -> Stretch:
    sent = 50 * calls
    return Stretch(
        to_operator=Direction(sent=sent, heard=sent - missing, delays_ms=[delay_ms] * 4, strange=0),
        to_user=Direction(sent=sent, heard=sent, delays_ms=[delay_ms] * 4, strange=0),
        seconds=1.0,
        wanted_s=1.0,
        server_cpu_s=share,
        generator_cpu_s=0.1,
        late_p99_ms=late_ms,
    )


async def ramped(
    monkeypatch: pytest.MonkeyPatch, server: Server, *, tired_from: int = 10_000, late_from: int = 10_000
) -> tuple[dict[str, float], str]:
    """Go up a ramp; from so many calls on the far ends are late, or packets."""

    async def talks(pump: object, pairs: Sequence[object], *, seconds: float, pid: int) -> Stretch:
        count = len(pairs)
        return stretch(
            count,
            missing=count > server.carries,
            share=count * server.share,
            late_ms=20.0 if count >= tired_from else 1.0,
            delay_ms=30.0 if count >= late_from else 1.0,
        )

    monkeypatch.setattr(media, "talk", talks)
    figures: dict[str, float] = {}
    return figures, await ramp(server, figures, lambda what: None)


async def test_calls_are_added_until_a_packet_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(110, share=0.01)
    figures, remark = await ramped(monkeypatch, server)
    assert server.asked == [2, 8, 32, 90, 103, 118]
    assert (figures["held"], remark) == (103, "")
    assert figures["calls_per_core"] == pytest.approx(100)
    assert figures["cpu_us"] == pytest.approx(100)
    assert (figures["delay_p50_ms"], figures["delay_p99_ms"]) == (1, 1)


async def test_a_server_that_carries_nothing_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await ramped(monkeypatch, Server(1, share=0.01)) == ({}, "not even 2 calls were carried")


async def test_what_the_far_ends_cannot_do_is_not_the_servers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, remark = await ramped(monkeypatch, Server(10_000, share=0.001), tired_from=200)
    assert remark == "the far ends were the limit of what was carried"
    assert figures["held"] == 128
    assert figures["share"] == pytest.approx(MOST_CALLS * 0.001)


async def test_late_calls_are_not_carried_and_a_full_core_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, remark = await ramped(monkeypatch, Server(10_000, share=0.01), late_from=50)
    assert (figures["held"], remark) == (32, "103 calls were late, p99 30 ms")
    assert figures["share"] == pytest.approx(1.03)


async def test_a_ramp_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, remark = await ramped(monkeypatch, Server(10_000, share=0.0))
    assert (figures["held"], remark) == (MOST_CALLS, f"more than {MOST_CALLS} calls were not tried")


def test_everything_has_to_arrive_in_time() -> None:
    assert whole(stretch(2))
    assert not whole(stretch(2, missing=1))
    assert not whole(stretch(2, missing=-1))  # of an earlier stretch: it was too late for that
    assert carried(stretch(2, delay_ms=95), usual_ms=80)
    assert not carried(stretch(2, delay_ms=96), usual_ms=80)
    assert not carried(stretch(2, missing=1), usual_ms=80)
    assert not carried(stretch(2, late_ms=20), usual_ms=80)


def test_a_step_goes_up_by_what_the_core_has_room_for() -> None:
    assert following(2, 1_000) == 8
    assert following(100, 300) == 270
    assert following(4, 4.5) == 5
    assert following(MOST_CALLS - 1, 10_000) == MOST_CALLS


def test_the_goals_are_those_of_the_peers_that_are_there() -> None:
    part = CARRYING.part()
    part.rows = [
        Row(name="gateway", what="", rounds=[{"calls_per_core": 300.0}]),
        Row(name="mediarelay", what="", rounds=[{"calls_per_core": 10.0}]),
        Row(name="rtpengine", what="", rounds=[{"calls_per_core": 501.0}]),
    ]
    assert [check.kept for check in CARRYING.checks(part)] == [True, False]
    del part.rows[0]
    assert CARRYING.checks(part) == []


# --- servers -----------------------------------------------------------------------------------------


#: Not fetched for a test.
AT_HAND = shutil.which("rtpengine") or any(cache_folder().glob("rtpengine-*/done"))
WITH_RTPENGINE = pytest.param(
    "rtpengine", marks=pytest.mark.skipif(not AT_HAND, reason="rtpengine is not on this machine")
)


@pytest.mark.parametrize("name", ["mediarelay", WITH_RTPENGINE])
async def test_a_server_joins_two_legs(name: str) -> None:
    async with media_server(name, ANYWHERE, 1) as server:
        await server.add(1)
        await talk(server.pump, server.pairs, seconds=0.5, pid=server.pid)  # aiortc keeps four packets back
        await asyncio.sleep(1.0)
        found = await talk(server.pump, server.pairs, seconds=0.5, pid=server.pid)
    assert whole(found)
    assert found.heard == 50
    assert max(found.delays_ms) < 1_000  # what was kept back over the pause does not count


async def test_a_missing_rtpengine_is_said_with_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NotInstalled, match="rtpengine-daemon"):
        await CARRYING.prepare("rtpengine", lambda what: None)
    await CARRYING.prepare("mediarelay", lambda what: None)


async def test_a_server_that_ends_says_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "rtpengine"
    program.write_text("#!/bin/sh\necho no such option\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(PeerFailed, match=r"exit code 3\n  no such option"):
        async with media_server("rtpengine", ANYWHERE, 1):
            pass


async def test_a_round_measures_and_leaves_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def server(name: str, cores: Cores, seed: int) -> AsyncIterator[Server]:
        yield Server(0, share=0.1)

    async def talks(*args: object, **more: object) -> Stretch:
        return stretch(2, missing=1)

    monkeypatch.setattr(media, "media_server", server)
    monkeypatch.setattr(media, "talk", talks)
    row = Row(name="mediarelay", what="")
    await CARRYING.round("mediarelay", row, ANYWHERE, 1, lambda what: None)
    assert (row.rounds, row.remarks) == ([{}], ["not even 2 calls were carried"])
