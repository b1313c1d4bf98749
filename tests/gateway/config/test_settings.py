import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.common.ids import PhoneNumberId
from gateway.config.checks import CHECKS
from gateway.config.settings import SECRETS, NumberSettings, Settings, TemplateSettings, settings_table
from policy.pack import PackError, load_pack

GOOD: dict[str, Any] = {
    "app_secret": "app-secret",
    "verify_token": "verify",
    "access_token": "CanaryToken",
    "numbers": [{"phone_number_id": "200000000000002", "phone_number": "+55 11 5555-0100", "name": "Loja"}],
    "operators": {"ana": "CanaryKey1"},
}


def settings(**changes: Any) -> Settings:
    return Settings(**GOOD | changes)


def contradictions(**changes: Any) -> list[str]:
    given = settings(**changes)
    return [line for _, check in CHECKS for line in check(given)]


def test_every_secret_is_among_those_that_no_log_may_show() -> None:
    own = [GOOD["numbers"][0] | {"access_token": "number-token"}]
    secrets = {
        "app_secret": "app-secret",
        "app_secret_previous": "app-before",
        "verify_token": "verify-word",
        "access_token": "access-token",
        "api_key": "api-key-1",
        "database_url": "postgresql://me:pass%40word@db.example/calls",
        "operators": {"ana": "CanaryKey1", "bia": "CanaryKey2"},
        "numbers": own,
    }
    assert secrets.keys() == SECRETS
    shown = {"app-secret", "app-before", "verify-word", "access-token", "api-key-1", "pass@word", "number-token"}
    assert set(settings(**secrets).secret_texts()) == shown | {"CanaryKey1", "CanaryKey2"}


def test_the_least_that_works_has_sensible_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings()
    assert (given.host, given.port, given.admin_host, given.admin_port) == (
        "127.0.0.1",
        8080,
        "127.0.0.1",
        9090,
    )
    assert given.graph_url == "https://graph.facebook.com/v26.0"
    assert (given.ring_timeout_s, given.outgoing_ring_timeout_s) == (30, 60)
    assert given.media_workers >= 1
    number = given.numbers[0]
    assert (number.phone_number, number.pack) == ("+551155550100", "guide")
    assert number.slots(number.pack_loaded()) == (1_000, 1_000)
    assert number.permission_text
    assert contradictions() == []


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings().port = 1


def test_the_process_environment_is_not_read_behind_our_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("GATEWAY_PORT", "2")
    assert settings().port == 8080


def test_no_secret_is_in_the_repr() -> None:
    text = repr(settings(api_key="CanaryApi", database_url="postgresql://u:CanaryPw@h/d"))
    assert "Canary" not in text
    with pytest.raises(ValidationError) as caught:
        settings(access_token="Canary\nToken")
    assert "Canary" not in str(caught.value)


# --- accessors -----------------------------------------------------------------------------------


def test_secrets_come_out_by_their_accessors() -> None:
    given = settings(app_secret_previous="older", api_key="key", database_url="postgresql://u:p@h/d")
    assert given.app_secret_texts() == ("app-secret", "older")
    assert given.verify_token_text() == "verify"
    assert given.operator_keys() == {"ana": "CanaryKey1"}
    assert given.api_key_text() == "key"
    assert given.database_url_text() == "postgresql://u:p@h/d"


def test_what_is_not_set_is_none() -> None:
    given = settings()
    assert given.app_secret_texts() == ("app-secret",)
    assert given.api_key_text() is None
    assert given.database_url_text() is None


def test_a_numbers_own_token_goes_before_the_common_one() -> None:
    own = {"phone_number_id": "2", "phone_number": "+551155550101", "access_token": "own"}
    given = settings(numbers=[*GOOD["numbers"], own])
    assert given.access_token_for(PhoneNumberId("2")) == "own"
    assert given.access_token_for(PhoneNumberId("200000000000002")) == "CanaryToken"


def test_a_number_without_any_token_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        settings(access_token=None).access_token_for(PhoneNumberId("200000000000002"))


def test_media_settings_are_handed_over() -> None:
    config = settings(
        media_bind_address="127.0.0.1",
        media_announced_address="198.51.100.7",
        media_ports="40000-40099",
        media_workers=3,
        meta_candidate_networks=["127.0.0.0/8"],
        media_timeout_s=5,
    ).media_config()
    assert (config.bind_address, config.announced_address) == ("127.0.0.1", "198.51.100.7")
    assert (config.ports, config.workers, config.media_timeout_s) == ((40000, 40099), 3, 5)
    assert config.candidate_networks == ("127.0.0.0/8",)


@pytest.mark.parametrize(("address", "bound"), [("198.51.100.9", "198.51.100.9"), (None, "127.0.0.1")])
def test_auto_is_the_machines_own_address(monkeypatch: pytest.MonkeyPatch, address: str | None, bound: str) -> None:
    monkeypatch.setattr("gateway.config.values.primary_address", lambda: address)
    assert settings().media_config().bind_address == bound
    assert any("127.0.0.1" in line for line in settings().warnings()) == (address is None)


