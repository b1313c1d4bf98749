"""The command line: `python -m loadtest` runs the simulator, the demo, the load suite and the comparison."""

import asyncio
import importlib.util
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from loadtest.simulator.config import PEOPLE, Behaviour, NumberSpec, Profile, SimConfig, UserSpec
from loadtest.simulator.sdp import Setup

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """Simulate Meta, its users and your operators, and load-test a gateway. Loopback only."""


@app.command()
def simulate(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of Graph API and page; 0: any free port.")] = 8090,
    callback_url: Annotated[
        str | None,
        typer.Option(help="The gateway's webhook URL; its path is /webhooks/meta. Verified at start."),
    ] = None,
    media_host: Annotated[str, typer.Option(help="Local address of the simulated media relay.")] = "127.0.0.1",
    app_secret: Annotated[
        str, typer.Option(envvar="SIM_APP_SECRET", show_default=False, help="App secret that signs the webhooks.")
    ] = "simulated-app-secret",
    verify_token: Annotated[
        str, typer.Option(envvar="SIM_VERIFY_TOKEN", show_default=False, help="Token sent to verify the callback URL.")
    ] = "simulated-verify-token",
    access_token: Annotated[
        str,
        typer.Option(envvar="SIM_ACCESS_TOKEN", show_default=False, help="Bearer token that the Graph API accepts."),
    ] = "simulated-access-token",
    phone_number_id: Annotated[str, typer.Option(help="Id of the business number.")] = "200000000000002",
    phone_number: Annotated[str, typer.Option(help="The business number, digits only.")] = "551155550100",
    country: Annotated[str, typer.Option(help="Country of the business number, ISO 3166-1 alpha-2.")] = "BR",
    profile: Annotated[Profile, typer.Option(help="Set of Meta's limits to apply.")] = Profile.META,
    user: Annotated[
        list[str] | None,
        typer.Option(help="A user as number:name or number:name:tone (Hz); repeatable. Replaces Ana, Bruno and Carla."),
    ] = None,
    answers: Annotated[
        Behaviour | None, typer.Option(help="How every user reacts to a call from the business.")
    ] = None,
    answer_after: Annotated[float, typer.Option(min=0, help="Seconds before a user reacts.")] = 2.0,
    answer_setup: Annotated[
        Setup, typer.Option(help="DTLS role in Meta's answers; active is the one seen most.")
    ] = Setup.ACTIVE,
    strict_media: Annotated[
        bool, typer.Option(help="End a call that gets media before the accept; by default it is only recorded.")
    ] = False,
    callback_permission: Annotated[
        bool, typer.Option(help="A user's call grants the business a temporary permission to call back.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host other than loopback that may be contacted; repeatable.")
    ] = None,
) -> None:
    """Run a simulated Meta: Graph API, signed webhooks, WhatsApp users with real audio, and a page to act as them.

    Set the gateway's Graph base URL to the printed address, and use the same callback URL, app secret, verify token and
    access token on both sides. Everything stays on loopback unless --allow-host names another host.
    """
    try:
        number = NumberSpec(
            phone_number_id=phone_number_id,
            display_phone_number=phone_number,
            country=country,
            callback_permission=callback_permission,
        )
        config = SimConfig(
            host=host,
            port=port,
            media_host=media_host,
            callback_url=callback_url,
            app_secret=app_secret,
            verify_token=verify_token,
            access_token=access_token,
            numbers=(number,),
            users=_people(user or [], answers, answer_after),
            profile=profile,
            answer_setup=answer_setup,
            strict_media=strict_media,
            allow_hosts=frozenset(allow_host or ()),
        )
    except ValueError as mistake:
        raise typer.BadParameter(str(mistake)) from None
    _run_until_signal(config)


@app.command()
def demo(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the softphone page; default: 8080.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of health and metrics; default: 9090.")
    ] = None,
    sim_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the simulated Meta; default: 8090.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder that keeps the gateway's data; default: a temporary one.")
    ] = None,
) -> None:
    """Run a gateway, a simulated Meta and the softphone page on this machine, until Ctrl-C.

    A port given on the command line must be free; 0 picks any free port. A default port that is in use is replaced by
    any free one.
    """
    from rich.console import Console  # imported here because they are slow to load; --help is fast

    from loadtest.demo import demo as run_demo
    from loadtest.demo import with_ports
    from loadtest.measure.stack import StackConfig

    console = Console()
    config = with_ports(StackConfig(data_dir=data_dir), console, port=port, admin_port=admin_port, sim_port=sim_port)
    raise typer.Exit(asyncio.run(run_demo(config, console)))


