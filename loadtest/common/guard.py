"""Keeps simulated traffic on this machine.

A simulator signs webhooks and a load run places thousands of calls: neither may reach somebody else's
server by a typing mistake. Every host is refused unless it is loopback or was named explicitly.
"""

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

#: What can name a database of somebody's, which a load would fill.
_DATABASES = (
    *("GATEWAY_DATABASE_URL", "GATEWAY_DATABASE_URL_FILE", "DATABASE_URL", "DATABASE_URL_FILE"),
    "GATEWAY_CONFIG",
)


class NotLoopback(ValueError):
    """The host is not this machine and was not allowed by name."""


def is_loopback(host: str) -> bool:
    """Tell whether `host` is 127.0.0.0/8, ::1 or the name localhost; other names are never resolved."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, *, allowed: Collection[str] = ()) -> str:
    """Return `host` if traffic to it is permitted.

    Raises: NotLoopback.
    """
    if is_loopback(host) or host in allowed:
        return host
    raise NotLoopback(f"{host!r} is not a loopback address; name it with --allow-host if you mean it")


def check_url(url: str, *, allowed: Collection[str] = ()) -> str:
    """Return `url` if it is http(s) and its host is permitted.

    Raises: NotLoopback, ValueError.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with credentials in it is refused")
    check_host(parts.hostname, allowed=allowed)
    return url


def check_environment(environ: Mapping[str, str]) -> list[str]:
    """Return what in the environment forbids a load run: it fills the database that a gateway is given."""
    return [
        f"{name} is set: a load run fills its database, and brings one of its own; unset it"
        for name in _DATABASES
        if environ.get(name)
    ]


def inherited_settings(environ: Mapping[str, str]) -> list[str]:
    """Return the names of settings that a gateway takes from the environment; their values may be secret."""
    return sorted(name for name in environ if name.startswith("GATEWAY_") or name in _DATABASES)
