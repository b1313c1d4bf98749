"""A gateway that is told to stop: what lives goes on, what is new is refused, the second word is the last."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loadtest.measure.stack import Stack, StackConfig, operators
from loadtest.operators.signalling_bot import Crew
from loadtest.simulator.config import UserSpec
from loadtest.simulator.state import Call, CallState, EndReason
from tests.support.harness.chaos import Chaos
from tests.support.harness.waiting import until

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(60)]

PROMISE = "SIGTERM ends no call that lives and lets no new one in; the program ends with its last call"


def config(tmp_path: Path, database: str, live: int, **environment: str) -> StackConfig:
    return StackConfig(
        port=0,
        admin_port=0,
        sim_port=0,
        data_dir=tmp_path,
        operators=operators(live + 1),
        null_media=True,
        environment={"GATEWAY_DATABASE_URL": database, "GATEWAY_LOG_LEVEL": "warning"} | environment,
    )


def call(stack: Stack, number: int) -> Call:
    """Let a user who has not called before call the business."""
    return stack.sim.add_user(UserSpec(wa_id=f"55119{number:08d}", name=f"User {number}")).call()


@asynccontextmanager
async def with_calls(stack: Stack, live: int) -> AsyncIterator[tuple[Crew, list[Call]]]:
    """Start everything and yield with so many calls up, and one operator free."""
    async with stack, Crew(stack.url, stack.config.operators) as crew:
        calls = []
        for number in range(live):
            calls.append(call(stack, number))
            await until(lambda: sum(one.state is not CallState.ACTIVE for one in calls) < 20)
        await until(lambda: all(one.state is CallState.ACTIVE for one in calls))
        await until(lambda: crew.in_calls == live)
        yield crew, calls


async def problems(stack: Stack) -> tuple[int, list[str]]:
    async with aiohttp.ClientSession() as http, http.get(f"{stack.admin_url}/readyz") as response:
        return response.status, (await response.json())["problems"]


async def dial(stack: Stack, operator: str) -> tuple[int, str | None]:
    url = f"{stack.url}/v1/numbers/{stack.sim.number.spec.phone_number_id}/calls"
    headers = {"Authorization": f"Bearer {stack.config.api_key}"}
    wanted = {"to": "+5511900000001", "operator": operator}
    async with aiohttp.ClientSession() as http, http.post(url, json=wanted, headers=headers) as response:
        return response.status, response.headers.get("Retry-After")


async def new_ones(stack: Stack, count: int, every_s: float) -> list[Call]:
    """Let users call who have not called before, one after the other; return their calls once they have ended."""
    calls = []
    for number in range(count):
        calls.append(call(stack, 10_000 + number))
        await asyncio.sleep(every_s)
    await until(lambda: not any(one.live for one in calls), timeout_s=20)
    return calls


def dropped(calls: list[Call]) -> int:
    """Count the calls that nobody has hung up and that are not up any more."""
    return sum(one.state is not CallState.ACTIVE for one in calls)


def took_s(one: Call) -> float:
    assert one.ended_at is not None
    return one.ended_at - one.placed_at


async def drain_day(stack: Stack, chaos: Chaos, *, live: int, new: int) -> dict[str, Any]:
    """Drain a gateway with calls up and new ones coming; return what happened."""
    loop = asyncio.get_running_loop()
    async with with_calls(stack, live) as (crew, calls):
        stack.drain()
        async with asyncio.timeout(5):
            while (await problems(stack))[0] == 200:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        refused = await new_ones(stack, new, every_s=chaos.size(test=0.05, short=0.1, long=0.1))
        status, said = await problems(stack)
        free = crew.free()
        dialled = await dial(stack, free.operator if free else "")
        lost = dropped(calls)
        exited_early = stack.process is not None and stack.process.returncode is not None
        for one, bot in zip(calls, [bot for bot in crew.bots if bot.call], strict=False):
            await bot.hang_up() if one.id[-1] in "02468" else stack.sim.user(one.facts.user.wa_id).hang_up()
        for one in calls:  # whoever is left over: which bot has which call is not known here
            if one.live:
                stack.sim.user(one.facts.user.wa_id).hang_up()
        last_at = loop.time()
        async with asyncio.timeout(30):
            code = await stack.until_gone()
        return {
            "dropped": lost,
            "exited_early": exited_early,
            "refused": refused,
            "readyz": (status, said),
            "dialled": dialled,
            "exit": code,
            "exit_after_s": loop.time() - last_at,
        }


@pytest.mark.row(29, PROMISE)
async def test_a_drain(chaos: Chaos, database: str, tmp_path: Path) -> None:
    live, new = chaos.size(test=3, short=50, long=200), chaos.size(test=3, short=30, long=200)
    day = await drain_day(Stack(config(tmp_path, database, live)), chaos, live=live, new=new)
    chaos.note("calls up", live)
    chaos.note("new calls while it drained", new)
    chaos.promise("calls that were up and were dropped", day["dropped"], at_most=0)
    chaos.promise("exits before the last call had ended", int(day["exited_early"]), at_most=0)
    taken = [one for one in day["refused"] if one.end_reason is not EndReason.BUSINESS_REJECTED]
    chaos.promise("new calls taken", len(taken), at_most=0)
    chaos.promise("slowest refusal", max(map(took_s, day["refused"])), at_most=1.0, unit="s", timed=True)
    chaos.promise("exit code", day["exit"], at_most=0)
    chaos.promise("from the last call's end to the exit", day["exit_after_s"], at_most=5.0, unit="s", timed=True)
    assert day["dialled"] == (503, "5")
    assert day["readyz"] == (503, [f"draining: {live} calls left, no new calls are taken"])


async def test_a_gateway_that_drops_its_calls_would_be_seen(database: str, tmp_path: Path) -> None:
    stack = Stack(config(tmp_path, database, 2, GATEWAY_DRAIN_TIMEOUT_S="0.05"))
    async with with_calls(stack, 2) as (_, calls):
        assert dropped(calls) == 0
        stack.drain()
        async with asyncio.timeout(15):
            assert await stack.until_gone() == 0
        assert dropped(calls) == 2


@pytest.mark.row(29, "A second SIGTERM or Ctrl-C, however soon, ends every call at Meta and the program at once")
@pytest.mark.parametrize("pause_s", [0.0, 0.5])
async def test_the_second_signal(chaos: Chaos, database: str, tmp_path: Path, pause_s: float) -> None:
    live = chaos.size(test=3, short=50, long=200)
    stack = Stack(config(tmp_path, database, live))
    async with with_calls(stack, live) as (_, calls):
        assert stack.process is not None
        stack.drain()
        await asyncio.sleep(pause_s)
        still_up = sum(one.state is CallState.ACTIVE for one in calls)
        stack.process.send_signal(signal.SIGTERM if pause_s else signal.SIGINT)
        asked_at = asyncio.get_running_loop().time()
        async with asyncio.timeout(15):
            code = await stack.until_gone()
        gone_s = asyncio.get_running_loop().time() - asked_at
        left = sum(one.end_reason is not EndReason.BUSINESS_TERMINATED for one in calls)
    chaos.promise("calls up before the second signal", still_up, at_least=live)
    chaos.promise("calls not ended at Meta", left, at_most=0)
    chaos.promise("from the second signal to the exit", gone_s, at_most=6.0, unit="s", timed=True)
    chaos.promise("exit code", code, at_most=0)
