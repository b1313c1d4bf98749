from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.common.errors import SettingsError
from gateway.config.loading import Report, check, load
from gateway.config.settings import SECRETS, Settings

ENV = {
    "GATEWAY_APP_SECRET": "app-secret",
    "GATEWAY_VERIFY_TOKEN": "verify",
    "GATEWAY_ACCESS_TOKEN": "CanaryToken",
    "GATEWAY_PHONE_NUMBER_ID": "200000000000002",
    "GATEWAY_PHONE_NUMBER": "+55 11 5555-0100",
    "GATEWAY_OPERATORS": '{"ana": "CanaryKey1"}',
    "GATEWAY_MEDIA_BIND_ADDRESS": "127.0.0.1",
    "HOME": "/home/nobody",
    "PATH": "/bin",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def report(folder: Path, *, flags: dict[str, Any] | None = None, drop: str = "", **env: str | None) -> Report:
    environ = {name: value for name, value in (ENV | env).items() if value is not None and name != drop}
    return check(flags=flags, environ=environ, folder=folder)


def settings(folder: Path, **more: Any) -> Settings:
    found = report(folder, **more)
    assert found.problems == ()
    assert found.settings is not None
    return found.settings


def problems(folder: Path, **more: Any) -> tuple[str, ...]:
    found = report(folder, **more)
    assert found.settings is None
    return found.problems


# --- where values come from ----------------------------------------------------------------------


def test_a_newcomer_needs_six_variables(folder: Path) -> None:
    found = settings(folder)
    (number,) = found.numbers
    assert (number.phone_number_id, number.phone_number) == ("200000000000002", "+551155550100")
    assert found.data_dir == Path("/home/nobody/.local/state/whatsapp-call-gateway")


def test_a_flag_goes_before_the_environment_and_that_before_the_file(folder: Path) -> None:
    (folder / "gateway.toml").write_text("port = 1\nadmin_port = 2\nlog_level = 'debug'\n")
    found = settings(folder, flags={"port": 5, "host": None}, GATEWAY_PORT="3", GATEWAY_ADMIN_PORT="4")
    assert (found.port, found.admin_port, found.log_level) == (5, 4, "debug")
    rows = {row.name: row.source for row in report(folder, flags={"port": 5}, GATEWAY_ADMIN_PORT="4").rows}
    assert rows["port"] == "--port"
    assert rows["admin_port"] == "GATEWAY_ADMIN_PORT"
    assert rows["log_level"] == "log_level in gateway.toml"
    assert rows["host"] == "default"


def test_a_layer_replaces_a_table_as_a_whole(folder: Path) -> None:
    (folder / "gateway.toml").write_text('[operators]\nbob = "another-key"\n')
    assert settings(folder).operators.keys() == {"ana"}
    assert settings(folder, drop="GATEWAY_OPERATORS").operators.keys() == {"bob"}


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_the_file_can_be_named(folder: Path, how: str) -> None:
    (folder / "gateway.toml").write_text("port = 1")
    (folder / "other.toml").write_text("port = 2")
    if how == "flag":
        found = load(environ=ENV | {"GATEWAY_CONFIG": "no.toml"}, config=Path("other.toml"), folder=folder)
    else:
        found = load(environ=ENV | {"GATEWAY_CONFIG": "other.toml"}, folder=folder)
    assert found.port == 2


def test_a_named_file_that_is_not_there_is_a_mistake(folder: Path) -> None:
    assert problems(folder, GATEWAY_CONFIG="no.toml") == ("GATEWAY_CONFIG=no.toml: no such file",)
    found = check(environ=ENV, config=Path("no.toml"), folder=folder)
    assert found.problems == ("--config=no.toml: no such file",)


def test_a_file_can_be_ruled_out(folder: Path) -> None:
    (folder / "gateway.toml").write_text("port = 1")
    assert load(environ=ENV, config=Path("/dev/null"), folder=folder).port == load(environ=ENV).port


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "gateway.toml").mkdir()
    assert load(environ=ENV, folder=folder).port == load(environ=ENV).port
    (line,) = problems(folder, GATEWAY_CONFIG="gateway.toml")
    assert line == "gateway.toml: cannot be read: Is a directory"


