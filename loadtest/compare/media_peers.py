"""The compared media servers, which join two legs: this gateway's worker, aiortc's MediaRelay, rtpengine.

Each is a separate process on the peers' core; both far ends of each call have full ICE, DTLS-SRTP and a socket of the
same pump. What is measured is in `media.py`.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeAlias

import aiohttp

from loadtest.compare.contest import PeerFailed
from loadtest.compare.environments import PEERS, end_process
from loadtest.compare.peers import started_on
from loadtest.compare.rtpengine import find_program
from loadtest.loads.job import needed_world
from loadtest.loads.media_ends import PumpedPeer
from loadtest.loads.media_plane import ENVIRONMENT, AnchoredCalls, anchored_calls, plane
from loadtest.loads.media_pump import Pump
from loadtest.loads.media_talk import Pair, paired
from loadtest.loads.run import pinned_stack
from loadtest.loads.scenarios import Form, MediaStep, Work
from loadtest.measure.process import Cores, pin
from loadtest.measure.stack import StackConfig, ended_with_us, free_port, operators

#: Joins the legs with these two offers, and returns each leg's answer.
Join: TypeAlias = Callable[[str, str], Awaitable[Sequence[str]]]

#: Highest number of calls that is tried.
MOST_CALLS: Final = 400
_START_S: Final = 30.0
_ASK_S: Final = 10.0
_AT_ONCE: Final = 8
_LAST_LINES: Final = 10
_RTPENGINE: Final = "rtpengine"
#: Below the range from which Linux assigns ports.
_RTP_PORTS: Final = (20_000, 32_700)


class MediaServer(Protocol):
    """A running media server, with live calls."""

    pump: Pump
    #: The process that carries RTP.
    pid: int

    @property
    def pairs(self) -> Sequence[Pair]: ...

    async def add(self, count: int) -> None:
        """Set up this many more calls, and return when media can flow both ways in all of them."""


@asynccontextmanager
async def media_server(name: str, cores: Cores, seed: int) -> AsyncIterator[MediaServer]:
    """Run one media server, and stop it completely. Raises: PeerFailed, GatewayDied, OSError."""
    if name == "gateway":
        async with _gateway(cores, seed) as server:
            yield server
        return
    ours = os.sched_getaffinity(0) if cores.generator else set()
    pump = Pump()
    try:
        async with (_rtpengine if name == _RTPENGINE else _media_relay)(cores) as (pid, join):
            pin(os.getpid(), cores.generator)
            legs = Legs(pump, pid, join, transcoded=name == "mediarelay")
            try:
                yield legs
            finally:
                await legs.close()
    finally:
        pin(os.getpid(), frozenset(ours))
        pump.close()


# --- this gateway ------------------------------------------------------------------------------------


class _Worker:
    """The media worker of a whole gateway, with calls set up by the gateway."""

    def __init__(self, calls: AnchoredCalls, pid: int) -> None:
        self._calls, self.pid = calls, pid
        self.pump = calls.plane.pump

    @property
    def pairs(self) -> Sequence[Pair]:
        return self._calls.pairs

    async def add(self, count: int) -> None:
        await self._calls.add(count)


@asynccontextmanager
async def _gateway(cores: Cores, seed: int) -> AsyncIterator[MediaServer]:
    world = needed_world(Work.MEDIA, Form(anchored=(MediaStep(calls=MOST_CALLS),)))
    with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as folder:
        config = StackConfig(
            port=0,
            admin_port=0,
            sim_port=0,
            data_dir=Path(folder),
            operators=operators(MOST_CALLS),
            environment=ENVIRONMENT,
            sim=world,
        )
        async with (
            pinned_stack(config, cores) as stack,
            plane(stack, seed=seed) as found,
            anchored_calls(found) as calls,
        ):
            yield _Worker(calls, found.worker)


# --- others ------------------------------------------------------------------------------------------


class Legs:
    """Calls through a server that joins two offers."""

    def __init__(self, pump: Pump, pid: int, join: Join, *, transcoded: bool) -> None:
        self.pump, self.pid = pump, pid
        self.pairs: list[Pair] = []
        self._join, self._transcoded = join, transcoded
        self._peers: list[PumpedPeer] = []

    async def add(self, count: int) -> None:
        """See `MediaServer`. Raises: PeerFailed of either kind, TimeoutError, aiohttp.ClientError."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def call() -> None:
            async with places:
                self.pairs.append(await self._call())

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(call())

    async def _call(self) -> Pair:
        first, second = PumpedPeer(self.pump), PumpedPeer(self.pump)
        self._peers += first, second
        answers = await self._join(await first.offer(), await second.offer())
        for peer, answer in zip((first, second), answers, strict=True):
            await peer.answer(answer)
        for peer in (first, second):
            await peer.connected()
            assert peer.line is not None
            peer.line.transcoded = self._transcoded
        assert first.line is not None
        assert second.line is not None
        return paired(first.line, second.line)

    async def close(self) -> None:
        """Close all far ends."""
        for peer in self._peers:
            await peer.close()


