"""Legs on the wire: they connect, audio crosses when it may and not before, and the receiver hears one stream."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from media.errors import MediaError, SdpRefused, TooBusy, UnknownLeg
from media.model import DtmfReceived, LegConnected, LegFailure, LegId, Tone
from tests.loopback.peers import CONFIG, FRAME, Heard, Stage, until


def is_one_stream(heard: list[Heard]) -> None:
    assert len({packet.ssrc for packet in heard}) == 1
    for one, other in pairwise(heard):
        assert (other.sequence - one.sequence) & 0xFFFF == 1
        assert 0 < (other.timestamp - one.timestamp) & 0xFFFFFFFF < 48_000 * 2


async def test_a_browser_leg_connects_through_the_shared_port() -> None:
    async with Stage() as stage:
        leg, peer = await stage.browser()

        assert f" {stage.host.browser_port} " in peer.pc.remoteDescription.sdp
        assert stage.events == [LegConnected(leg)]
        stats = stage.host.stats(leg)
        assert stats is not None
        assert stats.connected_after_ms is not None
        assert stats.srtp_profile is not None


async def test_two_browser_legs_share_one_port() -> None:
    async with Stage() as stage:
        (a, one), (b, other) = await stage.browser("a"), await stage.browser("b")
        stage.host.join(a, b)
        await one.say("hello")
        await other.say("good day")
        await until(lambda: one.texts == ["good day 0"] and other.texts == ["hello 0"])


@pytest.mark.parametrize("side", ["meta", "called_meta"])
async def test_audio_crosses_both_ways_after_the_join_and_not_before(side: str) -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        meta, user = await (stage.meta() if side == "meta" else stage.called_meta())
        await operator.say("too early")
        await user.say("too early")
        await until(lambda: packets_received(stage, browser) == packets_received(stage, meta) == 1)
        assert operator.heard == user.heard == []

        stage.host.join(browser, meta)
        await operator.say("from the operator", times=3)
        await user.say("from the user", times=3)
        await until(lambda: len(operator.heard) == len(user.heard) == 3)
        assert user.texts == [f"from the operator {n}" for n in range(3)]
        assert operator.texts == [f"from the user {n}" for n in range(3)]

        stage.host.part(meta)
        await operator.say("too late")
        await user.say("too late")
        await until(lambda: packets_received(stage, browser) == packets_received(stage, meta) == 5)
        assert len(operator.heard) == len(user.heard) == 3


def packets_received(stage: Stage, leg: LegId) -> int:
    stats = stage.host.stats(leg)
    assert stats is not None
    return stats.rtp_packets_received


async def test_nothing_is_sent_to_a_meta_leg_before_the_first_join() -> None:
    async with Stage(replace(CONFIG, rtcp_interval_s=0.05)) as stage:
        leg, user = await stage.meta()
        browser, operator = await stage.browser()
        await until(lambda: operator.rtcp_heard >= 3)
        assert (user.rtcp_heard, user.heard) == (0, [])

        stage.host.join(leg, browser)
        await until(lambda: user.rtcp_heard >= 1)


async def test_a_join_may_come_before_the_legs_are_connected() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        user = stage.peer()
        answer = await stage.host.answer_meta(LegId("meta"), await user.offer(lite=True))
        stage.host.join(browser, LegId("meta"))
        stage.host.join(LegId("meta"), browser)
        await user.answered(answer)
        await stage.connected(LegId("meta"), user)
        await user.say("hello")
        await until(lambda: operator.texts == ["hello 0"])


async def test_a_leg_joined_to_another_is_parted_from_the_first() -> None:
    async with Stage() as stage:
        (a, one), (b, other), (c, third) = [await stage.browser(name) for name in "abc"]
        stage.host.join(a, b)
        stage.host.join(a, c)
        await one.say("to c")
        await other.say("to nobody")
        await until(lambda: third.texts == ["to c 0"] and packets_received(stage, b) == 1)
        assert one.heard == other.heard == []


@pytest.mark.parametrize("tone", Tone)
async def test_a_tone_is_heard_until_it_is_stopped(tone: Tone) -> None:
    async with Stage() as stage:
        leg, operator = await stage.browser()
        stage.host.play(leg, tone)
        await until(lambda: len(operator.heard) >= 10)
        stage.host.play(leg, None)
        is_one_stream(operator.heard)
        assert [packet.marker for packet in operator.heard[:3]] == [True, False, False]
        count = len(operator.heard)
        await operator.say("still here", times=3, pace_s=0.02)
        await until(lambda: packets_received(stage, leg) == 3)
        assert len(operator.heard) <= count + 1


async def test_a_tone_asked_for_early_begins_when_the_leg_connects() -> None:
    async with Stage() as stage:
        operator = stage.peer()
        answer = await stage.host.answer_browser(LegId("browser"), await operator.offer())
        stage.host.play(LegId("browser"), Tone.RINGBACK)
        await operator.answered(answer)
        await until(lambda: len(operator.heard) >= 3)


async def test_the_receiver_hears_one_stream_over_tone_join_hold_and_rejoin() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        meta, user = await stage.meta()
        stage.host.play(browser, Tone.RINGBACK)
        await until(lambda: len(operator.heard) >= 5)
        stage.host.join(browser, meta)
        await user.say("first", times=5, pace_s=0.02)
        await until(lambda: operator.texts[-1:] == ["first 4"])
        stage.host.part(browser)
        stage.host.play(browser, Tone.HOLD)
        await until(lambda: len(operator.heard) >= 20)
        stage.host.join(meta, browser)
        user.ssrc, user.sequence, user.timestamp = 0x2000_0002, 7, 99
        await user.say("second", times=5, pace_s=0.02)
        await until(lambda: operator.texts[-1:] == ["second 4"])

        is_one_stream(operator.heard)
        markers = [packet.payload.decode(errors="replace") for packet in operator.heard if packet.marker]
        assert len(markers) == 4  # ringback, first, hold, second
        assert (markers[1], markers[3]) == ("first 0", "second 0")


async def test_a_tone_gives_way_to_a_join_and_comes_back_after_it() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        meta, _ = await stage.meta()
        stage.host.play(browser, Tone.HOLD)
        await until(lambda: len(operator.heard) >= 2)
        stage.host.join(browser, meta)
        count = len(operator.heard)
        await asyncio.sleep(0.1)
        assert len(operator.heard) <= count + 1
        stage.host.part(meta)
        await until(lambda: len(operator.heard) >= count + 3)


async def test_a_leg_whose_partner_is_gone_hears_its_tone_again() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        meta, _ = await stage.meta()
        stage.host.join(browser, meta)
        stage.host.play(browser, Tone.HOLD)
        assert operator.heard == []
        await stage.host.close(meta)
        await until(lambda: len(operator.heard) >= 2)
        stage.host.part(browser)


async def test_a_port_of_the_range_is_used_again_when_its_leg_is_closed() -> None:
    async with Stage(replace(CONFIG, ports=(21_320, 21_321))) as stage:
        for name in ("one", "other"):
            assert "m=audio 21321 " in await stage.host.offer_meta(LegId(name))
            with pytest.raises(TooBusy):
                await stage.host.offer_meta(LegId("third"))
            await stage.host.close(LegId(name))
            await until(lambda: stage.host.legs == 0)


async def test_a_key_press_is_passed_on_and_reported_once() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        meta, user = await stage.meta()
        stage.host.join(browser, meta)
        await user.say("before")
        for event in (1, 1, 11):
            await user.press(event)
        await user.say("after")
        await until(lambda: operator.texts == ["before 0", "after 0"])

        pressed = [event for event in stage.events if isinstance(event, DtmfReceived)]
        assert pressed == [DtmfReceived(meta, "1"), DtmfReceived(meta, "1"), DtmfReceived(meta, "#")]
        keys = [packet for packet in operator.heard if packet.payload_type == operator.payloads.dtmf]
        assert [key.payload[0] for key in keys] == [1] * 10 + [11] * 5
        assert [packet.sequence for packet in operator.heard] == [
            (operator.heard[0].sequence + n) & 0xFFFF for n in range(17)
        ]


async def test_header_extensions_and_payload_types_are_not_passed_on() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        called, user = await stage.called_meta()
        assert operator.payloads.opus != user.payloads.opus
        stage.host.join(browser, called)
        await operator.say("levels", extension=b"\xbe\xde\x00\x01\x10\xff\x00\x00")
        await until(lambda: user.texts == ["levels 0"])

        assert user.heard[0].payload_type == user.payloads.opus


async def test_statistics_tell_what_happened() -> None:
    async with Stage(replace(CONFIG, rtcp_interval_s=0.05)) as stage:
        browser, operator = await stage.browser()
        meta, user = await stage.meta()
        stage.host.join(browser, meta)
        await user.say("a", times=5, pace_s=0.02)
        user.sequence += 2
        await user.say("b", times=5, pace_s=0.02)
        await until(lambda: len(operator.heard) == 10)
        stats = await stage.host.close(meta)

        assert stats is not None
        assert (stats.rtp_packets_received, stats.rtp_packets_lost) == (10, 2)
        assert stats.rtcp_packets_sent > 0
        assert stats.first_media_after_ms is not None
        assert stage.host.stats(meta) is None
        assert await stage.host.close(meta) is None
        assert stage.failures(meta) == []


async def test_what_cannot_be_done_is_refused() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        nobody = LegId("nobody")
        with pytest.raises(UnknownLeg):
            stage.host.join(browser, nobody)
        with pytest.raises(UnknownLeg):
            stage.host.part(nobody)
        with pytest.raises(UnknownLeg):
            stage.host.play(nobody, Tone.HOLD)
        with pytest.raises(UnknownLeg):
            await stage.host.accept_meta_answer(nobody, "")
        with pytest.raises(MediaError, match="itself"):
            stage.host.join(browser, browser)
        with pytest.raises(MediaError, match="exists"):
            await stage.host.answer_browser(browser, operator.pc.localDescription.sdp)
        with pytest.raises(SdpRefused, match="is not waiting for an answer"):
            await stage.host.accept_meta_answer(browser, "v=0")
        with pytest.raises(SdpRefused):
            await stage.host.answer_meta(LegId("new"), "v=0")
        assert stage.host.legs == 1


async def test_the_same_answer_twice_changes_nothing_and_another_is_refused() -> None:
    async with Stage() as stage:
        user = stage.peer()
        answer = await user.answer(await stage.host.offer_meta(LegId("meta")))
        with pytest.raises(SdpRefused):
            await stage.host.accept_meta_answer(LegId("meta"), "v=0")
        await stage.host.accept_meta_answer(LegId("meta"), answer)
        await stage.host.accept_meta_answer(LegId("meta"), answer)
        with pytest.raises(SdpRefused):
            await stage.host.accept_meta_answer(LegId("meta"), answer + "a=x:y\r\n")
        await stage.connected(LegId("meta"), user)


async def test_checks_that_come_before_the_answer_cause_no_role_conflict() -> None:
    """A full agent checks as soon as it has answered; Meta, being lite, never does."""
    async with Stage() as stage:
        leg, user = LegId("meta"), stage.peer()
        answer = await user.answer(await stage.host.offer_meta(leg))
        link = stage.host._legs[leg].ice.link
        await until(lambda: bool(link.checked))
        await stage.host.accept_meta_answer(leg, answer)
        await stage.connected(leg, user)

        assert not user.dtls.transport._connection.ice_controlling


@pytest.mark.parametrize("setup", ["active", "passive", "actpass"])
async def test_meta_may_answer_with_any_role(setup: str) -> None:
    async with Stage() as stage:
        user = stage.peer()
        offer = await stage.host.offer_meta(LegId("meta"))
        # An aiortc answerer is active unless the offer is; a passive one must be told the reverse.
        told = offer.replace("a=setup:actpass", "a=setup:active") if setup == "passive" else offer
        answer = await user.answer(told)
        written = "passive" if setup == "passive" else "active"
        assert f"a=setup:{written}" in answer
        await stage.host.accept_meta_answer(LegId("meta"), answer.replace(f"a=setup:{written}", f"a=setup:{setup}"))
        await stage.connected(LegId("meta"), user)


async def test_an_offer_that_is_active_is_answered_passively() -> None:
    def active(text: str) -> str:
        return text.replace("a=setup:actpass", "a=setup:active")

    async with Stage() as stage:
        _, user = await stage.meta(change=active)

        assert "a=setup:passive" in user.pc.remoteDescription.sdp


async def test_set_ups_beyond_the_queue_are_refused_at_once() -> None:
    async with Stage(replace(CONFIG, setups_at_once=1, setups_waiting=1)) as stage:
        offer = await stage.peer().offer()
        results = await asyncio.gather(
            *(stage.host.answer_browser(LegId(f"{n}"), offer) for n in range(4)), return_exceptions=True
        )

        assert [type(result) for result in results] == [str, str, TooBusy, TooBusy]


async def test_a_leg_closed_while_it_is_made_is_closed_when_it_is_made() -> None:
    async with Stage() as stage:
        offer = await stage.peer().offer(lite=True)
        async with asyncio.TaskGroup() as group:
            making = group.create_task(stage.host.answer_meta(LegId("meta"), offer))
            await asyncio.sleep(0)
            closing = group.create_task(stage.host.close(LegId("meta")))

        assert making.result().startswith("v=0")
        assert closing.result() is not None
        assert stage.host.legs == 0


async def test_a_goodbye_of_the_peer_ends_the_leg_once() -> None:
    async with Stage() as stage:
        leg, operator = await stage.browser()
        await operator.close()

        assert await stage.failed(leg) is LegFailure.CLOSED_BY_PEER
        assert stage.host.legs == 0
        assert await stage.host.close(leg) is not None
        assert await stage.host.close(leg) is None


async def test_timestamps_of_one_source_are_its_own() -> None:
    async with Stage() as stage:
        browser, operator = await stage.browser()
        meta, user = await stage.meta()
        stage.host.join(browser, meta)
        await user.say("x", times=10)
        await until(lambda: len(operator.heard) == 10)

        steps = [(b.timestamp - a.timestamp) & 0xFFFFFFFF for a, b in pairwise(operator.heard)]
        assert steps == [FRAME] * 9
