"""The environments of peers are made once, whole or not at all."""

import asyncio
import contextlib
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.compare import environments
from loadtest.compare.contest import NotInstalled
from loadtest.compare.environments import interpreter

# Each environment takes seconds, whatever the loop.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder, and a place for requirements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "PEERS", tmp_path)
    return tmp_path / "cache" / "whatsapp-call-gateway" / "peers"


async def test_who_needs_nothing_runs_with_our_own_interpreter() -> None:
    assert await interpreter(None) == Path(sys.executable)


async def test_an_environment_is_made_once_for_each_set_of_pins(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("# nothing\n", encoding="utf-8")
    told: list[str] = []
    python = await interpreter("one.txt", told.append)
    assert python.is_file()
    assert python.is_relative_to(cache)
    assert told
    told.clear()
    assert (await interpreter("one.txt", told.append), told) == (python, [])
    (python.parent.parent / "made-from.txt").unlink()  # as a run leaves it that was stopped on the way
    assert await interpreter("one.txt", told.append) == python
    assert told


async def test_pins_that_cannot_be_had_are_said(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("./nothing_here-1.0-py3-none-any.whl\n", encoding="utf-8")
    with pytest.raises(NotInstalled, match=r"is a package index reachable\?\n  ERROR.*nothing_here"):
        await interpreter("two.txt")
    with pytest.raises(NotInstalled):  # what was begun does not count
        await interpreter("two.txt")


async def test_a_cache_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").touch()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(NotInstalled, match="cannot be written"):
        await interpreter("one.txt")


async def test_whoever_stops_an_installation_leaves_nothing_running(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    text = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.5):
            await environments.run_command(sys.executable, "-c", text, tell=lambda line: None)
    assert not psutil.pid_exists(int(pid_file.read_text()))
