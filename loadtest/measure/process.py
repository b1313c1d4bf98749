"""The gateway's process seen from outside, twice a second: CPU, memory, descriptors, tasks, event-loop lag.

Reads `/proc` (Linux) and the gateway's `/metrics`; also pins processes to cores.
"""

import asyncio
import contextlib
import math
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from loadtest.common.background import Background
from loadtest.measure.results import Sample
from loadtest.measure.stack import Stack

_EVERY_S: Final = 0.5
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LE: Final = re.compile(r'le="([^"]+)"')
_TCP_LISTEN: Final = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """CPU time used so far, in seconds, by each of the three."""

    gateway_s: float
    database_s: float
    generator_s: float


def cpu_s(pid: int, *, ended_children: bool = False) -> float:
    """Return user and system time of a process, optionally with its ended children. Raises: OSError."""
    # The name, in brackets, may contain spaces and brackets; utime and stime are fields 14 and 15 of proc(5), those of
    # ended children 16 and 17.
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return sum(map(int, after_name[11 : 15 if ended_children else 13])) / _TICKS


def busy_s(pid: int) -> float:
    """Return the CPU time of a process's living threads, in nanoseconds if the kernel provides them. Raises: OSError.

    For short spans, for which `cpu_s` with its hundredths of a second is too coarse.
    """
    if not Path(f"/proc/{pid}/schedstat").exists():
        return cpu_s(pid)
    spent_ns = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):  # the thread has just ended
            stat = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="ascii")
            spent_ns += int(stat.split()[0])
    return spent_ns / 1e9


def machine_busy_s() -> float:
    """Return the CPU time of all processes of this machine, and that stolen by other machines. Raises: OSError."""
    # user nice system idle iowait irq softirq steal: proc(5)
    spent = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
    return (sum(spent) - spent[3] - spent[4]) / _TICKS


def rss_bytes(pid: int) -> int:
    """Return the resident memory (RSS). Raises: OSError."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


def own_bytes(pid: int) -> int:
    """Return the memory that is private to this process. Raises: OSError."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith(("Private_Clean:", "Private_Dirty:")))


def descriptors(pid: int) -> int:
    """Return the number of open descriptors. Raises: OSError."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def accepted_sockets(pid: int, ports: tuple[int, ...]) -> int:
    """Return the number of open connections that were accepted on these ports. Raises: OSError."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = row.split()
            if int(fields[1].rpartition(":")[2], 16) in ports and fields[3] != _TCP_LISTEN:
                inodes.add(f"socket:[{fields[9]}]")
    return sum(link in inodes for link in _links(pid))


def _links(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def children(pid: int) -> list[int]:
    """Return the child processes of a process; none if it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii").split())
    return found


def postmaster(data_dir: Path) -> int | None:
    """Return the pid of the gateway's embedded PostgreSQL; None if it is not running."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        folder = data_dir / "postgres"
        pid = int((folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
        # The pid may have been reused by another program in the meantime.
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def _database(stack: Stack) -> tuple[int, ...]:
    """Return the processes of the gateway's embedded PostgreSQL."""
    first = postmaster(stack.config.data_dir) if stack.config.data_dir else None
    return () if first is None else (first, *children(first))


def cpu_now(stack: Stack) -> Cpu:
    """Read all three. Raises: OSError."""
    database_s = 0.0
    for pid in _database(stack):
        with contextlib.suppress(OSError):
            database_s += cpu_s(pid, ended_children=True)
    return Cpu(gateway_s=cpu_s(stack.gateway_pid), database_s=database_s, generator_s=cpu_s(os.getpid()))


def total(figures: Mapping[str, float], name: str) -> float:
    """Return the sum of a metric over its labels."""
    return sum(value for series, value in figures.items() if series == name or series.startswith(name + "{"))


# --- event-loop lag ----------------------------------------------------------------------------------


def lag_buckets(figures: Mapping[str, float]) -> dict[float, float]:
    """Return the cumulative counts of event-loop lag, by bucket bound in seconds."""
    name = "wacg_loop_delay_seconds_bucket"
    rows = {_LE.search(series): value for series, value in figures.items() if series.startswith(name)}
    return {float(match[1]): value for match, value in rows.items() if match}


def lag_share_ms(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float | None:
    """Return the bound in ms that this share of the lags in between did not exceed; None if there were none."""
    added = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    if not added or not (everything := max(added.values())):
        return None
    bound = min(bound for bound, count in added.items() if count >= share * everything)
    # Above the histogram's last bound only that bound is known.
    return 1_000 * min(bound, max((one for one in added if math.isfinite(one)), default=0.0))


# --- sampling ----------------------------------------------------------------------------------------


class Sampler:
    """Sample a gateway until stopped; the results are in `samples`."""

    def __init__(self, stack: Stack, samples: list[Sample]) -> None:
        self.samples = samples
        self._stack = stack
        self._began_at = asyncio.get_running_loop().time()

    async def look(self) -> Sample | None:
        """Take one sample; None if the process has ended."""
        figures: dict[str, float] = {}
        with contextlib.suppress(aiohttp.ClientError, OSError):
            figures = await self._stack.metrics()
        pid = self._stack.gateway_pid
        lag_s = figures.get("wacg_loop_lag_seconds")
        try:
            sample = Sample(
                at_s=round(asyncio.get_running_loop().time() - self._began_at, 3),
                cpu_s=cpu_s(pid),
                rss_bytes=rss_bytes(pid),
                descriptors=descriptors(pid),
                tasks=int(figures["wacg_tasks"]) if "wacg_tasks" in figures else None,
                lag_ms=None if lag_s is None else 1_000 * lag_s,
                live=int(total(figures, "wacg_calls_active")) if figures else None,
            )
        except OSError:
            return None
        self.samples.append(sample)
        return sample

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)


@asynccontextmanager
async def sampling(stack: Stack, samples: list[Sample]) -> AsyncIterator[None]:
    """Sample in the background while the block runs."""
    background = Background("sampler")
    await background.start()
    background.spawn(Sampler(stack, samples).run(), "sampling")
    try:
        yield
    finally:
        await background.close()


# --- cores -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Assignment of processes to cores; empty: the system decides."""

    generator: frozenset[int]
    gateway: frozenset[int]

    @property
    def said(self) -> str:
        """One sentence for the report."""
        if not self.gateway:
            return "not pinned: there is only one core, or the system does not support it"
        return f"generator and PostgreSQL on core {_listed(self.generator)}, gateway on core {_listed(self.gateway)}"


def _listed(cores: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cores)))


def divide_cores() -> Cores:
    """Assign the first usable core to the generator and the second one to the gateway."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(usable) < 2:
        return Cores(generator=frozenset(), gateway=frozenset())
    return Cores(generator=frozenset(usable[:1]), gateway=frozenset(usable[1:2]))


def pin(pid: int, cores: frozenset[int]) -> None:
    """Restrict a process with all its threads to these cores; existing children keep theirs. Raises: OSError."""
    if not cores:
        return
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


def pin_database(stack: Stack, cores: frozenset[int]) -> None:
    """Restrict the gateway's PostgreSQL, and the processes it will start, to cores that the gateway does not use."""
    for pid in _database(stack):
        with contextlib.suppress(FileNotFoundError):  # the process has just ended
            pin(pid, cores)
