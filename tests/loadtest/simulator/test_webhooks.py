"""Webhooks are signed, in order, tried again, and go wrong on demand."""

import asyncio
import json
from typing import Any

from loadtest.simulator.faults import WebhookFaults
from tests.loadtest.helpers import ANA, QUICK, callback, names_of, running, until


async def test_a_users_call_and_its_end_arrive_signed_and_in_order() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.user(ANA).call()
        sim.user(ANA).hang_up()
        await until(lambda: len(hook.deliveries) == 2)
        assert hook.events() == ["connect", "terminate"]
        assert hook.deliveries[0]["object"] == "whatsapp_business_account"
        assert hook.deliveries[0]["entry"][0]["id"] == "100000000000001"
        await sim.until(lambda: sim.webhooks.pending == 0)
        assert sim.webhooks.delivered == 2


async def test_non_ascii_is_escaped_on_the_wire() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.user(ANA).message("Olá")
        await until(lambda: bool(hook.bodies))
        assert b"Ol\\u00e1" in hook.bodies[0]
        assert hook.changes("messages")[0]["messages"][0]["text"]["body"] == "Olá"


async def test_the_callback_is_verified_at_start() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        await sim.until(lambda: sim.webhooks.verified is True)
        assert hook.challenges == 1


async def test_a_gateway_that_starts_late_is_verified_then() -> None:
    async with callback() as hook:
        url = hook.url
    async with running(callback_url=url) as sim:  # nobody listens there any more
        await asyncio.sleep(0.05)
        assert sim.state()["callback"] == {"url": url, "verified": None}
        async with callback(port=int(url.split(":")[2].split("/")[0])) as late:
            await sim.until(lambda: sim.webhooks.verified is True)
            assert late.challenges == 1


async def test_a_delivery_without_200_is_tried_again_before_the_next() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        hook.statuses = [500, 201]
        sim.user(ANA).call()
        sim.user(ANA).hang_up()
        await until(lambda: len(hook.deliveries) == 2)
        assert hook.events() == ["connect", "terminate"]
        assert sim.webhooks.attempts == 4


async def test_retries_are_bounded() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        hook.statuses = [503] * 10
        sim.user(ANA).message("hello")
        await sim.until(lambda: sim.webhooks.lost == 1)
        assert sim.webhooks.attempts == 1 + len(QUICK.webhook_retry_s)
        assert sim.webhooks.sent[0].given_up


async def _messages(count: int, faults: WebhookFaults) -> tuple[list[str], Any]:
    """Send some messages under faults; return the texts as they arrived, and the webhook counts."""
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.faults.order([], faults)
        for index in range(count):
            sim.user(ANA).message(str(index))
        await sim.until(lambda: sim.webhooks.pending == 0)
        expected = count * 2 if faults.twice else count - sim.webhooks.lost
        await until(lambda: len(hook.changes()) == expected)
        texts = [value["messages"][0]["text"]["body"] for value in hook.changes("messages")]
        return texts, (len(hook.deliveries), sim.webhooks.lost)


async def test_webhooks_can_come_twice() -> None:
    texts, _ = await _messages(3, WebhookFaults(twice=1, late_s=0.02))
    assert sorted(texts) == ["0", "0", "1", "1", "2", "2"]


async def test_webhooks_can_be_lost() -> None:
    texts, (_, lost) = await _messages(3, WebhookFaults(lost=1))
    assert (texts, lost) == ([], 3)


async def test_webhooks_can_come_in_one_delivery() -> None:
    texts, (deliveries, _) = await _messages(5, WebhookFaults(batch_s=0.02))
    assert (texts, deliveries) == (["0", "1", "2", "3", "4"], 1)


async def test_a_delivery_leaves_when_it_holds_as_many_as_were_drawn_or_when_the_time_is_over() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.faults.order([], WebhookFaults(batch_s=0.3, batch=4, seed=1))
        left = 10
        sizes = iter([3, 1, 4, 4, 1])
        sim.faults.batch = lambda: next(sizes)  # type: ignore[method-assign]
        for index in range(left):
            sim.user(ANA).message(str(index))
        await until(lambda: len(hook.deliveries) == 3)
        assert sim.webhooks.pending == 2  # two wait for two more
        await until(lambda: len(hook.deliveries) == 4)
        found = [len(one["entry"][0]["changes"]) for one in hook.deliveries]
        assert sorted(found) == [1, 2, 3, 4]
        texts = [value["messages"][0]["text"]["body"] for value in hook.changes("messages")]
        assert sorted(texts) == [str(index) for index in range(left)]
        left_at = [delivery.left_at for delivery in sim.webhooks.sent]
        assert None not in left_at
        assert len(set(left_at)) == 4
        sim.user(ANA).message("one more")  # the last one was not full, and has left
        await until(lambda: len(hook.deliveries) == 5)


async def test_a_batch_that_waits_when_the_world_ends_is_dropped() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.faults.order([], WebhookFaults(batch_s=60))
        sim.user(ANA).message("hello")
        await until(lambda: sim.webhooks.pending == 1)
    assert hook.deliveries == []


async def test_what_is_out_of_order_is_in_no_batch() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.faults.order([], WebhookFaults(batch_s=60, batch=2, reordered=1, late_s=0.01))
        sim.user(ANA).message("hello")
        await until(lambda: len(hook.deliveries) == 1)
        assert sim.webhooks.sent[0].left_at is None


async def test_late_webhooks_keep_the_order_of_their_call() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.faults.order([], WebhookFaults(late=1, late_s=0.2, seed=4))
        loop = asyncio.get_running_loop()
        started = loop.time()
        sim.user(ANA).call()
        sim.user(ANA).hang_up()
        waits = [delivery.fate.late_s for delivery in sim.webhooks.sent]
        await until(lambda: len(hook.deliveries) == 2)
        assert loop.time() - started >= sum(waits) - 0.02 > 0
        assert hook.events() == ["connect", "terminate"]


async def test_reordered_webhooks_overtake_each_other() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        sim.faults.order([], WebhookFaults(reordered=1, late_s=0.2, seed=2))
        call = sim.user(ANA).call()
        sim.user(ANA).hang_up()
        await until(lambda: len(hook.deliveries) == 2)
        assert hook.events() == ["terminate", "connect"]
        assert names_of(sim, call.id) == ["connect", "terminate"]


async def test_without_a_callback_webhooks_are_only_kept() -> None:
    async with running() as sim:
        sim.user(ANA).message("hello")
        assert json.loads(json.dumps(sim.webhooks.sent[0].change))["field"] == "messages"
        assert sim.webhooks.pending == 0


async def test_whoever_measures_is_told_how_long_each_answer_took() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        told: list[tuple[float, int]] = []
        sim.webhooks.on_answer = lambda took_s, status: told.append((took_s, status))
        hook.statuses = [500]
        sim.user(ANA).call()
        await sim.until(lambda: sim.webhooks.delivered == 1)
        assert [status for _, status in told] == [500, 200]
        assert all(0 < took_s < 5 for took_s, _ in told)


async def test_connections_that_were_let_go_are_made_anew() -> None:
    async with callback() as hook, running(callback_url=hook.url) as sim:
        for count in (1, 2):
            sim.user(ANA).message("hello")
            await sim.until(lambda count=count: sim.webhooks.delivered == count)  # type: ignore[misc]
            await sim.webhooks.let_go()
    async with running(callback_url=None) as sim:
        await sim.webhooks.let_go()  # nothing to let go of
