"""What `gateway numbers` says: from a running gateway, from Meta, and without either."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from gateway.common.errors import GraphError
from gateway.config.loading import load
from gateway.config.settings import NumberSettings, Settings
from gateway.numbers import report as report_module
from gateway.numbers.facts import NumberFacts, Warned, state_of
from gateway.numbers.number import Number
from gateway.numbers.report import Report, ask, tables
from gateway.numbers.views import number_view
from policy.number import CallingStatus, Restriction, RestrictionType
from policy.pack import load_pack
from tests.support.fakes.clock import START, FakeClock
from tests.support.fakes.graph import unreachable
from tests.support.fakes.graph_server import TOKEN, a_server, no, ok
from tests.support.harness.doors import doors
from tests.support.harness.world import API_KEY, NUMBER_ID, a_world

NOW = START
GIVEN = NumberSettings(phone_number_id=NUMBER_ID, phone_number="+551155550100", name="Loja [Exemplo]")


ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])  # the loop under test is that of another process
ENVIRONMENT = {
    "GATEWAY_APP_SECRET": "secret",
    "GATEWAY_VERIFY_TOKEN": "verify",
    "GATEWAY_ACCESS_TOKEN": TOKEN,
    "GATEWAY_OPERATORS": '{"ana": "key-of-ana"}',
    "GATEWAY_PHONE_NUMBER_ID": NUMBER_ID,
    "GATEWAY_PHONE_NUMBER": "+551155550100",
    "GATEWAY_GRAPH_URL": "http://127.0.0.1:1/v26.0",
}


def settings(**more: str) -> Settings:
    return load(environ=ENVIRONMENT | more)


def printed(report: Report) -> str:
    console = Console(file=StringIO(), width=120)
    for table in tables(report):
        console.print(table)
    text = console.file
    assert isinstance(text, StringIO)
    return text.getvalue()


def shown(facts: NumberFacts, *, live: bool = True, **given: Any) -> str:
    number = Number(GIVEN.model_copy(update=given), load_pack("guide"))
    number.facts, number.state = facts, state_of(facts, number.hand)
    number.placed.add(NOW)
    return printed(Report(numbers=[number_view(number, now=NOW)], live=live, problems={}))


def test_a_number_with_nothing_against_it() -> None:
    text = shown(NumberFacts(calling=CallingStatus.ENABLED, messaging_limit=10_000, read_at=NOW))
    for words in ("Loja [Exemplo]", "ENABLED", "10,000", "none", "always open", "1 of 10,000"):
        assert words in text
    assert text.count("possible") == 2


def test_a_number_with_everything_against_it() -> None:
    restriction = Restriction(type=RestrictionType.BUSINESS_INITIATED, expires_at=NOW + timedelta(hours=1))
    facts = NumberFacts(
        calling=CallingStatus.DISABLED,
        sip_enabled=True,
        coexistence=True,
        payment_ok=False,
        listed=(restriction, replace(restriction, type=RestrictionType.USER_INITIATED, expires_at=None)),
        warned=(Warned(violation="LOW_QUALITY", at=NOW),),
    )
    text = shown(facts)
    for words in (
        "DISABLED",
        "yes: no calls possible",
        "refused by Meta",
        "RESTRICTED_BUSINESS_INITIATED_CALLING, until 2026-11-22 13:00 UTC",
        "RESTRICTED_USER_INITIATED_CALLING, end not known",
        "LOW_QUALITY",
        "A number connected through Coexistence cannot make or take calls.",
    ):
        assert words in text


def test_hours_and_the_instant_of_the_next_yes() -> None:
    from gateway.config.call_hours import HoursSettings

    hours = HoursSettings.model_validate(
        {"timezone": "UTC", "weekly": [{"day": "monday", "opens": "09:00", "closes": "18:00"}]}
    )
    text = shown(NumberFacts(), call_hours=hours, enforce_hours=("USER_INITIATED",))
    assert "closed, opens 2026-11-23 09:00 UTC (UTC); enforced: USER_INITIATED" in text
    assert "The number is outside its calling hours. Possible from 2026-11-23 09:00 UTC." in text
    never = shown(NumberFacts(), call_hours=HoursSettings(timezone="UTC"))
    assert "closed, never opens (UTC); enforced: for no calls" in never


def test_what_only_a_running_gateway_knows_is_not_made_up() -> None:
    assert "known only to the running gateway" in shown(NumberFacts(), live=False)


async def test_a_running_gateway_is_asked_first() -> None:
    async with a_world() as world, doors(world) as opened:
        report = await ask(settings(GATEWAY_PORT=str(opened.server.port), GATEWAY_API_KEY=API_KEY), FakeClock())
        assert report.live
        assert report.numbers == [number_view(world.number, now=world.clock.now())]


def test_of_a_number_that_was_not_read_nothing_is_promised() -> None:
    text = shown(NumberFacts())
    assert text.count("not known") == 7
    assert not any(words in text for words in ("possible", "none", "always open"))
    assert "yes: no calls possible" in shown(NumberFacts(), coexistence=True)  # somebody set it


async def test_a_running_gateway_that_could_not_read_a_number_is_a_problem() -> None:
    async with a_world() as world, doors(world) as opened:
        given = settings(GATEWAY_PORT=str(opened.server.port), GATEWAY_API_KEY=API_KEY)
        assert "the running gateway has not read it" in (await ask(given, FakeClock())).problems[NUMBER_ID]
        await world.monitor.refresh(world.number)
        assert (await ask(given, FakeClock())).problems == {}


async def command(name: str, graph_url: str) -> tuple[int | None, str, str]:
    """Run a command as its users do; return exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "gateway", name),
        env={"PATH": os.environ["PATH"], **ENVIRONMENT, "GATEWAY_GRAPH_URL": graph_url},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@ONE_LOOP