def test_what_is_perhaps_not_meant_is_a_warning() -> None:
    number = GOOD["numbers"][0] | {"coexistence": True}
    lines = settings(media_bind_address="127.0.0.1", admin_host="0.0.0.0", numbers=[number]).warnings()
    assert len(lines) == 2
    assert settings(media_bind_address="127.0.0.1").warnings() == ()
    (silent,) = settings(media_bind_address="127.0.0.1", media_engine="null").warnings()
    assert "No call has any audio" in silent


# --- numbers -------------------------------------------------------------------------------------


def number(**changes: Any) -> NumberSettings:
    return NumberSettings(**GOOD["numbers"][0] | changes)


def test_a_number_loads_its_pack(tmp_path: Path) -> None:
    assert number().pack_loaded() == load_pack("guide")
    assert number(pack="sandbox").pack_loaded() == load_pack("sandbox")


def test_a_pack_of_ones_own_wins(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    shipped = Path(load_pack.__code__.co_filename).parent / "packs" / "meta.toml"
    own.write_text(shipped.read_text().replace('name = "meta"', 'name = "own"'))
    assert number(pack_file=str(own)).pack_loaded().name == "own"
    own.write_text("broken")
    given = number().model_copy(update={"pack_file": own})
    with pytest.raises(PackError):
        given.pack_loaded()


def test_a_template_can_be_named() -> None:
    given = number(permission_template={"name": "ask_me", "language": "pt_BR", "parameters": ["42"]})
    assert given.permission_template == TemplateSettings(name="ask_me", language="pt_BR", parameters=("42",))


@pytest.mark.parametrize(
    "changes",
    [
        {"phone_number_id": "x1"},
        {"phone_number_id": ""},
        {"phone_number": "0"},
        {"name": "x" * 65},
        {"pack": "mine"},
        {"incoming_slots": -1},
        {"outgoing_slots": 10**6},
        {"access_token": " "},
        {"messaging_limit": -5},
        {"permission_text": ""},
        {"permission_template": {"name": "Not A Name"}},
        {"colour": "blue"},
    ],
)
def test_a_number_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        number(**changes)


# --- contradictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {
                "numbers": [
                    GOOD["numbers"][0],
                    {"phone_number_id": "200000000000002", "phone_number": "+551155550101"},
                ]
            },
            "GATEWAY_NUMBERS: phone_number_id 200000000000002 is there more than once",
        ),
        (
            {"numbers": [GOOD["numbers"][0], {"phone_number_id": "2", "phone_number": "551155550100"}]},
            "GATEWAY_NUMBERS: phone_number +551155550100 is there more than once",
        ),
        (
            {"access_token": None},
            "GATEWAY_ACCESS_TOKEN is not set: expected a token of Meta's, or one for each of GATEWAY_NUMBERS",
        ),
        (
            {"media_ports": "50000-50002", "media_workers": 2},
            "GATEWAY_MEDIA_PORTS=50000-50002: too few for 2 media workers: expected two or more for each",
        ),
        (
            {"host": "0.0.0.0"},
            "GATEWAY_HOST=0.0.0.0: opens the API to others: expected GATEWAY_API_KEY to be set",
        ),
        ({"port": 9090}, "GATEWAY_ADMIN_PORT=9090: is GATEWAY_PORT already: expected another port"),
        (
            {"port": 9090, "admin_host": "::"},
            "GATEWAY_ADMIN_PORT=9090: is GATEWAY_PORT already: expected another port",
        ),
    ],
)
def test_settings_that_contradict_one_another_are_named(changes: dict[str, Any], line: str) -> None:
    assert contradictions(**changes) == [line]


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "0.0.0.0", "api_key": "a-key"},
        {"host": "localhost"},
        {"port": 0, "admin_port": 0},
        {"port": 9090, "admin_host": "127.0.0.2"},
        {"media_ports": "50000-50003", "media_workers": 2},
        {"media_ports": "0", "media_workers": 64},
        {"access_token": None, "numbers": [GOOD["numbers"][0] | {"access_token": "own"}]},
    ],
)
def test_settings_that_go_together_are_left_alone(changes: dict[str, Any]) -> None:
    assert contradictions(**changes) == []


# --- the table -----------------------------------------------------------------------------------


def test_every_setting_is_described_and_says_what_it_expects() -> None:
    for model in (Settings, NumberSettings, TemplateSettings):
        for name, info in model.model_fields.items():
            assert re.fullmatch(r"[A-Z].*\.", info.description or ""), name
            assert isinstance(info.json_schema_extra, dict), name
            assert info.json_schema_extra["expected"], name


def test_the_table_has_every_setting_once() -> None:
    names = [name for name, _, _ in settings_table()]
    assert len(set(names)) == len(names)
    assert {f"GATEWAY_{name.upper()}" for name in Settings.model_fields} <= set(names)
    rows = {name: (default, text) for name, default, text in settings_table()}
    assert rows["GATEWAY_PORT"][0] == "8080"
    assert rows["GATEWAY_APP_SECRET"][0] == "required"
    assert "GATEWAY_PHONE_NUMBER_ID" in rows
    for name in SECRETS:
        assert f"GATEWAY_{name.upper()}_FILE" in rows[f"GATEWAY_{name.upper()}"][1]


def test_no_default_in_the_table_is_of_this_machine() -> None:
    assert not any(str(Path.home()) in default for _, default, _ in settings_table())
