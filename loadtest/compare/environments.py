"""The Python environments of the peers: each has its own in a cache folder, made on first use.

Running something in them is left to `peers.py`.
"""

import asyncio
import contextlib
import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Final

from loadtest.compare.contest import NotInstalled, Tell

PEERS: Final = Path(__file__).resolve().parent / "programs"
#: Written last: an environment without this file is incomplete.
_DONE: Final = "made-from.txt"
_LAST_LINES: Final = 5
_END_S: Final = 5.0


def cache_folder() -> Path:
    """Return the folder that holds the environments."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "whatsapp-call-gateway" / "peers"


async def interpreter(requirements: str | None, tell: Tell = lambda what: None) -> Path:
    """Return the Python of the environment with these requirements, a file in `programs`; our own if there are none.

    Raises: NotInstalled.
    """
    if requirements is None:
        return Path(sys.executable)
    wanted = (PEERS / requirements).read_bytes()
    # Other pins or another Python give another environment; an existing one is never changed.
    digest = hashlib.sha256(wanted + platform.python_version().encode()).hexdigest()[:12]
    folder = cache_folder() / f"{Path(requirements).stem}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / _DONE).is_file():
        try:
            shutil.rmtree(folder, ignore_errors=True)  # left behind by a run that was stopped
            folder.parent.mkdir(parents=True, exist_ok=True)
            tell("making an environment")
            await run_command(sys.executable, "-m", "venv", "--without-pip", str(folder), tell=tell)
            ours = (sys.executable, "-m", "pip", "--python", str(python), "--no-input", "--disable-pip-version-check")
            await run_command(*ours, "install", "-r", str(PEERS / requirements), tell=tell)
            (folder / _DONE).write_bytes(wanted)
        except OSError as error:
            raise NotInstalled(f"{folder} cannot be written: {error.strerror}") from error
    return python


async def run_command(*command: str, tell: Tell) -> None:
    """Run a command to its end and report its output line by line. Raises: NotInstalled."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
        start_new_session=True,  # Ctrl-C is handled here; the child is told by us
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async for raw in process.stdout:
            line = raw.decode(errors="replace").strip()
            lines.append(line)
            tell(line)
        if await process.wait():
            said = [line for line in lines if line.startswith("ERROR")] or lines
            last = "".join(f"\n  {line}" for line in said[-_LAST_LINES:])
            raise NotInstalled(f"it cannot be fetched; is a package index reachable?{last}")
    finally:
        await end_process(process)


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Stop a process: first with a request, then at once. Does nothing if it has ended."""
    for end in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await process.wait()
                return
