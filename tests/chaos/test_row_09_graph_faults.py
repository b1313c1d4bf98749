"""Row 9: Meta's API fails, hangs and cuts; nobody is rung twice, no slot leaks, and everybody has an answer in 6 s."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from gateway.callflow.call import CallInput, CallState, InputKind, Timeouts
from gateway.callflow.outcome import Result
from gateway.calls.driver import CallDriver
from gateway.calls.owed_hangups import OwedHangups
from gateway.common.ids import UserRef
from gateway.meta.answers import Json
from gateway.meta.graph_http import GraphHttp, GraphRequest, Repeat
from loadtest.operators.signalling_bot import Crew, Policy
from loadtest.operators.softphone_wire import RequestFailed
from loadtest.simulator.config import Behaviour, Timers, crowd
from loadtest.simulator.faults import GraphFaults
from loadtest.simulator.state import CallState as SimState
from loadtest.simulator.state import ViolationKind
from tests.support.fakes.faulty_meta import FaultyHttp, FaultyMeta, Shares
from tests.support.harness.chaos import Chaos
from tests.support.harness.faulty_day import ANSWER_S, SHARES, FaultyDay, a_day, a_faulty_day, in_virtual_time
from tests.support.harness.running import KEYS, Running, running
from tests.support.harness.waiting import until
from tests.support.harness.world import NUMBER_ID


def rung_twice(meta: FaultyMeta) -> int:
    return sum(count > 1 for count in meta.rung.values())


@pytest.mark.row(9, "Graph fails, hangs, cuts: nobody rung twice, no slot leaked, every answer in 6 s")
def test_calls_over_a_line_that_fails_hangs_and_cuts(chaos: Chaos) -> None:
    calls = chaos.size(test=50, short=1_000, long=10_000)

    async def run() -> None:
        async with a_faulty_day(seed=chaos.seed) as day:
            await a_day(day, calls)
            meta, number = day.meta, day.number
            chaos.note("calls and requests", calls)
            chaos.note("requests to Meta", meta.requests.total())
            chaos.note("failed, hung, cut", " ".join(str(meta.faults[kind]) for kind in ("fail", "hang", "cut")))
            chaos.note("outcomes", ", ".join(f"{said} {count}" for said, count in day.said.most_common()))
            chaos.promise("answered", day.said.total(), at_least=calls)
            chaos.promise("rung twice", rung_twice(meta), at_most=0)
            chaos.promise("asked twice", sum(count > 1 for count in meta.messages.values()), at_most=0)
            chaos.promise("slots in use", number.incoming.in_use + number.outgoing.in_use, at_most=0)
            chaos.promise("calls alive at Meta", len(meta.alive), at_most=0)
            chaos.promise("operators stuck", sum(phone.call is not None for phone in day.phones), at_most=0)
            chaos.promise("dials without a word after 6 s", day.late, at_most=0)
            chaos.promise("longest wait for Graph", day.timed.slowest_s, at_most=ANSWER_S, unit="s")
            chaos.note("longest from picking up to an answer", day.longest_accept_s, unit="s")
            uncounted = len(meta.rung) - number.placed.count(now=day.clock.now())
            chaos.promise("placed and not counted", uncounted, at_most=0)

    in_virtual_time(run())


def test_a_connect_that_is_repeated_would_be_seen(chaos: Chaos) -> None:
    class Repeating(FaultyHttp):
        async def send(self, request: GraphRequest) -> Json:
            return await super().send(replace(request, repeat=Repeat.ALWAYS))

    async def run() -> None:
        async with a_faulty_day(seed=chaos.seed, http=Repeating, shares=Shares(cut=0.5)) as day:
            await a_day(day, 50)
            assert rung_twice(day.meta) > 0

    in_virtual_time(run())


def test_an_end_that_is_told_once_only_would_be_seen(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwedHangups, "keep_trying", lambda *args, **more: None)

    async def run() -> None:
        async with a_faulty_day(seed=chaos.seed, shares=Shares(fail=0.8)) as day:
            day.meta.talk_s = (1e6, 1e6)
            phone, user = day.phones[0], UserRef(wa_id="5511900000001")
            while not day.meta.alive:
                await day.allow_calls(user)
                placed = await day.admission.place(NUMBER_ID, f"+{user.wa_id}", operator=phone.operator)
                if isinstance(placed, CallDriver):
                    await day.within(placed, 3)
                    placed.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=phone.operator))
                    await day.over(placed)
                await asyncio.sleep(60)
            assert (len(day.meta.alive), len(day.registry), len(day.owed_hangups)) == (1, 0, 0)

    in_virtual_time(run())


# --- a `connect` of which nobody knows ---------------------------------------------------------------


async def cut_off(day: FaultyDay) -> CallDriver:
    """Dial once; the answer to `connect` is cut off after the call was placed."""
    user = UserRef(wa_id="5511900000001")
    await day.allow_calls(user)
    placed = await day.admission.place(NUMBER_ID, f"+{user.wa_id}", operator=day.phones[0].operator)
    assert isinstance(placed, CallDriver)
    return placed


def test_a_connect_that_was_cut_is_settled_by_a_webhook() -> None:
    async def run() -> None:
        async with a_faulty_day(seed=1, shares=Shares(cut=1.0)) as day:
            driver = await cut_off(day)
            assert await day.within(driver, 12) is CallState.ACTIVE
            assert rung_twice(day.meta) == 0
            await day.over(driver)
            assert driver.call.outcome is not None
            assert driver.call.outcome.result is Result.COMPLETED

    in_virtual_time(run())


def test_a_connect_of_which_no_webhook_ever_tells_stays_indeterminate_and_gives_its_slot_back() -> None:
    async def run() -> None:
        async with a_faulty_day(seed=1, shares=Shares(cut=1.0)) as day:
            day.meta.mute = True
            driver = await cut_off(day)
            assert await day.within(driver, ANSWER_S) is CallState.UNCONFIRMED
            assert day.number.outgoing.in_use == 1  # Meta may have it
            await day.over(driver)
            assert driver.call.outcome is not None
            assert driver.call.outcome.result is Result.INDETERMINATE
            assert day.number.outgoing.in_use == 0
            assert day.number.placed.count(now=day.clock.now()) == 1
            assert day.meta.rung.total() == 1

    in_virtual_time(run())


# --- against the simulated Meta, over HTTP -----------------------------------------------------------


@pytest.mark.row(9, "the same against the simulated Meta, over HTTP")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_calls_over_http(chaos: Chaos, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = chaos.size(test=6, short=25, long=120)
    timeout_s = chaos.size(test=0.3, short=1.0, long=5.0)
    # How long a `connect` without an answer waits for a webhook: a minute in earnest, for each that Meta has not heard.
    monkeypatch.setattr("gateway.wiring.Timeouts", partial(Timeouts, unconfirmed_s=2 * timeout_s))
    slowest = timed(monkeypatch)
    people = crowd(calls, first=5_511_900_000_001, behaviour=Behaviour.AUTO_ACCEPT, after_s=0.05, talk_s=0.1)
    sim: dict[str, Any] = {"users": people, "silent": True, "timers": Timers(answer_after_s=0.01, ringing_after_s=0.02)}
    settings = {"media_engine": "null", "graph_timeout_s": str(timeout_s)}
    async with running(database, sim=sim, **settings) as run:
        crew = Crew(run.url, KEYS, policy=Policy(talk_s=0.1))
        async with crew:
            faults = GraphFaults(
                fail=SHARES.fail, hang=SHARES.hang, cut_after=SHARES.cut, seed=chaos.seed, hang_s=2 * timeout_s
            )
            run.sim.faults.order([], None, faults)
            for index, person in enumerate(people):
                await one_call(run, crew, person.wa_id, ours=index % 2 == 0)
            run.sim.faults.clear()
            await until(lambda: not live(run), timeout_s=120)
            await until(lambda: len(run.gateway.parts.registry) == 0, timeout_s=120)
        violations = [violation.kind for violation in run.sim.world.violations]
        chaos.note("calls", calls)
        chaos.note("requests to Meta", len(slowest))
        chaos.promise("rung twice", violations.count(ViolationKind.RUNG_TWICE), at_most=0)
        chaos.promise("slots in use", sum(run.slots), at_most=0)
        chaos.promise("calls alive at Meta", len(live(run)), at_most=0)
        chaos.promise("longest wait for Graph", max(slowest), at_most=timeout_s + 1.0, unit="s", timed=True)


async def one_call(run: Running, crew: Crew, wa_id: str, *, ours: bool) -> None:
    """Let a call happen, as far as it does, and wait until nobody is in it any more."""
    if ours:
        run.sim.user(wa_id).grant()
        with suppress(RequestFailed):
            await crew.dial(run.number_id, f"+{wa_id}")
    else:
        run.sim.user(wa_id).call()
    await until(lambda: crew.in_calls == 0 and run.sim.user(wa_id).current_call is None, timeout_s=100)


def live(run: Running) -> list[Any]:
    return [call for call in run.sim.world.calls.values() if call.state is not SimState.ENDED]


def timed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long each request took, with all its tries."""
    slowest: list[float] = []
    send = GraphHttp.send

    async def measured(self: GraphHttp, request: GraphRequest) -> Json:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            return await send(self, request)
        finally:
            slowest.append(loop.time() - begun)

    monkeypatch.setattr(GraphHttp, "send", measured)
    return slowest
