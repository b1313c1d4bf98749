"""A WhatsApp user and an operator hear each other: the whole program, without a browser."""

import asyncio
import hmac
import os
import signal

import aiohttp
import orjson
import pytest

from loadtest.operators.softphone_bot import RequestFailed, SoftphoneBot
from loadtest.simulator.faults import read_graph_fault
from loadtest.simulator.state import Call
from media.engine import WorkerPool
from tests.support.harness.running import Running, running
from tests.support.harness.waiting import until

pytestmark = pytest.mark.timeout(60)


def break_graph(run: Running, fault: dict[str, object]) -> None:
    """Let the simulated Graph fail its next request of one action."""
    run.sim.faults.order([read_graph_fault(fault)], None)


async def heard(run: Running, call: Call, bot: SoftphoneBot) -> None:
    """Wait until each side hears the other's tone."""
    await until(lambda: call.media.ear.hears_tone(bot.tone_hz))
    await until(lambda: bot.peers[0].ear.hears_tone(run.ana.spec.tone_hz))


async def record_of(run: Running, bot: SoftphoneBot) -> dict[str, object]:
    """The newest call as the operator's list shows it, once Meta's terminate is in it."""
    async with asyncio.timeout(10):
        while True:
            calls = await bot.request("recent")
            if calls and calls[0]["state"] == "ended":
                return dict(calls[0])
            await asyncio.sleep(0.05)


