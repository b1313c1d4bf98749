"""What the pages state is what the repository holds: settings, rules, commands, files and links."""

import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

import gateway.__main__
import loadtest.__main__
from gateway.config.loading import load
from gateway.config.settings import settings_table
from loadtest.simulator.config import SimConfig
from policy.pack import Pack, load_pack

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".github", "deploy", "gateway", "loadtest", "media", "policy", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
PROGRAMS = {"gateway": gateway.__main__.app, "loadtest": loadtest.__main__.app}

#: Folders of what tests share.
SUPPORT = ("fakes", "harness", "generators")
README_LINES = 150
PICTURE_BYTES = 150_000
#: Files that a run or a user makes, and beginnings of the names of rules.
NOT_OURS = re.compile(r"\.(load|chaos|compare)/|(\./)?(gateway|rules)\.toml$|(contact|request)/$|[~/]")
ENDINGS = r"(?:py|toml|sql|md|js|json|css|html|txt|sh|sdp|yaml|yml)"


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> Iterator[str]:
    """Yield the lines and spans of a page that are code."""
    text = text_of(page)
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def is_there(name: str, page: Path) -> bool:
    """Tell whether a file, a folder or a pattern is in the repository; a bare name may be anywhere beside the page."""
    if "/" not in name and page.parent != ROOT and next(page.parent.rglob(name), None) is not None:
        return True
    return any(next(base.glob(name), None) is not None for base in (ROOT, page.parent))


# --- every page ----------------------------------------------------------------------------------


def test_there_is_a_page_in_each_place() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    places = ("gateway", "policy", "loadtest", "tests", "deploy", *(f"tests/support/{one}" for one in SUPPORT))
    assert {"README.md", *(f"{place}/README.md" for place in places)} <= names
    assert {".github/SECURITY.md", ".github/CONTRIBUTING.md", "deploy/CHANGELOG.md"} <= names


@EACH_PAGE
def test_every_make_target_that_a_page_names_is_there(page: Path) -> None:
    makefile = text_of(ROOT / "Makefile")
    for line in code_of(page):
        for target in re.findall(r"(?:^|&& )make ([a-z-]+)", line):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line


@EACH_PAGE
def test_every_command_that_a_page_names_is_there_with_its_options(page: Path) -> None:
    for line in code_of(page):
        found = re.search(r"(?:python -m |^)(gateway|loadtest) ([a-z]+)( [^|]*)?$", line.split("#")[0].rstrip())
        if found is None:
            continue
        commands = getattr(get_command(PROGRAMS[found[1]]), "commands", {})
        assert found[2] in commands, line
        options = {name for parameter in commands[found[2]].params for name in parameter.opts}
        for word in shlex.split(found[3] or ""):
            assert not word.startswith("--") or word in options, line


@EACH_PAGE
def test_every_file_and_folder_that_a_page_names_is_there(page: Path) -> None:
    for span in code_of(page):
        if not NOT_OURS.match(span) and re.fullmatch(rf"[\w./*-]+(?:\.{ENDINGS}|/)", span):
            assert is_there(span, page), span


@EACH_PAGE
def test_every_link_of_a_page_leads_to_a_file_or_a_heading_here(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        assert not heading or heading in headings(file), target


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


# --- the first page ------------------------------------------------------------------------------


def test_the_readme_is_short_and_has_a_picture() -> None:
    readme = text_of(ROOT / "README.md")
    assert len(readme.splitlines()) <= README_LINES
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", readme)
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < PICTURE_BYTES


def test_the_readme_leads_to_every_page_but_those_of_the_tests_support() -> None:
    linked = {ROOT / target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text_of(ROOT / "README.md"))}
    assert {page for page in PAGES if page.name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")} <= {
        *linked,
        ROOT / "README.md",
        *(ROOT / "tests" / "support" / folder / "README.md" for folder in SUPPORT),
    }


# --- what tests share ----------------------------------------------------------------------------


@pytest.mark.parametrize("folder", SUPPORT)
def test_the_page_of_each_support_folder_names_all_its_modules(folder: str) -> None:
    page = ROOT / "tests" / "support" / folder / "README.md"
    there = {file.name for file in page.parent.glob("*.py")}
    assert there <= set(re.findall(r"`(\w+\.py)`", text_of(page)))


