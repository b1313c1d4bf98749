"""Who is logged in, who rings, and how long a phone is kept for an operator who is lost."""

import asyncio

import pytest

from gateway.callflow.call import CallInput, InputKind
from gateway.callflow.effects import StopReason
from gateway.callflow.outcome import EndReason
from gateway.calls.driver import CallDriver
from gateway.common.ids import CallId, OperatorId
from gateway.operators.hub import LEAVING_S, RESUME_S
from gateway.operators.phone import Phone
from gateway.wire import messages as msg
from media.engine import LegId, WorkerId
from media.errors import SdpRefused
from tests.support.harness.world import FakeLine, World, a_world

ANA = OperatorId("ana")


async def talking(world: World, phone: Phone) -> CallDriver:
    driver = await world.ringing()
    assert driver.claim(phone.operator)
    world.hub.take(phone, driver.call.call_id)
    await world.until(lambda: driver.call.state.value == "active")
    return driver


def rung(line: FakeLine) -> list[str]:
    return [push.call.call_id for push in line.of_type(msg.Incoming)]


def gone(line: FakeLine) -> list[str]:
    return [push.reason for push in line.of_type(msg.Gone)]


# --- grace -------------------------------------------------------------------------------------------


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_lost_operators_call_ends_after_15_seconds_and_no_sooner() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await talking(world, phone)
        world.hub.line_lost(phone, line)
        await asyncio.sleep(RESUME_S - 0.1)
        assert driver.call.state.value == "active"
        await asyncio.sleep(0.2)
        assert world.hub.phone(ANA) is None
        await world.meta_terminates(talked_s=20)
        assert (await world.ended(driver)).reason is EndReason.OPERATOR_GONE
        assert world.media.legs == set()


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_who_is_back_in_time_keeps_the_call_for_good() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await talking(world, phone)
        world.hub.line_lost(phone, line)
        await asyncio.sleep(RESUME_S - 0.1)
        assert world.hub.resume(phone.resume, FakeLine()) is phone
        await asyncio.sleep(60)
        assert driver.call.state.value == "active"


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_closed_pages_call_ends_after_5_seconds_and_no_sooner() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await talking(world, phone)
        world.hub.page_left(phone)
        world.hub.line_lost(phone, line)  # its socket closes a moment later: that is no second, longer grace
        await asyncio.sleep(LEAVING_S - 0.1)
        assert driver.call.state.value == "active"
        await asyncio.sleep(0.2)
        assert world.hub.phone(ANA) is None
        await world.meta_terminates(talked_s=20)
        assert (await world.ended(driver)).reason is EndReason.OPERATOR_GONE


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_page_that_was_loaded_again_keeps_the_call_for_good() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        driver = await talking(world, phone)
        world.hub.page_left(phone)
        await asyncio.sleep(LEAVING_S - 0.1)
        assert world.hub.resume(phone.resume, FakeLine()) is phone
        world.hub.page_left(phone)  # and again
        assert world.hub.resume(phone.resume, FakeLine()) is phone
        await asyncio.sleep(60)
        assert driver.call.state.value == "active"


async def test_a_page_that_left_is_not_rung() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        world.hub.page_left(phone)
        world.hub.page_left(phone)
        await world.ringing()
        assert rung(line) == []


async def test_a_token_resumes_its_own_phone_only() -> None:
    async with a_world() as world:
        phone, _ = await world.login("ana")
        other, _ = await world.login("bia")
        for token in ("", "x", "é", phone.resume[:-1]):
            assert world.hub.resume(token, FakeLine()) is None
        assert world.hub.resume(other.resume, FakeLine()) is other


async def test_a_line_that_was_replaced_does_not_take_the_phone_with_it() -> None:
    async with a_world() as world:
        phone, old = await world.login()
        new = FakeLine()
        world.hub.resume(phone.resume, new)
        assert old.closed_with == msg.CLOSE_REPLACED
        world.hub.line_lost(phone, old)
        assert phone.line is new
        assert world.hub.is_current(phone, new)
        assert not world.hub.is_current(phone, old)


async def test_a_second_login_puts_the_first_away() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        again, _ = await world.login()
        assert line.closed_with == msg.CLOSE_REPLACED
        assert world.hub.phone(ANA) is again
        assert world.hub.resume(phone.resume, FakeLine()) is None
        world.hub.logout(phone)  # once more, late
        assert world.hub.phone(ANA) is again


