"""Every Graph endpoint: what it answers, what it refuses with which code, and that rubbish is never a 500."""

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from loadtest.simulator.config import Limits, NumberSpec, Profile, UserSpec
from loadtest.simulator.meta_sim import MetaSim
from tests.loadtest.helpers import (
    ANA,
    NUMBER,
    FakeWallClock,
    Graph,
    answer_sdp,
    graph,
    names_of,
    offer_sdp,
    running,
)
from tests.support.harness.waiting import LOOP_GRAIN_S

BRUNO = "5511900000002"
PEOPLE = (UserSpec(wa_id=ANA, name="Ana"), UserSpec(wa_id=BRUNO, name="Bruno", hides_number=True))


@pytest.fixture
async def sim() -> AsyncIterator[MetaSim]:
    async with running(users=PEOPLE, clock=FakeWallClock()) as sim:
        yield sim


@pytest.fixture
async def api(sim: MetaSim) -> AsyncIterator[Graph]:
    async with graph(sim) as api:
        yield api


def code(answer: tuple[int, Any]) -> tuple[int, int]:
    """Return (HTTP status, Graph code) of a refusal in Graph's shape."""
    status, body = answer
    error = body["error"]
    assert set(error) >= {"message", "type", "code", "error_data", "fbtrace_id"}
    return status, error["code"]


async def test_a_wrong_token_is_190(api: Graph) -> None:
    for token in ("wrong", "", "é"):
        assert code(await api.request("GET", f"/v23.0/{NUMBER}", token=token)) == (401, 190)


async def test_an_unknown_number_does_not_exist(api: Graph) -> None:
    status, body = await api.request("GET", "/v23.0/999999")
    assert (status, body["error"]["code"], body["error"]["error_subcode"]) == (400, 100, 33)


@pytest.mark.parametrize("version", ["v17.0", "v23.0", "v26.0"])
async def test_the_number_can_be_asked_in_any_version(api: Graph, version: str) -> None:
    status, body = await api.request("GET", f"/{version}/{NUMBER}")
    assert (status, body["display_phone_number"], body["id"]) == (200, "+551155550100", NUMBER)
    fields = "whatsapp_business_manager_messaging_limit,is_on_biz_app"
    _, body = await api.request("GET", f"/{version}/{NUMBER}?fields={fields}")
    assert body == {
        "whatsapp_business_manager_messaging_limit": "TIER_10K",
        "is_on_biz_app": False,
        "id": NUMBER,
    }
    assert code(await api.request("GET", f"/{version}/{NUMBER}?fields=nonsense")) == (400, 100)