async def test_a_users_call_is_answered_and_both_hear_each_other(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call = run.ana.call()
        incoming = (await bot.wait_push("incoming"))["call"]
        assert incoming["user"] == {"number": "+5511900000001", "user_id": run.ana.spec.user_id, "name": "Ana"}
        await asyncio.sleep(0.5)  # long enough for audio to have come through if it could
        assert call.media.measured()["packets"] == 0
        assert bot.peers[0].measured()["packets"] == 0
        await bot.request("accept", call_id=incoming["call_id"])
        await bot.wait_call(incoming["call_id"], "active")
        await heard(run, call, bot)
        assert run.slots == (1, 0)
        run.ana.hang_up()
        ended = await bot.wait_call(incoming["call_id"], "ended")
        assert ended["outcome"] == {"result": "completed", "reason": "hung_up_by_user", "detail": None}
        assert ended["duration_s"] is not None
        assert run.slots == (0, 0)
        assert run.sim.state()["violations"] == []


async def test_an_operators_call_reaches_whatsapp_and_both_hear_each_other(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        run.ana.grant()
        await bot.wait_push("contact")
        view = await bot.request("dial", number_id=run.number_id, to="+55 11 90000-0001")
        await bot.wait_call(view["call_id"], "ringing")
        call = run.ana.current_call
        assert call is not None
        await until(lambda: bot.peers[0].ear.hears_tone(425))  # the ringback
        assert call.media.measured()["packets"] == 0
        run.ana.accept()
        await bot.wait_call(view["call_id"], "active")
        await heard(run, call, bot)
        assert run.slots == (0, 1)
        await bot.request("hangup", call_id=view["call_id"])
        ended = await bot.wait_call(view["call_id"], "ended")
        assert ended["outcome"]["reason"] == "hung_up_by_operator"
        assert ended["duration_s"] is not None
        assert run.sim.state()["violations"] == []


# --- the other ends of a user's call -----------------------------------------------------------------


async def incoming_call_id(bot: SoftphoneBot) -> str:
    return str((await bot.wait_push("incoming"))["call"]["call_id"])


async def test_a_user_who_hangs_up_while_it_rings(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        run.ana.call()
        call_id = await incoming_call_id(bot)
        run.ana.hang_up()
        gone = await bot.wait_push("gone")
        assert (gone["call_id"], gone["reason"]) == (call_id, "hung_up_by_user")
        newest = await record_of(run, bot)
        assert newest["outcome"] == {"result": "user", "reason": "cancelled", "detail": None}
        assert run.slots == (0, 0)


async def test_an_operator_who_declines(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call = run.ana.call()
        await bot.request("reject", call_id=await incoming_call_id(bot))
        await run.sim.until(lambda: not call.live)
        newest = await record_of(run, bot)
        assert newest["outcome"] == {"result": "operator", "reason": "declined", "detail": None}


async def test_nobody_answers_and_our_deadline_ends_it(database: str) -> None:
    async with running(database, ring_timeout_s="2") as run, run.operator() as bot:
        call = run.ana.call()
        await incoming_call_id(bot)
        await run.sim.until(lambda: not call.live, timeout_s=10)
        newest = await record_of(run, bot)
        assert newest["outcome"] == {"result": "operator", "reason": "not_answered", "detail": None}


async def test_of_two_operators_the_first_has_the_call(database: str) -> None:
    async with running(database) as run, run.operator("ana") as ana, run.operator("bia") as bia:
        run.ana.call()
        call_id = await incoming_call_id(ana)
        await incoming_call_id(bia)
        await bia.request("accept", call_id=call_id)
        assert (await ana.wait_push("gone"))["reason"] == "answered_elsewhere"
        with pytest.raises(RequestFailed, match="already_taken"):
            await ana.request("accept", call_id=call_id)
        await bia.wait_call(call_id, "active")


async def test_an_operator_who_leaves_ends_the_call(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call = run.ana.call()
        call_id = await incoming_call_id(bot)
        await bot.request("accept", call_id=call_id)
        await bot.wait_call(call_id, "active")
        await bot.request("bye")
        await run.sim.until(lambda: not call.live)


async def test_audio_goes_on_while_the_websocket_is_lost_and_the_phone_resumes(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call = run.ana.call()
        call_id = await incoming_call_id(bot)
        await bot.request("accept", call_id=call_id)
        await bot.wait_call(call_id, "active")
        await heard(run, call, bot)
        await bot.drop()
        before = call.media.measured()["packets"]
        await asyncio.sleep(0.5)
        assert call.media.measured()["packets"] > before + 10
        await bot.connect(resume=bot.welcome["resume"])
        assert bot.welcome["resumed"]
        assert [view["call_id"] for view in bot.welcome["calls"]] == [call_id]
        await bot.request("hangup", call_id=call_id)
        await run.sim.until(lambda: not call.live)


async def test_hold_lets_the_user_hear_something_else_and_the_operator_nothing(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call = run.ana.call()
        call_id = await incoming_call_id(bot)
        await bot.request("accept", call_id=call_id)
        await heard(run, call, bot)
        await bot.request("hold", call_id=call_id, on=True)
        await bot.wait_call(call_id, "held")
        await until(lambda: not call.media.ear.hears_tone(bot.tone_hz))
        before = bot.peers[0].measured()["packets"]
        await asyncio.sleep(0.4)
        assert bot.peers[0].measured()["packets"] <= before + 2
        await bot.request("hold", call_id=call_id, on=False)
        bot.peers[0].speak()
        await heard(run, call, bot)


# --- the other ends of an operator's call ------------------------------------------------------------


async def dial(run: Running, bot: SoftphoneBot) -> str:
    run.ana.grant()
    await bot.wait_push("contact")
    view = await bot.request("dial", number_id=run.number_id, to="+5511900000001")
    await bot.wait_call(view["call_id"], "ringing")
    return str(view["call_id"])


async def test_a_user_who_declines(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call_id = await dial(run, bot)
        run.ana.decline()
        ended = await bot.wait_call(call_id, "ended")
        assert ended["outcome"] == {"result": "user", "reason": "declined", "detail": None}
        assert run.slots == (0, 0)


async def test_an_operator_who_cancels(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call_id = await dial(run, bot)
        await bot.request("hangup", call_id=call_id)
        ended = await bot.wait_call(call_id, "ended")
        assert ended["outcome"]["reason"] == "cancelled"
        assert run.ana.current_call is None


async def test_a_user_who_does_not_answer(database: str) -> None:
    async with running(database, outgoing_ring_timeout_s="2") as run, run.operator() as bot:
        call_id = await dial(run, bot)
        ended = await bot.wait_call(call_id, "ended")
        assert ended["outcome"] == {"result": "user", "reason": "not_answered", "detail": None}


async def test_a_dial_that_meta_refuses_says_what_meta_said(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        run.ana.grant()
        await bot.wait_push("contact")
        break_graph(run, {"fault": "fail", "action": "connect", "code": 138001, "status": 400})
        view = await bot.request("dial", number_id=run.number_id, to="+5511900000001")
        ended = await bot.wait_call(view["call_id"], "ended")
        assert ended["outcome"]["result"] == "meta"
        assert "138001" in ended["outcome"]["detail"]
        assert run.slots == (0, 0)


async def test_a_dial_whose_answer_was_cut_off_is_settled_by_metas_webhooks(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        run.ana.grant()
        await bot.wait_push("contact")
        break_graph(run, {"fault": "cut_after", "action": "connect"})
        view = await bot.request("dial", number_id=run.number_id, to="+5511900000001")
        await bot.wait_call(view["call_id"], "ringing")
        run.ana.accept()
        await bot.wait_call(view["call_id"], "active")
        assert run.sim.state()["violations"] == []


async def test_permission_is_asked_and_the_reply_opens_the_way(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        before = await bot.request("check", number_id=run.number_id, to="+5511900000001")
        assert (before["allowed"], before["refusal"]["reason"]) == (False, "no_permission")
        assert before["ask_form"] == "template"
        run.ana.message("hello")
        async with asyncio.timeout(5):
            while before["ask_form"] != "free_form":
                before = await bot.request("check", number_id=run.number_id, to="+5511900000001")
        assert await bot.request("ask_permission", number_id=run.number_id, to="+5511900000001") == {
            "form": "free_form"
        }
        with pytest.raises(RequestFailed) as caught:
            await bot.request("ask_permission", number_id=run.number_id, to="+5511900000001")
        assert caught.value.answer["refusal"]["rule"].startswith("request/")
        run.ana.answer_permission(accept=True)
        push = await bot.wait_push("contact")
        assert push["decision"]["allowed"]


# --- what breaks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["pre_accept", "accept"])
async def test_a_call_that_meta_refuses_to_continue_is_compensated(database: str, action: str) -> None:
    async with running(database) as run, run.operator() as bot:
        fault = {"fault": "fail", "action": action, "code": 138008, "status": 400, "times": 1}
        break_graph(run, fault)
        call = run.ana.call()
        if action == "accept":
            call_id = await incoming_call_id(bot)
            await bot.request("accept", call_id=call_id)
            ended = await bot.wait_call(call_id, "ended")
            assert "138008" in ended["outcome"]["detail"]
        await run.sim.until(lambda: not call.live)
        newest = await record_of(run, bot)
        assert (newest["outcome"] or {})["reason"] == "graph_error"  # type: ignore[index]
        assert run.slots == (0, 0)


async def test_a_media_worker_that_dies_ends_its_calls_and_is_started_again(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        call = run.ana.call()
        call_id = await incoming_call_id(bot)
        await bot.request("accept", call_id=call_id)
        await heard(run, call, bot)
        assert isinstance(run.gateway.media, WorkerPool)
        (pid,) = run.gateway.media.pids().values()
        os.kill(pid, signal.SIGKILL)
        ended = await bot.wait_call(call_id, "ended")
        assert ended["outcome"]["reason"] == "worker_died"
        assert (await bot.wait_push("notice"))["code"] == "media_worker_restarted"
        await bot.wait_push("workers", lambda push: push["workers"] == [0])
        await bot.make_leg(0)
        again = run.ana.call()
        incoming = await bot.wait_push("incoming", lambda push: push["call"]["call_id"] != call_id)
        await bot.request("accept", call_id=incoming["call"]["call_id"])
        await heard(run, again, bot)


def signed_offer(run: Running, sdp: str) -> tuple[bytes, dict[str, str]]:
    """A delivery with an offer that Meta would not send, signed as Meta signs."""
    call = {
        "id": "wacid.HOSTILE",
        "from": "5511900000009",
        "event": "connect",
        "timestamp": str(int(run.gateway.clock.now().timestamp())),
        "session": {"sdp_type": "offer", "sdp": sdp},
    }
    value = {"metadata": {"phone_number_id": run.number_id}, "calls": [call]}
    body = orjson.dumps({"entry": [{"id": "1", "changes": [{"field": "calls", "value": value}]}]})
    signature = hmac.digest(run.sim.config.app_secret.encode(), body, "sha256").hex()
    return body, {"X-Hub-Signature-256": f"sha256={signature}"}


async def test_an_offer_that_is_no_sdp_is_rejected(database: str) -> None:
    async with running(database) as run:
        body, headers = signed_offer(run, "v=0\r\nnonsense")
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{run.url}/webhooks/meta", data=body, headers=headers) as answer,
        ):
            assert answer.status == 200
        await run.sim.until(lambda: any(request.action == "reject" for request in run.sim.world.requests))


async def test_a_foreign_signature_changes_nothing(database: str) -> None:
    async with running(database) as run, aiohttp.ClientSession() as http:
        body, headers = signed_offer(run, "v=0\r\n")
        headers["X-Hub-Signature-256"] = "sha256=" + "0" * 64
        async with http.post(f"{run.url}/webhooks/meta", data=body, headers=headers) as answer:
            assert answer.status == 401
        assert len(run.gateway.parts.registry) == 0


async def talk(run: Running, bot: SoftphoneBot, wa_id: str) -> int:
    """Answer a user's call, hear it both ways, and return the media worker that carries it."""
    call = run.sim.user(wa_id).call()
    incoming = (await bot.wait_push("incoming", lambda push: wa_id in push["call"]["user"]["number"]))["call"]
    await bot.request("accept", call_id=incoming["call_id"])
    await until(lambda: call.media.ear.hears_tone(bot.tone_hz))
    return int(incoming["worker"])


async def test_two_calls_at_once_are_carried_by_two_media_workers(database: str) -> None:
    async with running(database, media_workers="2") as run, run.operator("ana") as ana, run.operator("bia") as bia:
        assert set(ana.peers) == set(bia.peers) == {0, 1}
        workers = {await talk(run, ana, "5511900000001"), await talk(run, bia, "5511900000002")}
        assert workers == {0, 1}


async def test_a_task_that_breaks_takes_no_call_with_it(database: str) -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    async with running(database) as run, run.operator() as bot:
        run.gateway.background.start(broken())
        await talk(run, bot, "5511900000001")
