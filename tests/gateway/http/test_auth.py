"""Wrong keys cost whoever tries them, not the operator they are tried on; and nobody learns whether a name exists."""

import asyncio
import re
from collections.abc import Hashable, Mapping
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from gateway.common.ids import OperatorId
from gateway.common.metrics import Metrics
from gateway.common.rate_limit import Rate, RateLimits
from gateway.http.auth import MOST_SOURCES, PAIR_FAILURES, WIDE_FAILURES, Doorkeeper
from gateway.http.openapi import TicketRequest
from gateway.http.problems import Problem
from gateway.softphone.tickets import Tickets
from tests.support.harness.doors import KEYED, doors
from tests.support.harness.world import API_KEY, OPERATORS, a_world

HOME, AWAY = "192.0.2.1", "198.51.100.7"
ANA = OperatorId("ana")


class FakeTransport:
    """As much of a transport as a request asks for its client's address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.address, 40_000) if name == "peername" else default


def request_of(address: str, authorization: str = "") -> Any:
    headers = {"Authorization": authorization} if authorization else {}
    return make_mocked_request("POST", "/v1/tickets", headers=headers, transport=FakeTransport(address))


class Frozen(RateLimits):
    """All attempts are made in the same moment, however slow the machine."""

    def wait_s(self, rates: Mapping[Hashable, Rate], *, now: float) -> float:
        return super().wait_s(rates, now=1_000.0)

    def count(self, rates: Mapping[Hashable, Rate], *, now: float) -> None:
        super().count(rates, now=1_000.0)


class Door:
    """A doorkeeper, and how it answers."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.keeper = Doorkeeper(
            Tickets(operators=OPERATORS, api_key=API_KEY), self.metrics, failures=Frozen(most=MOST_SOURCES)
        )

    def ask(self, name: str, key: str | None, address: str = HOME, device: str | None = None, bearer: str = "") -> str:
        """Return `yes`, `no` or `wait`."""
        try:
            wanted = TicketRequest(operator=name, key=key, device=device)
            authorization = f"Bearer {bearer}" if bearer else ""
            return "yes" if self.keeper.operator(request_of(address, authorization), wanted) else "no"
        except Problem as problem:
            return "wait" if problem.status == 429 and problem.retry_after_s else problem.code

    def api(self, key: str, address: str = HOME) -> str:
        try:
            return "yes" if self.keeper.has_api_key(request_of(address, f"Bearer {key}")) else "no"
        except Problem:
            return "wait"

    def counted(self, kind: str, result: str) -> float:
        labels = {"kind": kind, "result": result}
        return self.metrics.registry.get_sample_value("wacg_keys_refused_total", labels) or 0.0


async def test_the_eleventh_wrong_key_is_not_looked_at_and_neither_is_a_right_one() -> None:
    door = Door()
    assert [door.ask("ana", "wrong") for _ in range(12)] == ["no"] * PAIR_FAILURES + ["wait"] * 2
    assert door.ask("ana", "key-of-ana") == "wait"
    assert (door.counted("operator", "wrong"), door.counted("operator", "too_many")) == (10, 3)


async def test_a_stranger_elsewhere_shuts_nobody_out() -> None:
    door = Door()
    while door.ask("ana", "wrong", AWAY) == "no":
        pass
    assert door.ask("ana", "key-of-ana", HOME) == "yes"
    assert door.ask("bia", "key-of-bia", AWAY) == "yes"


async def test_behind_one_address_a_device_that_was_here_before_is_not_shut_out() -> None:
    door = Door()
    known = door.keeper.device(ANA)
    for name in ("ana", *(f"n{n}" for n in range(40))):
        while door.ask(name, "wrong") == "no":
            pass
    assert door.ask("bia", "key-of-bia") == "wait"  # the address as a whole
    assert door.ask("ana", "key-of-ana", device=known) == "yes"
    assert door.ask("bia", "key-of-bia", device=known) == "wait"  # another operator's device
    for forged in ("", ".", "x.y", known[:-1], known + "0", known.replace(".", ""), "é.é"):
        assert door.ask("ana", "key-of-ana", device=forged) == "wait"


async def test_a_device_guesses_no_more_than_anybody() -> None:
    door = Door()
    known = door.keeper.device(ANA)
    assert [door.ask("ana", "wrong", device=known) for _ in range(11)] == ["no"] * 10 + ["wait"]
    assert door.ask("ana", "key-of-ana") == "yes"  # its failures are its own


async def test_a_device_keeps_its_token_and_another_processs_is_nobodys() -> None:
    one, other = Door().keeper, Door().keeper
    token = one.device(ANA)
    assert one.device(ANA, token) == token
    assert other.device(ANA, token) != token


async def test_one_name_from_everywhere_and_every_name_from_one_address_are_slowed_down() -> None:
    door = Door()
    heard = [door.ask("ana", "wrong", f"192.0.2.{n}") for n in range(WIDE_FAILURES + 5)]
    assert heard.count("no") == WIDE_FAILURES
    spray = [door.ask(f"n{n}", "wrong", AWAY) for n in range(WIDE_FAILURES + 5)]
    assert spray.count("no") == WIDE_FAILURES