def test_a_file_that_is_no_toml_says_where(folder: Path) -> None:
    (folder / "gateway.toml").write_text("port = \n")
    (line,) = problems(folder)
    assert line.startswith("gateway.toml: is no TOML: ")
    assert "line 1" in line


def test_a_file_that_is_no_text_is_a_mistake(folder: Path) -> None:
    (folder / "gateway.toml").write_bytes(b"\xff")
    assert problems(folder)[0].startswith("gateway.toml: is no TOML")


def test_a_file_that_cannot_be_read_is_a_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gateway.toml").write_text("port = 1")

    readable = Path.read_text

    def refuse(path: Path, **how: str) -> str:
        if path.name == "gateway.toml":
            raise PermissionError(13, "Permission denied")
        return readable(path, **how)

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
    assert problems(folder) == ("gateway.toml: cannot be read: Permission denied",)


def test_by_default_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    assert load().verify_token_text() == "verify"


def test_lists_are_json_or_words_with_commas(folder: Path) -> None:
    plain = settings(folder, GATEWAY_PUBLIC_ORIGINS="https://a.example, https://b.example,")
    listed = settings(folder, GATEWAY_PUBLIC_ORIGINS='["https://a.example", "https://b.example"]')
    assert plain.public_origins == listed.public_origins == ("https://a.example", "https://b.example")


def test_an_empty_variable_is_not_set(folder: Path) -> None:
    assert settings(folder, GATEWAY_PORT="", GATEWAY_PUBLIC_ORIGINS="").port == 8080


# --- DATABASE_URL --------------------------------------------------------------------------------


def test_the_database_may_be_named_without_prefix(folder: Path) -> None:
    assert settings(folder, DATABASE_URL="postgresql://u:p@h/d").database_url_text() == "postgresql://u:p@h/d"
    both = settings(folder, DATABASE_URL="postgresql://a/a", GATEWAY_DATABASE_URL="postgresql://b/b")
    assert both.database_url_text() == "postgresql://b/b"


def test_a_wrong_database_is_named_as_it_was_given_and_not_shown(folder: Path) -> None:
    (line,) = problems(folder, DATABASE_URL="mysql://u:CanaryPw@h/d")
    assert line == "DATABASE_URL=•••: expected postgresql://user:password@host/database"


def test_the_database_may_stand_in_a_file(folder: Path) -> None:
    (folder / "url").write_text("postgresql://u:p@h/d\n")
    assert settings(folder, DATABASE_URL_FILE=str(folder / "url")).database_url_text() == "postgresql://u:p@h/d"


# --- secrets in files ----------------------------------------------------------------------------

PLAIN = {
    "app_secret": "from-file",
    "app_secret_previous": "from-file",
    "verify_token": "from-file",
    "access_token": "from-file",
    "api_key": "from-file",
    "database_url": "postgresql://u:p@h/d",
    "operators": '{"bob": "from-file"}',
    "numbers": '[{"phone_number_id": "9", "phone_number": "+551155550109"}]',
}


@pytest.mark.parametrize("name", sorted(SECRETS))
@pytest.mark.parametrize("where", ["environment", "toml"])
def test_every_secret_may_stand_in_a_file(folder: Path, name: str, where: str) -> None:
    secret = folder / "secret"
    secret.write_text(PLAIN[name] + "\n")
    variable = f"GATEWAY_{name.upper()}"
    if where == "toml":
        (folder / "gateway.toml").write_text(f'{name}_file = "{secret}"')
        found = report(folder, drop=variable)
    else:
        found = report(folder, drop=variable, **dict[str, Any]({f"{variable}_FILE": str(secret)}))
    assert found.problems == ()
    row = next(row for row in found.rows if row.name.partition("[")[0] == name)
    assert row.source == (f"{name}_file in gateway.toml" if where == "toml" else f"{variable}_FILE")


