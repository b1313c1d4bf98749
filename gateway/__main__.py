"""The command line: `gateway serve`, `check`, `numbers`, `migrate`, `rebuild`, `ticket`, `version`.

Heavy modules are imported inside the commands that need them, so that `--help` answers at once.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Self-hosted gateway for WhatsApp Business calls.",
)

#: The limit of open sockets and files that `serve` sets for itself, if the system allows it.
_SOCKETS: Final = 65_536

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML file with settings. Default: $GATEWAY_CONFIG, or ./gateway.toml."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="Set one setting; takes precedence over environment and file. May be repeated.",
    ),
]


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on for webhooks, softphone page and API.")] = None,
    port: Annotated[str | None, typer.Option(help="Port to listen on; 0 chooses a free port.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder for data, such as the embedded PostgreSQL.")] = None,
    settings: SetOption = None,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM.

    The first Ctrl-C or SIGTERM stops new calls; the gateway exits when the last active call ends. The second one ends
    all calls and exits at once.

    Settings come from environment variables (`GATEWAY_…`; secrets also from files named in `GATEWAY_…_FILE`), from a
    TOML file, or from `--set`. `gateway check` shows all settings and where each comes from. Without `DATABASE_URL`,
    the gateway runs its own, embedded PostgreSQL.
    """
    loaded = _load(config, settings, host=host, port=port, data_dir=data_dir)
    from gateway.common.log import configure_logging

    configure_logging(level=loaded.log_level, log_format=loaded.log_format, secrets=loaded.secret_texts())
    _run(lambda: _serve(loaded))


@app.command()
def check(config: ConfigOption = None, settings: SetOption = None) -> None:
    """Show every setting and where it comes from, with secrets masked, and check each number with Meta."""
    from rich.console import Console
    from rich.table import Table

    from gateway.config.loading import check as check_settings

    report = check_settings(config=config, flags=_flags(settings))
    table = Table("setting", "value", "from", title="Settings")
    for row in report.rows:
        table.add_row(row.name, row.value, row.source)
    console = Console()
    console.print(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}")
    if report.settings is None:
        _refuse(report.problems)
    _run(lambda: _show_numbers(report.settings))


@app.command()
def numbers(config: ConfigOption = None, settings: SetOption = None) -> None:
    """Show the status of each business number: allowed calls, limits, restrictions and calling hours."""
    loaded = _load(config, settings)
    _run(lambda: _show_numbers(loaded))


@app.command()
def migrate(config: ConfigOption = None, settings: SetOption = None) -> None:
    """Bring the database schema up to date. `serve` also does this when it starts."""
    loaded = _load(config, settings)
    _run(lambda: _migrate(loaded))


@app.command()
def rebuild(
    check: Annotated[
        bool, typer.Option("--check", help="Compare without correcting; exit with code 1 if a state differs.")
    ] = False,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Recompute the state of every contact from its history, and correct stored states that differ.

    Stop the gateway first. With `--check` and your own database (`DATABASE_URL`), it may keep running.
    """
    loaded = _load(config, settings)
    from gateway.common.log import configure_logging

    configure_logging(level="error", log_format=loaded.log_format)
    _run(lambda: _rebuild(loaded, check))


@app.command()
def ticket(
    operator: Annotated[str, typer.Argument(help="Name of the operator who will log in.")],
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Print a login ticket for a softphone, valid once and for 30 seconds. The gateway must be running."""
    loaded = _load(config, settings)
    _run(lambda: _ticket(loaded, operator))


@app.command(hidden=True)
def bench(
    contacts: Annotated[
        int, typer.Option(min=1_000, max=10_000_000, help="Number of contacts in the database.")
    ] = 1_000_000,
    decisions: Annotated[int, typer.Option(min=1_000, help="Number of decisions to time.")] = 100_000,
    reads: Annotated[int, typer.Option(min=100, help="Number of database reads to time.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of the random contacts and decisions.")] = 20261122,
    database_url: Annotated[
        str | None, typer.Option(help="An empty database to fill. Default: a temporary PostgreSQL.")
    ] = None,
) -> None:
    """Measure the gate on this machine and print JSON lines. `python -m loadtest gate` displays the results."""
    from gateway.bench import BenchConfig, run_bench
    from gateway.common.log import configure_logging

    configure_logging(level="error", log_format="json")
    config = BenchConfig(contacts=contacts, decisions=decisions, reads=reads, seed=seed, database_url=database_url)
    _run(lambda: _bench(config, run_bench))


@app.command()
def version() -> None:
    """Print the program's version."""
    from gateway.http.admin import program_version

    typer.echo(program_version())


# --- the work behind the commands --------------------------------------------------------------------


async def _serve(loaded: Any) -> None:
    from gateway.app import Gateway
    from gateway.shutdown import Stop

    _allow_all_sockets()
    stop, gateway = Stop(), Gateway(loaded)

    def asked() -> None:
        if gateway.calls and not stop.is_asked and sys.stdout.isatty():
            active = "1 active call" if gateway.calls == 1 else f"{gateway.calls} active calls"
            typer.echo(f"\nWaiting for {active} to end. Press Ctrl-C again to end at once.")
        stop.ask()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, asked)

    def ready(gateway: Gateway) -> None:
        if sys.stdout.isatty():
            names = ", ".join(gateway.settings.operators)
            typer.echo(
                f"Softphone: http://{gateway.settings.host}:{gateway.port}/   operators: {names}   (Ctrl-C to stop)"
            )

    await gateway.run(stop, ready)


