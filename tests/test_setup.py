"""A fresh machine can be set up, next year too: what is imported is named, and the lock files are complete.

What is complete needs no search: `pip install --no-deps` does, and a version that comes out later changes nothing.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMED: Final = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
NAMED_FOR_TESTS: Final = [Requirement(line) for line in PROJECT["dependency-groups"]["dev"]]

LOCKS: Final = ("requirements.txt", "requirements-dev.txt")
OURS: Final = ("gateway", "media", "policy", "loadtest", "tests")
#: Imported only by programs that `compare` runs in environments of their own.
PROGRAMS: Final = ROOT / "loadtest" / "compare" / "programs"
PEERS: Final = {"fastapi", "loguru", "pipecat", "pywa", "pywa_async", "uvicorn"}

#: The oldest pip supported: 23.0, which Debian 12 brings with 3.11; later Pythons cannot run it, and bring these.
OLDEST_PIP: Final = {(3, 11): "23.0", (3, 12): "23.2.1", (3, 13): "24.2", (3, 14): "25.2"}
TODAYS_PIP: Final = "26.3"
#: Of a release that comes out after the lock was written.
NEXT_YEAR: Final = "9999"


def read_lock(name: str) -> dict[str, Requirement]:
    """What a lock file names for this Python and system, by canonical name."""
    lines = (ROOT / "deploy" / name).read_text(encoding="utf-8").splitlines()
    entries = [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"[a-zA-Z0-9]", line)]
    return {canonicalize_name(one.name): one for one in entries if one.marker is None or one.marker.evaluate()}


def needs_of(entry: Requirement) -> Iterator[Requirement]:
    """What an installed distribution requires of others, with the extras that the lock takes of it."""
    for line in requires(entry.name) or ():
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *entry.extras)):
            yield need


def imports_below(folder: str) -> Iterator[tuple[str, Path]]:
    """Yield the first word of every import that is neither ours nor Python's, with the file."""
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                first = module.partition(".")[0]
                if first not in sys.stdlib_module_names and first not in OURS:
                    yield first, file


distributions_of_modules = cache(packages_distributions)


@pytest.mark.parametrize("folder", OURS)
def test_what_is_imported_is_named(folder: str) -> None:
    named = {canonicalize_name(one.name) for one in (NAMED + NAMED_FOR_TESTS if folder == "tests" else NAMED)}
    installed = distributions_of_modules()
    for module, file in imports_below(folder):
        if module in PEERS and file.is_relative_to(PROGRAMS):
            continue
        distributions = {canonicalize_name(name) for name in installed.get(module, ())}
        assert distributions & named, f"{file.relative_to(ROOT)} imports {module}, which pyproject.toml does not name"


def test_what_is_named_is_pinned_and_locked_in_that_version() -> None:
    run, dev = (read_lock(name) for name in LOCKS)
    for named, locks in ((NAMED, (run, dev)), (NAMED_FOR_TESTS, (dev,))):
        for one in named:
            assert re.fullmatch(r"==[\w.]+", str(one.specifier)), one
            assert [lock[canonicalize_name(one.name)].specifier for lock in locks] == [one.specifier] * len(locks)


def test_the_tests_run_with_the_versions_that_users_get() -> None:
    run, dev = (read_lock(name) for name in LOCKS)
    for name, entry in run.items():
        assert dev[name].specifier == entry.specifier
        assert version(name) in entry.specifier


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_all_that_its_packages_require_extras_too(name: str) -> None:
    lock = read_lock(name)
    for entry in lock.values():
        for need in needs_of(entry):
            found = lock.get(canonicalize_name(need.name))
            assert found is not None, f"{entry.name} requires {need}, which {name} does not have"
            assert need.extras <= found.extras, f"{entry.name} requires {need}, {name} has {found}: run make lock"
            assert version(need.name) in need.specifier, f"{entry.name} requires {need}, {name} has {found}"


@pytest.mark.timeout(600)
def test_both_locks_install_with_the_oldest_pip_when_everything_has_newer_releases() -> None:
    """Fetch the wheels once, with today's pip, and add a newer release of each; then install with the oldest pip.

    With its resolver on: it refuses what the lock does not pin, where `--no-deps`, as the Makefile has it, would look
    away. Reading the registry's pages is what costs most, and the old pip's way of it three times as much: from a
    folder it installs both in the time that it would need to read the pages for one.
    """
    oldest = OLDEST_PIP[sys.version_info[:2]]
    with tempfile.TemporaryDirectory(prefix="setup-") as folder:
        wheels, empty = Path(folder, "wheels"), ("-m", "venv", "--without-pip")
        fetch = ("--disable-pip-version-check", "--quiet", "--retries", "1", "--timeout", "15")
        from_registry("install", *fetch, "--no-deps", "--target", f"{folder}/today", f"pip=={TODAYS_PIP}")
        from_registry(
            *("download", *fetch, "--no-deps", "--only-binary", ":all:", "--require-hashes"),
            *("--dest", str(wheels), "--requirement", f"{ROOT}/deploy/{LOCKS[1]}"),
            pip=f"{folder}/today",
        )
        from_registry(
            "install", *fetch, "--no-deps", "--target", f"{folder}/oldest", f"pip=={oldest}", pip=f"{folder}/today"
        )
        for name in read_lock(LOCKS[1]):
            add_newer_release(wheels, name)
        for name in LOCKS:
            python, pip = f"{folder}/{name}/bin/python", f"{folder}/oldest"
            run(sys.executable, *empty, f"{folder}/{name}")
            assert run(python, "-m", "pip", "--version", pip=pip).startswith(f"pip {oldest} ")
            run(
                *(python, "-m", "pip", "install", "--quiet", "--no-compile", "--no-index", "--find-links", str(wheels)),
                *("--require-hashes", "--requirement", f"{ROOT}/deploy/{name}"),
                pip=pip,
            )
            assert run(python, "-m", "pip", "check", pip=pip) == "No broken requirements found.\n"
            listed = json.loads(run(python, "-m", "pip", "list", "--format", "json", pip=pip))
            installed = {canonicalize_name(one["name"]): one["version"] for one in listed if one["name"] != "pip"}
            locked = {key: str(entry.specifier).removeprefix("==") for key, entry in read_lock(name).items()}
            assert installed == locked


def add_newer_release(wheels: Path, name: str) -> None:
    """Put a wheel without content beside the real one."""
    stem = f"{name.replace('-', '_')}-{NEXT_YEAR}"
    with zipfile.ZipFile(wheels / f"{stem}-py3-none-any.whl", "w") as wheel:
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {NEXT_YEAR}\n"
        wheel.writestr(f"{stem}.dist-info/METADATA", about)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def from_registry(*arguments: str, pip: str | None = None) -> None:
    """Let pip fetch something, as the machine is set up to: with its own index, proxy and certificates."""
    environment = {**os.environ, "PYTHONPATH": pip or ""}
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode:
        pytest.fail(f"This test needs the package registry, and pip could not fetch from there:\n{done.stderr}")


def run(*command: str, pip: str = "") -> str:
    """Run a command without the machine's settings of pip; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment |= {"PYTHONPATH": pip, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert not done.returncode, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
