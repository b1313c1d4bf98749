"""One call from its first webhook to its record: order, compensation, and what it leaves."""

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway.callflow.call import CallInput, InputKind
from gateway.callflow.outcome import EndReason, Result
from gateway.calls.driver import CallDriver
from gateway.common.ids import OperatorId
from gateway.wire import messages as msg
from media.engine import Tone, WorkerId
from media.errors import NoWorker, SdpRefused, WorkerGone
from policy.decision import Refusal
from policy.facts import CallConnected
from policy.reasons import Reason
from tests.support.fakes.graph import refused, unreachable
from tests.support.harness.waiting import until
from tests.support.harness.world import ANA, NUMBER_ID, WACID, World, a_world

OPERATOR = OperatorId("ana")


async def talking(world: World) -> CallDriver:
    phone, _ = await world.login()
    driver = await world.ringing()
    assert driver.claim(phone.operator)
    world.hub.take(phone, driver.call.call_id)
    await world.until(lambda: driver.call.state.value == "active" and bool(world.media.joined))
    return driver


async def dialled(world: World) -> CallDriver:
    """A business-initiated call that Meta has taken."""
    await world.login()
    await world.allow_calls()
    driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
    assert isinstance(driver, CallDriver)
    await world.until(lambda: driver.call.state.value == "requested")
    return driver


def slots(world: World) -> tuple[int, int]:
    return world.number.incoming.in_use, world.number.outgoing.in_use


# --- user-initiated --------------------------------------------------------------------------------


async def test_a_users_call_is_answered_in_the_order_that_meta_wants() -> None:
    async with a_world() as world:
        driver = await talking(world)
        assert world.graph.ops() == ["pre_accept", "accept"]
        pre_accept, accept = world.graph.only("pre_accept"), world.graph.only("accept")
        assert pre_accept.args["answer_sdp"] == accept.args["answer_sdp"]
        assert slots(world) == (1, 0)
        await world.meta_terminates(talked_s=20)
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.COMPLETED, EndReason.HUNG_UP_BY_USER)
        assert (record.duration_s, record.operator, record.state) == (20, "ana", "ended")
        assert world.graph.ops() == ["pre_accept", "accept"]
        assert slots(world) == (0, 0)


async def test_at_info_five_lines_tell_a_call_from_the_gate_to_its_end() -> None:
    async with a_world() as world:
        with capture_logs() as logged:
            driver = await talking(world)
            await world.meta_terminates(talked_s=20)
            await world.ended(driver)
    told = [line for line in logged if line["log_level"] != "debug" and not line["event"].startswith("softphone_")]
    assert [(line["event"], line.get("state")) for line in told] == [
        ("gate_decision", None),
        ("phones_rung", None),
        ("call_state", "ringing"),
        ("call_state", "active"),
        ("call_finished", None),
    ]
    assert (told[1]["phones"], told[4]["operator"], told[4]["duration_s"]) == (1, "ana", 20)
    assert 0 <= told[4]["setup_s"] < 5
    debug = [line.get("operators") or line.get("state") for line in logged if line["log_level"] == "debug"]
    assert debug == ["pre_accepting", ["ana"], "accepting", "ended"]


async def test_no_audio_before_the_200_of_accept() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        accepted = world.graph.hold("accept")
        driver = await world.ringing()
        driver.claim(phone.operator)
        await world.graph.arrival("accept")
        assert not world.media.joined
        accepted.set()
        await world.until(lambda: bool(world.media.joined))
        assert world.media.joined == {frozenset((driver.meta_leg, phone.legs[WorkerId(0)]))}


async def test_operators_ring_while_pre_accept_is_still_on_its_way() -> None:
    async with a_world() as world:
        phone, line = await world.login()
        answered = world.graph.hold("pre_accept")
        driver = await world.user_calls()
        assert driver is not None
        await world.graph.arrival("pre_accept")
        await world.until(lambda: bool(line.of_type(msg.Incoming)))
        assert driver.claim(phone.operator)
        assert "accept" not in world.graph.ops()
        answered.set()
        await world.graph.arrival("accept")


async def test_the_first_of_two_operators_gets_the_call_and_the_other_stops_ringing() -> None:
    async with a_world() as world:
        (first, first_line), (second, second_line) = await world.login("ana"), await world.login("bia")
        driver = await world.ringing()
        assert driver.claim(second.operator)
        assert not driver.claim(first.operator)
        await world.until(lambda: bool(first_line.of_type(msg.Gone)))
        assert first_line.of_type(msg.Gone)[0].reason == "answered_elsewhere"
        assert not second_line.of_type(msg.Gone)


async def test_an_operator_who_logs_in_while_it_rings_rings_too() -> None:
    async with a_world() as world:
        await world.ringing()
        _, line = await world.login("late")
        assert [push.call.user.name for push in line.of_type(msg.Incoming)] == ["Ana"]


