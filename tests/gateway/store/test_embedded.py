"""The embedded server: started, stopped without a trace, taken over, refused."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.common.errors import StoreError
from gateway.store import embedded
from gateway.store.embedded import EmbeddedServer, embedded_postgres, system_user
from gateway.store.store import PostgresStore
from tests.support.generators import records as make
from tests.support.generators.records import T0
from tests.support.harness.postgres import execute

#: The server's behaviour does not depend on the loop, and each test costs an initdb.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

CHILD = """
import asyncio, sys
from pathlib import Path
from gateway.store.embedded import embedded_postgres
async def main():
    async with embedded_postgres(Path(sys.argv[1])) as dsn:
        print(dsn, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    give_up_at = time.perf_counter() + timeout_s
    while not condition():
        assert time.perf_counter() < give_up_at, "waited in vain"
        time.sleep(0.01)


def servers_of(folder: Path) -> list[int]:
    """Look for processes, not for files: whoever works for this folder, zombies left out."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text(errors="replace")
            working = os.readlink(entry / "cwd")
        except OSError:
            continue
        if str(folder) in working or ("postgres\0" in command and str(folder) in command):
            pids.append(int(entry.name))
    return pids


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    data = tmp_path / "data dir"  # with a blank, on purpose
    yield data
    assert servers_of(data) == []


@pytest.fixture
def deep(folder: Path) -> Path:
    """A data folder whose path is too long for a socket."""
    return folder / ("d" * 60) / ("e" * 60)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder, for once nobody else's: what is in there is ours, and in the end nothing is."""
    with tempfile.TemporaryDirectory() as own:
        os.chmod(own, 0o711)  # the server may be another user's
        monkeypatch.setattr(tempfile, "tempdir", own)
        monkeypatch.setenv("TMPDIR", own)
        yield Path(own)
        assert os.listdir(own) == []


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that PostgreSQL takes for the old server if it has its number: of the same user, and no parent."""
    user = system_user().pw_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as process:
        yield process.pid
        process.kill()


@pytest.fixture(params=["number gone", "number lives on"])
def now_is(request: pytest.FixtureRequest, stranger: int) -> int | None:
    """Who has the number of a server that was killed, see `kill`."""
    return stranger if request.param == "number lives on" else None


def start_child(folder: Path) -> "subprocess.Popen[str]":
    """Another gateway process."""
    root = Path(embedded.__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("postgresql://")
    return child


def end_child(child: "subprocess.Popen[str]", number: signal.Signals) -> None:
    child.send_signal(number)
    child.wait(10)
    assert child.stdout is not None
    child.stdout.close()


def kill(pid: int | None, data: Path, *, now_is: int | None = None) -> None:
    """Kill a server; `now_is` is the process that gets its number, as the locks that it left say."""
    assert pid is not None
    lock = data / "postgres" / "postmaster.pid"
    socket_lock = Path(lock.read_text().splitlines()[4]) / ".s.PGSQL.5432.lock"
    left = {file: file.read_text() for file in (lock, socket_lock)}
    os.kill(pid, signal.SIGKILL)
    if now_is is not None:
        for file, text in left.items():
            file.write_text(text.replace(str(pid), str(now_is), 1))


def kill_and_wait(server: EmbeddedServer, data: Path, *, now_is: int | None = None) -> None:
    """Kill the server and wait until it was started again."""
    first = server.pid
    kill(first, data, now_is=now_is)
    wait_for(lambda: server.pid not in (None, first), timeout_s=10)
    wait_for(lambda: (data / "postgres" / "postmaster.pid").read_text().endswith("ready   \n"))


async def test_a_restart_finds_the_data_and_a_stop_leaves_no_process(folder: Path) -> None:
    async with embedded_postgres(folder) as dsn:
        assert servers_of(folder)
        store = PostgresStore(dsn)
        await store.start()
        await store.write(make.event("k"))
        await store.aclose()
    assert servers_of(folder) == []

    started = time.perf_counter()
    async with embedded_postgres(folder) as dsn:
        assert time.perf_counter() - started < 1.0
        store = PostgresStore(dsn)
        await store.start()
        assert await store.recent_event_keys(T0) == {"k"}
        await store.aclose()


async def test_the_server_is_tuned_durable_and_reachable_by_us_only(folder: Path) -> None:
    async with embedded_postgres(folder) as dsn:
        found = await execute(dsn, "select name, current_setting(name) as value from pg_settings")
        settings = {row["name"]: row["value"] for row in found}
        assert settings["listen_addresses"] == ""
        assert (settings["max_connections"], settings["shared_buffers"]) == ("50", "128MB")
        assert (settings["fsync"], settings["full_page_writes"]) == ("on", "on")
        assert (settings["server_encoding"], settings["TimeZone"]) == ("UTF8", "UTC")
        socket_dir = Path(settings["unix_socket_directories"].strip('"'))
        assert os.stat(socket_dir).st_mode & 0o077 == 0
        assert f"host={str(socket_dir).replace(' ', '%20')}" in dsn


async def test_a_server_that_a_killed_gateway_left_is_taken_over_and_stopped(folder: Path) -> None:
    child = start_child(folder)
    end_child(child, signal.SIGKILL)
    left = EmbeddedServer(folder).pid
    assert left is not None
    async with embedded_postgres(folder) as dsn:
        assert EmbeddedServer(folder).pid == left
        assert (await execute(dsn, "select 1"))[0][0] == 1
    assert servers_of(folder) == []


async def test_a_folder_in_use_is_refused_and_its_server_left_alone(folder: Path) -> None:
    child = start_child(folder)
    try:
        with pytest.raises(StoreError, match=f"in use by another gateway .process {child.pid}"):
            async with embedded_postgres(folder):
                pass
        assert EmbeddedServer(folder).pid is not None
    finally:
        end_child(child, signal.SIGINT)
    assert servers_of(folder) == []


async def test_a_killed_server_is_started_again_even_if_its_number_lives_on(folder: Path, stranger: int) -> None:
    restarts: list[int] = []
    server = EmbeddedServer(folder, on_restart=lambda: restarts.append(1))
    try:
        await asyncio.to_thread(server.start)
        assert not restarts
        await asyncio.to_thread(kill_and_wait, server, folder, now_is=stranger)
        assert (await execute(server.dsn_of("postgres"), "select 1"))[0][0] == 1
        await asyncio.to_thread(wait_for, lambda: restarts == [1])
    finally:
        await asyncio.to_thread(server.stop)


class Pauses:
    """Stands in for the event that ends the watch: notes each pause, and ends it after so many."""

    def __init__(self, turns: int) -> None:
        self.waited: list[float] = []
        self._turns = turns

    def wait(self, pause_s: float) -> bool:
        self.waited.append(pause_s)
        return len(self.waited) > self._turns

    def is_set(self) -> bool:
        return False


@pytest.mark.parametrize("error", [StoreError("no"), OSError("no")])
async def test_a_server_that_cannot_be_started_is_tried_again_with_growing_pauses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    server, pauses = EmbeddedServer(folder), Pauses(8)
    tries: list[int] = []

    def run_server(self: EmbeddedServer) -> None:
        tries.append(1)
        if len(tries) <= 7:
            raise error

    monkeypatch.setattr(EmbeddedServer, "_run_server", run_server)
    monkeypatch.setattr(server, "_ending", pauses)
    server._watch()
    assert pauses.waited == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert len(tries) == 8


async def test_a_start_that_is_cancelled_leaves_no_server(folder: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(0.05), embedded_postgres(folder):
            pass

    with pytest.raises(TimeoutError):
        await run()
    assert servers_of(folder) == []
    async with embedded_postgres(folder) as dsn:
        assert (await execute(dsn, "select 1"))[0][0] == 1


async def test_an_error_inside_stops_the_server_and_passes(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with embedded_postgres(folder):
            raise ZeroDivisionError
    assert servers_of(folder) == []


async def test_a_folder_too_deep_for_a_socket_works(deep: Path, temporary: Path) -> None:
    async with embedded_postgres(deep) as dsn:
        assert (await execute(dsn, "select 1"))[0][0] == 1
        (name,) = os.listdir(temporary)
        assert os.stat(temporary / name).st_mode & 0o077 == 0
        assert f"host={temporary / name}&" in dsn


async def test_a_killed_server_of_a_folder_too_deep_is_found_where_it_was(
    deep: Path, temporary: Path, now_is: int | None
) -> None:
    async with embedded_postgres(deep) as dsn:
        for _ in range(2):
            await asyncio.to_thread(kill_and_wait, EmbeddedServer(deep), deep, now_is=now_is)
            assert (await execute(dsn, "select 1"))[0][0] == 1
            assert len(os.listdir(temporary)) == 1


async def test_the_socket_folder_of_a_gateway_and_a_server_that_were_killed_is_removed(
    deep: Path, temporary: Path, now_is: int | None
) -> None:
    end_child(start_child(deep), signal.SIGKILL)
    (left,) = os.listdir(temporary)
    kill(EmbeddedServer(deep).pid, deep, now_is=now_is)
    async with embedded_postgres(deep) as dsn:
        assert (await execute(dsn, "select 1"))[0][0] == 1
        (fresh,) = os.listdir(temporary)
        assert fresh != left


async def test_a_server_taken_over_in_a_folder_too_deep_is_found_where_it_was(deep: Path, temporary: Path) -> None:
    end_child(start_child(deep), signal.SIGKILL)
    (left,) = os.listdir(temporary)
    async with embedded_postgres(deep) as dsn:
        assert f"host={temporary / left}&" in dsn
        await asyncio.to_thread(kill_and_wait, EmbeddedServer(deep), deep)
        assert (await execute(dsn, "select 1"))[0][0] == 1
        assert os.listdir(temporary) == [left]


async def test_a_folder_of_another_version_is_refused(folder: Path) -> None:
    pgdata = folder / "postgres"
    pgdata.mkdir(parents=True)
    (pgdata / "PG_VERSION").write_text("16\n")
    with pytest.raises(StoreError, match=r"PostgreSQL 16, .* has 18"):
        async with embedded_postgres(folder):
            pass


async def test_a_folder_that_holds_something_else_is_refused_and_kept(folder: Path) -> None:
    pgdata = folder / "postgres"
    pgdata.mkdir(parents=True)
    (pgdata / "holiday.jpg").write_text("")
    with pytest.raises(StoreError, match="not a PostgreSQL data folder"):
        async with embedded_postgres(folder):
            pass
    assert (pgdata / "holiday.jpg").exists()


async def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        async with embedded_postgres(tmp_path / "file" / "data"):
            pass


async def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with embedded_postgres(folder):
        pass
    owner = (folder / "postgres").stat().st_uid
    monkeypatch.setattr(EmbeddedServer, "_owner_uid", lambda self: owner + 1)
    with pytest.raises(StoreError, match="belongs to another user"):
        async with embedded_postgres(folder):
            pass


async def test_a_start_that_postgres_refuses_shows_the_end_of_its_log(folder: Path) -> None:
    server = EmbeddedServer(folder, settings={"shared_buffers": "nonsense"})
    try:
        with pytest.raises(StoreError, match="shared_buffers"):
            await asyncio.to_thread(server.start)
    finally:
        await asyncio.to_thread(server.stop)


async def test_stop_without_start_and_twice_is_harmless(folder: Path) -> None:
    server = EmbeddedServer(folder)
    server.stop()
    server.stop()
    server.start()  # after a stop: nothing
    assert server.pid is None


async def test_a_server_that_does_not_stop_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedServer(folder)
    server.start()
    pid = server.pid
    assert pid is not None
    monkeypatch.setattr(embedded, "_STOP_TIMEOUT_S", 0.05)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError, match=f"process {pid}. does not stop"):
            server.stop()
    finally:
        os.kill(pid, signal.SIGKILL)
    async with embedded_postgres(folder) as dsn:
        assert (await execute(dsn, "select 1"))[0][0] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs its server as another user")
async def test_as_root_the_folders_above_become_passable_but_not_readable(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    async with embedded_postgres(private / "data"):
        pass
    assert private.stat().st_mode & 0o777 == 0o701
    assert (private / "data" / "postgres").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs its server as another user")
async def test_as_root_a_server_whose_folder_somebody_shuts_is_started_again_and_stopped(folder: Path) -> None:
    restarted = threading.Event()
    async with embedded_postgres(folder, on_restart=restarted.set) as dsn:
        os.chmod(folder, 0o700)
        kill(EmbeddedServer(folder).pid, folder)
        assert await asyncio.to_thread(restarted.wait, 10)
        assert (await execute(dsn, "select 1"))[0][0] == 1
        os.chmod(folder, 0o700)
    assert servers_of(folder) == []
