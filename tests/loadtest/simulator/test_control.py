"""The control API and the page."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import loadtest
from loadtest.simulator.meta_sim import MetaSim
from loadtest.simulator.state import EndReason, Happening
from tests.loadtest.helpers import ANA, Graph, answer_sdp, graph, running

USER = f"/users/{ANA}"


@pytest.fixture
async def sim() -> AsyncIterator[MetaSim]:
    async with running() as sim:
        yield sim


@pytest.fixture
async def api(sim: MetaSim) -> AsyncIterator[Graph]:
    async with graph(sim) as api:
        yield api


async def test_a_call_through_the_control_api(sim: MetaSim, api: Graph) -> None:
    status, call = await api.sim("POST", f"{USER}/call", json={"cta_payload": "order-42"})
    assert (status, call["state"], call["direction"]) == (200, "ringing", "USER_INITIATED")
    assert sim.webhooks.sent[0].change["value"]["calls"][0]["cta_payload"] == "order-42"
    assert (await api.sim("POST", f"{USER}/call"))[0] == 409
    assert (await api.answer("accept", call["id"], answer_sdp()))[0] == 200
    assert (await api.sim("POST", f"{USER}/hangup"))[1]["end_reason"] == "user_hung_up"


@pytest.mark.parametrize(("action", "state"), [("accept", "active"), ("decline", "ended"), ("hangup", "ended")])
async def test_a_ringing_call_of_the_business(sim: MetaSim, api: Graph, action: str, state: str) -> None:
    await api.sim("POST", f"{USER}/grant")
    await api.connect()
    call = sim.user(ANA).current_call
    assert call is not None
    await sim.until(lambda: call.state == "ringing")
    status, body = await api.sim("POST", f"{USER}/{action}")
    assert (status, body["state"]) == (200, state)


@pytest.mark.parametrize("action", ["accept", "decline", "hangup", "dtmf", "permission"])
async def test_what_cannot_be_done_now_is_a_409(api: Graph, action: str) -> None:
    body = {"dtmf": {"digits": "1"}, "permission": {"response": "accept"}}.get(action, {})
    status, answer = await api.sim("POST", f"{USER}/{action}", json=body)
    assert (status, bool(answer["error"]["message"])) == (409, True)


@pytest.mark.parametrize("permanent", [False, True])
async def test_permission_is_answered_and_seen(sim: MetaSim, api: Graph, permanent: bool) -> None:
    await api.ask_by_template()
    _, state = await api.sim("GET", "/state")
    assert [one["state"] for one in state["users"][0]["numbers"][_number(sim)]["requests"]] == ["waiting"]
    _, user = await api.sim("POST", f"{USER}/permission", json={"response": "accept", "permanent": permanent})
    assert user["numbers"][_number(sim)]["status"] == ("permanent" if permanent else "temporary")
    _, user = await api.sim("POST", f"{USER}/revoke")
    assert user["numbers"][_number(sim)]["status"] == "no_permission"


def _number(sim: MetaSim) -> str:
    return sim.number.spec.phone_number_id


async def test_users_are_made_and_changed(sim: MetaSim, api: Graph) -> None:
    body = {"wa_id": "5511900000009", "name": "Dora", "tone_hz": 700, "behaviour": "auto_accept"}
    assert (await api.sim("POST", "/users", json=body))[1]["user_id"] == "BR.00000005511900000009"
    _, changed = await api.sim("POST", "/users", json={"wa_id": "5511900000009", "behaviour": "offline"})
    assert (changed["name"], changed["behaviour"]) == ("Dora", "offline")
    _, users = await api.sim("GET", "/users")
    assert [user["name"] for user in users["users"]] == ["Ana", "Dora"]


async def test_timers_can_be_changed(sim: MetaSim, api: Graph) -> None:
    await api.sim("POST", "/timers", json={"user_initiated_ring_s": 0.02, "webhook_retry_s": [0.1]})
    call = sim.user(ANA).call()
    await sim.until(lambda: not call.live)
    assert call.end_reason == "no_answer"
    assert sim.webhooks.timers.webhook_retry_s == (0.1,)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/users", {}),
        ("/users", {"wa_id": "1"}),
        ("/users", {"wa_id": 5511, "name": "x"}),
        ("/users", {"wa_id": "5511900000009"}),
        ("/users", {"wa_id": ANA, "tone_hz": 5}),
        ("/users", {"wa_id": ANA, "tone_hz": True}),
        ("/users", {"wa_id": ANA, "behaviour": "dance"}),
        ("/users", {"wa_id": ANA, "colour": "red"}),
        ("/users", {"wa_id": ANA, "after_s": -1}),
        (f"{USER}/call", {"cta_payload": 7}),
        (f"{USER}/call", {"deeplink_payload": "x" * 600}),
        (f"{USER}/permission", {}),
        (f"{USER}/permission", {"response": "maybe"}),
        (f"{USER}/permission", {"response": "accept", "permanent": "yes"}),
        (f"{USER}/message", {}),
        (f"{USER}/message", {"text": ""}),
        (f"{USER}/dtmf", {"digits": "12x"}),
        (f"{USER}/dtmf", {"digits": 12}),
        (f"{USER}/dtmf", {}),
        ("/faults", {"graph": {}}),
        ("/faults", {"graph": [7]}),
        ("/faults", {"graph": [{"fault": "explode"}]}),
        ("/faults", {"webhooks": []}),
        ("/faults", {"graph_shares": []}),
        ("/faults", {"graph_shares": {"fail": 7}}),
        ("/faults", {"nonsense": 1}),
        ("/timers", {"nonsense": 1}),
        ("/timers", {"speak_after_s": "soon"}),
        ("/timers", {"speak_after_s": -1}),
        ("/timers", {"webhook_retry_s": 1}),
        ("/restriction", {"seconds": "x"}),
    ],
)
async def test_a_bad_body_is_a_400_that_says_why(api: Graph, path: str, body: Any) -> None:
    status, answer = await api.sim("POST", path, json=body)
    assert (status, bool(answer["error"]["message"])) == (400, True)


@pytest.mark.parametrize("data", [b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
async def test_rubbish_is_a_400(api: Graph, data: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert (await api.sim("POST", "/faults", data=data, headers=headers))[0] == 400
    assert (await api.sim("POST", f"{USER}/call", data=data, headers=headers))[0] == 400


async def test_strangers_are_404(api: Graph) -> None:
    assert (await api.sim("POST", "/users/999999/call"))[0] == 404
    assert (await api.sim("POST", f"{USER}/call", json={"phone_number_id": "1"}))[0] == 404
    assert (await api.sim("POST", f"{USER}/call", json={"phone_number_id": []}))[0] == 404
    assert (await api.sim("GET", "/nonsense"))[0] == 404
    assert (await api.sim("GET", "/state?limit=x"))[0] == 400
    assert (await api.sim("GET", "/state?limit=²"))[0] == 400


async def test_another_sites_page_is_refused(sim: MetaSim, api: Graph) -> None:
    headers = {"Origin": "https://evil.example"}
    assert (await api.sim("POST", f"{USER}/call", json={}, headers=headers))[0] == 403
    assert (await api.sim("POST", f"{USER}/call", data=b"{}", headers={"Content-Type": "text/plain"}))[0] == 400
    assert (await api.sim("POST", f"{USER}/call", json={}, headers={"Origin": sim.url}))[0] == 200


async def test_faults_can_be_cleared(api: Graph) -> None:
    order = {"graph": [{"fault": "fail", "times": 9}], "webhooks": {"lost": 1.0, "seed": 5}}
    _, body = await api.sim("POST", "/faults", json=order)
    assert (len(body["graph"]), body["webhooks"]["lost"]) == (1, 1.0)
    _, body = await api.sim("DELETE", "/faults")
    assert (body["graph"], body["webhooks"]["lost"]) == ([], 0.0)


async def test_the_page_is_served_with_a_strict_policy(sim: MetaSim) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/static/page.js", "/static/texts.js", "/static/page.css"):
            async with session.get(sim.url + path) as response:
                assert response.status == 200
                assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        for path in ("/static/nothing", "/static/..%2fmeta_sim.py"):
            async with session.get(sim.url + path) as response:
                assert response.status == 404


STATIC = Path(loadtest.__file__).parent / "simulator" / "page"


def _texts() -> list[dict[str, str]]:
    """Return the texts of every language."""
    halves = (STATIC / "texts.js").read_text(encoding="utf-8").split('"pt-BR": {')
    return [dict(re.findall(r'(\w+): "((?:[^"\\]|\\.)*)"', half)) for half in halves]


def test_both_languages_have_the_same_texts() -> None:
    english, portuguese = _texts()
    assert english.keys() == portuguese.keys()
    placeholders = [{key: re.findall(r"\{\w+\}", text) for key, text in one.items()} for one in _texts()]
    assert placeholders[0] == placeholders[1]


def test_everything_that_is_shown_has_a_text() -> None:
    known = set(_texts()[0])
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-text="(\w+)"', page)) <= known
    assert {f"did_{what}" for what in Happening} <= known
    assert {f"end_{reason}" for reason in EndReason} <= known


def test_the_script_finds_every_element() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    script = (STATIC / "page.js").read_text(encoding="utf-8")
    assert set(re.findall(r'\$\("(\w+)"\)', script)) <= set(re.findall(r'id="(\w+)"', page))
