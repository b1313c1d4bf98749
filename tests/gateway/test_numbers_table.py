"""What `gateway numbers` says: from a running gateway, from Meta, and without either."""

from dataclasses import replace
from datetime import timedelta
from io import StringIO
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from gateway import numbers_table
from gateway.number_facts import NumberFacts, Warned, state_of
from gateway.number_views import number_view
from gateway.numbers import Number
from gateway.numbers_table import Report, ask, tables
from gateway.settings import NumberSettings, Settings
from gateway.settings_load import load
from policy.number import CallingStatus, Restriction, RestrictionType
from policy.pack import load_pack
from tests.support.doors import API_KEY, doors
from tests.support.fake_clock import START, FakeClock
from tests.support.world import NUMBER_ID, a_world

NOW = START
GIVEN = NumberSettings(phone_number_id=NUMBER_ID, phone_number="+551155550100", name="Loja [Exemplo]")


def settings(**more: str) -> Settings:
    return load(
        environ={
            "GATEWAY_APP_SECRET": "secret",
            "GATEWAY_VERIFY_TOKEN": "verify",
            "GATEWAY_ACCESS_TOKEN": "token",
            "GATEWAY_OPERATORS": '{"ana": "key-of-ana"}',
            "GATEWAY_PHONE_NUMBER_ID": NUMBER_ID,
            "GATEWAY_PHONE_NUMBER": "+551155550100",
            "GATEWAY_GRAPH_URL": "http://127.0.0.1:1/v26.0",
            **more,
        }
    )


def printed(report: Report) -> str:
    console = Console(file=StringIO(), width=120)
    for table in tables(report):
        console.print(table)
    text = console.file
    assert isinstance(text, StringIO)
    return text.getvalue()


def shown(facts: NumberFacts, *, live: bool = True, **given: Any) -> str:
    number = Number(GIVEN.model_copy(update=given), load_pack("guide"), on_slots=lambda _: None)
    number.facts, number.state = facts, state_of(facts, number.hand)
    number.placed.add(NOW)
    return printed(Report(numbers=[number_view(number, now=NOW)], live=live, problems={}))


def test_a_number_with_nothing_against_it() -> None:
    text = shown(NumberFacts(calling=CallingStatus.ENABLED, messaging_limit=10_000))
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
        "yes: carries no calls",
        "refused by Meta",
        "RESTRICTED_BUSINESS_INITIATED_CALLING, until 2026-11-22 13:00 UTC",
        "RESTRICTED_USER_INITIATED_CALLING, no end known",
        "LOW_QUALITY",
        "A number joined through Coexistence carries no calls.",
    ):
        assert words in text


def test_hours_and_the_instant_of_the_next_yes() -> None:
    from gateway.settings_hours import HoursSettings

    hours = HoursSettings.model_validate(
        {"timezone": "UTC", "weekly": [{"day": "monday", "opens": "09:00", "closes": "18:00"}]}
    )
    text = shown(NumberFacts(), call_hours=hours, enforce_hours=("USER_INITIATED",))
    assert "closed, opens 2026-11-23 09:00 UTC (UTC); enforced: USER_INITIATED" in text
    assert "The number is outside its calling hours. From 2026-11-23 09:00 UTC on." in text
    never = shown(NumberFacts(), call_hours=HoursSettings(timezone="UTC"))
    assert "closed, never opens (UTC); enforced: for no calls" in never


def test_what_only_a_running_gateway_knows_is_not_made_up() -> None:
    assert "only the gateway knows" in shown(NumberFacts(), live=False)


async def test_a_running_gateway_is_asked_first() -> None:
    async with a_world() as world, doors(world) as opened:
        report = await ask(settings(GATEWAY_PORT=str(opened.server.port), GATEWAY_API_KEY=API_KEY), FakeClock())
        assert report.live
        assert report.numbers == [number_view(world.number, now=world.clock.now())]


async def test_without_a_gateway_meta_is_asked_and_what_it_does_not_say_is_told() -> None:
    report = await ask(settings(GATEWAY_PORT="1", GATEWAY_API_KEY=API_KEY), FakeClock())
    assert not report.live
    assert list(report.problems) == [NUMBER_ID]
    assert "Meta could not be reached" in printed(report)


async def test_something_else_on_the_gateways_port_is_not_believed(monkeypatch: Any) -> None:
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    app.router.add_get("/v1/numbers", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        given = settings(GATEWAY_PORT=str(server.port), GATEWAY_API_KEY=API_KEY)
        assert await numbers_table._ask_gateway(given) is None
        assert await numbers_table._ask_gateway(settings(GATEWAY_PORT=str(server.port))) is None
