"""A whole gateway as users run it, beside a simulated Meta: start it, watch it, stop it.

The gateway is a separate process, configured by environment variables; nothing of it is imported. Settings in our own
environment, or in a file beside the program, may belong to a real gateway: it gets none of them unless `inherits` is
set. Used by the demo, by load runs, and by runs that kill and restart the gateway.

    async with Stack(StackConfig(null_media=True, operators=operators(50), sim={"users": crowd(1_000)})) as stack:
        ...
        await stack.kill()
        await stack.restart()
"""

import asyncio
import contextlib
import ctypes
import json
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from loadtest.common.background import Background
from loadtest.common.guard import inherited_settings
from loadtest.simulator.config import SimConfig
from loadtest.simulator.meta_sim import MetaSim

_ROOT: Final = Path(__file__).resolve().parents[2]
_STOP_S: Final = 15.0
_ASK_S: Final = 2.0
_LAST_WORDS_S: Final = 2.0
#: Longest value of an environment variable; Linux allows 128 KiB.
_LONGEST_SETTING: Final = 100_000
_PR_SET_PDEATHSIG: Final = 1
#: Below 32,768, from where Linux assigns ports to connections.
_PORTS: Final = range(20_000, 32_000)


class GatewayDied(Exception):
    """The gateway process ended, or never became ready; the text ends with its last log lines."""


class PortTaken(Exception):
    """A port that is needed is in use; the text says which one, and what to do."""


