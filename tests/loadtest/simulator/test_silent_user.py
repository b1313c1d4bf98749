"""Users without media: the same calls and webhooks, and nothing behind them."""

import asyncio

from loadtest.simulator.config import Behaviour, UserSpec, crowd
from loadtest.simulator.payloads import Direction
from loadtest.simulator.sdp import Setup, read_business_sdp
from loadtest.simulator.silent_user import SilentMedia
from loadtest.simulator.state import CallState, EndReason
from tests.loadtest.helpers import ANA, answer_sdp, graph, names_of, offer_sdp, running

READY = (UserSpec(wa_id=ANA, name="Ana", behaviour=Behaviour.AUTO_ACCEPT, after_s=0.0, talk_s=0.05),)


async def test_a_users_call_goes_its_way_without_media() -> None:
    async with running(silent=True) as sim, graph(sim) as api:
        call = sim.user(ANA).call()
        assert isinstance(call.media, SilentMedia)
        for action in ("pre_accept", "accept"):
            status, _ = await api.answer(action, call.id, answer_sdp())
            assert status == 200
        assert call.state is CallState.ACTIVE
        assert call.media.connected.is_set()
        assert not call.timers - {call.ring_timer}
        assert call.described()["media"]["connected"]
        assert not call.media.press("1")
        sim.user(ANA).hang_up()
        assert names_of(sim, call.id) == ["connect", "terminate"]


async def test_a_call_of_the_business_goes_its_way_without_media() -> None:
    async with running(silent=True, users=READY) as sim, graph(sim) as api:
        sim.user(ANA).grant()
        status, body = await api.connect()
        assert status == 200
        call = sim.world.calls[body["calls"][0]["id"]]
        await sim.until(lambda: call.state is CallState.ENDED)
        assert call.end_reason is EndReason.USER_HUNG_UP
        assert names_of(sim, call.id) == ["connect", "RINGING", "ACCEPTED", "terminate"]


async def test_its_sdp_has_the_shape_of_metas() -> None:
    """An offer differs from an audible user's in ids and keys only."""
    offers = []
    for silent in (True, False):
        async with running(silent=silent) as sim:
            offers.append(sim.user(ANA).call().media.offer().split("\r\n"))
    kinds = [[line.partition(":")[0].partition(" ")[0] for line in offer] for offer in offers]
    assert kinds[0] == kinds[1]
    two = [SilentMedia("127.0.0.1", clock=lambda: 1.0).offer() for _ in range(2)]
    assert two[0] != two[1]
    offer = read_business_sdp(offer_sdp(), is_offer=True)
    assert "a=setup:passive" in SilentMedia("127.0.0.1", clock=lambda: 1.0).answer(offer, Setup.PASSIVE)


async def test_an_end_that_comes_early_leaves_nothing() -> None:
    async with running(silent=True) as sim:
        before = len(asyncio.all_tasks())
        call = sim.user(ANA).call()
        sim.user(ANA).hang_up()
        assert call.state is CallState.ENDED
        assert not call.timers
        assert len(asyncio.all_tasks()) == before


async def test_a_thousand_users_are_found_and_counted_at_once() -> None:
    users = crowd(1_000)
    async with running(silent=True, users=users) as sim:
        world, number = sim.world, sim.number
        calls = [sim.user(user.wa_id).call() for user in users]
        assert world.count_live(number, Direction.USER_INITIATED) == len(world.live_calls()) == 1_000
        assert world.live_calls(user=users[7].wa_id) == [calls[7]]
        assert world.find_user(to=None, recipient=users[7].user_id) is users[7]
        assert world.find_user(to=None, recipient="BR.00000000000000000009") is None
        for user in users[:999]:
            sim.user(user.wa_id).hang_up()
        assert world.count_live(number, Direction.USER_INITIATED) == 1
        assert world.count_live(number, Direction.BUSINESS_INITIATED) == 0
        assert world.live_calls() == [calls[999]]
        assert world.live_calls(user=users[7].wa_id) == []


async def test_a_number_with_leading_zeros_is_found_by_its_user_id() -> None:
    user = UserSpec(wa_id="0049301234567", name="Zero")
    async with running(users=(user,)) as sim:
        assert sim.world.find_user(to=None, recipient=user.user_id) is user