async def test_a_call_ends_when_everybody_declined() -> None:
    async with a_world() as world:
        (first, _), (second, _) = await world.login("ana"), await world.login("bia")
        driver = await world.ringing()
        assert world.hub.decline(first, driver.call.call_id)
        assert driver.call.state.value == "ringing"
        assert world.hub.decline(second, driver.call.call_id)
        await world.graph.arrival("terminate")
        await world.meta_terminates()
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.OPERATOR, EndReason.DECLINED)


async def test_a_user_who_gives_up_stops_the_ringing() -> None:
    async with a_world() as world:
        _, line = await world.login()
        driver = await world.ringing()
        await world.meta_terminates()
        record = await world.ended(driver)
        assert (record.result, record.reason, record.duration_s) == (Result.USER, EndReason.CANCELLED, None)
        assert [gone.reason for gone in line.of_type(msg.Gone)] == ["hung_up_by_user"]
        assert "terminate" not in world.graph.ops()


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_nobody_answers_and_our_deadline_ends_it_counted_from_metas_timestamp() -> None:
    async with a_world() as world:
        loop = asyncio.get_running_loop()
        began = loop.time()
        driver = await world.user_calls(age_s=12)
        assert driver is not None
        await world.graph.arrival("terminate", timeout_s=60)
        assert loop.time() - began == pytest.approx(18, abs=0.1)  # 30 s from Meta's instant, 12 of them gone
        await world.meta_terminates()
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.OPERATOR, EndReason.NOT_ANSWERED)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_call_whose_terminate_never_comes_ends_by_itself() -> None:
    async with a_world() as world:
        driver = await world.ringing()
        await world.graph.arrival("terminate", timeout_s=60)
        await until(lambda: world.registry.get(driver.call.call_id) is None, timeout_s=60, every_s=1)
        assert slots(world) == (0, 0)


async def test_an_operator_who_hangs_up_ends_the_call_at_meta() -> None:
    async with a_world() as world:
        driver = await talking(world)
        driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP))
        await world.graph.arrival("terminate")
        assert not world.media.joined
        await world.meta_terminates(talked_s=5)
        record = await world.ended(driver)
        assert (record.result, record.reason, record.duration_s) == (
            Result.COMPLETED,
            EndReason.HUNG_UP_BY_OPERATOR,
            5,
        )


async def test_a_closed_tab_ends_the_call() -> None:
    async with a_world() as world:
        driver = await talking(world)
        phone = world.hub.phone(OPERATOR)
        assert phone is not None
        world.hub.logout(phone)
        await world.graph.arrival("terminate")
        await world.meta_terminates(talked_s=5)
        assert (await world.ended(driver)).reason is EndReason.OPERATOR_GONE


@pytest.mark.parametrize("op", ["pre_accept", "accept"])
async def test_a_refusal_of_meta_is_compensated_and_shown(op: str) -> None:
    async with a_world() as world:
        phone, line = await world.login()
        world.graph.fail(op, refused(op, 138008, "SDP Validation error"))
        driver = await world.user_calls()
        assert driver is not None
        if op == "accept":
            await world.until(lambda: driver.claim(phone.operator))
        await world.graph.arrival("terminate")
        await world.meta_terminates()
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.META, EndReason.GRAPH_ERROR)
        assert record.detail is not None
        assert "138008" in record.detail
        assert slots(world) == (0, 0)
        assert not world.media.legs - set(phone.legs.values())
        told = line.of_type(msg.CallChanged)[-1].call.outcome if op == "accept" else line.of_type(msg.Gone)[-1]
        assert "138008" in told.detail


async def test_a_user_who_gave_up_before_our_pre_accept_has_cancelled_and_nothing_failed() -> None:
    async with a_world() as world:
        await world.login()
        world.graph.fail("pre_accept", refused("pre_accept", 100, "The call has already been terminated"))
        driver = await world.user_calls()
        assert driver is not None
        await world.graph.arrival("pre_accept")
        await world.meta_terminates()
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.USER, EndReason.CANCELLED)
        assert world.graph.ops() == ["pre_accept"]


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_terminate_that_does_not_get_through_is_repeated() -> None:
    async with a_world() as world:
        driver = await world.ringing()
        world.graph.fail("terminate", unreachable("terminate"))
        driver.feed(CallInput(kind=InputKind.ALL_DECLINED))
        await world.graph.arrival("terminate", count=2, timeout_s=60)
        await world.meta_terminates()
        await world.ended(driver)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SdpRefused("no fingerprint"), EndReason.SDP_REFUSED),
        (WorkerGone(), EndReason.WORKER_DIED),
        (NoWorker(), EndReason.MEDIA_FAILED),
    ],
)
async def test_an_offer_that_cannot_be_answered_is_rejected(error: Exception, reason: EndReason) -> None:
    async with a_world() as world:
        world.media.fail("answer_meta", error)  # type: ignore[arg-type]
        driver = await world.user_calls()
        assert driver is not None
        await world.graph.arrival("reject")
        await world.meta_terminates()
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.GATEWAY, reason)
        assert world.graph.ops() == ["reject"]
        assert slots(world) == (0, 0)