@app.command()
def gate(
    contacts: Annotated[
        int, typer.Option(min=1_000, max=10_000_000, help="Number of contacts in PostgreSQL.")
    ] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Seed of the contacts' histories.")] = 20261122,
) -> None:
    """Measure the time of one policy decision on this machine; exit code 1 if a goal is missed."""
    from rich.console import Console

    from loadtest.loads.gate_bench import BenchFailed, measure, show

    console = Console()
    try:
        figures = asyncio.run(measure(contacts, seed, console))
    except BenchFailed as failure:
        typer.echo(str(failure), err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(0 if show(figures, console) else 1)


@app.command()
def chaos(
    long: Annotated[bool, typer.Option("--long", help="Run the full sizes; takes some hours.")] = False,
    row: Annotated[list[int] | None, typer.Option(min=1, help="Run only this row of the table; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 20261122,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path(".chaos"),
) -> None:
    """Break things on purpose and check that the promises hold; exit code 1 if one is broken.

    Kills the gateway, its media workers and PostgreSQL; makes Meta fail, repeat and reorder; floods every public port.
    Everything runs on loopback. Needs a checkout with the development dependencies (`make setup-dev`).
    """
    from rich.console import Console

    from loadtest.chaos.rows import ChaosFailed, Wanted
    from loadtest.chaos.rows import chaos as run_chaos

    wanted = Wanted(long=long, seed=seed, rows=tuple(row or ()), out=out)
    try:
        raise typer.Exit(asyncio.run(run_chaos(wanted, Console())))
    except ChaosFailed as failure:
        typer.echo(str(failure), err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped; no report was written", err=True)
        raise typer.Exit(130) from None


@app.command()
def run(
    scenario: Annotated[
        list[str] | None, typer.Argument(help="Names (see `list`) or your own TOML files; default: all built-in ones.")
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="Run the full sizes; all of them take half an hour.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all random choices; default: each scenario's own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path(".load"),
) -> None:
    """Run load scenarios against a gateway and check the thresholds; exit code 1 if one is missed.

    Starts everything it needs (gateway, embedded PostgreSQL, simulated Meta, operators) on loopback only and leaves
    nothing running. Writes load.json and load.html. Ctrl-C stops the run and reports what was measured so far.
    """
    import uvloop
    from rich.console import Console

    from loadtest.common.guard import check_environment
    from loadtest.loads.job import short_of_descriptors
    from loadtest.loads.run import Order
    from loadtest.loads.run import run as run_scenarios
    from loadtest.loads.scenario_file import find
    from loadtest.loads.scenarios import BadScenario, Scenario
    from loadtest.measure.report import NotWritten

    mistakes = check_environment(os.environ)
    scenarios: tuple[Scenario, ...] = ()
    try:
        scenarios = find(scenario or ())
        mistakes += short_of_descriptors(scenarios, long=long)
    except BadScenario as bad:
        mistakes += bad.mistakes
    if mistakes:
        typer.echo("\n".join(mistakes), err=True)
        raise typer.Exit(2)
    command = shlex.join(["python", "-m", "loadtest", *sys.argv[1:]])
    order = Order(scenarios=scenarios, long=long, seed=seed, out=out, command=command)
    try:
        raise typer.Exit(uvloop.run(run_scenarios(order, Console())))
    except NotWritten as failure:
        typer.echo(str(failure), err=True)
        raise typer.Exit(2) from None


@app.command()
def compare(
    part: Annotated[
        list[str] | None, typer.Argument(help="Parts of the comparison: calls, media; default: all.")
    ] = None,
    peers: Annotated[str | None, typer.Option(help="Only these peers, separated by commas: gateway,pipecat.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Number of rounds; the peers alternate in each.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 20261122,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path(".compare"),
) -> None:
    """Compare this gateway with alternatives people use; exit code 1 if it misses a probe or a threshold.

    All peers run on this machine against the same simulated Meta with the same offers, in alternating rounds. On first
    use each peer gets its own environment in the cache folder ($XDG_CACHE_HOME or ~/.cache): this needs a reachable
    package index, about 1 GB of disk and some minutes. Writes compare.json and compare.html. Ctrl-C stops the run and
    reports what was measured so far.
    """
    _needs_a_checkout()
    import uvloop
    from rich.console import Console

    from loadtest.common.guard import check_environment
    from loadtest.compare.run import CONTESTS, Order, peer_names
    from loadtest.compare.run import compare as run_comparison
    from loadtest.measure.report import NotWritten

    chosen = peer_names() if peers is None else [name.strip() for name in peers.split(",")]
    mistakes = check_environment(os.environ)
    for kind, given, known in (("peer", chosen, peer_names()), ("part", part or [], list(CONTESTS))):
        there = ", ".join(known)
        mistakes += [f"{name!r}: unknown {kind}; known are {there}" for name in given if name not in known]
    if mistakes:
        typer.echo("\n".join(mistakes), err=True)
        raise typer.Exit(2)
    order = Order(
        contests=tuple(name for name in CONTESTS if not part or name in part),
        peers=frozenset(chosen),
        rounds=rounds,
        seed=seed,
        out=out,
        command=shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]),
    )
    try:
        raise typer.Exit(uvloop.run(run_comparison(order, Console())))
    except NotWritten as failure:
        typer.echo(str(failure), err=True)
        raise typer.Exit(2) from None


@app.command("list")
def list_scenarios() -> None:
    """Show the built-in scenarios with their steps and thresholds."""
    from rich.console import Console
    from rich.table import Table

    from loadtest.loads.built_in import BUILT_IN

    table = Table("scenario", "work", "short form", "long form", "thresholds of the long form", show_lines=True)
    for one in BUILT_IN:
        wanted = "\n".join(f"{threshold.name} {threshold.said}" for threshold in one.long.thresholds)
        table.add_row(one.name, one.what, one.short.said, one.long.said, wanted)
    Console().print(table)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="The load.json or compare.json of an earlier run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for a new HTML report; default: print the tables only.")
    ] = None,
) -> None:
    """Show the report of an earlier run; exits with the same code as that run."""
    from rich.console import Console

    from loadtest.loads import page as load_page
    from loadtest.measure.report import NotWritten
    from loadtest.measure.results import BadReport, is_comparison, read_report

    try:
        if is_comparison(file):
            _needs_a_checkout()
            from loadtest.compare import page as compare_page
            from loadtest.compare.results import read_comparison

            comparison = read_comparison(file)
            compare_page.show(comparison, Console())
            passed, written = comparison.passed, () if out is None else compare_page.write(comparison, out)
        else:
            found = read_report(file)
            load_page.show(found, Console())
            passed, written = found.passed, () if out is None else load_page.write(found, out)
    except (BadReport, NotWritten) as failure:
        typer.echo(str(failure), err=True)
        raise typer.Exit(2) from None
    if written:
        typer.echo("Report: " + ", ".join(map(str, written)))
    raise typer.Exit(0 if passed else 1)


def _needs_a_checkout() -> None:
    """End with exit code 2 where the comparison is not installed: it is not in the wheel."""
    if importlib.util.find_spec("loadtest.compare") is None:
        typer.echo("The comparison is not installed: run this in a checkout of the repository.", err=True)
        raise typer.Exit(2)


def _people(users: list[str], answers: Behaviour | None, after_s: float) -> tuple[UserSpec, ...]:
    """Return the users given on the command line. Raises: ValueError."""
    people = [_person(text) for text in users] or list(PEOPLE)
    if answers is None:
        return tuple(people)
    return tuple(
        UserSpec(
            wa_id=one.wa_id,
            name=one.name,
            tone_hz=one.tone_hz,
            echo=one.echo,
            behaviour=answers,
            after_s=after_s,
        )
        for one in people
    )


def _person(text: str) -> UserSpec:
    parts = text.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and not parts[2].isdecimal()):
        raise ValueError(f"user {text!r} is not number:name or number:name:tone")
    return UserSpec(wa_id=parts[0], name=parts[1], tone_hz=int(parts[2]) if len(parts) == 3 else 440)


def _run_until_signal(config: SimConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_run(config))
    except OSError as failure:
        typer.echo(f"cannot listen: {failure}", err=True)
        raise typer.Exit(1) from None


async def _run(config: SimConfig) -> None:
    from loadtest.simulator.meta_sim import MetaSim  # aiortc is slow to load; --help should be fast

    sim = MetaSim(config)
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    try:
        await sim.start()
        typer.echo(f"simulated Meta: {sim.url}  (page and Graph API; webhooks to {config.callback_url})")
        await stop.wait()
    finally:
        await sim.close()


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
