"""The worker process: a `LegHost` behind a socket. Started by `pool.WorkerPool`, never by hand.

    python -m media.worker FD

FD is this end of a socket pair. The first frame received is `Start`, then commands; replies, events and heartbeats are
sent. The process ends when the other end is closed, however the gateway died, and only then. It ignores SIGINT and
SIGTERM, which a terminal or a service manager sends to all processes at once, because the gateway may still need its
media to end calls in order. If the event loop stalls for longer than the heartbeat timeout, the process prints a
traceback and exits.
"""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from media import frames
from media.errors import MediaError
from media.host import LegHost
from media.model import MediaConfig, MediaEvent, WorkerDown, WorkerUp
from media.stats import LegStats

log = logging.getLogger(__name__)


class Server:
    """Execute the commands of one gateway."""

    def __init__(self, host: LegHost, send: Callable[[frames.FromWorker], None]) -> None:
        self._host = host
        self._send = send

    async def carry_out(self, request: frames.Request) -> None:
        """Execute one command and reply. Never raises."""
        try:
            result = await self._perform(request.command)
        except MediaError as error:
            self._send(frames.Failure(request.id, error.reason, error.detail))
        except Exception:  # a bug fails one command, not the worker
            log.exception("%s failed unexpectedly", type(request.command).__name__)
            self._send(frames.Failure(request.id, MediaError.reason, "internal error"))
        else:
            sdp = result if isinstance(result, str) else None
            stats = result if isinstance(result, LegStats) else None
            self._send(frames.Reply(request.id, sdp=sdp, stats=stats))

    async def _perform(self, command: frames.Command) -> str | LegStats | None:
        match command:
            case frames.AnswerMeta(leg, sdp):
                return await self._host.answer_meta(leg, sdp)
            case frames.OfferMeta(leg):
                return await self._host.offer_meta(leg)
            case frames.AcceptMetaAnswer(leg, sdp):
                await self._host.accept_meta_answer(leg, sdp)
            case frames.AnswerBrowser(leg, sdp):
                return await self._host.answer_browser(leg, sdp)
            case frames.Join(a, b):
                self._host.join(a, b)
            case frames.Part(leg):
                self._host.part(leg)
            case frames.Play(leg, tone):
                self._host.play(leg, tone)
            case frames.Close(leg):
                return await self._host.close(leg)
            case frames.GetStats(leg):
                return self._host.stats(leg)
        return None


async def serve(sock: socket.socket) -> None:
    """Serve one gateway until its end of the socket is closed."""
    reader, writer = await asyncio.open_connection(sock=sock)

    def send(message: frames.FromWorker) -> None:
        if not writer.is_closing():
            writer.write(frames.pack(message))

    def emit(event: MediaEvent) -> None:
        assert not isinstance(event, WorkerUp | WorkerDown)
        send(event)

    try:
        first = await frames.read(reader)
        start = frames.to_worker.decode(first) if first is not None else None
        if not isinstance(start, frames.Start):
            return
        os.nice(start.config.nice)
        try:
            async with LegHost(start.config, start.index, emit) as host, asyncio.TaskGroup() as group:
                beating = group.create_task(_beat(host, start.config, send))
                _settle_memory()
                send(frames.Ready())
                await _take_commands(reader, group, Server(host, send))
                beating.cancel()
        except OSError as error:
            send(frames.NotReady(f"{error.strerror or error} ({start.config.bind_address})"))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _take_commands(reader: asyncio.StreamReader, group: asyncio.TaskGroup, server: Server) -> None:
    while (body := await frames.read(reader)) is not None:
        message = frames.to_worker.decode(body)
        if isinstance(message, frames.Request):
            group.create_task(server.carry_out(message))


async def _beat(host: LegHost, config: MediaConfig, send: Callable[[frames.FromWorker], None]) -> None:
    """Send heartbeats that show that the loop is running; collect garbage while there are no legs."""
    loop = asyncio.get_running_loop()
    due, collected = loop.time(), True
    while True:
        faulthandler.dump_traceback_later(config.heartbeat_timeout_s, exit=True)
        send(frames.Beat(host.legs, max(0.0, loop.time() - due) * 1000))
        if host.legs:
            collected = False
        elif not collected:
            gc.collect()
            collected = True
        due = loop.time() + config.heartbeat_s
        await asyncio.sleep(config.heartbeat_s)


def _settle_memory() -> None:
    """Exclude long-lived objects from garbage collection: a full pass would interrupt all audio for tens of ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def main() -> None:
    """Run the worker on the inherited socket."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="media.worker %(levelname)s %(name)s: %(message)s")
    faulthandler.enable()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setblocking(False)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(sock))
    faulthandler.cancel_dump_traceback_later()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for this platform
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