async def test_connect_places_a_call_and_keeps_the_trace(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    status, body = await api.connect(to="+" + ANA, biz_opaque_callback_data="trace-1")
    assert (status, set(body)) == (200, {"messaging_product", "calls"})
    call_id = body["calls"][0]["id"]
    assert call_id.startswith("wacid.")
    await sim.until(lambda: names_of(sim, call_id) == ["connect", "RINGING"])


async def test_a_user_can_be_named_by_user_id(sim: MetaSim, api: Graph) -> None:
    sim.user(BRUNO).grant()
    session = {"sdp_type": "offer", "sdp": offer_sdp()}
    status, _ = await api.calls("connect", recipient=PEOPLE[1].user_id, session=session)
    assert status == 200


async def test_no_permission_is_138006(api: Graph) -> None:
    assert code(await api.connect()) == (401, 138006)


async def test_a_stranger_is_138001(api: Graph) -> None:
    assert code(await api.connect(to="5511999999999")) == (400, 138001)


async def test_a_second_call_to_the_same_user_is_138003(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    await api.connect()
    assert code(await api.connect()) == (400, 138003)


async def test_dialling_a_user_who_is_calling_is_138003(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    sim.user(ANA).call()
    assert code(await api.connect()) == (400, 138003)


async def test_the_same_trace_twice_is_a_violation(sim: MetaSim, api: Graph) -> None:
    for wa_id in (ANA, BRUNO):
        sim.user(wa_id).grant()
        await api.connect(to=wa_id, biz_opaque_callback_data="same")
    assert [one.kind for one in sim.world.violations] == ["rung_twice"]


@pytest.mark.parametrize(
    ("number", "status_code"),
    [
        (NumberSpec(country="US"), (400, 138013)),
        (NumberSpec(calling_enabled=False), (401, 138000)),
        (NumberSpec(payment_method=False), (400, 131044)),
    ],
)
async def test_a_number_that_may_not_call(number: NumberSpec, status_code: tuple[int, int]) -> None:
    async with running(numbers=(number,)) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        assert code(await api.connect()) == status_code


async def test_concurrency_is_138002_and_ends_with_a_call() -> None:
    limits = Limits(concurrent_out=1)
    async with running(users=PEOPLE, limits=limits) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        sim.user(BRUNO).grant()
        _, body = await api.connect()
        assert code(await api.connect(to=BRUNO)) == (429, 138002)
        sim.user(ANA)
        await api.calls("terminate", call_id=body["calls"][0]["id"])
        assert (await api.connect(to=BRUNO))[0] == 200


async def test_the_rate_of_new_calls_is_138005() -> None:
    async with running(users=PEOPLE, limits=Limits(new_calls_per_24h=1)) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        sim.user(BRUNO).grant()
        await api.connect()
        assert code(await api.connect(to=BRUNO)) == (429, 138005)


async def test_a_restricted_number_is_138014(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    await api.sim("POST", "/restriction", json={"seconds": 60})
    assert code(await api.connect()) == (400, 138014)
    assert code(await api.ask_by_template()) == (400, 138014)
    _, body = await api.request("GET", f"/v23.0/{NUMBER}/settings")
    assert body["calling"]["restrictions"]["restrictions_list"][0]["type"].startswith("RESTRICTED_BUSINESS")


async def test_a_sandbox_calls_only_its_allow_list() -> None:
    stranger = replace(PEOPLE[0], allow_listed=False)
    async with running(users=(stranger,), profile=Profile.SANDBOX) as sim, graph(sim) as api:
        assert code(await api.connect()) == (400, 131030)
        assert code(await api.ask_by_template()) == (400, 131030)


async def test_sip_mode_is_131055(sim: MetaSim, api: Graph) -> None:
    settings = {"calling": {"sip": {"status": "ENABLED"}}}
    assert (await api.request("POST", f"/v23.0/{NUMBER}/settings", json=settings))[0] == 200
    assert code(await api.connect()) == (400, 131055)


# User-initiated


async def test_pre_accept_and_accept_with_one_sdp(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    assert await api.answer("pre_accept", call.id, answer_sdp()) == (
        200,
        {"messaging_product": "whatsapp", "success": True},
    )
    assert (await api.answer("accept", call.id, answer_sdp(), biz_opaque_callback_data="t"))[0] == 200
    assert call.answered_at is not None


async def test_accept_must_repeat_the_sdp(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    await api.answer("pre_accept", call.id, answer_sdp())
    other = answer_sdp().replace("bizU", "bizV")
    assert code(await api.answer("accept", call.id, other)) == (400, 138008)
    assert call.answered_at is None


async def test_an_answer_is_not_called_an_offer(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    for action in ("pre_accept", "accept"):
        session = {"sdp_type": "offer", "sdp": answer_sdp()}
        assert code(await api.calls(action, call_id=call.id, session=session)) == (400, 100)


async def test_several_fingerprints_are_138008(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    doubled = answer_sdp().replace("a=setup", "a=fingerprint:sha-384 00:11\r\na=setup")
    assert code(await api.answer("accept", call.id, doubled)) == (400, 138008)


async def test_each_step_only_once_and_only_while_unanswered(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    await api.answer("pre_accept", call.id, answer_sdp())
    assert code(await api.answer("pre_accept", call.id, answer_sdp())) == (400, 100)
    await api.answer("accept", call.id, answer_sdp())
    assert code(await api.answer("accept", call.id, answer_sdp())) == (400, 100)
    assert code(await api.calls("reject", call_id=call.id)) == (400, 100)
    sim.user(ANA).hang_up()
    for action in ("terminate", "reject"):
        assert code(await api.calls(action, call_id=call.id)) == (400, 100)


async def test_reject_ends_the_call_with_one_terminate(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    assert (await api.calls("reject", call_id=call.id))[0] == 200
    assert names_of(sim, call.id) == ["connect", "terminate"]


async def test_a_call_of_the_business_is_not_accepted_by_it(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    _, body = await api.connect()
    call_id = body["calls"][0]["id"]
    assert code(await api.answer("accept", call_id, answer_sdp())) == (400, 100)
    assert code(await api.calls("reject", call_id=call_id)) == (400, 100)


async def test_another_numbers_call_is_unknown() -> None:
    numbers = (
        NumberSpec(),
        NumberSpec(phone_number_id="200000000000003", display_phone_number="551155550101"),
    )
    async with running(numbers=numbers) as sim, graph(sim) as api:
        call = sim.user(ANA).call(number=sim.world.numbers["200000000000003"])
        assert code(await api.calls("terminate", call_id=call.id)) == (400, 100)


# Permissions


async def test_a_request_follows_window_limit_and_answer(sim: MetaSim, api: Graph) -> None:
    assert code(await api.ask()) == (400, 131047)
    sim.user(ANA).message("hello")
    status, body = await api.ask()
    assert (status, body["contacts"][0]["wa_id"]) == (200, ANA)
    assert body["messages"][0]["id"].startswith("wamid.")
    assert code(await api.ask()) == (400, 138009)
    sim.user(ANA).answer_permission(accept=True)
    reply = sim.webhooks.sent[-1].change["value"]["messages"][0]
    assert reply["context"]["id"] == body["messages"][0]["id"]
    assert (await api.connect())[0] == 200


async def test_a_template_needs_no_window_but_must_exist(api: Graph) -> None:
    assert (await api.ask_by_template())[0] == 200
    assert code(await api.ask_by_template("other")) == (404, 132001)
    assert code(await api.ask_by_template(code="fr")) == (404, 132001)


async def test_a_permanent_permission_refuses_requests(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    assert code(await api.ask_by_template()) == (400, 138017)


async def test_call_permissions(sim: MetaSim, api: Graph) -> None:
    path = f"/v23.0/{NUMBER}/call_permissions"
    _, body = await api.request("GET", f"{path}?user_wa_id={ANA}")
    assert body["permission"] == {"status": "no_permission"}
    sim.user(ANA).grant()
    _, body = await api.request("GET", f"{path}?recipient={PEOPLE[0].user_id}")
    assert body["permission"] == {"status": "permanent"}
    _, body = await api.request("GET", f"{path}?user_wa_id=5511999999999")
    assert body["permission"] == {"status": "no_permission"}
    assert code(await api.request("GET", path)) == (400, 131008)


async def test_call_permissions_are_rate_limited() -> None:
    async with running(limits=Limits(permission_reads_per_s=3)) as sim, graph(sim) as api:
        path = f"/v23.0/{NUMBER}/call_permissions?user_wa_id={ANA}"
        answers = [await api.request("GET", path) for _ in range(4)]
        assert code(answers[3]) == (429, 613)


# Settings


async def test_settings_are_kept_and_announced(sim: MetaSim, api: Graph) -> None:
    path = f"/v23.0/{NUMBER}/settings"
    hours = {
        "status": "ENABLED",
        "timezone_id": "America/Sao_Paulo",
        "weekly_operating_hours": [{"day_of_week": "MONDAY", "open_time": "0900", "close_time": "1800"}],
    }
    calling = {"callback_permission_status": "ENABLED", "call_hours": hours}
    assert await api.request("POST", path, json={"calling": calling}) == (200, {"success": True})
    _, body = await api.request("GET", path)
    assert body["calling"]["call_hours"] == hours
    assert sim.webhooks.sent[-1].change["field"] == "account_settings_update"


@pytest.mark.parametrize(
    "calling",
    [
        None,
        {},
        [],
        {"status": "ON"},
        {"nonsense": 1},
        {"sip": "ENABLED"},
        {"call_hours": {"status": "ENABLED", "weekly_operating_hours": []}},
        {"call_hours": {"weekly_operating_hours": [{"day_of_week": "FUNDAY"}]}},
        {
            "call_hours": {
                "weekly_operating_hours": [{"day_of_week": "MONDAY", "open_time": "1800", "close_time": "0900"}]
            }
        },
        {"call_hours": {"holiday_schedule": 7}},
    ],
)
async def test_bad_settings_are_refused_and_change_nothing(sim: MetaSim, api: Graph, calling: Any) -> None:
    before = dict(sim.number.calling)
    path = f"/v23.0/{NUMBER}/settings"
    assert code(await api.request("POST", path, json={"calling": calling})) == (400, 100)
    assert sim.number.calling == before


async def test_enabling_needs_the_messaging_limit() -> None:
    number = NumberSpec(messaging_limit=250, calling_enabled=False)
    async with running(numbers=(number,)) as sim, graph(sim) as api:
        body = {"calling": {"status": "ENABLED"}}
        assert code(await api.request("POST", f"/v23.0/{NUMBER}/settings", json=body)) == (400, 138015)


# Rubbish


@pytest.mark.parametrize("path", ["calls", "messages", "settings"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"[" * 100_000, b"{}"])
async def test_rubbish_is_a_400_in_graphs_shape(api: Graph, path: str, data: bytes) -> None:
    assert code(await api.request("POST", f"/v23.0/{NUMBER}/{path}", data=data)) == (400, 100)


@pytest.mark.parametrize(
    "change",
    [
        {"messaging_product": "sms"},
        {"action": None},
        {"action": "hold"},
        {"action": 7},
        {"action": ["connect"]},
        {"to": None},
        {"to": 5511},
        {"to": "abc"},
        {"to": "²"},
        {"to": ""},
        {"session": None},
        {"session": "v=0"},
        {"session": {"sdp_type": "offer"}},
        {"session": {"sdp_type": "offer", "sdp": 7}},
        {"session": {"sdp_type": "offer", "sdp": "x" * 70_000}},
        {"session": {"sdp_type": "answer", "sdp": "v=0"}},
        {"biz_opaque_callback_data": "x" * 513},
        {"recording": {"status": "ENABLED"}},
        {"recording": "yes"},
    ],
)
async def test_a_bad_connect_is_a_400(sim: MetaSim, api: Graph, change: dict[str, Any]) -> None:
    sim.user(ANA).grant()
    status, number = code(await api.connect(**change))
    assert (status, number in (100, 131008)) == (400, True)
    assert not sim.world.live_calls()


@pytest.mark.parametrize("call_id", [None, "", 7, "wacid.unknown", "x" * 2000])
@pytest.mark.parametrize("action", ["pre_accept", "accept", "reject", "terminate"])
async def test_a_bad_call_id_is_a_400(api: Graph, action: str, call_id: Any) -> None:
    session = {"sdp_type": "answer", "sdp": answer_sdp()}
    status, _ = code(await api.calls(action, call_id=call_id, session=session))
    assert status == 400


@pytest.mark.parametrize(
    "change",
    [
        {"type": "text"},
        {"interactive": None},
        {"interactive": {"type": "button"}},
        {"interactive": {"type": "call_permission_request", "action": {}}},
        {"type": "template", "template": {"name": 7}},
        {"to": None},
    ],
)
async def test_a_bad_message_is_a_400(api: Graph, change: dict[str, Any]) -> None:
    assert code(await api.ask(**change))[0] == 400


async def test_an_unknown_path_and_a_too_large_body_are_json_too(api: Graph) -> None:
    assert code(await api.request("GET", "/v23.0/nonsense")) == (404, 2500)
    assert code(await api.request("GET", f"/v23.0/{NUMBER}/calls")) == (405, 2500)
    big = io.BytesIO(b" " * (2 << 20))
    assert code(await api.request("POST", f"/v23.0/{NUMBER}/calls", data=big))[0] == 413


# Faults


async def test_an_ordered_failure_is_given_and_used_up(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    order = {"graph": [{"fault": "fail", "action": "accept", "times": 2, "code": 131016, "status": 503}]}
    assert (await api.sim("POST", "/faults", json=order))[0] == 200
    for _ in range(2):
        assert code(await api.answer("accept", call.id, answer_sdp())) == (503, 131016)
    assert (await api.answer("accept", call.id, answer_sdp()))[0] == 200


@pytest.mark.parametrize(("fault", "done"), [("cut_before", False), ("cut_after", True)])
async def test_a_cut_connection_hides_whether_it_was_done(sim: MetaSim, api: Graph, fault: str, done: bool) -> None:
    sim.user(ANA).grant()
    await api.sim("POST", "/faults", json={"graph": [{"fault": fault, "action": "connect"}]})
    with pytest.raises(aiohttp.ClientError):
        await api.connect()
    assert bool(sim.world.live_calls()) is done
    assert sim.world.requests[-1].fault == fault


async def test_an_answer_can_be_late(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    await api.sim("POST", "/faults", json={"graph": [{"fault": "delay", "seconds": 0.1}]})
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert (await api.connect())[0] == 200
    assert loop.time() - started >= 0.1 - LOOP_GRAIN_S


async def test_a_request_can_be_left_lying(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    await api.sim("POST", "/faults", json={"graph": [{"fault": "stall", "seconds": 0.05}]})
    with pytest.raises(aiohttp.ClientError):
        await api.connect()
    assert not sim.world.live_calls()


async def test_shares_of_faults_can_be_ordered(sim: MetaSim, api: Graph) -> None:
    sim.user(ANA).grant()
    assert (await api.sim("POST", "/faults", json={"graph_shares": {"fail": 1.0, "code": 131016}}))[0] == 200
    assert code(await api.connect()) == (500, 131016)
    await api.sim("DELETE", "/faults")
    assert (await api.connect())[0] == 200


async def test_answers_carry_the_simulated_worlds_date() -> None:
    clock = FakeWallClock()
    async with running(clock=clock) as sim, aiohttp.ClientSession() as http, http.get(f"{sim.url}/v23.0/1") as answer:
        assert parsedate_to_datetime(answer.headers["Date"]).timestamp() == int(clock())


async def test_requests_are_listed_without_secrets(sim: MetaSim, api: Graph) -> None:
    call = sim.user(ANA).call()
    await api.answer("accept", call.id, answer_sdp())
    entry = sim.state()["requests"][-1]
    assert (entry["action"], entry["status"], entry["call_id"]) == ("accept", 200, call.id)
    text = str(sim.state())
    for secret in ("simulated-access-token", "ExamplePwdBusiness", "test_app_secret", "simulated-verify"):
        assert secret not in text


async def test_whoever_measures_hears_of_each_request_about_a_call(sim: MetaSim, api: Graph) -> None:
    heard: list[tuple[str, str]] = []
    sim.world.heard = lambda action, call_id: heard.append((action, call_id))
    call = sim.user(ANA).call()
    await api.answer("pre_accept", call.id, answer_sdp())
    await api.answer("accept", call.id, answer_sdp())
    assert code(await api.calls("reject", call_id=call.id)) == (400, 100)
    await api.calls("terminate", call_id=call.id)
    assert heard == [(action, call.id) for action in ("pre_accept", "accept", "reject", "terminate")]
    sim.user(ANA).grant()
    _, placed = await api.connect()
    assert heard[-1] == ("connect", placed["calls"][0]["id"])
    assert sim.world.refused == {100: 1}
