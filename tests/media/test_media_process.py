"""What gateway and worker say to each other, and what neither may load or leave undone."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from media import errors, frames
from media.host import LegHost
from media.leg import TURN_S, Turns
from media.model import (
    DtmfReceived,
    LegConnected,
    LegFailed,
    LegFailure,
    LegId,
    MediaConfig,
    Tone,
    WorkerId,
)
from media.port import MetaPorts, browser_port
from media.stats import LegStats
from media.worker import Server

ROOT = Path(__file__).parents[2]
LEG = LegId("leg")


def test_the_signalling_process_loads_no_media_stack() -> None:
    program = (
        "import sys, media.engine, media.sdp, media.errors;"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'aiortc', 'aioice', 'av', 'pylibsrtp', 'OpenSSL'})"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == ""


@pytest.mark.parametrize("error", errors.BY_REASON.values(), ids=lambda error: error.reason)
def test_every_error_comes_back_as_itself(error: type[errors.MediaError]) -> None:
    again = errors.from_reason(error.reason, "why")

    assert type(again) is error
    assert (str(again), again.detail) == ("why", "why")
    assert str(error()) == error.reason


def test_an_error_of_another_release_is_a_plain_one() -> None:
    assert type(errors.from_reason("never_heard_of", "")) is errors.MediaError


@pytest.mark.parametrize(
    "message",
    [
        frames.Ready(),
        frames.NotReady("port taken"),
        frames.Beat(3, 0.5),
        frames.Reply(1, sdp="v=0"),
        frames.Reply(2, stats=LegStats(jitter_ms=1.5, round_trip_ms=20.0)),
        frames.Failure(3, "too_busy", ""),
        LegConnected(LEG),
        LegFailed(LEG, LegFailure.MEDIA_TIMEOUT),
        DtmfReceived(LEG, "#"),
    ],
)
def test_what_a_worker_says_is_understood(message: frames.FromWorker) -> None:
    assert frames.from_worker.decode(frames.pack(message)[4:]) == message


@pytest.mark.parametrize(
    "message",
    [
        frames.Start(MediaConfig(ports=(1, 9), candidate_networks=("10.0.0.0/8",)), 2),
        frames.Request(1, frames.AnswerMeta(LEG, "v=0")),
        frames.Request(2, frames.Join(LEG, LEG)),
        frames.Request(3, frames.Play(LEG, Tone.HOLD)),
        frames.Request(4, frames.Play(LEG, None)),
    ],
)
def test_what_the_gateway_says_is_understood(message: frames.ToWorker) -> None:
    assert frames.to_worker.decode(frames.pack(message)[4:]) == message


async def reader(data: bytes) -> asyncio.StreamReader:
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    return stream


async def test_frames_are_read_one_by_one_until_the_end() -> None:
    stream = await reader(frames.pack(frames.Ready()) + frames.pack(frames.Beat(1, 0)) + b"\0\0")
    bodies = [await frames.read(stream) for _ in range(3)]

    assert [msgspec.msgpack.decode(body)["type"] for body in bodies if body] == ["Ready", "Beat"]
    assert bodies[2] is None


async def test_a_frame_that_is_too_long_is_the_end() -> None:
    assert await frames.read(await reader(b"\x7f\xff\xff\xff" + bytes(100))) is None


async def test_a_bug_fails_one_command_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def part(self, leg: LegId) -> None:
            raise ZeroDivisionError

    said: list[frames.FromWorker] = []
    await Server(cast(LegHost, Broken()), said.append).carry_out(frames.Request(7, frames.Part(LEG)))

    assert said == [frames.Failure(7, "media_error", "internal error")]
    assert "Part failed unexpectedly" in caplog.text


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_handshake_that_takes_long_lets_the_next_one_begin() -> None:
    turns, order = Turns(1), []
    loop = asyncio.get_running_loop()
    began_at = loop.time()

    async def handshake(name: str, seconds: float) -> None:
        async with turns.take():
            order.append((name, round(loop.time() - began_at, 2)))
            await asyncio.sleep(seconds)

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("slow", 9.0), ("quick", 0.1), ("last", 0.1)):
            group.create_task(handshake(name, seconds))

    assert order == [("slow", 0.0), ("quick", TURN_S), ("last", TURN_S + 0.1)]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"workers": 0}, "workers"),
        ({"bind_address": "0.0.0.0"}, "announced_address"),
        ({"bind_address": "::"}, "announced_address"),
        ({"bind_address": "localhost"}, "localhost"),
        ({"ports": (0, 10)}, "ports"),
        ({"ports": (10, 9)}, "ports"),
        ({"ports": (10, 70_000)}, "ports"),
        ({"ports": (10, 12), "workers": 2}, "ports"),
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(MediaConfig(), **more)


def test_workers_share_the_range_without_meeting() -> None:
    config = MediaConfig(ports=(40_000, 40_009), workers=2)
    browsers = [browser_port(config, index) for index in range(2)]
    meta = [set(MetaPorts(config, index)._free or ()) for index in range(2)]

    assert browsers == [40_000, 40_001]
    assert meta[0] | meta[1] == set(range(40_002, 40_010))
    assert not meta[0] & meta[1]
    assert browser_port(MediaConfig(), 1) == 0


def test_worker_ids_are_numbers_and_leg_ids_are_text() -> None:
    assert msgspec.json.encode((WorkerId(1), LEG)) == b'[1,"leg"]'
