"""What the README states is what the program does."""

import re
from pathlib import Path

import pytest

from gateway.config.settings import settings_table
from policy.pack import load_pack

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings_rows() -> str:
    """The settings table as it should stand in the README."""
    rows = [f"| `{name}` | {default} | {text} |" for name, default, text in settings_table()]
    return "\n".join(["| setting | default | what it is |", "| --- | --- | --- |", *rows])


def test_the_settings_table_is_the_programs() -> None:
    between = re.search(r"<!-- settings[^>]*-->\n(.*?)\n<!-- /settings -->", README, re.DOTALL)
    assert between is not None
    assert between[1] == settings_rows()


def test_every_make_target_that_it_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_that_it_names_is_there() -> None:
    for path in set(re.findall(r"`((?:gateway|policy|media|loadtest|deploy|tests)/[\w./]+\.\w+)`", README)):
        assert (ROOT / path).is_file(), path


def rule_row(rule: str) -> list[str]:
    (row,) = re.findall(rf"^\| {rule} .*\|$", README, re.MULTILINE)
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
def test_the_figures_of_the_rules_are_the_packs(rule: str, value: object) -> None:
    assert callable(value)
    for name, cell in zip(("guide", "meta", "sandbox"), rule_row(rule), strict=True):
        if cell != "same":
            assert value(load_pack(name)) in cell