def test_the_chaos_rows_of_the_page_are_all_there_are() -> None:
    there = {int(file.name[9:11]) for file in (ROOT / "tests" / "chaos").glob("test_row_*.py")}
    rows: set[int] = set()
    for first, last in re.findall(r"^\| (\d+)-(\d+) \|", text_of(ROOT / "tests" / "README.md"), re.MULTILINE):
        rows |= set(range(int(first), int(last) + 1))
    assert rows - there == {25}
    assert there <= rows


def test_the_values_to_develop_with_are_the_simulators() -> None:
    page, sim = text_of(ROOT / "loadtest" / "README.md"), SimConfig()
    for value in (sim.app_secret, sim.verify_token, sim.access_token, sim.numbers[0].phone_number_id):
        assert f"| `{value}` |" in page


# --- settings ------------------------------------------------------------------------------------


def settings_rows() -> str:
    """Return the settings table as it should stand in the page."""
    rows = [f"| `{name}` | {default} | {text} |" for name, default, text in settings_table()]
    return "\n".join(["| setting | default | what it is |", "| --- | --- | --- |", *rows])


def test_the_settings_table_is_the_programs() -> None:
    page = text_of(ROOT / "deploy" / "README.md")
    between = re.search(r"<!-- settings[^>]*-->\n(.*?)\n<!-- /settings -->", page, re.DOTALL)
    assert between is not None
    assert between[1] == settings_rows()


@EACH_PAGE
def test_every_setting_that_a_page_names_is_there(page: Path) -> None:
    known = {name for name, _, _ in settings_table()} | {"GATEWAY_CONFIG"}
    for name in re.findall(r"\bGATEWAY_[A-Z_]*[A-Z]\b", text_of(page)):
        assert name.removesuffix("_FILE") in known, name


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def test_the_environment_of_the_first_start_is_all_that_is_needed(tmp_path: Path) -> None:
    (block,) = blocks_of(ROOT / "deploy" / "README.md", "sh")
    words = [word for line in block.splitlines() if line.startswith("export ") for word in shlex.split(line)[1:]]
    environ = dict(word.split("=", 1) for word in words)
    for name in [name for name in environ if name.endswith("_FILE")]:
        environ[name] = str(tmp_path / name)
        (tmp_path / name).write_text("a-secret-of-meta", encoding="utf-8")
    settings = load(environ=environ, folder=tmp_path)
    assert [number.phone_number_id for number in settings.numbers] == ["200000000000002"]
    assert len(settings.operators) == 2


def test_the_file_with_several_numbers_is_read(tmp_path: Path) -> None:
    (example,) = blocks_of(ROOT / "deploy" / "README.md", "toml")
    file = tmp_path / "gateway.toml"
    file.write_text(example, encoding="utf-8")
    flags = {"app_secret": "a-secret", "verify_token": "a-word", "access_token": "a-token"}
    flags["operators"] = '{"davi": "a-long-key"}'
    (number,) = load(config=file, environ={}, flags=flags).numbers
    assert (number.name, number.incoming_slots) == ("Sales", 1_000)


# --- rules ---------------------------------------------------------------------------------------


def rule_row(rule: str) -> list[str]:
    (row,) = re.findall(rf"^\| {rule} .*\|$", text_of(ROOT / "policy" / "README.md"), re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split("|")[1:]]


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("R1", lambda pack: f"{pack.messaging_limit_min:,}" if pack.messaging_limit_min else "none"),
        ("R4", lambda pack: f"{pack.requests_per_24h} in 24 h"),
        ("R8", lambda pack: f"{pack.connected_per_24h} in 24 h"),
        ("R9", lambda pack: str(pack.streak_notice)),
        ("R10", lambda pack: str(pack.streak_revoke)),
        ("R14", lambda pack: f"{pack.slots_user_initiated:,}"),
    ],
)
def test_the_figures_of_the_rules_are_the_packs(rule: str, value: Callable[[Pack], str]) -> None:
    for name, cell in zip(("guide", "meta", "sandbox"), rule_row(rule), strict=True):
        if cell != "same":
            assert value(load_pack(name)) in cell