def test_a_numbers_own_token_may_stand_in_a_file(folder: Path) -> None:
    (folder / "token").write_text("own-token\n")
    numbers = [{"phone_number_id": "9", "phone_number": "+551155550109", "access_token_file": str(folder / "token")}]
    found = settings(folder, GATEWAY_NUMBERS=orjson.dumps(numbers).decode())
    assert found.access_token_for(found.numbers[1].phone_number_id) == "own-token"  # type: ignore[arg-type]


def test_a_numbers_token_file_that_is_not_there_is_a_mistake(folder: Path) -> None:
    numbers = '[{"phone_number_id": "9", "phone_number": "+551155550109", "access_token_file": "/no/file"}]'
    assert problems(folder, GATEWAY_NUMBERS=numbers) == (
        "GATEWAY_NUMBERS: access_token_file=/no/file: cannot be read: No such file or directory",
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        (b" \n", "is empty"),
        (b"\xff", "cannot be read: is no text"),
    ],
)
def test_a_secret_file_that_holds_none_is_a_mistake(folder: Path, content: bytes | None, why: str) -> None:
    path = folder / "secret"
    if content is not None:
        path.write_bytes(content)
    expected = (f"GATEWAY_VERIFY_TOKEN_FILE={path}: {why}",)
    assert problems(folder, drop="GATEWAY_VERIFY_TOKEN", GATEWAY_VERIFY_TOKEN_FILE=str(path)) == expected


def test_a_secret_given_twice_is_a_mistake(folder: Path) -> None:
    (folder / "secret").write_text("x")
    (line,) = problems(folder, GATEWAY_VERIFY_TOKEN_FILE=str(folder / "secret"))
    assert line == "GATEWAY_VERIFY_TOKEN_FILE: GATEWAY_VERIFY_TOKEN is set as well; expected one of them"


# --- mistakes ------------------------------------------------------------------------------------


def test_nothing_at_all_names_everything_that_is_needed(folder: Path) -> None:
    found = check(environ={}, folder=folder)
    assert [line.split(" ")[0] for line in found.problems] == [
        "GATEWAY_APP_SECRET",
        "GATEWAY_VERIFY_TOKEN",
        "GATEWAY_NUMBERS",
        "GATEWAY_OPERATORS",
        "GATEWAY_ACCESS_TOKEN",
    ]
    assert all(" is not set: expected " in line for line in found.problems)


def test_every_mistake_is_told_at_once(folder: Path) -> None:
    (folder / "gateway.toml").write_text("log_levle = 'info'\nmedia_timeout_s = 'long'\n")
    lines = problems(
        folder,
        flags={"admin_port": "x"},
        GATEWAY_PROT="1",
        GATEWAY_PORT="abc",
        GATEWAY_VERIFY_TOKEN="",
        GATEWAY_OPERATORS='{"ana": "short", "b b": "long-enough"}',
        GATEWAY_HOST="0.0.0.0",
        GATEWAY_MEDIA_PORTS="50000-50001",
        GATEWAY_MEDIA_WORKERS="2",
        GATEWAY_LOG_FORMAT="xml",
        GATEWAY_PUBLIC_ORIGINS="https://a.example,nonsense",
    )
    assert set(lines) == {
        "log_levle in gateway.toml: unknown; did you mean log_level in gateway.toml?",
        "media_timeout_s in gateway.toml='long': expected seconds, from 1 to 120",
        "--admin-port='x': expected a port from 0 to 65535",
        "GATEWAY_PROT: unknown; did you mean GATEWAY_PORT?",
        "GATEWAY_PORT='abc': expected a port from 0 to 65535",
        "GATEWAY_VERIFY_TOKEN=•••: is empty",
        "GATEWAY_OPERATORS.ana=•••: expected a key of at least 8 characters",
        "GATEWAY_OPERATORS.b b=•••: expected a name of letters, digits and . _ @ -",
        "GATEWAY_HOST=0.0.0.0: opens the API to others: expected GATEWAY_API_KEY to be set",
        "GATEWAY_MEDIA_PORTS=50000-50001: too few for 2 media workers: expected two or more for each",
        "GATEWAY_LOG_FORMAT='xml': expected one of auto, json, console",
        "GATEWAY_PUBLIC_ORIGINS[1]='nonsense': expected origins such as https://calls.example.com, without a path",
    }


