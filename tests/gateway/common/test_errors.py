import inspect
import re
from datetime import UTC, datetime

import pytest

from gateway.common import errors
from gateway.common.errors import (
    GatewayError,
    GraphError,
    GraphRefused,
    GraphUnreachable,
    SettingsError,
    StoreDown,
    StoreError,
)

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, GatewayError)]


def test_the_tree_at_the_top_of_the_module_names_every_error() -> None:
    drawn = set(re.findall(r"^ +[│├└─ ]*(\w+)", errors.__doc__ or "", flags=re.M))
    assert drawn == {error.__name__ for error in ALL}


def test_no_two_errors_share_a_reason() -> None:
    assert len({error.reason for error in ALL}) == len(ALL)


@pytest.mark.parametrize("error", [GatewayError, StoreError, StoreDown])
def test_an_error_without_detail_says_its_public_sentence(error: type[GatewayError]) -> None:
    assert str(error()) == error.public == error().public


def test_the_internal_text_stays_out_of_the_public_one() -> None:
    error = StoreDown("10.0.0.5:5432 refused")
    assert "10.0.0.5" in str(error)
    assert "10.0.0.5" not in error.public


def test_a_public_text_can_be_given() -> None:
    error = GatewayError(public="Try again.")
    assert str(error) == error.public == "Try again."


def test_a_settings_error_keeps_its_problems_apart() -> None:
    assert SettingsError(["one", "two"]).problems == ("one", "two")
    assert str(SettingsError(["one", "two"])) == "one\ntwo"


def refused(details: str = "No approved call permission") -> GraphRefused:
    return GraphRefused(
        op="connect",
        code=138006,
        http_status=401,
        details=details,
        meaning="no permission",
        who_must_act="operator",
        retry_at=datetime(2026, 11, 22, tzinfo=UTC),
    )


def test_a_refusal_of_metas_says_code_and_words() -> None:
    error = refused()
    assert error.public == "Meta refused: (138006) No approved call permission"
    assert str(error) == "connect: HTTP 401: (138006) No approved call permission"
    assert (error.code, error.http_status, error.op) == (138006, 401, "connect")


def test_a_refusal_without_words_says_what_the_code_means() -> None:
    assert refused(details="").public == "Meta refused: (138006) no permission"


def test_a_definite_no_was_not_acted_on() -> None:
    assert not refused().maybe_sent


def test_silence_is_not_definite() -> None:
    error = GraphUnreachable("timeout", op="connect", maybe_sent=True, status="timeout")
    assert not error.definite
    assert error.maybe_sent
    assert error.public == "Meta could not be reached."
    assert str(error) == "connect: timeout"


def test_a_server_error_of_metas_is_told_as_such() -> None:
    error = GraphUnreachable("HTTP 502", op="accept", maybe_sent=True, status="502", http_status=502)
    assert error.public == "Meta gave no clear answer: HTTP 502"


def test_graph_errors_are_caught_as_one() -> None:
    for error in (refused(), GraphUnreachable("x", op="x", maybe_sent=False, status="cut")):
        assert isinstance(error, GraphError)
