"""What `gateway numbers` prints: each business number, what is known of it, and what it may do now.

Asks the gateway that runs with these settings, which also knows what webhooks told and what was placed today; where
none answers, Meta itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import aiohttp
import msgspec
from rich.markup import escape
from rich.table import Table

from gateway import messages as msg
from gateway.clock import Clock
from gateway.errors import GraphError
from gateway.graph import GraphClient
from gateway.ids import PhoneNumberId
from gateway.number_views import number_view
from gateway.numbers import Number
from gateway.settings import Settings

#: How long a running gateway may take to answer.
ANSWER_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The numbers, and what came of asking."""

    numbers: Sequence[msg.NumberView]
    live: bool  #: from the running gateway
    problems: dict[str, str]  #: by number: why Meta could not be asked


async def ask(settings: Settings, clock: Clock) -> Report:
    """Return what is known of the numbers. Never raises for somebody who does not answer."""
    live = await _ask_gateway(settings)
    return live if live is not None else await _ask_meta(settings, clock)


async def _ask_gateway(settings: Settings) -> Report | None:
    key = settings.api_key_text()
    if key is None or settings.port == 0:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    url, headers = f"http://{host}:{settings.port}/v1/numbers", {"Authorization": f"Bearer {key}"}
    try:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url, headers=headers) as answer:
            found = msgspec.json.decode(await answer.read(), type=list[msg.NumberView]) if answer.ok else None
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        return None
    return None if found is None else Report(numbers=found, live=True, problems={})


async def _ask_meta(settings: Settings, clock: Clock) -> Report:
    views: list[msg.NumberView] = []
    problems: dict[str, str] = {}

    def token_for(number_id: PhoneNumberId) -> str:
        return settings.access_token_for(number_id)

    async with GraphClient(base_url=settings.graph_url, token_for=token_for, clock=clock) as graph:
        for given in settings.numbers:
            number = Number(given, given.pack_loaded(), on_slots=lambda _: None)
            try:
                await number.read_from_meta(graph, now=clock.now())
            except GraphError as error:
                problems[number.id] = error.public
            views.append(number_view(number, now=clock.now()))
    return Report(numbers=views, live=False, problems=problems)


def tables(report: Report) -> Iterator[Table]:
    """Yield one table for each number."""
    for number in report.numbers:
        table = Table(title=escape(f"{number.number}  {number.name}"), show_header=False, title_justify="left")
        for name, value in _rows(number, live=report.live):
            table.add_row(name, value)
        if number.number_id in report.problems:
            table.add_row("Meta", f"[red]{escape(report.problems[number.number_id])}[/red]")
        yield table


def _rows(number: msg.NumberView, *, live: bool) -> Iterator[tuple[str, str]]:
    status, placed = number.status, number.placed_24h
    yield "id", number.number_id
    yield "country", status.country or "not known"
    yield "rules", escape(number.pack)
    yield "calls at a time", f"{number.incoming.limit:,} in, {number.outgoing.limit:,} out"
    yield "calling", status.calling if status.calling == "ENABLED" else _red(status.calling)
    yield "messaging limit", "not told" if status.messaging_limit is None else f"{status.messaging_limit:,}"
    yield "coexistence", _red("yes: carries no calls") if status.coexistence else "no"
    yield "SIP mode", _red("yes: carries no calls through this gateway") if status.sip else "no"
    yield "payment", "no trouble known" if status.payment_ok else _red("refused by Meta")
    yield "restrictions", "\n".join(_red(_restriction(each)) for each in status.restrictions) or "none"
    if status.warnings:
        yield "warnings", "\n".join(escape(f"{_when(each.at)}  {each.violation}") for each in status.warnings)
    yield "call hours", _hours(status.hours)
    yield (
        "placed in 24 h",
        f"{placed.used:,} of {placed.limit:,}" if live else f"only the gateway knows, of {placed.limit:,}",
    )
    yield "calls to users", _verdict(status.place)
    yield "calls from users", _verdict(status.receive)


def _restriction(restriction: msg.RestrictionView) -> str:
    return f"{restriction.type}, " + (f"until {_when(restriction.until)}" if restriction.until else "no end known")


def _hours(hours: msg.CallHoursView | None) -> str:
    if hours is None:
        return "always open"
    opens = f"opens {_when(hours.opens_at)}" if hours.opens_at else "never opens"
    now = "open now" if hours.open else f"closed, {opens}"
    enforced = ", ".join(hours.enforced) or "for no calls"
    return escape(f"{now} ({hours.timezone}); enforced: {enforced}")


def _verdict(refusal: msg.RefusalView | None) -> str:
    if refusal is None:
        return "[green]possible[/green]"
    again = f" From {_when(refusal.retry_at)} on." if refusal.retry_at else ""
    return _red(refusal.title + again)


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _red(text: str) -> str:
    return f"[red]{escape(text)}[/red]"