async def test_an_ipv6_client_is_its_network() -> None:
    door = Door()
    assert [door.ask("ana", "wrong", f"2001:db8::{n:x}") for n in range(12)].count("no") == PAIR_FAILURES
    assert door.ask("ana", "key-of-ana", "2001:db8:0:1::1") == "yes"
    assert [door.ask("bia", "wrong", f"::ffff:192.0.2.{n}") for n in range(1, 13)] == ["no"] * 12


async def test_a_right_key_wipes_the_slate() -> None:
    door = Door()
    for _ in range(5):
        assert [door.ask("ana", "wrong") for _ in range(9)] == ["no"] * 9
        assert door.ask("ana", "key-of-ana") == "yes"


async def test_wrong_api_keys_are_slowed_down_and_the_right_one_always_opens() -> None:
    door = Door()
    assert [door.api(f"wrong-{n}") for n in range(WIDE_FAILURES + 3)] == ["no"] * WIDE_FAILURES + ["wait"] * 3
    assert door.api(API_KEY) == "yes"
    assert door.ask("ana", None, bearer=API_KEY) == "yes"  # so an operator who must wait can be given a ticket
    assert (door.counted("api", "wrong"), door.counted("api", "too_many")) == (WIDE_FAILURES, 3)


async def test_no_key_at_all_is_no_attempt() -> None:
    door = Door()
    assert [door.ask("ana", None) for _ in range(WIDE_FAILURES + 3)] == ["no"] * (WIDE_FAILURES + 3)
    assert door.counted("api", "wrong") == 0


@pytest.mark.parametrize("name", ["ana", "nobody"])
async def test_an_answer_does_not_tell_whether_a_name_exists(name: str) -> None:
    async with a_world() as world, doors(world) as opened:
        answers = []
        for _ in range(12):
            wanted = {"operator": name, "key": "wrong"}
            async with opened.client.post("/v1/tickets", json=wanted) as response:
                answers.append((response.status, await response.text(), response.headers.get("Retry-After")))
        assert [status for status, _, _ in answers] == [401] * 10 + [429] * 2
        (said,) = {text for _, text, _ in answers[:10]}  # the same for either name
        assert "The operator name and the access key do not match." in said
        assert name not in said
        assert [after for _, _, after in answers[10:]] == ["6", "6"]


async def test_every_rest_route_slows_a_guesser_down_but_not_who_has_the_key() -> None:
    async with a_world() as world, doors(world) as opened:
        statuses = []
        for n in range(2 * WIDE_FAILURES):  # while we guess, a try is given back now and then
            wrong = {"Authorization": f"Bearer guess-{n}"}
            async with opened.client.get("/v1/numbers", headers=wrong) as response:
                statuses.append(response.status)
            if response.status == 429:
                break
        assert len(statuses) > WIDE_FAILURES
        assert statuses == [401] * (len(statuses) - 1) + [429]
        async with opened.client.get("/v1/numbers", headers=KEYED) as response:
            assert response.status == 200


async def test_a_login_gives_a_device_that_is_good_for_the_next() -> None:
    async with a_world() as world, doors(world) as opened:
        wanted = {"operator": "ana", "key": "key-of-ana"}
        async with opened.client.post("/v1/tickets", json=wanted) as response:
            device = (await response.json())["device"]
        assert re.fullmatch(r"[\w-]{16}\.[0-9a-f]{64}", device)
        for _ in range(11):
            async with opened.client.post("/v1/tickets", json={"operator": "ana", "key": "x"}) as response:
                await response.read()
        async with opened.client.post("/v1/tickets", json=wanted | {"device": device}) as response:
            assert (response.status, (await response.json())["device"]) == (201, device)
        async with opened.client.post("/v1/tickets", json={"operator": "ana"}, headers=KEYED) as response:
            assert (await response.json())["device"] is None  # a machine made it, not the operator's device


async def test_the_log_says_who_was_tried_from_where_and_never_the_key() -> None:
    door = Door()
    with capture_logs() as logged:
        door.ask("ana", "wrong-key-1", AWAY)
        door.ask("key-in-the-wrong-field", "wrong-key-2", AWAY)
        door.api("wrong-key-3", AWAY)
    assert [(line["kind"], line["operator"], line["address"]) for line in logged] == [
        ("operator", "ana", AWAY),
        ("operator", "(unknown)", AWAY),
        ("api", None, AWAY),
    ]
    assert "wrong" not in re.sub(r"'result': 'wrong'", "", str(logged))


async def test_hundreds_of_wrong_keys_at_once_are_looked_at_ten_times() -> None:
    async with a_world() as world, doors(world) as opened:

        async def one() -> int:
            async with opened.client.post("/v1/tickets", json={"operator": "ana", "key": "wrong"}) as response:
                return response.status

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(one()) for _ in range(300)]
        statuses = [task.result() for task in asked]
        assert (statuses.count(401), statuses.count(429)) == (10, 290)
