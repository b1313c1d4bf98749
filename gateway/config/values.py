"""The types of single settings: what a value must look like, and the sentence about one that does not.

Not responsible for which settings there are (see `settings`) nor for where values come from (see `loading`).
"""

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import ifaddr
import phonenumbers
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from policy.pack import Pack, PackError, parse_pack

#: The folder of the gateway's state, below `$XDG_STATE_HOME` or `~/.local/state`.
STATE_FOLDER: Final = "whatsapp-call-gateway"


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.strip():
        raise ValueError("is empty")
    if not text.isprintable() or text != text.strip():
        raise ValueError("expected one line without spaces around it")
    return value


def _postgres(value: SecretStr) -> SecretStr:
    if not re.match(r"postgres(ql)?://", value.get_secret_value()):
        raise ValueError("expected postgresql://user:password@host/database")
    return value


def _operator_key(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 8:
        raise ValueError("expected a key of at least 8 characters")
    return value


def _e164(value: str) -> str:
    """Return a number as `+` and digits."""
    text = value if value.startswith("+") else f"+{value}"
    try:
        number = phonenumbers.parse(text)
    except phonenumbers.NumberParseException:
        raise ValueError("expected a number with its country code, such as +55 11 5555-0100") from None
    if not phonenumbers.is_possible_number(number):
        raise ValueError("expected a number with its country code, such as +55 11 5555-0100: wrong length")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _origin(value: str) -> str:
    text = value.rstrip("/")
    if not re.fullmatch(r"https?://[^/\s@?#]+", text):
        raise ValueError("expected origins such as https://calls.example.com, without a path")
    return text.lower()


def _graph_url(value: str) -> str:
    found = re.fullmatch(r"(https?)://(\[[0-9a-fA-F:]+\]|[^/:\s@?#]+)(:\d{1,5})?/v\d{1,3}\.\d{1,2}/?", value)
    if not found:
        raise ValueError("expected an address with a version, such as https://graph.facebook.com/v26.0")
    if found[1] == "http" and not is_loopback(found[2].strip("[]")):
        raise ValueError("expected https: the access token would travel in the clear")
    return value.rstrip("/")


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError("expected networks such as 203.0.113.0/24") from None


def _ip(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("expected an IP address") from None


def _ip_or_auto(value: str) -> str:
    return value if value == "auto" else _ip(value)


def _ports(value: str) -> str:
    read_ports(value)
    return value


def _pack_file(value: Path) -> Path:
    try:
        read_pack(value)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("is no text") from None
    except PackError as error:
        raise ValueError("is no usable pack: " + "; ".join(error.mistakes)) from None
    return value


def read_pack(path: Path) -> Pack:
    """Read a pack from a TOML file. Raises: OSError, UnicodeDecodeError, PackError."""
    try:
        return parse_pack(tomllib.loads(path.expanduser().read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise PackError((f"no TOML: {error}",)) from None


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def read_ports(text: str) -> tuple[int, int] | None:
    """Read `50000-50999`; `0` is None: any free port. Raises: ValueError."""
    if text == "0":
        return None
    found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if not found or not 1024 <= int(found[1]) <= int(found[2]) <= 65_535:
        raise ValueError("expected a range such as 50000-50999 between 1024 and 65535, or 0 for any free port")
    return int(found[1]), int(found[2])


def is_loopback(host: str) -> bool:
    """Tell whether nobody but this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def primary_address() -> str | None:
    """Return the machine's own IPv4 address: the one towards the internet, else that of any of its networks.

    None if it has none but loopback. Sends nothing.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # for UDP this only asks the routing table (RFC 5737 address)
        except OSError:  # no way to the internet, as on a closed network
            return next(_interface_addresses(), None)
        address = str(probe.getsockname()[0])
    return None if ipaddress.ip_address(address).is_unspecified else address


def _interface_addresses() -> Iterator[str]:
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if isinstance(ip.ip, str) and not ipaddress.ip_address(ip.ip).is_loopback:
                yield ip.ip


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for state that the XDG rules name."""
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return base / STATE_FOLDER


Secret = Annotated[SecretStr, AfterValidator(_secret)]
PostgresUrl = Annotated[Secret, AfterValidator(_postgres)]
OperatorKey = Annotated[Secret, AfterValidator(_operator_key)]
OperatorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
PhoneNumber = Annotated[str, AfterValidator(_e164)]
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
PackFile = Annotated[Path, AfterValidator(_pack_file)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")]
Port = Annotated[int, Field(ge=0, le=65_535)]
Slots = Annotated[int, Field(ge=0, le=100_000)]
Origin = Annotated[str, AfterValidator(_origin)]
GraphUrl = Annotated[str, AfterValidator(_graph_url)]
Address = Annotated[str, AfterValidator(_ip)]
AddressOrAuto = Annotated[str, AfterValidator(_ip_or_auto)]
Network = Annotated[str, AfterValidator(_network)]
MediaPorts = Annotated[str, BeforeValidator(str), AfterValidator(_ports)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
LogFormat = Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)]
