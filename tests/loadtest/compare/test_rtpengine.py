"""How rtpengine is found, and what is done where it is missing."""

import shutil
from pathlib import Path

import pytest

from loadtest.compare import rtpengine
from loadtest.compare.contest import NotInstalled
from loadtest.compare.rtpengine import Program, find_program


async def test_without_the_program_and_apt_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotInstalled, match="no apt-get"):
        await find_program()


async def test_the_systems_program_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert await find_program() == Program(path=Path("/usr/bin/rtpengine"))


async def test_what_was_fetched_is_unpacked_beside_the_system_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[tuple[str, ...]] = []

    async def run(*command: str, tell: object) -> None:
        ran.append(command)
        if command[0] == "apt-get":
            archives = next(part.partition("=")[2] for part in command if part.startswith("Dir::Cache::archives="))
            (Path(archives) / "one.deb").touch()
        else:
            (Path(command[-1]) / "lib" / "x86_64-linux-gnu").mkdir(parents=True)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "rtpengine" else f"/usr/bin/{name}")
    monkeypatch.setattr(rtpengine, "run_command", run)
    found = await find_program()
    assert await find_program() == found
    assert [command[0] for command in ran] == ["apt-get", "dpkg"]
    assert "--download-only" in ran[0]
    assert found.path.is_relative_to(tmp_path)
    assert [folder.name for folder in found.libraries] == ["x86_64-linux-gnu"]
