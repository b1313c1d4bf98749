"""The stack of the demo: what it refuses to start on, and that its gateway does not outlive it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.demo import demo, with_ports
from loadtest.measure.stack import GatewayDied, PortTaken, Stack, StackConfig, free_port, operators
from loadtest.simulator.config import PEOPLE
from tests.support.harness.waiting import until

#: Starts a child as the stack does, prints its number, and waits to be killed.
LAUNCHER = """
import asyncio, sys
from loadtest.measure.stack import ended_with_us

async def main():
    child = await asyncio.create_subprocess_exec("sleep", "60", preexec_fn=ended_with_us())
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


def config(*, port: int = 0, admin_port: int = 0, sim_port: int = 0) -> StackConfig:
    """`data_dir` cannot be made: should a start not be refused, no real gateway comes up."""
    nowhere = Path("/dev/null/nowhere")
    return StackConfig(port=port, admin_port=admin_port, sim_port=sim_port, data_dir=nowhere, start_timeout_s=5)


@pytest.mark.parametrize(
    ("field", "option"), [("port", "--port"), ("admin_port", "--admin-port"), ("sim_port", "--sim-port")]
)
async def test_a_taken_port_is_named_before_anything_starts(field: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = Stack(config(**{field: port}))
        try:
            with pytest.raises(PortTaken, match=f"Port {port} cannot be used .* port with {option}\\."):
                await stack.start()
            assert stack.process is None
        finally:
            await stack.close()


def test_the_gateway_is_told_how_many_calls_a_number_may_have() -> None:
    for slots, told in ((None, [None]), (7, [7])):
        (number,) = json.loads(Stack(replace(config(), slots=slots))._environment()["GATEWAY_NUMBERS"])
        assert [number.get("incoming_slots")] == [number.get("outgoing_slots")] == told


def test_its_gateway_takes_no_port_that_another_one_on_this_machine_may_have() -> None:
    assert Stack(config())._environment()["GATEWAY_MEDIA_PORTS"] == "0"
    given = replace(config(), environment={"GATEWAY_MEDIA_PORTS": "40000-40009"})
    assert Stack(given)._environment()["GATEWAY_MEDIA_PORTS"] == "40000-40009"


def test_no_operator_is_named_like_a_simulated_user() -> None:
    names = {name.casefold() for name in StackConfig().operators}
    assert len(names) == 2
    assert not names & {user.name.casefold() for user in PEOPLE}


def test_more_operators_than_fit_into_a_variable_come_in_a_file(tmp_path: Path) -> None:
    for count, name in ((10, "GATEWAY_OPERATORS"), (5_000, "GATEWAY_OPERATORS_FILE")):
        many = operators(count)
        settings = Stack(replace(config(), data_dir=tmp_path, operators=many))._environment()
        text = settings[name] if count == 10 else Path(settings[name]).read_text(encoding="utf-8")
        assert json.loads(text) == many
        assert len([one for one in settings if one.startswith("GATEWAY_OPERATORS")]) == 1


async def test_the_demo_says_so_and_ends_with_1() -> None:
    said = StringIO()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert await demo(config(admin_port=port), Console(file=said, width=200)) == 1
    assert f"Port {port} cannot be used" in said.getvalue()


def test_the_demo_uses_the_usual_ports_and_others_where_they_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = (free_port(), free_port(), free_port())
    for name, port in zip(("PAGE_PORT", "ADMIN_PORT", "SIM_PORT"), usual, strict=True):
        monkeypatch.setattr(f"loadtest.demo.{name}", port)
    said = StringIO()
    console = Console(file=said, width=200)

    def ports(**named: int | None) -> tuple[int, int, int]:
        unnamed = dict.fromkeys(("port", "admin_port", "sim_port"))
        found = with_ports(config(), console, **unnamed | named)
        return found.port, found.admin_port, found.sim_port

    assert ports() == usual
    assert ports(port=0, sim_port=usual[0]) == (0, usual[1], usual[0])
    assert said.getvalue() == ""
    with socket.create_server(("127.0.0.1", usual[0])):
        other = ports()[0]
        assert other not in usual
        assert ports(port=usual[0])[0] == usual[0]  # named: starting on it says what is wrong
    assert said.getvalue() == f"Port {usual[0]} is in use: the softphone is on {other}\n"


async def test_words_in_brackets_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(stack: Stack, progress: Any) -> None:
        raise GatewayDied("it said [/red] and [bold]")

    monkeypatch.setattr(Stack, "start", start)
    said = StringIO()
    assert await demo(config(), Console(file=said, width=200)) == 1
    assert "it said [/red] and [bold]" in said.getvalue()


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Accepts, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_a_gateway_that_ended_is_noticed_though_its_port_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.measure.stack._ASK_S", 0.1)
    async with silent_server() as port:
        stack = Stack(config(port=free_port()))
        stack.admin_url = f"http://127.0.0.1:{port}"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(3)")
        async with asyncio.timeout(5):
            with pytest.raises(GatewayDied, match="exit code 3"):
                await stack._until_ready(process)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
async def test_a_killed_launcher_takes_its_child_along() -> None:
    launcher = await asyncio.create_subprocess_exec(sys.executable, "-c", LAUNCHER, stdout=asyncio.subprocess.PIPE)
    assert launcher.stdout is not None
    child = int(await launcher.stdout.readline())
    try:
        assert running(child)
        launcher.send_signal(signal.SIGKILL)
        await until(lambda: not running(child), timeout_s=5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        await launcher.wait()


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_free_port_is_none_that_a_connection_may_get_before_it_is_used() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    assert max(ports) < 32_768
    for port in ports:
        with socket.socket() as ours:
            ours.bind(("127.0.0.1", port))
