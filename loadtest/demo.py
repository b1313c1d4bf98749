"""`make run`: a gateway, a simulated Meta and the softphone page on this machine, until Ctrl-C."""

import asyncio
import getpass
import os
import signal
import socket
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.panel import Panel

from loadtest.common.guard import inherited_settings
from loadtest.measure.stack import GatewayDied, PortTaken, Stack, StackConfig, free_port

#: Default ports; one that is in use is replaced by any free port.
PAGE_PORT: Final = 8080
ADMIN_PORT: Final = 9090
SIM_PORT: Final = 8090


def with_ports(
    config: StackConfig, console: Console, *, port: int | None, admin_port: int | None, sim_port: int | None
) -> StackConfig:
    """Return the configuration with these ports; None: the default port, or any free one (with a message) if in use.

    Raises: OSError: no port is free.
    """

    def chosen(named: int | None, usual: int, what: str) -> int:
        if named is not None:
            return named
        found = free_port(usual)
        if found != usual:
            console.print(f"Port {usual} is in use: {what} is on {found}", highlight=False)
        return found

    return replace(
        config,
        port=chosen(port, PAGE_PORT, "the softphone"),
        admin_port=chosen(admin_port, ADMIN_PORT, "health and metrics"),
        sim_port=chosen(sim_port, SIM_PORT, "the simulated WhatsApp user"),
    )


async def demo(config: StackConfig, console: Console) -> int:
    """Run the demo; return the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, stop.set)
    ignored = inherited_settings(os.environ)
    if ignored:
        console.print(f"Ignored, because the demo has its own settings: {', '.join(ignored)}", highlight=False)
    stack = Stack(config)
    try:
        with console.status("Starting ...") as status:
            await stack.start(lambda step: status.update(f"Starting {step} ..."))
        console.print(_welcome(stack))
        async with asyncio.TaskGroup() as tasks:
            gone = tasks.create_task(stack.until_gone())
            stopped = tasks.create_task(stop.wait())
            await asyncio.wait([gone, stopped], return_when=asyncio.FIRST_COMPLETED)
            died = gone.done()
            gone.cancel()
            stopped.cancel()
        if died and not stop.is_set():
            console.print("[red]The gateway ended unexpectedly.[/red] Its last log lines:")
            console.print("\n".join(stack.log[-20:]), markup=False, highlight=False)
            return 1
        console.print("Stopping ...")
        return 0
    except (GatewayDied, PortTaken, OSError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    finally:
        await stack.close()


def _welcome(stack: Stack) -> Panel:
    keys = " or ".join(
        f"[bold]{name}[/bold] with key [bold]{key}[/bold]" for name, key in stack.config.operators.items()
    )
    forwarded = " ".join(f"-L {port}:127.0.0.1:{port}" for port in (stack.port, urlsplit(stack.sim.url).port))
    return Panel.fit(
        f"Softphone  [bold]{stack.url}/[/bold]   log in as {keys}\n"
        f"Simulated WhatsApp user  [bold]{stack.sim.url}/[/bold]   press “Call the business”, answer in the softphone\n"
        f"Health and metrics  {stack.admin_url}/readyz   API key  {stack.config.api_key}\n"
        "From another machine (browsers allow the microphone only on localhost and HTTPS) open these after\n"
        f"  [bold]ssh {forwarded} {getpass.getuser()}@{socket.gethostname()}[/bold]\n"
        "Audio is UDP and does not go through ssh: the browser must reach this machine's own address.\n"
        "Ctrl-C stops everything.",
        title="Everything runs on this machine",
    )
