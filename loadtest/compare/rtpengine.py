"""Debian's rtpengine for the comparison: found on this machine, or fetched.

It is never installed. If it is missing, its package and dependencies are unpacked into the cache folder, so that no
service is started and the system is not changed. It is run in `media_peers.py`.
"""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.compare.contest import NotInstalled, Tell
from loadtest.compare.environments import cache_folder, run_command

_PACKAGE: Final = "rtpengine-daemon"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Location of the program."""

    path: Path
    #: Folders of libraries that the system lacks.
    libraries: tuple[Path, ...] = ()


async def find_program(tell: Tell = lambda what: None) -> Program:
    """Return the system's rtpengine, or one fetched into the cache folder. Raises: NotInstalled."""
    found = shutil.which("rtpengine")
    if found is not None:
        return Program(path=Path(found))
    folder = cache_folder() / f"rtpengine-{platform.freedesktop_os_release().get('VERSION_ID', 'unknown')}"
    root = folder / "root"
    if not (folder / "done").is_file():
        await _fetch(folder, root, tell)
        (folder / "done").touch()
    return Program(
        path=root / "usr/bin/rtpengine", libraries=(*root.glob("usr/lib/*-linux-*"), *root.glob("lib/*-linux-*"))
    )


async def _fetch(folder: Path, root: Path, tell: Tell) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NotInstalled(f"rtpengine is not installed, and there is no apt-get to fetch Debian's {_PACKAGE} with")
    archives = _emptied(folder, "archives/partial", "root").parent
    options = ("-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1")
    await run_command(
        *("apt-get", "install", "--yes", "--no-install-recommends", "--download-only", *options, _PACKAGE), tell=tell
    )
    for package in sorted(archives.glob("*.deb")):
        await run_command("dpkg", "-x", str(package), str(root), tell=tell)


def _emptied(folder: Path, *inside: str) -> Path:
    """Recreate the folder with these subfolders; return the first of them. Raises: NotInstalled."""
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left behind by a run that was stopped
        for name in inside:
            (folder / name).mkdir(parents=True)
    except OSError as error:
        raise NotInstalled(f"{folder} cannot be written: {error.strerror}") from error
    return folder / inside[0]
