"""The engine without media answers as strictly as a worker, connects everything, and keeps nothing."""

import asyncio

import pytest

from media import sdp
from media.engine import MediaEngine
from media.errors import MediaError, NoCommonCodec, NoWorker, SdpRefused, UnknownLeg, WorkerGone
from media.model import LegConnected, LegId, MediaConfig, MediaEvent, Tone, WorkerId, WorkerUp
from media.null import PORT, NullEngine
from media.sdp import Setup

FINGERPRINT = ":".join(f"{byte:02X}" for byte in range(32))
A, B = LegId("a"), LegId("b")
FIRST, SECOND = WorkerId(0), WorkerId(1)


def peer(setup: Setup, **changes: str) -> str:
    """What a peer offers or answers."""
    text = sdp.build(
        sdp.LocalDescription(
            mid="0",
            setup=setup,
            direction=sdp.Direction.SENDRECV,
            ice_ufrag="peer",
            ice_pwd="0123456789012345678901",
            fingerprint=FINGERPRINT,
            payloads=sdp.Payloads(opus=96, dtmf=101),
            opus_parameters=sdp.OPUS_TO_META,
            address="127.0.0.1",
            port=5_000,
            ssrc=1,
            cname="peer",
            session_id=1,
        )
    )
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


class Engine(NullEngine):
    """Keeps what it has said."""

    def __init__(self, workers: int = 2) -> None:
        self.said: list[MediaEvent] = []
        super().__init__(MediaConfig(workers=workers, announced_address="192.0.2.7"))

    def connected(self) -> list[LegId]:
        return [event.leg for event in self.said if isinstance(event, LegConnected)]


async def started(workers: int = 2) -> Engine:
    engine = Engine(workers)
    await engine.start(engine.said.append)
    return engine


async def turn() -> None:
    """Let what is due in the next turn of the loop happen."""
    await asyncio.sleep(0)


async def test_workers_are_there_from_start_to_end() -> None:
    made = Engine()
    engine: MediaEngine = made
    assert not engine.workers
    with pytest.raises(NoWorker):
        engine.pick_worker()
    await engine.start(made.said.append)
    assert tuple(engine.workers) == (FIRST, SECOND)
    assert made.said == [WorkerUp(FIRST), WorkerUp(SECOND)]
    await engine.aclose()
    await engine.aclose()
    assert not engine.workers
    with pytest.raises(WorkerGone):
        await engine.offer_meta(A, FIRST)


async def test_an_offer_of_meta_or_of_a_browser_is_answered_in_the_right_shape() -> None:
    engine = await started()
    for answer in (engine.answer_meta, engine.answer_browser):
        leg = LegId(answer.__name__)
        read = sdp.parse(await answer(leg, FIRST, peer(Setup.ACTPASS)))
        assert (read.setup, read.mid, read.payloads) == (Setup.ACTIVE, "0", sdp.Payloads(opus=96, dtmf=101))
        assert [(each.address, each.port) for each in read.candidates] == [("192.0.2.7", PORT)]
        assert leg not in engine.connected()  # not before whoever asked has the answer
        await turn()
        assert engine.connected()[-1] == leg


async def test_our_offer_connects_with_its_answer_and_takes_only_one() -> None:
    engine = await started()
    offer = sdp.parse(await engine.offer_meta(A, FIRST))
    assert offer.setup is Setup.ACTPASS
    await turn()
    assert engine.connected() == []
    answer = peer(Setup.ACTIVE)
    await engine.accept_meta_answer(A, answer)
    await engine.accept_meta_answer(A, answer)
    await turn()
    assert engine.connected() == [A]
    with pytest.raises(SdpRefused, match="is not waiting for an answer"):
        await engine.accept_meta_answer(A, answer.replace("peer", "another"))
    await engine.answer_browser(B, FIRST, peer(Setup.ACTPASS))
    with pytest.raises(SdpRefused, match="is not waiting for an answer"):
        await engine.accept_meta_answer(B, answer)


async def test_what_a_worker_would_refuse_is_refused_and_makes_no_leg() -> None:
    engine = await started()
    for offer, error in (
        ("nonsense", SdpRefused),
        (peer(Setup.ACTPASS, opus="speex"), NoCommonCodec),
        (peer(Setup.ACTPASS, **{f"a=fingerprint:sha-256 {FINGERPRINT}": "a=x"}), SdpRefused),
    ):
        with pytest.raises(error):
            await engine.answer_meta(A, FIRST, offer)
        assert await engine.stats(A) is None
    await engine.offer_meta(A, FIRST)
    with pytest.raises(SdpRefused):
        await engine.accept_meta_answer(A, "nonsense")
    await engine.accept_meta_answer(A, peer(Setup.PASSIVE))  # the leg still waits


async def test_a_leg_is_made_once_and_closed_once() -> None:
    engine = await started()
    await engine.answer_meta(A, FIRST, peer(Setup.ACTPASS))
    with pytest.raises(MediaError, match="exists already"):
        await engine.answer_meta(A, FIRST, peer(Setup.ACTPASS))
    await turn()
    stats = await engine.stats(A)
    assert stats is not None
    assert stats.connected_after_ms is not None
    assert await engine.close(A) == stats
    assert await engine.close(A) is None
    assert await engine.stats(A) is None
    await engine.answer_meta(A, FIRST, peer(Setup.ACTPASS))


async def test_a_closed_leg_does_not_connect_any_more() -> None:
    engine = await started()
    await engine.answer_meta(A, FIRST, peer(Setup.ACTPASS))
    await engine.close(A)
    await turn()
    assert engine.connected() == []


async def test_whoever_is_cancelled_leaves_no_leg() -> None:
    engine = await started()
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(engine.offer_meta(A, FIRST))
        await turn()
        asking.cancel()
    assert await engine.stats(A) is None
    assert engine.pick_worker() == FIRST


async def test_the_next_leg_goes_to_the_worker_with_the_fewest() -> None:
    engine = await started()
    picked = []
    for index in range(4):
        picked.append(engine.pick_worker())
        await engine.offer_meta(LegId(str(index)), picked[-1])
    assert picked == [FIRST, SECOND, FIRST, SECOND]
    await engine.close(LegId("1"))
    assert engine.pick_worker() == SECOND


async def test_joining_playing_and_parting_need_legs_of_one_worker() -> None:
    engine = await started()
    await engine.offer_meta(A, FIRST)
    for nothing in (engine.part(B), engine.play(B, Tone.HOLD), engine.join(A, B), engine.accept_meta_answer(B, "")):
        with pytest.raises(UnknownLeg):
            await nothing
    await engine.offer_meta(B, SECOND)
    with pytest.raises(MediaError, match="different workers"):
        await engine.join(A, B)
    await engine.close(B)
    await engine.offer_meta(B, FIRST)
    await engine.join(A, B)
    await engine.play(A, Tone.RINGBACK)
    await engine.part(A)