def test_load_raises_what_check_reports(folder: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ=ENV | {"GATEWAY_PORT": "abc", "GATEWAY_ADMIN_PORT": "70000"}, folder=folder)
    assert len(caught.value.problems) == 2
    assert "pydantic" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"GATEWAY_NOTHING_LIKE_IT": "1"}, "GATEWAY_NOTHING_LIKE_IT: unknown"),
        ({"GATEWAY_APP_SECRETS": "x"}, "GATEWAY_APP_SECRETS: unknown; did you mean GATEWAY_APP_SECRET?"),
        ({"GATEWAY_PORT_FILE": "x"}, "GATEWAY_PORT_FILE: unknown; did you mean GATEWAY_PORT?"),
        ({"GATEWAY_CONFIGS": "x"}, "GATEWAY_CONFIGS: unknown; did you mean GATEWAY_CONFIG?"),
    ],
)
def test_an_unknown_variable_is_a_mistake_with_a_suggestion(folder: Path, env: dict[str, str], line: str) -> None:
    assert problems(folder, **env) == (line,)


def test_json_that_is_none_is_told_without_its_secrets(folder: Path) -> None:
    (line,) = problems(folder, GATEWAY_OPERATORS='{"ana": "CanaryKey1"')
    assert line.startswith("GATEWAY_OPERATORS=•••: is no JSON at character ")
    (line,) = problems(folder, GATEWAY_PUBLIC_ORIGINS='["https://a.example"')
    assert line.startswith("GATEWAY_PUBLIC_ORIGINS='[\"https://a.example\"': is no JSON at character ")


def numbers_problems(folder: Path, *entries: object, **env: str | None) -> tuple[str, ...]:
    none: dict[str, str | None] = {"GATEWAY_PHONE_NUMBER_ID": None, "GATEWAY_PHONE_NUMBER": None}
    return problems(folder, GATEWAY_NUMBERS=orjson.dumps(entries).decode(), **none | env)


def test_a_mistake_in_a_number_says_which(folder: Path) -> None:
    good = {"phone_number_id": "9", "phone_number": "+551155550109"}
    assert numbers_problems(
        folder,
        good,
        {"phone_number_id": "x", "phone_number": "12", "acess_token": "CanaryToken"},
        good | {"access_token": "Canary\nToken"},
        good | {"permission_template": {"name": "A B", "langage": "pt_BR"}},
        "nonsense",
    ) == (
        "GATEWAY_NUMBERS[1].phone_number_id='x': expected Meta's id, digits",
        "GATEWAY_NUMBERS[1].phone_number='12': expected a number with its country code, such as +55 11 5555-0100",
        "GATEWAY_NUMBERS[1].acess_token: unknown; did you mean access_token?",
        "GATEWAY_NUMBERS[2].access_token=•••: expected one line without spaces around it",
        "GATEWAY_NUMBERS[3].permission_template.name='A B': expected a template's name",
        "GATEWAY_NUMBERS[3].permission_template.langage: unknown; did you mean language?",
        """GATEWAY_NUMBERS[4]='nonsense': expected a list such as [{"phone_number_id": "…", "phone_number": "+55…"}]""",
    )


def test_no_number_at_all_is_a_mistake(folder: Path) -> None:
    (line,) = numbers_problems(folder)
    assert line.startswith("GATEWAY_NUMBERS: expected a list such as ")


