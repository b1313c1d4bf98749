"""A whole gateway as its users run it, beside a simulated Meta: started, watched, stopped.

The gateway is a process of its own, given its settings by environment; nothing of it is imported. Used by `demo` and
by load runs.
"""

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from loadtest.meta_sim import MetaSim
from loadtest.sim_config import SimConfig

_ROOT: Final = Path(__file__).resolve().parent.parent
_STOP_S: Final = 15.0
_ASK_S: Final = 2.0
_PR_SET_PDEATHSIG: Final = 1


class GatewayDied(Exception):
    """The gateway process ended, or never served; the text ends with its last log lines."""


class PortTaken(Exception):
    """A port that we need is in use; the text says which, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """What to start. Port 0 picks a free one."""

    port: int = 8080
    admin_port: int = 9090
    sim_port: int = 8090
    data_dir: Path | None = None  #: None: the gateway's own default
    operators: Mapping[str, str] = field(default_factory=lambda: {"ana": secrets.token_urlsafe(9)})
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    environment: Mapping[str, str] = field(default_factory=dict)  #: further settings of the gateway
    start_timeout_s: float = 60.0


class Stack:
    """One gateway process and one simulated Meta. `start()` once, `close()` once."""

    def __init__(self, config: StackConfig | None = None) -> None:
        self.config = config or StackConfig()
        self.port = self.config.port or free_port()
        self.admin_port = self.config.admin_port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.sim = MetaSim(
            SimConfig(
                port=self.config.sim_port,
                callback_url=f"{self.url}/webhooks/meta",
                app_secret=secrets.token_urlsafe(24),
                verify_token=secrets.token_urlsafe(24),
                access_token=secrets.token_urlsafe(24),
            )
        )
        self.log: list[str] = []
        self.process: asyncio.subprocess.Process | None = None
        self._tasks = asyncio.TaskGroup()
        self._reader: asyncio.Task[None] | None = None

    async def start(self, progress: Callable[[str], None] = lambda step: None) -> None:
        """Start both and return when the gateway is ready. Raises: PortTaken, GatewayDied, OSError."""
        self._check_ports()
        progress("simulated Meta")
        await self.sim.start()
        progress("gateway, PostgreSQL and media worker")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway",
            "serve",
            cwd=_ROOT,
            env=os.environ | self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we tell it
            preexec_fn=_ended_with_us(),
        )
        await self._tasks.__aenter__()
        self._reader = self._tasks.create_task(self._read_log(self.process))
        await self._until_ready(self.process)

    def _check_ports(self) -> None:
        """Before anything is started: a stranger's `/readyz` must not be taken for our gateway's."""
        for option, port in (
            ("--port", self.port),
            ("--admin-port", self.admin_port),
            ("--sim-port", self.config.sim_port),
        ):
            try:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server binds
                    probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise PortTaken(
                    f"Port {port} cannot be used ({error.strerror}): end the program that has it, or choose another "
                    f"port with {option}."
                ) from error

    def _environment(self) -> dict[str, str]:
        config, sim = self.config, self.sim
        names = ",".join(f'"{name}": "{key}"' for name, key in config.operators.items())
        number = sim.config.numbers[0]
        settings = {
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_ADMIN_PORT": str(self.admin_port),
            "GATEWAY_GRAPH_URL": f"{sim.url}/v26.0",
            "GATEWAY_APP_SECRET": sim.config.app_secret,
            "GATEWAY_VERIFY_TOKEN": sim.config.verify_token,
            "GATEWAY_ACCESS_TOKEN": sim.config.access_token,
            "GATEWAY_PHONE_NUMBER_ID": number.phone_number_id,
            "GATEWAY_PHONE_NUMBER": f"+{number.display_phone_number}",
            "GATEWAY_NUMBER_NAME": number.verified_name,
            "GATEWAY_OPERATORS": "{" + names + "}",
            "GATEWAY_API_KEY": config.api_key,
            # The simulated user's media is on loopback, which a gateway otherwise never sends to.
            "GATEWAY_META_CANDIDATE_NETWORKS": '["127.0.0.0/8"]',
        }
        if config.data_dir is not None:
            settings["GATEWAY_DATA_DIR"] = str(config.data_dir)
        return settings | dict(config.environment)

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.log.append(line.decode(errors="replace").rstrip())
            del self.log[:-2_000]

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
        tail = "\n  ".join(self.log[-20:]) or "(it said nothing)"
        return GatewayDied(f"The gateway could not be started: {what}. Its last words:\n  {tail}")

    async def until_gone(self) -> int:
        """Wait until the gateway process ends; return its exit code."""
        assert self.process is not None
        return await self.process.wait()

    async def close(self) -> None:
        """Stop the gateway as an operator would, then the simulator. Safe to call twice."""
        if self.process is not None:
            await self._stop(self.process)
            if self._reader is not None:
                await self._reader
                self._reader = None
                await self._tasks.__aexit__(None, None, None)
        await self.sim.close()

    @staticmethod
    async def _stop(process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _ended_with_us() -> Callable[[], None] | None:
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


def free_port() -> int:
    """Return a TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