def _allow_all_sockets() -> None:
    """Raise the limit of open sockets as far as allowed: 1,024 slow clients would exhaust the usual limit."""
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SOCKETS if most == resource.RLIM_INFINITY else min(_SOCKETS, most)
    if resource.RLIM_INFINITY != now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _show_numbers(loaded: Any) -> None:
    from rich.console import Console

    from gateway.common.clock import SystemClock
    from gateway.common.log import configure_logging
    from gateway.numbers.report import ask, tables

    # The problems are printed below, so nothing of them is logged.
    configure_logging(level="critical", log_format=loaded.log_format, secrets=loaded.secret_texts())
    report = await ask(loaded, SystemClock())
    console = Console()
    for table in tables(report):
        console.print(table)
    if report.problems:
        _fail("\n".join(report.problems_told()))
    if not report.live:
        console.print(
            "[dim]This is what Meta says. A running gateway also knows what webhooks said and which calls were placed"
            " today; set GATEWAY_API_KEY so that this command can ask it.[/dim]"
        )


async def _bench(config: Any, run_bench: Any) -> None:
    import orjson

    def say(line: dict[str, Any]) -> None:
        typer.echo(orjson.dumps(line).decode())

    me = asyncio.current_task()
    if me is not None:  # on SIGTERM, stop the temporary PostgreSQL, too
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    try:
        say({"figures": await run_bench(config, say)})
    except asyncio.CancelledError:
        raise typer.Exit(143) from None


async def _migrate(loaded: Any) -> None:
    from contextlib import AsyncExitStack

    from gateway.store.embedded import embedded_postgres
    from gateway.store.migrations import migrate as run_migrations

    async with AsyncExitStack() as stack:
        dsn = loaded.database_url_text()
        if dsn is None:
            dsn = await stack.enter_async_context(embedded_postgres(loaded.data_dir))
        applied = await run_migrations(dsn)
    for migration in applied:
        typer.echo(f"applied {migration.version:04d} {migration.name}")
    typer.echo("The database schema is up to date.")


async def _rebuild(loaded: Any, check: bool) -> None:
    from contextlib import AsyncExitStack

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gateway.contacts.refold import rebuild as run_rebuild
    from gateway.store.embedded import embedded_postgres

    columns = (TextColumn("contacts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with AsyncExitStack() as stack:
        dsn = loaded.database_url_text()
        if dsn is None:
            dsn = await stack.enter_async_context(embedded_postgres(loaded.data_dir))
        bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        task = bar.add_task("contacts", total=None)
        found = await run_rebuild(
            dsn, check=check, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    outdated = f" ({found.outdated} written by another version)" if found.outdated else ""
    typer.echo(f"{found.contacts} contacts with {found.facts} facts: {found.differing} stored states differ{outdated}.")
    if check and found.differing:
        _fail("Run `gateway rebuild` without --check to correct them.")
    if found.differing:
        typer.echo(f"{found.corrected} corrected.")


async def _ticket(loaded: Any, operator: str) -> None:
    import aiohttp

    key = loaded.operator_keys().get(operator)
    if key is None:
        _fail(f"There is no operator {operator!r} in the settings; there are: {', '.join(loaded.operators)}.")
    url = f"http://{loaded.host}:{loaded.port}/v1/tickets"
    try:
        async with aiohttp.ClientSession() as http, http.post(url, json={"operator": operator, "key": key}) as answer:
            said = await answer.json(content_type=None)
            if answer.status != 201:
                _fail(f"The gateway refused: {said.get('title')}")
    except aiohttp.ClientError:
        _fail(f"No gateway answers at {url}. Is it running, with the same settings?")
    typer.echo(said["ticket"])


# --- helpers -----------------------------------------------------------------------------------------


def _load(config: Path | None, settings: list[str] | None, **flags: str | None) -> Any:
    """Load the settings; if they are not valid, print every problem and exit with code 2."""
    from gateway.common.errors import SettingsError
    from gateway.config.loading import load

    try:
        return load(config=config, flags=_flags(settings) | flags)
    except SettingsError as error:
        _refuse(error.problems)


def _flags(settings: list[str] | None) -> dict[str, str | None]:
    """Parse the `--set` options; exit with code 2 if one is malformed."""
    flags: dict[str, str | None] = {}
    for text in settings or []:
        name, equals, value = text.partition("=")
        if not equals:
            _fail(f"--set needs NAME=VALUE, not {text!r}.", code=2)
        flags[name.strip()] = value
    return flags


def _refuse(problems: Sequence[str]) -> NoReturn:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    _fail("\n".join([f"The settings are not valid ({count}):", *(f"  - {problem}" for problem in problems)]), code=2)


def _run(work: Callable[[], Awaitable[None]]) -> None:
    """Run on uvloop; print each gateway or media error as one line, and exit with code 1."""
    import uvloop

    from gateway.common.errors import GatewayError
    from media.errors import MediaError

    async def main() -> None:
        await work()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except* GatewayError as errors:
        _fail("\n".join(_lines(errors)))
    except* MediaError as errors:
        _fail("\n".join(f"The media plane could not start: {line}" for line in _lines(errors)))
    except* KeyboardInterrupt:
        raise typer.Exit(130) from None


def _lines(group: BaseExceptionGroup[Any]) -> list[str]:
    """Return one line per error. The user of the terminal may also read the internal text of a database error."""
    from gateway.common.errors import StoreError

    lines: list[str] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            lines += _lines(error)
        else:
            public = None if isinstance(error, StoreError) else getattr(error, "public", None)
            lines.append(public or str(error))
    return lines


def _fail(text: str, *, code: int = 1) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(code)


def main() -> None:
    app(prog_name="gateway")


if __name__ == "__main__":
    main()
