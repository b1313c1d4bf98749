"""The report of `gateway numbers`: each business number, what is known about it, and what it may do now.

The report comes from the running gateway with these settings, which also knows what webhooks said and which calls were
placed today. If no gateway answers, it comes from Meta. What could not be read is shown as not known, with a sentence
that says what to do.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import aiohttp
import msgspec
from rich.markup import escape
from rich.table import Table

from gateway.common.clock import Clock
from gateway.common.errors import GraphError, GraphRefused, GraphUnreachable
from gateway.config.settings import Settings
from gateway.meta.error_codes import lacks_permission, refuses_token
from gateway.meta.graph import GraphClient
from gateway.numbers.number import Number
from gateway.numbers.views import number_view
from gateway.wire import messages as msg

#: How long a running gateway may take to answer.
ANSWER_S = 3.0
#: How many numbers with the same problem are named.
NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The numbers, and the problems of reading them."""

    numbers: Sequence[msg.NumberView]
    live: bool  #: whether it comes from the running gateway
    problems: dict[str, str]  #: by number: why it could not be read from Meta, and what to do

    def problems_told(self) -> Iterator[str]:
        """Yield one sentence for each problem, with the numbers that have it."""
        having = defaultdict(list)
        for number_id, problem in self.problems.items():
            having[problem].append(number_id)
        for problem, ids in having.items():
            more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
            yield f"number {', '.join(ids[:NAMED])}{more}: {problem}"


async def ask(settings: Settings, clock: Clock) -> Report:
    """Return the report. Does not raise if the gateway or Meta does not answer."""
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
    if found is None:
        return None
    unread = "the running gateway has not read it from Meta; see its log, and `degraded` at /readyz."
    problems = {each.number_id: unread for each in found if each.status.read_at is None}
    return Report(numbers=found, live=True, problems=problems)


async def _ask_meta(settings: Settings, clock: Clock) -> Report:
    views: list[msg.NumberView] = []
    problems: dict[str, str] = {}
    away: GraphError | None = None
    for given in settings.numbers:
        number = Number(given, given.pack_loaded(), on_slots=lambda _: None)
        error = away or await _read_from_meta(number, settings, clock)
        if error is not None:
            problems[number.id] = _advice(error, settings.graph_url)
        if isinstance(error, GraphUnreachable) and error.http_status is None:
            away = error  # the time limit takes seconds, and the other numbers would run into it, too
        views.append(number_view(number, now=clock.now()))
    return Report(numbers=views, live=False, problems=problems)


async def _read_from_meta(number: Number, settings: Settings, clock: Clock) -> GraphError | None:
    """Read a number from Meta and return the error, if any.

    Each number gets a client of its own: a shared one would pause after the first refused token, and hide Meta's text
    about the other numbers.
    """
    async with GraphClient(base_url=settings.graph_url, token_for=settings.access_token_for, clock=clock) as graph:
        try:
            await number.read_from_meta(graph, now=clock.now())
        except GraphError as error:
            return error
    return None


def _advice(error: GraphError, url: str) -> str:
    """Return sentences that say what is wrong and what to do about it."""
    said = error.public.removesuffix(".")
    if isinstance(error, GraphUnreachable) and error.http_status is None:
        return (
            f"Meta could not be reached at {url} ({error.status.replace('_', ' ')}). "
            "Check this machine's network, name resolution and firewall, and GATEWAY_GRAPH_URL."
        )
    if refuses_token(error.code):
        return f"{said}. Set a new token in GATEWAY_ACCESS_TOKEN, or in the number's own settings."
    if lacks_permission(error.code):
        return (
            f"{said}. Give the system user whatsapp_business_management and whatsapp_business_messaging, "
            "create a new token, and set it in GATEWAY_ACCESS_TOKEN or in the number's own settings."
        )
    if isinstance(error, GraphRefused) and not error.retryable:
        return f"{said}. Check the phone number ID, and in Meta's console that the token's system user may use it."
    return f"{said}. Try again in a few minutes; if it persists, check GATEWAY_GRAPH_URL and Meta's status page."


def tables(report: Report) -> Iterator[Table]:
    """Yield one table for each number."""
    for number in report.numbers:
        table = Table(title=escape(f"{number.number}  {number.name}"), show_header=False, title_justify="left")
        for name, value in _rows(number, live=report.live):
            table.add_row(name, value)
        yield table


def _rows(number: msg.NumberView, *, live: bool) -> Iterator[tuple[str, str]]:
    status, placed = number.status, number.placed_24h
    read = status.read_at is not None
    yield "id", number.number_id
    yield "country", status.country or "not known"
    yield "rules", escape(number.pack)
    yield "concurrent calls", f"{number.incoming.limit:,} in, {number.outgoing.limit:,} out"
    yield "calling", status.calling if status.calling == "ENABLED" else _red(status.calling)
    yield "messaging limit", "not known" if status.messaging_limit is None else f"{status.messaging_limit:,}"
    yield "coexistence", _red("yes: no calls possible") if status.coexistence else _if_read("no", read)
    yield "SIP mode", _red("yes: no calls possible through this gateway") if status.sip else _if_read("no", read)
    yield "payment", "no problem known" if status.payment_ok else _red("refused by Meta")
    yield "restrictions", "\n".join(_red(_restriction(each)) for each in status.restrictions) or _if_read("none", read)
    if status.warnings:
        yield "warnings", "\n".join(escape(f"{_when(each.at)}  {each.violation}") for each in status.warnings)
    yield "call hours", _hours(status.hours) if status.hours else _if_read("always open", read)
    yield (
        "placed in 24 h",
        f"{placed.used:,} of {placed.limit:,}" if live else f"known only to the running gateway, of {placed.limit:,}",
    )
    yield "calls to users", _verdict(status.place, read=read)
    yield "calls from users", _verdict(status.receive, read=read)


def _restriction(restriction: msg.RestrictionView) -> str:
    return f"{restriction.type}, " + (f"until {_when(restriction.until)}" if restriction.until else "end not known")


def _hours(hours: msg.CallHoursView) -> str:
    opens = f"opens {_when(hours.opens_at)}" if hours.opens_at else "never opens"
    now = "open now" if hours.open else f"closed, {opens}"
    enforced = ", ".join(hours.enforced) or "for no calls"
    return escape(f"{now} ({hours.timezone}); enforced: {enforced}")


def _verdict(refusal: msg.RefusalView | None, *, read: bool) -> str:
    if refusal is None:
        return _if_read("[green]possible[/green]", read)
    again = f" Possible from {_when(refusal.retry_at)}." if refusal.retry_at else ""
    return _red(refusal.title + again)


def _if_read(text: str, read: bool) -> str:
    return text if read else "not known"


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _red(text: str) -> str:
    return f"[red]{escape(text)}[/red]"
