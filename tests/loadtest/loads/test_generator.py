"""The generator keeps to its schedule, counts from the instant a request was due, and signs as Meta does."""

import asyncio
import json
from itertools import pairwise

import pytest

from loadtest.common.guard import NotLoopback
from loadtest.loads.generator import NO_ANSWER, Shot, SignedWebhooks, arrivals, open_loop, percentile
from loadtest.measure.stack import free_port
from loadtest.simulator.config import NumberSpec, UserSpec, crowd
from loadtest.simulator.payloads import Direction, signature
from tests.loadtest.helpers import ANA, SECRET, callback

USER = UserSpec(wa_id=ANA, name="Ana")


def test_the_same_seed_makes_the_same_arrivals() -> None:
    assert arrivals(rate_per_s=50, count=20, seed=1) == arrivals(rate_per_s=50, count=20, seed=1)
    assert arrivals(rate_per_s=50, count=20, seed=1) != arrivals(rate_per_s=50, count=20, seed=2)


def test_arrivals_come_at_the_rate_and_by_chance() -> None:
    due = arrivals(rate_per_s=200, count=20_000, seed=7)
    assert due == sorted(due)
    assert due[-1] == pytest.approx(100, rel=0.05)
    gaps = [later - earlier for earlier, later in pairwise(due)]
    assert sum(gap > 1 / 200 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)  # 1/e of a Poisson process


@pytest.mark.parametrize(("rate", "count"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (float("inf"), 1), (1.0, -1)])
def test_a_schedule_that_cannot_be_is_refused(rate: float, count: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        arrivals(rate_per_s=rate, count=count, seed=1)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0, 0.2, 0.21, 0.5, 0.99, 1)] == [1.0, 1.0, 2.0, 3.0, 5.0, 5.0]
    for values, share in (([], 0.5), ([1.0], 1.1), ([1.0], -0.1)):
        with pytest.raises(ValueError, match="percentile"):
            percentile(values, share)


async def test_every_request_is_sent_once_and_reported_in_order() -> None:
    sent: list[int] = []

    async def send(index: int) -> int:
        sent.append(index)
        await asyncio.sleep(0.01 if index % 2 else 0)
        return 200 + index

    shots = await open_loop(send, rate_per_s=2_000, count=50, seed=1)
    assert sent == list(range(50))
    assert [(shot.index, shot.status) for shot in shots] == [(index, 200 + index) for index in range(50)]
    assert [shot.due_s for shot in shots] == arrivals(rate_per_s=2_000, count=50, seed=1)
    assert await open_loop(send, rate_per_s=1, count=0, seed=1) == []


async def test_a_stall_shows_in_every_request_that_fell_into_it() -> None:
    """What a generator that waits for its answers would not see."""
    stalled = asyncio.Event()

    async def send(index: int) -> int:
        if index == 0:
            asyncio.get_running_loop().call_later(0.3, stalled.set)
        await stalled.wait()
        return 200

    shots = await open_loop(send, rate_per_s=1_000, count=100, seed=1)
    # All of them were due within the first 0.2 s, and none was answered before the stall's end.
    assert percentile([shot.took_s for shot in shots], 0.01) > 0.1
    assert min(shots, key=lambda shot: shot.took_s).index > 50