async def test_without_a_media_worker_a_caller_is_rejected() -> None:
    async with a_world() as world:
        world.media.alive = []
        assert await world.user_calls() is not None
        await world.graph.arrival("reject")


async def test_a_bug_in_one_call_ends_that_call_only() -> None:
    async with a_world() as world:
        healthy = await talking(world)
        world.media.fail("answer_meta", RuntimeError("a bug"))  # type: ignore[arg-type]
        broken = await world.user_calls("wacid.OTHER")
        assert broken is not None
        await world.graph.arrival("reject")
        await world.meta_terminates("wacid.OTHER")
        record = await world.ended(broken)
        assert (record.result, record.reason) == (Result.GATEWAY, EndReason.INTERNAL)
        assert healthy.call.state.value == "active"
        assert slots(world) == (1, 0)


async def test_hold_parts_the_legs_and_plays_to_the_user() -> None:
    async with a_world() as world:
        driver = await talking(world)
        driver.feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=True))
        await world.until(lambda: world.media.tones.get(driver.meta_leg) is Tone.HOLD)
        assert not world.media.joined
        assert driver.view().state == "held"
        driver.feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=False))
        await world.until(lambda: bool(world.media.joined))
        assert driver.meta_leg not in world.media.tones
        assert driver.view().state == "active"


async def test_a_phone_that_lost_its_leg_gets_the_call_back_with_a_new_one() -> None:
    async with a_world() as world:
        driver = await talking(world)
        phone = world.hub.phone(OPERATOR)
        assert phone is not None
        world.media.lose(phone.legs[WorkerId(0)])
        await world.hub.make_leg(phone, WorkerId(0), "offer")
        world.media.connect(phone.legs[WorkerId(0)])
        pair = frozenset((driver.meta_leg, phone.legs[WorkerId(0)]))
        await world.until(lambda: pair in world.media.joined)


# --- business-initiated ----------------------------------------------------------------------------


async def test_a_dial_begins_with_accepted_and_not_with_the_sdp_answer() -> None:
    async with a_world() as world:
        driver = await dialled(world)
        phone = world.hub.phone(OPERATOR)
        assert phone is not None
        leg, call_id = phone.legs[WorkerId(0)], driver.call.meta_call_id
        assert call_id is not None
        assert world.graph.only("connect").args["opaque"] == driver.call.call_id
        await world.meta_says("connect", call_id)
        await world.until(lambda: ("accept_meta_answer", driver.meta_leg) in world.media.asked)
        await world.meta_says("RINGING", call_id)
        await world.until(lambda: world.media.tones.get(leg) is Tone.RINGBACK)
        assert not world.media.joined
        await world.meta_says("ACCEPTED", call_id)
        await world.until(lambda: bool(world.media.joined))
        assert leg not in world.media.tones
        assert slots(world) == (0, 1)
        await world.meta_terminates(call_id, talked_s=9, direction="BUSINESS_INITIATED")
        record = await world.ended(driver)
        assert (record.result, record.duration_s) == (Result.COMPLETED, 9)
        assert slots(world) == (0, 0)
        assert phone.call is None


async def test_webhooks_that_overtake_the_response_of_connect_find_their_call() -> None:
    async with a_world() as world:
        answered = world.graph.hold("connect")
        await world.login()
        await world.allow_calls()
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert isinstance(driver, CallDriver)
        await world.graph.arrival("connect")
        await world.meta_says("RINGING", "wacid.FAKE0001", biz_opaque_callback_data=driver.call.call_id)
        await world.until(lambda: driver.call.state.value == "ringing")
        answered.set()
        await world.meta_says("ACCEPTED", "wacid.FAKE0001")
        await world.until(lambda: driver.call.state.value == "active")


async def test_webhooks_without_our_trace_wait_for_the_id() -> None:
    async with a_world() as world:
        answered = world.graph.hold("connect")
        await world.login()
        await world.allow_calls()
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert isinstance(driver, CallDriver)
        await world.graph.arrival("connect")
        await world.meta_says("ACCEPTED", "wacid.FAKE0001")
        assert driver.call.state.value == "requesting"
        answered.set()
        await world.until(lambda: driver.call.state.value == "active")


