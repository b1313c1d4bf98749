"""The compared programs and how each is run: a separate process beside a simulated Meta, everything of it on one core.

What is done to them is in `setups.py` and `probes.py`.
"""

import asyncio
import contextlib
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import aiohttp

from loadtest.compare.contest import PeerFailed
from loadtest.compare.environments import PEERS, end_process, interpreter
from loadtest.loads.run import end_postgres
from loadtest.measure.process import Cores, busy_s, children, postmaster, total
from loadtest.measure.stack import NEVER_OVERLOADED, Stack, StackConfig, ended_with_us, free_port, operators
from loadtest.operators.signalling_bot import Crew, SignallingBot
from loadtest.operators.softphone_bot import QuietBot
from loadtest.simulator.config import SimConfig
from loadtest.simulator.meta_sim import MetaSim

_START_S: Final = 60.0
_ASK_S: Final = 2.0
_LAST_LINES: Final = 20
#: Most operators that a ramp can need.
_OPERATORS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One compared program."""

    name: str
    what: str
    #: File in `programs`; None: the gateway.
    script: str | None = None
    hook: str = "/hook"
    #: File in `programs`; None: it runs with our own interpreter.
    requirements: str | None = None
    #: Whether it carries audio.
    media: bool = True

    @property
    def ours(self) -> bool:
        """Whether it is this gateway."""
        return self.script is None


PEERS_OF_CALLS: Final = (
    Peer(name="gateway", what="this gateway as its users run it: gate, slots, durable intake, media workers"),
    Peer(name="gateway-null", what="the same with GATEWAY_MEDIA_ENGINE=null: signalling alone", media=False),
    Peer(
        name="pipecat",
        what="pipecat-ai 1.14.0: its runner's WhatsApp route",
        script="pipecat_peer.py",
        hook="/whatsapp",
        requirements="pipecat.txt",
    ),
    Peer(
        name="pywa",
        what="pywa 4.5.0 on FastAPI, aiortc 1.16.0 for the media",
        script="pywa_peer.py",
        requirements="pywa.txt",
    ),
    Peer(
        name="floor",
        what="aiohttp with a canned answer: no state, store, gate or media",
        script="floor_peer.py",
        media=False,
    ),
)


@dataclass(slots=True, kw_only=True)
class Target:
    """A running peer, and its simulated Meta."""

    peer: Peer
    sim: MetaSim
    #: URL that receives webhooks.
    hook_url: str
    process: asyncio.subprocess.Process
    #: None for peers other than the gateway.
    stack: Stack | None = None
    log: IO[bytes] | None = field(default=None, repr=False)

    async def live(self) -> int:
        """Return how many calls the peer considers live. Raises: aiohttp.ClientError, TimeoutError."""
        if self.stack is not None:
            return int(total(await self.stack.metrics(), "wacg_calls_active"))
        return await _live(self.hook_url.removesuffix(self.peer.hook))

    def crew(self, count: int) -> AbstractAsyncContextManager[object]:
        """Return this many operators who answer; peers other than the gateway answer by themselves."""
        if self.stack is None:
            return contextlib.nullcontext()
        keys = dict(list(self.stack.config.operators.items())[:count])
        return Crew(self.stack.url, keys, bot=QuietBot if self.peer.media else SignallingBot)

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU time of the signalling process, and of all the peer's processes. Raises: OSError."""
        first = self.process.pid
        others = set(children(first))
        data_dir = self.stack.config.data_dir if self.stack else None
        server = postmaster(data_dir) if data_dir else None
        if server is not None:
            others |= {server, *children(server)}
        signalling_s, all_s = busy_s(first), 0.0
        for pid in others:
            with contextlib.suppress(OSError):
                all_s += busy_s(pid)
        return signalling_s, signalling_s + all_s

    def check(self) -> None:
        """Raise PeerFailed if it has ended."""
        if self.process.returncode is not None:
            raise PeerFailed(f"it ended unexpectedly, exit code {self.process.returncode}{self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log, or ""."""
        lines = self.stack.log if self.stack else _lines_of(self.log)
        return "".join(f"\n  {line}" for line in lines[-_LAST_LINES:])


@asynccontextmanager
async def running(peer: Peer, cores: Cores, world: Mapping[str, Any]) -> AsyncIterator[Target]:
    """Run a peer on its core, and stop it completely. Raises: PeerFailed, GatewayDied, NotInstalled, OSError.

    `world` has fields of the simulator's `SimConfig`.
    """
    run = _gateway(peer, cores, world) if peer.ours else _other(peer, cores, world)
    async with run as target:
        gc.collect()
        gc.freeze()  # people and numbers: scanning them all would stall the generator
        try:
            yield target
        finally:
            gc.unfreeze()


@contextlib.contextmanager
def started_on(cores: frozenset[int]) -> Iterator[None]:
    """Let every process that is started in the block, and its children, run on these cores."""
    if not cores:
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


@asynccontextmanager
async def _gateway(peer: Peer, cores: Cores, world: Mapping[str, Any]) -> AsyncIterator[Target]:
    with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as folder:
        config = StackConfig(
            port=0,
            admin_port=0,
            sim_port=0,
            data_dir=Path(folder),
            operators=operators(_OPERATORS),
            null_media=not peer.media,
            environment=NEVER_OVERLOADED,
            sim=world,
        )
        stack = Stack(config)
        try:
            with started_on(cores.gateway):
                await stack.start()
            assert stack.process is not None
            hook_url = f"{stack.url}/webhooks/meta"
            yield Target(peer=peer, sim=stack.sim, hook_url=hook_url, process=stack.process, stack=stack)
        finally:
            try:
                await stack.close()
            finally:
                await end_postgres(Path(folder))


@asynccontextmanager
async def _other(peer: Peer, cores: Cores, world: Mapping[str, Any]) -> AsyncIterator[Target]:
    assert peer.script is not None
    python, port = await interpreter(peer.requirements), free_port()
    url = f"http://127.0.0.1:{port}"
    sim = MetaSim(SimConfig(callback_url=url + peer.hook, **world))
    with tempfile.TemporaryDirectory(prefix="cmp-") as folder, tempfile.TemporaryFile() as log:
        await sim.start()
        process = None
        try:
            with started_on(cores.gateway):
                process = await asyncio.create_subprocess_exec(
                    *(str(python), "-I", str(PEERS / peer.script)),
                    cwd=folder,
                    env=os.environ | _settings(sim, port),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is handled here; the child is told by us
                    preexec_fn=ended_with_us(),
                )
            target = Target(peer=peer, sim=sim, hook_url=url + peer.hook, process=process, log=log)
            await _until_ready(target, url)
            yield target
        finally:
            if process is not None:
                await end_process(process)
            await sim.close()


def _settings(sim: MetaSim, port: int) -> dict[str, str]:
    return {
        "PEER_PORT": str(port),
        "GRAPH_URL": sim.url,
        "APP_SECRET": sim.config.app_secret,
        "VERIFY_TOKEN": sim.config.verify_token,
        "ACCESS_TOKEN": sim.config.access_token,
        "PHONE_NUMBER_ID": sim.number.spec.phone_number_id,
    }


async def _until_ready(target: Target, url: str) -> None:
    """Wait until the peer serves, and Meta has verified its webhook."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _START_S
    while loop.time() < give_up_at:
        target.check()
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await _live(url)
            if target.sim.webhooks.verified:
                return
        await asyncio.sleep(0.05)
    raise PeerFailed(f"it was not ready within {_START_S:.0f} s{target.last_words()}")


async def _live(url: str) -> int:
    timeout = aiohttp.ClientTimeout(total=_ASK_S)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{url}/live") as response:
        return int((await response.json())["live"])


def _lines_of(log: IO[bytes] | None) -> list[str]:
    if log is None:
        return []
    log.seek(0)
    return log.read().decode(errors="replace").splitlines()