@asynccontextmanager
async def _process(cores: Cores, *command: str, **environment: str) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """Run a command on the peers' core; yield its pid and a function that raises PeerFailed once it has ended."""
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="cmp-") as folder:
        with started_on(cores.gateway):
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env=os.environ | environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is handled here; the child is told by us
                preexec_fn=ended_with_us(),
            )

        def check() -> None:
            if process.returncode is not None:
                raise PeerFailed(f"it ended unexpectedly, exit code {process.returncode}{_last_words(log)}")

        try:
            yield process.pid, check
        finally:
            await end_process(process)


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    return "".join(f"\n  {line}" for line in log.read().decode(errors="replace").splitlines()[-_LAST_LINES:])


async def _until_answers(ask: Callable[[], Awaitable[object]], check: Callable[[], None]) -> None:
    """Repeat a request until there is a response. Raises: PeerFailed."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _START_S
    while loop.time() < give_up_at:
        check()
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(1.0):
                await ask()
                return
        await asyncio.sleep(0.05)
    raise PeerFailed(f"it was not ready within {_START_S:.0f} s")


@asynccontextmanager
async def _media_relay(cores: Cores) -> AsyncIterator[tuple[int, Join]]:
    port = free_port()
    url, command = f"http://127.0.0.1:{port}", (sys.executable, "-I", str(PEERS / "relay_peer.py"))
    timeout = aiohttp.ClientTimeout(total=_ASK_S)
    async with (
        _process(cores, *command, PEER_PORT=str(port)) as (pid, check),
        aiohttp.ClientSession(url, timeout=timeout, raise_for_status=True) as http,
    ):

        async def join(first: str, second: str) -> Sequence[str]:
            async with http.post("/call", json=[first, second]) as response:
                answers: Sequence[str] = await response.json()
                return answers

        await _until_answers(lambda: http.get("/live"), check)
        yield pid, join
        check()


@asynccontextmanager
async def _rtpengine(cores: Cores) -> AsyncIterator[tuple[int, Join]]:
    program, port = await find_program(), free_port()
    low, high = _RTP_PORTS
    command = (
        *(str(program.path), "--foreground", "--log-stderr", "--log-level=3", "--config-file=none"),
        *("--table=-1", "--interface=127.0.0.1", f"--listen-ng=127.0.0.1:{port}"),  # in user space, like the others
        *(f"--port-min={low}", f"--port-max={high}", "--dtls-cert-cipher=prime256v1"),
    )
    libraries = os.pathsep.join(map(str, program.libraries))
    async with _process(cores, *command, LD_LIBRARY_PATH=libraries) as (pid, check), _ng(port) as ask:
        numbers = itertools.count()

        async def join(first: str, second: str) -> Sequence[str]:
            """Let the first leg call the second, which takes the resulting SDP as the answer to its own offer."""
            call = {"call-id": f"call-{next(numbers)}", "from-tag": "first"}
            media = {"transport-protocol": "UDP/TLS/RTP/SAVPF", "ICE": "force", "flags": [], "rtcp-mux": ["offer"]}
            to_second = await ask({"command": "offer", **call, **media, "ice-lite": "both", "sdp": first})
            answered = second.replace("a=setup:actpass", "a=setup:active")
            media["rtcp-mux"] = ["require"]
            to_first = await ask({"command": "answer", **call, "to-tag": "second", **media, "sdp": answered})
            return to_first["sdp"], to_second["sdp"]

        await _until_answers(lambda: ask({"command": "ping"}), check)
        yield pid, join
        check()


@asynccontextmanager
async def _ng(port: int) -> AsyncIterator[Callable[[Mapping[str, Any]], Awaitable[dict[str, str]]]]:
    """Yield a function that sends rtpengine ng requests: a cookie and JSON, in one datagram."""
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    cookies = itertools.count()

    class Answers(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            cookie, _, answer = data.partition(b" ")
            future = waiting.pop(cookie, None)
            if future is not None and not future.done():
                future.set_result(answer)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Answers, remote_addr=("127.0.0.1", port))

    async def ask(request: Mapping[str, Any]) -> dict[str, str]:
        cookie = b"%d" % next(cookies)
        future = waiting[cookie] = loop.create_future()
        transport.sendto(cookie + b" " + json.dumps(request).encode())
        async with asyncio.timeout(_ASK_S):
            answer: dict[str, str] = json.loads(await future)
        if answer["result"] == "error":
            raise PeerFailed(f"{request['command']} was refused: {answer.get('error-reason')}")
        return answer

    try:
        yield ask
    finally:
        transport.close()