def test_numbers_that_are_no_list_are_a_mistake(folder: Path) -> None:
    (folder / "gateway.toml").write_text("numbers = 5")
    none: dict[str, str | None] = {"GATEWAY_PHONE_NUMBER_ID": None, "GATEWAY_PHONE_NUMBER": None}
    (line,) = problems(folder, **none)
    assert line.startswith("numbers in gateway.toml=5: expected a list")


def test_the_short_names_are_the_first_of_the_numbers(folder: Path) -> None:
    more = '[{"phone_number_id": "9", "phone_number": "+551155550109"}]'
    found = settings(folder, GATEWAY_NUMBERS=more, GATEWAY_NUMBER_NAME="Loja")
    assert [number.phone_number_id for number in found.numbers] == ["200000000000002", "9"]
    assert found.numbers[0].name == "Loja"


def test_a_mistake_in_a_short_name_is_named_as_it_was_given(folder: Path) -> None:
    assert problems(folder, GATEWAY_PHONE_NUMBER="12", GATEWAY_NUMBERS='[{"phone_number_id": "x"}]') == (
        "GATEWAY_PHONE_NUMBER='12': expected a number with its country code, such as +55 11 5555-0100",
        "GATEWAY_NUMBERS[0].phone_number_id='x': expected Meta's id, digits",
        "GATEWAY_NUMBERS[0].phone_number is not set: expected a number with its country code, such as +55 11 5555-0100",
    )
    assert problems(folder, drop="GATEWAY_PHONE_NUMBER_ID") == (
        "GATEWAY_PHONE_NUMBER_ID is not set: expected Meta's id, digits",
    )


def test_no_secret_is_in_any_problem(folder: Path) -> None:
    canary = {f"GATEWAY_{name.upper()}": f"Canary\n{name}" for name in SECRETS}
    text = "\n".join(problems(folder, **canary))
    assert "Canary" not in text
    assert text.count("•••") == len(SECRETS)


# --- what `gateway check` shows ------------------------------------------------------------------


def test_every_setting_is_shown_and_no_secret(folder: Path) -> None:
    found = report(folder, GATEWAY_API_KEY="CanaryApi", GATEWAY_NUMBER_NAME="Loja")
    rows = {row.name: row for row in found.rows}
    assert set(Settings.model_fields) - {"numbers"} <= rows.keys()
    assert rows["app_secret"].value == rows["api_key"].value == "set, hidden"
    assert rows["operators"].value == "ana (keys hidden)"
    assert rows["numbers[0]"].value == "200000000000002 +551155550100 'Loja': pack guide, 1000 in, 1000 out"
    assert rows["database_url"].value == "not set"
    assert rows["public_origins"].value == "none"
    assert "Canary" not in repr(found.rows)


def test_a_numbers_own_token_and_pack_are_mentioned(folder: Path) -> None:
    pack = Path(__file__).parents[3] / "policy" / "packs" / "meta.toml"
    entry = {
        "phone_number_id": "9",
        "phone_number": "+551155550109",
        "access_token": "Canary1",
        "pack_file": str(pack),
    }
    rows = report(folder, GATEWAY_NUMBERS=orjson.dumps([entry]).decode()).rows
    row = next(row for row in rows if row.name == "numbers[1]")
    assert row.value == f"9 +551155550109: pack {pack}, 1000 in, 1000 out, own token"


def test_wrong_settings_are_shown_as_wrong_beside_the_right_ones(folder: Path) -> None:
    rows = {row.name: row for row in report(folder, drop="GATEWAY_OPERATORS", GATEWAY_PORT="abc").rows}
    assert rows["port"].value == "wrong"
    assert rows["operators"].value == "not set"
    assert rows["admin_port"].value == "9090"


def test_warnings_come_with_settings_that_work(folder: Path) -> None:
    assert len(report(folder, GATEWAY_ADMIN_HOST="0.0.0.0").warnings) == 1
    assert report(folder, GATEWAY_ADMIN_HOST="0.0.0.0", GATEWAY_PORT="abc").warnings == ()