#: Settings of a gateway that never refuses for overload. Runs that measure overload set their own limits; all others
#: share a machine with what they measure.
NEVER_OVERLOADED: Final[Mapping[str, str]] = {
    "GATEWAY_MAX_SETUPS_PER_S": "10000",
    "GATEWAY_MAX_LOOP_LAG_MS": "10000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """What to start. Port 0: any free port."""

    port: int = 8080
    admin_port: int = 9090
    sim_port: int = 8090
    data_dir: Path | None = None  #: the gateway's; None: a temporary folder, removed with the stack
    #: Name and key of each operator. The names differ from those of the simulator's users.
    operators: Mapping[str, str] = field(
        default_factory=lambda: {name: secrets.token_urlsafe(9) for name in ("davi", "elena")}
    )
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    environment: Mapping[str, str] = field(default_factory=dict)  #: further settings of the gateway
    sim: Mapping[str, Any] = field(default_factory=dict)  #: further fields of the simulator's `SimConfig`
    #: Slots of each number, in each direction; None: as many as the rules allow.
    slots: int | None = None
    #: No audio on either side and no media workers: for loads of signalling.
    null_media: bool = False
    inherits: bool = False  #: settings from our own environment too
    start_timeout_s: float = 60.0


class Stack:
    """One gateway process and one simulated Meta. `start()` and `close()` once; or an async context manager."""

    def __init__(self, config: StackConfig | None = None) -> None:
        self.config = config or StackConfig()
        self.port = self.config.port or free_port()
        self.admin_port = self.config.admin_port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        sim: dict[str, Any] = {
            "port": self.config.sim_port,
            "callback_url": f"{self.url}/webhooks/meta",
            "app_secret": secrets.token_urlsafe(24),
            "verify_token": secrets.token_urlsafe(24),
            "access_token": secrets.token_urlsafe(24),
            "silent": self.config.null_media,
        }
        self.sim = MetaSim(SimConfig(**sim | dict(self.config.sim)))
        #: Folder of the gateway's database and spool; known after `start()`.
        self.data_dir = self.config.data_dir
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None
        #: The gateway's last log lines, over all restarts.
        self.log: list[str] = []
        self.process: asyncio.subprocess.Process | None = None
        self._background = Background("stack")
        self._log_read = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, progress: Callable[[str], None] = lambda step: None) -> None:
        """Start both and return when the gateway is ready. Raises: PortTaken, GatewayDied, OSError."""
        self._check_ports()
        if self.data_dir is None:  # not the default folder: it is that of the gateway which people run here
            self._own_folder = tempfile.TemporaryDirectory(prefix="stack-", ignore_cleanup_errors=True)
            self.data_dir = Path(self._own_folder.name)
        progress("simulated Meta")
        await self.sim.start()
        progress("gateway, PostgreSQL and media worker")
        await self._background.start()
        await self._start_gateway()

    async def _start_gateway(self) -> None:
        process = self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway",
            "serve",
            f"--config={os.devnull}",
            cwd=_ROOT,
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we tell it
            preexec_fn=ended_with_us(),
        )
        self._log_read.clear()
        self._background.spawn(self._read_log(process), "log")
        await self._until_ready(process)

    @property
    def gateway_pid(self) -> int:
        """The process id of the gateway; it changes with `restart`."""
        assert self.process is not None, "start() comes first"
        return self.process.pid

    async def kill(self) -> None:
        """Kill the gateway (SIGKILL) and return when it has ended; the simulated Meta keeps running."""
        assert self.process is not None, "start() comes first"
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._until_log_read()

    def drain(self) -> None:
        """Ask the gateway (SIGTERM) to end after its last call; `until_gone` waits for that."""
        assert self.process is not None, "start() comes first"
        self.process.send_signal(signal.SIGTERM)

    async def restart(self) -> None:
        """Start the gateway again with the same ports and data, and return when it is ready. Raises: GatewayDied.

        A running one is asked to end first.
        """
        assert self.process is not None, "start() comes first"
        await self._stop(self.process)
        await self._until_log_read()
        await self._start_gateway()

    async def metrics(self) -> dict[str, float]:
        """Return the gateway's metrics by series, for example `wacg_calls_active{direction="…",number="…"}`.

        Raises: aiohttp.ClientError, TimeoutError.
        """
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http,
            http.get(f"{self.admin_url}/metrics") as response,
        ):
            text = await response.text()
        rows = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {series: float(value) for series, _, value in rows}

    def _check_ports(self) -> None:
        """Before anything is started: a stranger's `/readyz` must not be taken for our gateway's."""
        for option, port in (
            ("--port", self.port),
            ("--admin-port", self.admin_port),
            ("--sim-port", self.config.sim_port),
        ):
            try:
                _bind_as_a_server(port)
            except OSError as error:
                raise PortTaken(
                    f"Port {port} cannot be used ({error.strerror}): end the program that has it, or choose another "
                    f"port with {option}."
                ) from error

    def _environment(self) -> dict[str, str]:
        config, sim = self.config, self.sim
        slots = {} if config.slots is None else {"incoming_slots": config.slots, "outgoing_slots": config.slots}
        numbers = [
            slots
            | {
                "phone_number_id": number.phone_number_id,
                "phone_number": f"+{number.display_phone_number}",
                "name": number.verified_name,
            }
            for number in sim.config.numbers
        ]
        settings = {
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_ADMIN_PORT": str(self.admin_port),
            "GATEWAY_GRAPH_URL": f"{sim.url}/v26.0",
            "GATEWAY_APP_SECRET": sim.config.app_secret,
            "GATEWAY_VERIFY_TOKEN": sim.config.verify_token,
            "GATEWAY_ACCESS_TOKEN": sim.config.access_token,
            "GATEWAY_NUMBERS": json.dumps(numbers),
            **self._operators(),
            "GATEWAY_API_KEY": config.api_key,
            "GATEWAY_DATA_DIR": str(self.data_dir),
            # Any free ones: the default range may be in use by another gateway on this machine.
            "GATEWAY_MEDIA_PORTS": "0",
            # The simulated user's media is on loopback, which a gateway otherwise never sends to.
            "GATEWAY_META_CANDIDATE_NETWORKS": '["127.0.0.0/8"]',
        }
        if config.null_media:
            settings["GATEWAY_MEDIA_ENGINE"] = "null"
            settings |= NEVER_OVERLOADED
        ignored = () if config.inherits else inherited_settings(os.environ)
        inherited = {name: value for name, value in os.environ.items() if name not in ignored}
        return inherited | settings | dict(config.environment)

    def _operators(self) -> dict[str, str]:
        """Return the setting itself, or the path of a file with it if it is too long for the environment."""
        text, folder = json.dumps(dict(self.config.operators)), self.config.data_dir
        if len(text) <= _LONGEST_SETTING:
            return {"GATEWAY_OPERATORS": text}
        assert folder is not None, "so many operators need a data folder"
        file = folder / "operators.json"
        file.write_text(text, encoding="utf-8")
        return {"GATEWAY_OPERATORS_FILE": str(file)}

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        rest = b""
        while more := await process.stdout.read(1 << 16):  # many lines at once: under load they are thousands a second
            *lines, rest = (rest + more).split(b"\n")
            self.log += [line.decode(errors="replace").rstrip() for line in lines]
            del self.log[:-2_000]
        if rest:
            self.log.append(rest.decode(errors="replace").rstrip())
        self._log_read.set()

    async def _until_log_read(self) -> None:
        """Wait for the last log lines, but not long: a child of the gateway may hold the pipe open."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._log_read.wait()

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self.config.start_timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as http:
            while loop.time() < give_up_at:
                if process.returncode is not None:
                    raise self._died(f"it ended with exit code {process.returncode}")
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with http.get(f"{self.admin_url}/readyz") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.05)
        raise self._died(f"it was not ready within {self.config.start_timeout_s:.0f} s")

    def _died(self, what: str) -> GatewayDied:
        tail = "\n  ".join(self.log[-20:]) or "(no output)"
        return GatewayDied(f"The gateway could not be started: {what}. Its last log lines:\n  {tail}")

    async def until_gone(self) -> int:
        """Wait until the gateway process ends; return its exit code."""
        assert self.process is not None
        return await self.process.wait()

    async def close(self) -> None:
        """Stop the gateway without waiting for calls, then the simulator. Idempotent."""
        if self.process is not None:
            await self._stop(self.process)
            await self._until_log_read()
        await self._background.close()
        await self.sim.close()
        if self._own_folder is not None:
            self._own_folder.cleanup()

    @staticmethod
    async def _stop(process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGINT)  # the second one: do not wait for calls that are up
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def ended_with_us() -> Callable[[], None] | None:
    """Return what a child runs before it starts, so that it gets SIGTERM when we are gone, however we went.

    Without it a `kill -9` of us leaves a gateway that keeps the ports. Linux only; None elsewhere.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(1)

    return arm


def operators(count: int) -> dict[str, str]:
    """Return names and keys of so many operators."""
    return {f"op{number}": secrets.token_urlsafe(9) for number in range(count)}


def free_port(first: int | None = None) -> int:
    """Return a loopback TCP port that is free and outside the range from which the system assigns ports.

    `first` is tried before any other. Raises: OSError: none of a hundred ports was free.
    """
    if first is not None:
        with contextlib.suppress(OSError):
            _bind_as_a_server(first)
            return first
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no TCP port from {_PORTS.start} to {_PORTS.stop - 1} seems to be free")


def _bind_as_a_server(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
