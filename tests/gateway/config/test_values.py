import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ifaddr
import pytest
from pydantic import TypeAdapter, ValidationError

from gateway.config import values
from policy.pack import PackError


def says(kind: Any, value: object) -> str:
    """Return the sentence about a wrong value."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    (error,) = caught.value.errors()
    return str(error.get("ctx", {}).get("error", error["msg"]))


def taken(kind: Any, value: object) -> Any:
    return TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize("text", ["551155550100", "+55 11 5555-0100", "+55 (11) 5555-0100"])
def test_a_phone_number_becomes_e164(text: str) -> None:
    assert taken(values.PhoneNumber, text) == "+551155550100"


@pytest.mark.parametrize("text", ["", "abc", "+", "123", "+999123456789", "55115555010055555"])
def test_what_is_no_phone_number_is_refused(text: str) -> None:
    assert "country code" in says(values.PhoneNumber, text)


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "is empty"), ("  ", "is empty"), ("a\nb", "one line"), (" a", "one line"), ("a\x00", "one line")],
)
def test_a_secret_is_one_line_of_text(text: str, why: str) -> None:
    assert why in says(values.Secret, text)
    assert taken(values.Secret, "s3cret").get_secret_value() == "s3cret"


def test_an_operators_key_is_long_enough_to_be_one() -> None:
    assert "8 characters" in says(values.OperatorKey, "1234567")
    assert taken(values.OperatorKey, "12345678")


@pytest.mark.parametrize("text", ["mysql://u:p@h/d", "h/d", "postgresql:/h"])
def test_a_database_is_postgresql(text: str) -> None:
    assert says(values.PostgresUrl, text).startswith("expected postgresql://")
    assert taken(values.PostgresUrl, "postgres://u:p@h/d")


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://calls.example.com/", "https://calls.example.com"),
        ("HTTP://A.b:81", None),
        ("http://A.b:81", "http://a.b:81"),
    ],
)
def test_an_origin_is_scheme_and_host(text: str, origin: str | None) -> None:
    if origin is None:
        assert "origins" in says(values.Origin, text)
    else:
        assert taken(values.Origin, text) == origin


@pytest.mark.parametrize("text", ["calls.example.com", "https://a.b/c", "https://u@a.b", "ftp://a", "*", ""])
def test_what_is_no_origin_is_refused(text: str) -> None:
    assert "without a path" in says(values.Origin, text)


@pytest.mark.parametrize(
    "text",
    [
        "https://graph.facebook.com/v26.0",
        "http://127.0.0.1:8001/v26.0",
        "http://localhost/v1.0",
        "http://[::1]:80/v26.0",
    ],
)
def test_the_graph_is_https_or_on_this_machine(text: str) -> None:
    assert taken(values.GraphUrl, text + "/") == text


@pytest.mark.parametrize(
    "text", ["https://graph.facebook.com", "https://graph.facebook.com/v26.0/x", "graph/v26.0", ""]
)
def test_the_graph_has_a_version(text: str) -> None:
    assert "version" in says(values.GraphUrl, text)


def test_a_token_never_travels_in_the_clear() -> None:
    assert "in the clear" in says(values.GraphUrl, "http://graph.facebook.com/v26.0")


def test_networks_and_addresses_are_read_and_written_plainly() -> None:
    assert taken(values.Network, "203.0.113.9/24") == "203.0.113.0/24"
    assert taken(values.Network, "127.0.0.1") == "127.0.0.1/32"
    assert taken(values.Address, "198.51.100.7") == "198.51.100.7"
    assert taken(values.AddressOrAuto, "auto") == "auto"
    assert taken(values.AddressOrAuto, "::1") == "::1"
    assert "networks" in says(values.Network, "everywhere")
    assert "IP address" in says(values.Address, "auto")
    assert "IP address" in says(values.AddressOrAuto, "eth0")


@pytest.mark.parametrize(
    ("text", "ports"), [("50000-50999", (50000, 50999)), ("0", None), (0, None), ("1024-1024", (1024, 1024))]
)
def test_ports_are_a_range_or_any(text: object, ports: tuple[int, int] | None) -> None:
    assert values.read_ports(taken(values.MediaPorts, text)) == ports


@pytest.mark.parametrize("text", ["", "50000", "50999-50000", "80-90", "50000-70000", "a-b", "-1", 50000])
def test_what_is_no_range_is_refused(text: object) -> None:
    assert "range" in says(values.MediaPorts, text)


@pytest.mark.parametrize("kind", [values.LogLevel, values.LogFormat])
def test_words_are_taken_in_any_case(kind: Any) -> None:
    word = "INFO" if kind is values.LogLevel else "JSON"
    assert taken(kind, word) == word.lower()
    says(kind, "loud")
    says(kind, 5)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is no text"),
        (b"no toml", "is no usable pack: no TOML"),
        (b"", "is no usable pack: name"),
    ],
)
def test_a_pack_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "pack.toml"
    if content is not None:
        path.write_bytes(content)
    assert says(values.PackFile, str(path)).startswith(why)


def test_a_broken_pack_is_a_pack_error(tmp_path: Path) -> None:
    path = tmp_path / "pack.toml"
    path.write_text("=")
    with pytest.raises(PackError, match="TOML"):
        values.read_pack(path)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("example.com", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, own: bool) -> None:
    assert values.is_loopback(host) is own


class Probe:
    """A socket whose machine has this address, or no route."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def __call__(self, family: int, kind: int) -> "Probe":
        assert kind == socket.SOCK_DGRAM
        return self

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(self, _: object) -> None:
        if self.address is None:
            raise OSError(101, "Network is unreachable")

    def getsockname(self) -> tuple[str | None, int]:
        return self.address, 1


@pytest.mark.parametrize(("address", "found"), [("198.51.100.9", "198.51.100.9"), ("0.0.0.0", None)])
def test_the_machines_own_address_comes_from_its_routes(
    monkeypatch: pytest.MonkeyPatch, address: str, found: str | None
) -> None:
    # Third-party code: the machine that runs the tests has an address, or none.
    monkeypatch.setattr(socket, "socket", Probe(address))
    assert values.primary_address() == found


@pytest.mark.parametrize(
    ("own", "found"),
    [
        (["127.0.0.1"], None),
        (["127.0.0.1", "198.51.100.7", "198.51.100.8"], "198.51.100.7"),
        ([("fe80::1", 0, 2), "198.51.100.7"], "198.51.100.7"),
    ],
)
def test_without_a_route_it_is_that_of_any_network(
    monkeypatch: pytest.MonkeyPatch, own: list[str | tuple[str, int, int]], found: str | None
) -> None:
    ips = [ifaddr.IP(ip, 24, "net0") for ip in own]
    monkeypatch.setattr(socket, "socket", Probe(None))
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [ifaddr.Adapter("net0", "net0", ips)])
    assert values.primary_address() == found


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_STATE_HOME": "/var/state", "HOME": "/home/x"}, "/var/state"),
        ({"XDG_STATE_HOME": "", "HOME": "/home/x"}, "/home/x/.local/state"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/home/x"}, "/home/x/.local/state"),
        ({}, f"{Path.home()}/.local/state"),
    ],
)
def test_state_lives_where_the_xdg_rules_say(environ: Mapping[str, str], folder: str) -> None:
    assert values.default_data_dir(environ) == Path(folder) / "whatsapp-call-gateway"