async def test_a_login_after_a_loss_puts_the_lost_phone_away() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        world.hub.line_lost(phone, line)
        await world.login()
        assert line.closed_with is None
        assert phone.lost is not None
        assert phone.lost.cancelled()


async def test_the_connected_are_counted() -> None:
    async with a_world() as world:
        phone, line = await world.login("ana")
        await world.login("bia")
        value = world.metrics.registry.get_sample_value
        assert (world.hub.connected, value("wacg_softphones_connected")) == (2, 2)
        world.hub.line_lost(phone, line)
        assert (world.hub.connected, value("wacg_softphones_connected")) == (1, 1)
        world.hub.close()
        assert (list(world.hub), value("wacg_softphones_connected")) == ([], 0)


# --- ringing -----------------------------------------------------------------------------------------


async def test_who_is_lost_is_not_rung_and_who_comes_back_is() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await world.ringing()
        world.hub.line_lost(phone, line)
        assert world.hub.ringing_views(phone) == []
        back = FakeLine()
        world.hub.resume(phone.resume, back)
        assert rung(back) == [driver.call.call_id]
        assert [view.call_id for view in world.hub.ringing_views(phone)] == [driver.call.call_id]


async def test_a_call_rings_once_at_each_phone() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        await world.ringing()
        world.hub.set_available(phone, False)
        world.hub.set_available(phone, True)
        assert len(rung(line)) == 1


async def test_who_declined_is_not_rung_again() -> None:
    async with a_world() as world:
        (phone, line), _ = await world.login("ana"), await world.login("bia")
        driver = await world.ringing()
        assert world.hub.decline(phone, driver.call.call_id)
        assert not world.hub.decline(phone, driver.call.call_id)
        world.hub.set_available(phone, True)
        assert (len(rung(line)), gone(line)) == (1, ["declined"])


async def test_a_call_that_everybody_declined_ends() -> None:
    async with a_world() as world:
        (ana, _), (bia, _) = await world.login("ana"), await world.login("bia")
        driver = await world.ringing()
        for phone in (ana, bia):
            assert driver.call.state.value == "ringing"
            assert world.hub.decline(phone, driver.call.call_id)
        await world.graph.arrival("terminate")
        await world.meta_terminates()
        assert (await world.ended(driver)).reason is EndReason.DECLINED


async def test_who_has_the_call_cannot_decline_it_any_more() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await world.ringing()
        assert driver.claim(ANA)
        world.hub.take(phone, driver.call.call_id)
        assert not world.hub.decline(phone, driver.call.call_id)
        assert gone(line) == []


async def test_a_call_that_is_gone_stops_ringing_everywhere_but_at_who_has_it() -> None:
    async with a_world() as world:
        (_, first), (_, second) = await world.login("ana"), await world.login("bia")
        driver = await world.ringing()
        world.hub.stop_ringing(driver.call.call_id, StopReason.FAILED, but=ANA)
        world.hub.stop_ringing(driver.call.call_id, StopReason.FAILED, but=None)
        assert (gone(first), gone(second)) == ([], ["failed"])


async def test_a_phone_that_logged_out_while_it_rang_is_not_told_that_it_stopped() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await world.ringing()
        world.hub.logout(phone)
        world.hub.stop_ringing(driver.call.call_id, StopReason.FAILED, but=None)
        assert gone(line) == []


async def test_other_calls_stop_ringing_at_who_took_one_and_ring_on_after_it() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await world.ringing()
        other = await world.user_calls("wacid.TEST2", from_user_id="BR.2")
        assert other is not None
        await world.until(lambda: len(rung(line)) == 2)
        assert driver.claim(ANA)
        world.hub.take(phone, driver.call.call_id)
        assert gone(line) == ["answered_elsewhere"]
        driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=ANA))
        await world.graph.arrival("terminate")
        await world.meta_terminates()
        await world.ended(driver)
        assert rung(line)[2:] == [other.call.call_id]


async def test_a_call_of_nobody_here_is_released_without_effect() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        phone.call = CallId("1")
        world.hub.release(ANA, CallId("2"))
        world.hub.release(OperatorId("nobody"), CallId("1"))
        assert phone.call == "1"


