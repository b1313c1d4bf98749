"""The wheel holds what the program needs when it runs, and nothing that belongs to a checkout only."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "media", "policy", "loadtest")
#: Installs other programs and runs them, which is nothing for an installation.
LEFT_OUT = "loadtest/compare/"

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, as `pip install .` does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    """Unpack the wheel into a folder of its own, as an installation does."""
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_of(folder: Path) -> set[str]:
    """Return the files below a folder, without what Python compiled and what only metadata is."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts and ".dist-info" not in path.parts[0]}


def metadata_of(unpacked: Path) -> Message:
    (folder,) = unpacked.glob("*.dist-info")
    return message_from_bytes((folder / "METADATA").read_bytes())


def run(unpacked: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the unpacked wheel: the folder in which Python starts comes before the checkout."""
    return subprocess.run([sys.executable, "-m", *command], cwd=unpacked, check=False, capture_output=True, text=True)


def test_every_file_of_the_packages_is_in_it_but_the_comparison(unpacked: Path) -> None:
    there = {f"{name}/{file}" for name in PACKAGES for file in files_of(ROOT / name)}
    wanted = {file for file in there if not file.startswith(LEFT_OUT)}
    assert files_of(unpacked) == wanted
    assert len(wanted) < len(there)


@pytest.mark.parametrize(
    "file",
    [
        *(f"{name}/py.typed" for name in PACKAGES),
        "gateway/softphone/page/index.html",
        "gateway/softphone/page/strings.pt-BR.json",
        "gateway/store/sql/queries.sql",
        "gateway/store/sql/migrations/0001_initial.sql",
        "policy/packs/guide.toml",
        "loadtest/simulator/page/index.html",
    ],
)
def test_what_is_read_at_run_time_is_in_it(unpacked: Path, file: str) -> None:
    assert (unpacked / file).is_file()


def test_it_says_its_licence_and_brings_it(unpacked: Path) -> None:
    metadata = metadata_of(unpacked)
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    (licence,) = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_its_description_is_the_readme(unpacked: Path) -> None:
    described = metadata_of(unpacked).get_payload(decode=True)
    assert described == (ROOT / "README.md").read_bytes()


def test_without_the_comparison_its_commands_say_what_to_do(unpacked: Path) -> None:
    (unpacked / "compare.json").write_text('{"scores": []}', encoding="utf-8")
    for command in (["compare"], ["report", "compare.json"]):
        done = run(unpacked, "loadtest", *command)
        said = "The comparison is not installed: run this in a checkout of the repository.\n"
        assert (done.returncode, done.stderr) == (2, said)


def test_the_gateway_starts_from_it(unpacked: Path) -> None:
    done = run(unpacked, "gateway", "version")
    assert done.returncode == 0, done.stderr
    assert metadata_of(unpacked)["Version"] in done.stdout
