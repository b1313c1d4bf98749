"""Simulated traffic stays on this machine."""

import pytest

from loadtest.common.guard import NotLoopback, check_environment, check_host, check_url, inherited_settings
from loadtest.simulator.config import SimConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost."])
def test_loopback_is_fine(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    "host",
    ["203.0.113.9", "0.0.0.0", "::", "graph.example.com", "localhost.example.com", "127.0.0.1.example", ""],
)
def test_everything_else_is_refused(host: str) -> None:
    with pytest.raises(NotLoopback):
        check_host(host)


def test_a_host_can_be_named() -> None:
    assert check_host("gateway.internal", allowed={"gateway.internal"}) == "gateway.internal"


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/", "//127.0.0.1", "http://", "http://127.0.0.1@203.0.113.9/", "http://a:b@127.0.0.1/"],
)
def test_strange_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_url(url)


def test_the_configuration_is_guarded() -> None:
    with pytest.raises(NotLoopback):
        SimConfig(callback_url="https://example.com/webhooks")
    with pytest.raises(NotLoopback):
        SimConfig(host="0.0.0.0")
    named = SimConfig(callback_url="https://example.com/x", allow_hosts=frozenset({"example.com"}))
    assert named.callback_url == "https://example.com/x"


@pytest.mark.parametrize(
    "name",
    ["DATABASE_URL", "DATABASE_URL_FILE", "GATEWAY_DATABASE_URL", "GATEWAY_DATABASE_URL_FILE", "GATEWAY_CONFIG"],
)
def test_whatever_can_name_a_database_forbids_a_load_run(name: str) -> None:
    (said,) = check_environment({name: "x", "GATEWAY_LOG_LEVEL": "debug"})
    assert said.startswith(f"{name} is set")
    assert inherited_settings({name: "x", "PATH": "/bin"}) == [name]


def test_settings_of_the_environment_are_known_by_name() -> None:
    assert inherited_settings({"GATEWAY_PORT": "1", "GATEWAY_API_KEY": "x", "HOME": "/"}) == [
        "GATEWAY_API_KEY",
        "GATEWAY_PORT",
    ]
