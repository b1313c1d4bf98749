"""`make run`: a gateway, a simulated Meta and a softphone page on this machine, until Ctrl-C."""

import asyncio
import os
import signal

from rich.console import Console
from rich.panel import Panel

from loadtest.common.guard import inherited_settings
from loadtest.measure.stack import GatewayDied, PortTaken, Stack, StackConfig


async def demo(config: StackConfig, console: Console) -> int:
    """Run the demo; return the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, stop.set)
    ignored = inherited_settings(os.environ)
    if ignored:
        console.print(f"Not used, for the demo has settings of its own: {', '.join(ignored)}", highlight=False)
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
            console.print("[red]The gateway ended by itself.[/red] Its last words:")
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
    operator, key = next(iter(stack.config.operators.items()))
    return Panel.fit(
        f"Softphone  [bold]{stack.url}/[/bold]   log in as [bold]{operator}[/bold] with key [bold]{key}[/bold]\n"
        f"Simulated WhatsApp user  [bold]{stack.sim.url}/[/bold]   press “Call the business”, then answer above\n"
        f"Health and metrics  {stack.admin_url}/readyz   API key  {stack.config.api_key}\n"
        "Ctrl-C stops everything.",
        title="Everything runs on this machine",
    )