# --- legs --------------------------------------------------------------------------------------------


async def test_a_leg_counts_once_it_is_connected() -> None:
    async with a_world() as world:
        phone, _ = await world.login(leg=False)
        await world.hub.make_leg(phone, WorkerId(0), "offer")
        assert world.hub.leg_of(ANA, WorkerId(0)) is None
        world.media.connect(phone.legs[WorkerId(0)])
        assert world.hub.leg_of(ANA, WorkerId(0)) == phone.legs[WorkerId(0)]
        assert world.hub.leg_of(ANA, WorkerId(1)) is None
        assert world.hub.leg_of(OperatorId("nobody"), WorkerId(0)) is None


async def test_a_new_leg_takes_the_place_of_the_old_one() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        old = phone.legs[WorkerId(0)]
        await world.hub.make_leg(phone, WorkerId(0), "offer")
        await world.until(lambda: world.media.legs == {phone.legs[WorkerId(0)]})
        world.media.connect(old)  # too late
        assert world.hub.leg_of(ANA, WorkerId(0)) is None


async def test_a_leg_that_cannot_be_made_leaves_nothing() -> None:
    async with a_world() as world:
        phone, _ = await world.login(leg=False)
        world.media.fail("answer_browser", SdpRefused("no"))
        with pytest.raises(SdpRefused):
            await world.hub.make_leg(phone, WorkerId(0), "offer")
        assert phone.legs == {}


async def test_an_old_leg_that_fails_late_does_not_take_the_new_one_with_it() -> None:
    async with a_world() as world:
        phone, _ = await world.login(leg=False)
        turn = asyncio.Event()

        async def slowly_refused(leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
            await turn.wait()
            raise SdpRefused("no")

        answer, world.media.answer_browser = world.media.answer_browser, slowly_refused  # type: ignore[method-assign]
        old = world.tasks.create_task(_ignored(world, phone))
        await asyncio.sleep(0)
        world.media.answer_browser = answer  # type: ignore[method-assign]
        await world.hub.make_leg(phone, WorkerId(0), "offer")
        new = phone.legs[WorkerId(0)]
        turn.set()
        await old
        assert phone.legs == {WorkerId(0): new}
        assert new in world.media.legs


async def _ignored(world: World, phone: Phone) -> None:
    with pytest.raises(SdpRefused):
        await world.hub.make_leg(phone, WorkerId(0), "offer")


async def test_a_dead_leg_is_asked_for_anew_and_the_new_one_gets_the_call() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await talking(world, phone)
        old = phone.legs[WorkerId(0)]
        world.media.lose(old)
        world.media.lose(old)  # nobody's any more
        assert [(push.worker, push.reason) for push in line.of_type(msg.LegLost)] == [(0, "media_timeout")]
        await world.hub.make_leg(phone, WorkerId(0), "offer")
        world.media.connect(phone.legs[WorkerId(0)])
        joined = frozenset((driver.meta_leg, phone.legs[WorkerId(0)]))
        await world.until(lambda: joined in world.media.joined)


# --- telling -----------------------------------------------------------------------------------------


async def test_news_reach_everybody() -> None:
    async with a_world() as world:
        (_, ana), (_, bia) = await world.login("ana"), await world.login("bia")
        world.hub.tell_all(msg.Notice(level="info", code="all"))
        world.hub.workers_changed()
        assert [push.code for push in ana.of_type(msg.Notice)] == ["all"]
        assert [push.code for push in bia.of_type(msg.Notice)] == ["all"]
        assert [push.workers for push in bia.of_type(msg.WorkersChanged)] == [[0]]


async def test_a_digit_is_shown_to_who_has_the_call() -> None:
    async with a_world() as world:
        (phone, ana), (_, bia) = await world.login("ana"), await world.login("bia")
        driver = await talking(world, phone)
        world.hub.digit(driver.call.call_id, "5")
        assert ([push.digit for push in ana.of_type(msg.Digit)], bia.of_type(msg.Digit)) == (["5"], [])


async def test_nothing_is_shown_to_an_operator_who_is_away() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        driver = await talking(world, phone)
        world.hub.line_lost(phone, line)
        before = len(line.pushes)
        world.hub.show(ANA, driver.view())
        world.hub.show(OperatorId("nobody"), driver.view())
        assert len(line.pushes) == before