async def test_what_waits_for_a_place_is_late_and_counts_from_when_it_was_due() -> None:
    at_once, most = 0, 0

    async def send(index: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1
        return 200

    shots = await open_loop(send, rate_per_s=10_000, count=12, seed=1, most=3)
    assert most == 3
    assert shots[-1].late_s > 0.04
    assert shots[-1].took_s > shots[-1].late_s
    with pytest.raises(ValueError, match="most"):
        await open_loop(send, rate_per_s=1, count=1, seed=1, most=0)


@pytest.mark.parametrize("error", [OSError(), TimeoutError(), ConnectionResetError()])
async def test_a_request_that_gets_no_answer_is_a_shot_too(error: Exception) -> None:
    async def send(index: int) -> int:
        raise error

    (shot,) = await open_loop(send, rate_per_s=1_000, count=1, seed=1)
    assert shot.status == NO_ANSWER


async def test_a_bug_in_what_is_sent_ends_the_run() -> None:
    async def send(index: int) -> int:
        raise KeyError(index)

    with pytest.raises(ExceptionGroup):
        await open_loop(send, rate_per_s=1_000, count=3, seed=1)


# Webhooks


async def test_webhooks_are_signed_and_read_as_metas() -> None:
    async with (
        callback() as server,
        SignedWebhooks(server.url, app_secret=SECRET, number=NumberSpec()) as webhooks,
    ):
        call = webhooks.facts(USER)
        changes = [
            webhooks.message(USER, "olá"),
            webhooks.permission(USER),
            webhooks.connect(call),
            webhooks.status(webhooks.facts(USER, direction=Direction.BUSINESS_INITIATED, opaque="x"), "RINGING"),
            webhooks.terminate(call, started_at=1.0, at=5.0),
        ]
        shots = await open_loop(lambda i: webhooks.post([changes[i]]), rate_per_s=500, count=5, seed=1)
        assert [shot.status for shot in shots] == [200] * 5
        assert sorted(server.events()) == ["RINGING", "connect", "terminate"]
        (ended,) = [value["calls"][0] for value in server.changes("calls") if value.get("calls", [{}])[0].get("status")]
        assert (ended["id"], ended["duration"]) == (call.id, 4)
        assert {len(server.changes("messages")), len(server.deliveries)} == {2, 5}
        assert b"ol\\u00e1" in server.bodies[0]


async def test_a_body_can_be_signed_wrongly_on_purpose() -> None:
    async with callback() as server, SignedWebhooks(server.url, app_secret=SECRET, number=NumberSpec()) as webhooks:
        body = webhooks.body([webhooks.message(USER)])
        assert await webhooks.post_raw(body, signed=signature(body, "another")) == 500  # an assertion of the callback
        assert await webhooks.post_raw(body) == 200


async def test_nobody_listening_is_no_answer() -> None:
    url = f"http://127.0.0.1:{free_port()}/hook"
    async with SignedWebhooks(url, app_secret=SECRET, number=NumberSpec()) as webhooks:
        assert await webhooks.post([webhooks.message(USER)]) == NO_ANSWER


def test_ids_are_never_used_twice_and_differ_between_runs() -> None:
    first, second = (SignedWebhooks("http://127.0.0.1/", app_secret="s", number=NumberSpec()) for _ in range(2))
    ids = [webhooks.new_id("wamid") for webhooks in (first, second) for _ in range(100)]
    assert len(set(ids)) == 200
    named = SignedWebhooks("http://127.0.0.1/", app_secret="s", number=NumberSpec(), run="r1")
    assert named.new_id("wacid") == "wacid.r100000001"


def test_it_sends_to_this_machine_only() -> None:
    with pytest.raises(NotLoopback):
        SignedWebhooks("http://192.0.2.1/hook", app_secret="s", number=NumberSpec())


def test_a_crowd_has_numbers_that_follow_each_other() -> None:
    users = crowd(3, after_s=0.0)
    assert [user.wa_id for user in users] == ["5511910000000", "5511910000001", "5511910000002"]
    assert {user.after_s for user in users} == {0.0}


def test_a_generator_that_waits_for_its_answers_would_be_seen() -> None:
    """Its figures, put side by side with an open loop's, hide a stall of one second at 100 requests a second."""
    closed = [Shot(index=i, due_s=i / 100, took_s=1.0 if i == 0 else 0.001, status=200) for i in range(200)]
    opened = [Shot(index=i, due_s=i / 100, took_s=max(0.001, 1.0 - i / 100), status=200) for i in range(200)]
    assert percentile([shot.took_s for shot in closed], 0.99) < 0.01
    assert percentile([shot.took_s for shot in opened], 0.99) > 0.9


def test_a_delivery_is_an_envelope_of_the_numbers_account() -> None:
    webhooks = SignedWebhooks("http://127.0.0.1/", app_secret="s", number=NumberSpec())
    body = json.loads(webhooks.body([webhooks.message(USER), webhooks.message(USER)]))
    (entry,) = body["entry"]
    assert (entry["id"], len(entry["changes"])) == (NumberSpec().waba_id, 2)
