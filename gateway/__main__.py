"""The command line: `gateway serve`, `check`, `migrate`, `rebuild`, `ticket`, `numbers`, `version`.

Responsible for arguments, exit codes and what a person reads in the terminal. Heavy modules are imported inside the
commands that need them, so that `--help` answers at once.
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

#: Sockets and files that `serve` allows itself, as far as the system lets it.
_SOCKETS: Final = 65_536

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="TOML file with settings; else $GATEWAY_CONFIG, else ./gateway.toml if it is there."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="One setting, over environment and file; repeat."),
]


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address of webhooks, page and API.")] = None,
    port: Annotated[str | None, typer.Option(help="Its port; 0 is any free one.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the gateway's own database.")] = None,
    settings: SetOption = None,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM.

    Either lets the calls that are up go on, takes no new ones, and ends the program with the last of them; either once
    more ends it, and the calls, at once.

    Everything can be set by environment (`GATEWAY_…`, secrets also as `GATEWAY_…_FILE`), by a TOML file, or with
    `--set`. `gateway check` shows all settings and where each comes from. Without `DATABASE_URL` the gateway starts a
    PostgreSQL of its own.
    """
    loaded = _load(config, settings, host=host, port=port, data_dir=data_dir)
    from gateway.common.log import configure_logging

    configure_logging(level=loaded.log_level, log_format=loaded.log_format, secrets=loaded.secret_texts())
    _run(lambda: _serve(loaded))


@app.command()
def check(config: ConfigOption = None, settings: SetOption = None) -> None:
    """Show every setting and where it comes from, secrets masked; ask Meta about each number."""
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
    """Show each business number: what it may do, restrictions, hours, and what Meta says of it."""
    loaded = _load(config, settings)
    _run(lambda: _show_numbers(loaded))


@app.command()
def migrate(config: ConfigOption = None, settings: SetOption = None) -> None:
    """Bring the database's schema up to date; `serve` does so by itself."""
    loaded = _load(config, settings)
    _run(lambda: _migrate(loaded))


@app.command()
def rebuild(
    check: Annotated[bool, typer.Option("--check", help="Only compare; exit code 1 if anything differs.")] = False,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Fold every contact's facts again and correct the stored state where it differs.

    Stop the gateway first. With `--check` and a database of your own (`DATABASE_URL`) it may run on.
    """
    loaded = _load(config, settings)
    from gateway.common.log import configure_logging

    configure_logging(level="error", log_format=loaded.log_format)
    _run(lambda: _rebuild(loaded, check))


@app.command()
def ticket(
    operator: Annotated[str, typer.Argument(help="Who will log in.")],
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Print a one-time login ticket for a softphone; valid for 30 seconds, once. The gateway must be running."""
    loaded = _load(config, settings)
    _run(lambda: _ticket(loaded, operator))


@app.command(hidden=True)
def bench(
    contacts: Annotated[int, typer.Option(min=1_000, max=10_000_000)] = 1_000_000,
    decisions: Annotated[int, typer.Option(min=1_000)] = 100_000,
    reads: Annotated[int, typer.Option(min=100)] = 20_000,
    seed: Annotated[int, typer.Option()] = 20261122,
    database_url: Annotated[str | None, typer.Option(help="An empty database to fill; else one of its own.")] = None,
) -> None:
    """Measure the gate on this machine; prints JSON lines. `python -m loadtest gate` shows them."""
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
            up = "1 call is up and goes on" if gateway.calls == 1 else f"{gateway.calls} calls are up and go on"
            typer.echo(f"\n{up}; Ctrl-C again ends what is left.")
        stop.ask()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, asked)

    def ready(gateway: Gateway) -> None:
        if sys.stdout.isatty():
            names = ", ".join(gateway.settings.operators)
            typer.echo(
                f"Softphone: http://{gateway.settings.host}:{gateway.port}/   operators: {names}   (Ctrl-C stops)"
            )

    await gateway.run(stop, ready)


def _allow_all_sockets() -> None:
    """Use as many sockets as the system lets us: the usual 1,024 are used up by as many slow clients."""
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

    configure_logging(level="critical", log_format=loaded.log_format, secrets=loaded.secret_texts())  # told below
    report = await ask(loaded, SystemClock())
    console = Console()
    for table in tables(report):
        console.print(table)
    if report.problems:
        _fail("\n".join(report.problems_told()))
    if not report.live:
        console.print(
            "[dim]Asked Meta. What its webhooks told, and the calls of today, a running gateway knows"
            " (GATEWAY_API_KEY lets this command ask it).[/dim]"
        )


async def _bench(config: Any, run_bench: Any) -> None:
    import orjson

    def say(line: dict[str, Any]) -> None:
        typer.echo(orjson.dumps(line).decode())

    me = asyncio.current_task()
    if me is not None:  # its PostgreSQL must not outlive it
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
    typer.echo("The schema is up to date.")


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
    outdated = f", {found.outdated} of another version" if found.outdated else ""
    typer.echo(f"{found.contacts} contacts, {found.facts} facts: {found.differing} snapshots differed{outdated}.")
    if check and found.differing:
        _fail("Run `gateway rebuild` without --check to correct them.")
    if found.differing:
        typer.echo(f"{found.corrected} corrected.")


async def _ticket(loaded: Any, operator: str) -> None:
    import aiohttp

    key = loaded.operator_keys().get(operator)
    if key is None:
        _fail(f"There is no operator {operator!r}; the settings know: {', '.join(loaded.operators)}.")
    url = f"http://{loaded.host}:{loaded.port}/v1/tickets"
    try:
        async with aiohttp.ClientSession() as http, http.post(url, json={"operator": operator, "key": key}) as answer:
            said = await answer.json(content_type=None)
            if answer.status != 201:
                _fail(f"The gateway refused: {said.get('title')}")
    except aiohttp.ClientError:
        _fail(f"No gateway answers at {url}: is it running, and with these settings?")
    typer.echo(said["ticket"])


# --- shape -------------------------------------------------------------------------------------------


def _load(config: Path | None, settings: list[str] | None, **flags: str | None) -> Any:
    """Load the settings, or name every mistake and end with exit code 2."""
    from gateway.common.errors import SettingsError
    from gateway.config.loading import load

    try:
        return load(config=config, flags=_flags(settings) | flags)
    except SettingsError as error:
        _refuse(error.problems)


def _flags(settings: list[str] | None) -> dict[str, str | None]:
    """Read the `--set` options."""
    flags: dict[str, str | None] = {}
    for text in settings or []:
        name, equals, value = text.partition("=")
        if not equals:
            _fail(f"--set takes NAME=VALUE, not {text!r}.", code=2)
        flags[name.strip()] = value
    return flags


def _refuse(problems: Sequence[str]) -> NoReturn:
    _fail("\n".join([f"The settings cannot work ({len(problems)} to mend):", *(f"  - {p}" for p in problems)]), code=2)


def _run(work: Callable[[], Awaitable[None]]) -> None:
    """Run on uvloop; an error of ours becomes one line and exit code 1."""
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
    """Return a line for each error. Whoever sits at the terminal may read all that is wrong with the database."""
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