@pytest.mark.parametrize("name", ["check", "numbers"])
async def test_meta_that_cannot_be_reached_is_one_sentence_and_an_error(name: str) -> None:
    code, out, err = await command(name, "http://127.0.0.1:1/v26.0")
    assert code == 1
    assert err == (
        f"number {NUMBER_ID}: Meta could not be reached at http://127.0.0.1:1/v26.0 (not connected). "
        "Check this machine's network, name resolution and firewall, and GATEWAY_GRAPH_URL.\n"
    )
    assert "stamina" not in out
    assert "possible" not in out


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (no(190, "Session has expired", 401), "Meta refused: (190) Session has expired. Set a new token in"),
        (no(10, "No permission", 403), "Meta refused: (10) No permission. Give the system user whatsapp_business_man"),
        (no(100, "Object does not exist"), "Meta refused: (100) Object does not exist. Check the phone number ID"),
        (no(4, "Too many calls"), "Meta refused: (4) Too many calls. Try again in a few minutes"),
        (no(190, f"Bad signature of {TOKEN}", 401), "Meta refused: (190) Bad signature of [hidden]. Set a new"),
        (ok("Bad Gateway", 502), "Meta gave no clear answer: HTTP 502 without an answer of the Graph API. Try again"),
        (ok("Not Found", 404), "Meta gave no clear answer: HTTP 404 without an answer of the Graph API. Try again"),
    ],
)
async def test_a_no_of_metas_is_told_in_one_sentence_with_what_to_do(answer: web.Response, told: str) -> None:
    async with a_server() as server:
        server.answers = [answer]
        report = await ask(settings(GATEWAY_GRAPH_URL=server.url), FakeClock())
    (line,) = report.problems_told()
    assert line.startswith(f"number {NUMBER_ID}: {told}")


@ONE_LOOP
async def test_a_refused_token_is_one_sentence_and_an_error() -> None:
    async with a_server() as server:
        server.answers = [no(190, "Session has expired", 401)]
        code, out, err = await command("numbers", server.url)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"number {NUMBER_ID}: Meta refused: (190) Session has expired. Set a new token")
    assert "token_refused" not in out


@ONE_LOOP
async def test_a_number_that_was_read_ends_well() -> None:
    async with a_server() as server:
        server.answers = [ok({"calling": {"status": "ENABLED"}})]
        code, out, err = await command("numbers", server.url)
    assert (code, err) == (0, "")
    assert "possible" in out


NUMBERS = orjson.dumps(
    [{"phone_number_id": f"20000000000000{n}", "phone_number": f"+55115555010{n}"} for n in range(5)]
).decode()


def many() -> dict[str, str]:
    return {"GATEWAY_NUMBERS": NUMBERS, "GATEWAY_PHONE_NUMBER_ID": "", "GATEWAY_PHONE_NUMBER": ""}


async def test_numbers_with_the_same_trouble_share_a_sentence() -> None:
    async with a_server() as server:
        server.answers = [no(190, "Session has expired", 401)]
        report = await ask(settings(GATEWAY_GRAPH_URL=server.url, **many()), FakeClock())
        assert len(server.seen) == 5  # what they share is found out of each: a number may have a token of its own
    (told,) = report.problems_told()
    assert told.startswith("number 200000000000000, 200000000000001, 200000000000002 and 2 more: Meta refused: (190)")


async def test_meta_that_cannot_be_reached_is_not_asked_about_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def read(number: Number, *_: Any) -> GraphError:
        asked.append(number.id)
        return unreachable("settings")

    monkeypatch.setattr(report_module, "_read_from_meta", read)
    report = await ask(settings(**many()), FakeClock())
    assert (len(asked), len(report.problems)) == (1, 5)


async def test_something_else_on_the_gateways_port_is_not_believed(monkeypatch: Any) -> None:
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    app.router.add_get("/v1/numbers", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        given = settings(GATEWAY_PORT=str(server.port), GATEWAY_API_KEY=API_KEY)
        assert await report_module._ask_gateway(given) is None
        assert await report_module._ask_gateway(settings(GATEWAY_PORT=str(server.port))) is None
