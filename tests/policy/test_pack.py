"""Packs: the built-in ones say what their sources say, and a wrong one is refused with every mistake named."""

import copy
import tomllib
from datetime import date, datetime, timedelta
from importlib.resources import files
from typing import Any

import pytest

from policy.pack import BUILT_IN, Pack, PackError, load_pack, parse_pack

EXPECTED = {
    "guide": {
        "messaging_limit_min": 2000,
        "requests_per_24h": 1,
        "requests_per_7d": 2,
        "after_decline_s": 86_400,
        "service_window_s": 86_400,
        "permission_lifetime_s": 168 * 3600,
        "permanent_permissions": True,
        "automatic_permissions": False,
        "connected_per_24h": 5,
        "streak_notice": 2,
        "streak_revoke": 4,
        "streak_counts_rejected": False,
        "meta_recording": False,
        "slots_user_initiated": 1000,
        "slots_business_initiated": 1000,
    },
    "meta": {
        "messaging_limit_min": 2000,
        "requests_per_24h": 1,
        "requests_per_7d": 2,
        "after_decline_s": 0,
        "automatic_permissions": True,
        "connected_per_24h": 100,
        "streak_notice": 2,
        "streak_revoke": 4,
        "streak_counts_rejected": True,
        "meta_recording": True,
    },
    "sandbox": {
        "messaging_limit_min": 0,
        "requests_per_24h": 25,
        "requests_per_7d": 100,
        "connected_per_24h": 100,
        "streak_notice": 5,
        "streak_revoke": 10,
    },
}


def built_in(name: str) -> dict[str, Any]:
    return tomllib.loads(files("policy").joinpath("packs", f"{name}.toml").read_text(encoding="utf-8"))


@pytest.fixture
def data() -> dict[str, Any]:
    return copy.deepcopy(built_in("guide"))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_pack_has_the_figures_of_its_source(name: str) -> None:
    pack = load_pack(name)
    assert pack.name == name
    for value, figure in EXPECTED[name].items():
        assert getattr(pack, value) == figure, value


def test_the_guide_is_the_default() -> None:
    assert load_pack() == load_pack("guide")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_value_has_a_source_and_a_date(name: str) -> None:
    pack = load_pack(name)
    assert set(pack.provenance) == set(built_in(name)["values"])
    for where in pack.provenance.values():
        assert where.source.startswith(("guide R", "Meta, "))
        assert where.effective_from <= date(2026, 11, 22)


def test_conflicts_between_sources_are_written_beside_the_value() -> None:
    note = load_pack("guide").provenance["messaging_limit_min"].note
    assert note is not None
    assert "1,000" in note
    assert load_pack("guide").provenance["requests_per_24h"].note is None


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_five_countries_are_excluded(name: str) -> None:
    assert load_pack(name).excluded_countries == {"US", "CA", "EG", "VN", "NG"}


def test_waits_are_also_given_as_time() -> None:
    pack = load_pack("guide")
    assert pack.after_decline == timedelta(hours=24)
    assert pack.service_window == timedelta(hours=24)
    assert pack.request_lifetime == timedelta(days=7)
    assert pack.permission_lifetime == timedelta(days=7)


def test_a_pack_cannot_be_changed_and_can_be_a_key() -> None:
    pack = load_pack("guide")
    with pytest.raises(TypeError):
        pack.provenance["x"] = pack.provenance["requests_per_7d"]  # type: ignore[index]
    assert len({pack, load_pack("guide"), load_pack("meta")}) == 2


def test_a_users_own_pack_is_toml_text() -> None:
    text = files("policy").joinpath("packs", "guide.toml").read_text(encoding="utf-8")
    own = load_pack(text.replace('name = "guide"', 'name = "ours"'))
    assert isinstance(own, Pack)
    assert own.name == "ours"
    assert own.connected_per_24h == 5


def test_a_misspelt_name_is_told_the_names_there_are() -> None:
    with pytest.raises(PackError, match="guide, meta, sandbox"):
        load_pack("guido")


def test_text_that_is_not_toml_is_refused() -> None:
    with pytest.raises(PackError, match="not TOML"):
        load_pack("name = = 1")


@pytest.mark.parametrize("values", [None, [], "none"])
def test_a_pack_without_values_is_refused(data: dict[str, Any], values: object) -> None:
    data["values"] = values
    with pytest.raises(PackError, match="values: missing"):
        parse_pack(data)


def test_dates_may_be_texts(data: dict[str, Any]) -> None:
    data["effective_from"] = "2026-11-22"
    assert parse_pack(data).effective_from == date(2026, 11, 22)


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("connected_per_24h", 0),
        ("connected_per_24h", 501),
        ("connected_per_24h", True),
        ("connected_per_24h", "5"),
        ("connected_per_24h", 5.0),
        ("after_decline_s", -1),
        ("messaging_limit_min", -1),
        ("calls_per_24h", 0),
        ("meta_recording", 1),
        ("excluded_countries", "US"),
        ("excluded_countries", ["us"]),
        ("excluded_countries", ["USA"]),
        ("excluded_countries", ["U1"]),
        ("excluded_countries", [1]),
        ("excluded_countries", ["ÄÖ"]),
    ],
)
def test_a_wrong_value_is_named(data: dict[str, Any], value: str, wrong: object) -> None:
    data["values"][value]["value"] = wrong
    with pytest.raises(PackError) as caught:
        parse_pack(data)
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == [f"values.{value}.value"]


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("source", ""),
        ("source", None),
        ("note", 5),
        ("effective_from", datetime(2026, 11, 22)),  # noqa: DTZ001 - what TOML reads
        ("effective_from", "soon"),
        ("effective_from", 2026),
        ("colour", "red"),
    ],
)
def test_wrong_provenance_is_named(data: dict[str, Any], part: str, wrong: object) -> None:
    data["values"]["streak_notice"][part] = wrong
    with pytest.raises(PackError, match=rf"values\.streak_notice\.{part}"):
        parse_pack(data)


@pytest.mark.parametrize(
    ("smaller", "larger"), [("streak_notice", "streak_revoke"), ("requests_per_24h", "requests_per_7d")]
)
def test_figures_that_contradict_each_other_are_named(data: dict[str, Any], smaller: str, larger: str) -> None:
    data["values"][smaller]["value"] = data["values"][larger]["value"]
    parse_pack(data)
    data["values"][smaller]["value"] += 1
    with pytest.raises(PackError, match=f"{larger}: smaller than {smaller}"):
        parse_pack(data)


def test_every_mistake_is_named_at_once(data: dict[str, Any]) -> None:
    data["name"] = " "
    data["version"] = "one"
    del data["effective_from"]
    data["author"] = "somebody"
    del data["values"]["requests_per_24h"]
    data["values"]["connected_per_24h"] = 5
    data["values"]["streak_revoke"]["value"] = 1
    data["values"]["after_declined_s"] = {"value": 1}
    with pytest.raises(PackError) as caught:
        parse_pack(data)
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == [
        "name",
        "version",
        "effective_from",
        "author",
        "values.requests_per_24h",
        "values.connected_per_24h",
        "values.after_declined_s",
        "values.streak_revoke",
    ]
    assert all(mistake in str(caught.value) for mistake in caught.value.mistakes)