async def test_a_connect_without_an_answer_is_never_sent_again() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.graph.fail("connect", unreachable("connect"))
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert isinstance(driver, CallDriver)
        await world.until(lambda: driver.call.state.value == "unconfirmed")
        await world.meta_says("ACCEPTED", "wacid.LATE", biz_opaque_callback_data=driver.call.call_id)
        await world.until(lambda: driver.call.state.value == "active")
        assert world.graph.ops().count("connect") == 1


async def test_a_connect_that_never_left_fails_at_once() -> None:
    async with a_world() as world:
        await world.login()
        await world.allow_calls()
        world.graph.fail("connect", unreachable("connect", maybe_sent=False))
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OPERATOR)
        assert isinstance(driver, CallDriver)
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.META, EndReason.GRAPH_ERROR)
        assert slots(world) == (0, 0)


@pytest.mark.parametrize(
    ("said", "reason"),
    [(["REJECTED"], EndReason.DECLINED), ([], EndReason.NOT_ANSWERED)],
)
async def test_a_user_who_does_not_take_the_call(said: list[str], reason: EndReason) -> None:
    async with a_world() as world:
        driver = await dialled(world)
        call_id = driver.call.meta_call_id
        assert call_id is not None
        for status in ["RINGING", *said]:
            await world.meta_says(status, call_id)
        await world.meta_terminates(call_id, direction="BUSINESS_INITIATED")
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.USER, reason)
        assert "terminate" not in world.graph.ops()


async def test_a_failed_call_carries_metas_words() -> None:
    async with a_world() as world:
        driver = await dialled(world)
        call_id = driver.call.meta_call_id
        assert call_id is not None
        await world.meta_terminates(
            call_id,
            direction="BUSINESS_INITIATED",
            status="FAILED",
            errors=[{"code": 138020, "message": "could not reach the relay"}],
        )
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.META, EndReason.META_FAILED)
        assert record.detail == "(138020) could not reach the relay"


# --- what a call tells the gate --------------------------------------------------------------------


async def test_a_connected_call_counts_before_the_next_decision() -> None:
    async with a_world() as world:
        driver = await dialled(world)
        call_id = driver.call.meta_call_id
        assert call_id is not None
        await world.meta_says("ACCEPTED", call_id)
        await world.until(lambda: driver.was_accepted)
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        stored = [row for row in await world.store.facts(contact.contact_id) if row.key.startswith("connected/")]
        assert len(stored) == 1
        assert stored[0].fact["kind"] == CallConnected.__name__ or "kind" in stored[0].fact


async def test_a_contact_in_a_call_is_not_called_again() -> None:
    async with a_world() as world:
        driver = await dialled(world)
        await world.login("bia")
        again = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OperatorId("bia"))
        assert isinstance(again, Refusal)
        assert again.reason is Reason.USER_BUSY
        assert driver.call.state.value == "requested"


async def test_the_record_holds_no_sdp_and_the_statistics_of_the_leg() -> None:
    async with a_world() as world:
        driver = await talking(world)
        await world.meta_terminates(talked_s=1)
        await world.ended(driver)
        await world.until(lambda: ("close", driver.meta_leg) in world.media.asked)
        await asyncio.sleep(0)
        record = await world.record(driver.call.call_id)
        assert record.leg_stats["meta_leg"]["rtp_packets_received"] == 50
        assert "v=0" not in repr(record)
        assert record.meta_call_id == WACID


@pytest.mark.parametrize(
    ("cause", "counts"),
    [
        (CallInput(kind=InputKind.OPERATOR_HANGUP, operator=OPERATOR), True),
        (CallInput(kind=InputKind.MEDIA_FAILED, reason=EndReason.MEDIA_TIMEOUT), True),
        (CallInput(kind=InputKind.SHUTDOWN), True),
        (None, False),  # Meta's own failure
    ],
)
async def test_whoever_ended_it_a_call_that_rang_in_vain_counts_as_unanswered(
    cause: CallInput | None, counts: bool
) -> None:
    """Meta cannot tell why we stopped ringing, and its streak revokes the permission (guide R10)."""
    async with a_world() as world:
        driver = await dialled(world)
        assert driver.call.meta_call_id is not None
        await world.meta_says("RINGING", driver.call.meta_call_id)
        await world.until(lambda: driver.call.state.value == "ringing")
        if cause is not None:
            driver.feed(cause)
            await world.graph.arrival("terminate")
        status = "COMPLETED" if counts else "FAILED"
        await world.meta_terminates(driver.call.meta_call_id, direction="BUSINESS_INITIATED", status=status)
        await world.ended(driver)
        contact = world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        assert [call.key for call in contact.state.unanswered] == (
            [f"unanswered/{driver.call.meta_call_id}"] if counts else []
        )
