"""A WhatsApp user and an operator hear each other: the whole program, without a browser."""

import asyncio

import pytest

from gateway.records import CallRecord
from loadtest.sim_state import Call
from loadtest.softphone_bot import RequestFailed, SoftphoneBot
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(60)


async def heard(run: Running, call: Call, bot: SoftphoneBot) -> None:
    """Wait until each side hears the other's tone."""
    peer = bot.peers[0]
    async with asyncio.timeout(10):
        while not (call.media.ear.hears_tone(bot.tone_hz) and peer.ear.hears_tone(run.ana.spec.tone_hz)):
            await asyncio.sleep(0.05)


async def record_of(run: Running, bot: SoftphoneBot) -> dict[str, object]:
    """The newest call as the operator's list shows it, once Meta's terminate is in it."""
    async with asyncio.timeout(10):
        while True:
            (newest, *_) = await bot.request("recent")
            if newest["state"] == "ended":
                return dict(newest)
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
        async with asyncio.timeout(5):
            while not bot.peers[0].ear.hears_tone(425):  # the ringback
                await asyncio.sleep(0.05)
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
