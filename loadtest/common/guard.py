"""Keep simulated traffic on this machine.

The simulator signs webhooks and a load run places thousands of calls; a typing mistake must not send them to somebody
else's server. Every host is refused unless it is loopback or was allowed explicitly.
"""

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

#: Variables that can point to a real database, which a load run would fill.
_DATABASES = (
    *("GATEWAY_DATABASE_URL", "GATEWAY_DATABASE_URL_FILE", "DATABASE_URL", "DATABASE_URL_FILE"),
    "GATEWAY_CONFIG",
)


class NotLoopback(ValueError):
    """The host is neither loopback nor explicitly allowed."""


def is_loopback(host: str) -> bool:
    """Return whether `host` is in 127.0.0.0/8, ::1 or "localhost"; other names are never resolved."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, *, allowed: Collection[str] = ()) -> str:
    """Return `host` if traffic to it is allowed.

    Raises: NotLoopback.
    """
    if is_loopback(host) or host in allowed:
        return host
    raise NotLoopback(f"{host!r} is not a loopback address; to use it anyway, pass --allow-host {host}")


def check_url(url: str, *, allowed: Collection[str] = ()) -> str:
    """Return `url` if it is http(s) and its host is allowed.

    Raises: NotLoopback, ValueError.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL must not contain credentials")
    check_host(parts.hostname, allowed=allowed)
    return url


def check_environment(environ: Mapping[str, str]) -> list[str]:
    """Return the environment variables that forbid a load run, with the reason: it would fill that database."""
    return [
        f"{name} is set: a load run fills its database. The run starts its own PostgreSQL; unset the variable"
        for name in _DATABASES
        if environ.get(name)
    ]


def inherited_settings(environ: Mapping[str, str]) -> list[str]:
    """Return the names of gateway settings in the environment, without their values: they may be secret."""
    return sorted(name for name in environ if name.startswith("GATEWAY_") or name in _DATABASES)
