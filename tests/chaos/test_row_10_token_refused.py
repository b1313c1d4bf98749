"""Row 10: Meta refuses the access token; readiness says why, nobody storms Meta, and all goes on by itself."""

import asyncio

import aiohttp
import pytest

from gateway.meta import health
from gateway.numbers.monitor import LOOK_S
from loadtest.simulator.faults import Fault, GraphFault
from tests.support.fakes.faulty_meta import Shares
from tests.support.harness.chaos import Chaos
from tests.support.harness.faulty_day import FaultyDay, a_faulty_day, in_virtual_time
from tests.support.harness.running import API_KEY, Running, running
from tests.support.harness.world import NUMBER_ID

ENDING = {"terminate", "reject"}
SECONDS_OF_ONE_TRY = 30.0
#: What was under way at the moment of the first refusal comes back refused as well.
UNDER_WAY_S = 0.5


def tries(day: FaultyDay) -> list[float]:
    """Return the instants of all tries with a token that Meta had refused already, but those that end a call."""
    at = [at for at, op in day.meta.refused_at if op not in ENDING]
    return [one for one in at if one > at[0] + UNDER_WAY_S]


def most_within(instants: list[float], window_s: float) -> int:
    """Return how many instants lie within any window of that length."""
    return max((sum(one <= other < one + window_s for other in instants) for one in instants), default=0)


async def revoked(day: FaultyDay, *, for_s: float) -> tuple[float, str, float]:
    """Revoke the token during a busy day.

    Return how soon readiness said so, what it said, and how soon after the token's return it said no more.
    """
    loop, left = asyncio.get_running_loop(), list(range(1_000_000))
    async with asyncio.TaskGroup() as tasks:
        day.monitor.look_s = LOOK_S
        keeping = tasks.create_task(day.monitor.run(day.numbers))
        for phone in day.phones:
            tasks.create_task(day.work(phone, left))
        await asyncio.sleep(20)
        assert day.health.degraded([NUMBER_ID]) == []
        day.meta.token_refused, begun = True, loop.time()
        while not day.health.degraded([NUMBER_ID]):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        told_after_s, (words,) = loop.time() - begun, day.health.degraded([NUMBER_ID])
        await asyncio.sleep(for_s)
        day.meta.token_refused, begun = False, loop.time()
        while day.health.degraded([NUMBER_ID]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        back_after_s = loop.time() - begun
        await asyncio.sleep(20)
        left.clear()
        await day.settle()
        keeping.cancel()
    return told_after_s, words, back_after_s


@pytest.mark.row(10, "token refused: readiness says why in 10 s, one try in 30 s, recovers by itself")
def test_a_token_is_revoked_during_the_day(chaos: Chaos) -> None:
    async def run() -> None:
        async with a_faulty_day(seed=chaos.seed, shares=Shares()) as day:
            told_s, words, back_s = await revoked(day, for_s=chaos.size(test=65.0, short=600.0, long=7_200.0))
            chaos.note("readiness", words)
            chaos.promise("until readiness says so", told_s, at_most=10, unit="s")
            chaos.promise("most tries in 30 s", most_within(tries(day), SECONDS_OF_ONE_TRY), at_most=1)
            chaos.promise("tries in all", len(tries(day)), at_least=2)
            chaos.promise("dials refused with the reason", day.said["dial: token_refused"], at_least=1)
            chaos.promise("until it works again", back_s, at_most=SECONDS_OF_ONE_TRY + 5, unit="s")
            chaos.promise("calls alive at Meta", len(day.meta.alive), at_most=0)
            in_use = day.number.incoming.in_use + day.number.outgoing.in_use
            chaos.promise("slots in use", in_use, at_most=0)

    in_virtual_time(run())


def test_a_storm_of_tries_would_be_seen(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TOKEN_PAUSE_S", 0.0)

    async def run() -> None:
        async with a_faulty_day(seed=chaos.seed, shares=Shares()) as day:
            await revoked(day, for_s=10.0)
            assert most_within(tries(day), SECONDS_OF_ONE_TRY) > 1

    in_virtual_time(run())


@pytest.mark.row(10, "the same with the whole gateway, over HTTP")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_token_is_revoked_over_http(chaos: Chaos, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pause_s = chaos.size(test=0.5, short=6.0, long=30.0)
    monkeypatch.setattr(health, "TOKEN_PAUSE_S", pause_s)
    monkeypatch.setattr("gateway.numbers.monitor.TROUBLE_S", pause_s)
    monkeypatch.setattr("gateway.numbers.monitor.LOOK_S", pause_s / 5)
    async with running(database, sim={"silent": True}, media_engine="null") as run:
        run.sim.faults.order([GraphFault(fault=Fault.FAIL, code=190, times=1_000_000)], None)
        already = len(run.sim.world.requests)
        asked = await reconcile(run)
        chaos.promise("status of the first request", asked, at_least=502, at_most=503)
        status, body = await readyz(run)
        chaos.note("readiness", body["degraded"][0])
        chaos.promise("status of readiness", status, at_least=200, at_most=200)
        assert NUMBER_ID in body["degraded"][0]
        loop = asyncio.get_running_loop()
        until = loop.time() + 3.2 * pause_s
        statuses = []
        while loop.time() < until:
            statuses.append(await reconcile(run))
            await asyncio.sleep(pause_s / 20)
        tried = len(run.sim.world.requests) - already - 1
        chaos.promise("tries in 3.2 pauses", tried, at_most=4, at_least=2)
        chaos.promise("refused at once with 503", statuses.count(503) / len(statuses), at_least=0.8)
        run.sim.faults.clear()
        begun = loop.time()
        async with asyncio.timeout(3 * pause_s):
            while (await readyz(run))[1]["degraded"]:  # noqa: ASYNC110 - another process's view
                await asyncio.sleep(pause_s / 20)
        chaos.promise("until it works again", loop.time() - begun, at_most=1.4 * pause_s, unit="s", timed=True)


async def readyz(run: Running) -> tuple[int, dict[str, list[str]]]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{run.gateway.admin_port}/readyz") as response,
    ):
        return response.status, await response.json()


async def reconcile(run: Running) -> int:
    """Let the gateway ask Meta about somebody; return the API's status."""
    url = f"{run.url}/v1/numbers/{run.number_id}/contacts/+5511900000001/reconcile"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as http,
        http.post(url) as response,
    ):
        return response.status
