"""The stack of load runs: a gateway without media, killed and started again beside a simulated Meta that goes on."""

import os

import psutil
import pytest

from loadtest.chaos.kills import kill_rounds
from loadtest.loads.soak import look
from loadtest.measure.process import total
from loadtest.measure.stack import Stack, StackConfig, operators
from loadtest.operators.signalling_bot import Crew, Policy
from loadtest.simulator.config import Behaviour, Timers, crowd
from loadtest.simulator.state import CallState
from tests.support.harness.waiting import until

# The gateway is a process of its own: the loop of the test does not matter to it.
pytestmark = [pytest.mark.timeout(60), pytest.mark.asyncio(loop_factories=["uvloop"])]

USERS = crowd(3, behaviour=Behaviour.AUTO_ACCEPT, after_s=0.0)


def a_stack(database: str) -> Stack:
    return Stack(
        StackConfig(
            port=0,
            admin_port=0,
            sim_port=0,
            null_media=True,
            operators=operators(2),
            environment={"GATEWAY_DATABASE_URL": database},
            sim={"users": USERS, "timers": Timers(answer_after_s=0.0, ringing_after_s=0.0)},
        )
    )


async def test_calls_both_ways_without_any_media(database: str) -> None:
    async with a_stack(database) as stack:
        assert any("no_audio" in line for line in stack.log)
        gateway = psutil.Process(stack.gateway_pid)
        assert not [child for child in gateway.children(recursive=True) if "media.worker" in " ".join(child.cmdline())]
        async with Crew(stack.url, stack.config.operators, policy=Policy(talk_s=0.05)) as crew:
            caller, called = stack.sim.user(USERS[0].wa_id), stack.sim.user(USERS[1].wa_id)
            call = caller.call()
            await stack.sim.until(lambda: call.state is CallState.ENDED, timeout_s=10)
            assert call.answered_at is not None
            called.grant()
            await stack.sim.until(lambda: stack.sim.webhooks.pending == 0)
            view = await crew.dial(stack.sim.number.spec.phone_number_id, f"+{called.wa_id}")
            assert view["operator"] in stack.config.operators
            await until(lambda: crew.total("ended")["hung_up_by_operator"] == 2)
            assert (await look(stack, 2)).live == 0
            assert total(await stack.metrics(), "wacg_calls_ended_total") == 2
            assert stack.sim.world.violations == []


async def test_its_data_are_in_a_folder_of_its_own_which_goes_with_it(database: str) -> None:
    async with a_stack(database) as stack, a_stack(database) as other:
        assert stack.data_dir != other.data_dir
        assert stack.data_dir is not None
        assert "spool.db" in os.listdir(stack.data_dir)
    assert stack.data_dir.name not in os.listdir(stack.data_dir.parent)


async def test_a_killed_gateway_comes_back_on_its_ports_and_operators_return(database: str) -> None:
    async with (
        a_stack(database) as stack,
        Crew(stack.url, stack.config.operators, policy=Policy(talk_s=0.05, back_after_s=0.05)) as crew,
    ):
        pids = {stack.gateway_pid}
        async for kill in kill_rounds(stack, rounds=2, seed=1, least_s=0.0, most_s=0.1):
            pids.add(stack.gateway_pid)
            assert kill.away_s > 0
            await until(lambda: all(bot.idle for bot in crew.bots))
            call = stack.sim.user(USERS[0].wa_id).call()
            await stack.sim.until(lambda call=call: call.state is CallState.ENDED, timeout_s=10)  # type: ignore[misc]
            assert call.answered_at is not None
        assert len(pids) == 3
        assert crew.total("done")["logged_in_again"] == 4
