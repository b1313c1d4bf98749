"""Who holds a key: an operator's or the API's. Wrong keys are borne a few times a minute, then not even looked at.

Responsible for the answer to a key and for slowing down who guesses. Not responsible for the keys (see `tickets`).

Theory of operation: failures are counted by client address and name together, so that nobody is shut out by a
stranger elsewhere; by name and by address alone with more patience. Behind a reverse proxy all clients have one
address (headers that claim another are not believed), so whoever has logged in once keeps a device token: with it
only this device's own failures count. A right API key always opens, whatever others did: its strength is its length,
and with it a ticket can be made for an operator who has to wait.
"""

import asyncio
import hmac
import ipaddress
import secrets
from collections.abc import Hashable, Mapping
from math import ceil
from typing import Final

import structlog
from aiohttp import hdrs, web

from gateway.common.ids import OperatorId
from gateway.common.metrics import Metrics
from gateway.common.rate_limit import Rate, RateLimits
from gateway.http.openapi import TicketRequest
from gateway.http.problems import Problem
from gateway.softphone.tickets import Tickets

log = structlog.get_logger()

#: Wrong keys a minute that are looked at: for one name from one address (or one device); for one name from anywhere,
#: or from one address for any name.
PAIR_FAILURES: Final = 10
WIDE_FAILURES: Final = 100
#: Names, addresses and devices whose failures are remembered.
MOST_SOURCES: Final = 10_000

_PAIR: Final = Rate.per_minute(PAIR_FAILURES)
_WIDE: Final = Rate.per_minute(WIDE_FAILURES)
#: Whose failures are counted together, and how many of them are borne; the narrowest first.
_Sources = Mapping[Hashable, Rate]


class Doorkeeper:
    """Checks keys. Each check takes one turn of the loop: two at once cannot share the last attempt."""

    def __init__(self, tickets: Tickets, metrics: Metrics, *, failures: RateLimits | None = None) -> None:
        self._tickets = tickets
        self._metrics = metrics
        self._failures = RateLimits(most=MOST_SOURCES) if failures is None else failures
        self._device_key = secrets.token_bytes(32)  # devices are forgotten with the process

    def has_api_key(self, request: web.Request) -> bool:
        """Tell whether the request carries the API key. Raises: Problem after too many wrong ones."""
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return False
        if self._tickets.is_api_key(key.strip()):
            return True
        address = _address(request)
        sources: _Sources = {("address", address): _WIDE}
        self._may_try(sources, "api", address)
        self._wrong(sources, "api", address)
        return False

    def operator(self, request: web.Request, wanted: TicketRequest) -> OperatorId | None:
        """Return the operator if key or API key is right. Raises: Problem after too many wrong ones."""
        if wanted.key is None:
            return OperatorId(wanted.operator) if self.has_api_key(request) else None
        address, sources = _address(request), self._sources(request, wanted)
        self._may_try(sources, "operator", address, wanted.operator)
        operator = self._tickets.operator_with_key(wanted.operator, wanted.key)
        if operator is None:
            self._wrong(sources, "operator", address, wanted.operator)
        else:
            self._failures.forget(next(iter(sources)))  # they have proved who they are
        return operator

    def device(self, operator: OperatorId, known: str | None = None) -> str:
        """Return a token by which this device is known when the operator logs in again."""
        if known is not None and self._is_device(known, operator):
            return known
        name = secrets.token_urlsafe(12)
        return f"{name}.{self._signed(name, operator)}"

    # --- parts -------------------------------------------------------------------------------------

    def _sources(self, request: web.Request, wanted: TicketRequest) -> _Sources:
        name, address = wanted.operator, _address(request)
        if wanted.device is not None and self._is_device(wanted.device, name):
            return {("device", wanted.device): _PAIR}
        return {
            ("pair", address, name): _PAIR,
            ("name", name): _WIDE,
            ("address", address): _WIDE,
        }

    def _may_try(self, sources: _Sources, kind: str, address: str, name: str | None = None) -> None:
        """Raises: Problem, and then nothing tells whether the key was right."""
        wait_s = self._failures.wait_s(sources, now=asyncio.get_running_loop().time())
        if wait_s > 0:
            self._refused(kind, "too_many", address, name)
            raise Problem(429, "too_many", "Too many wrong keys. Wait a moment.", retry_after_s=ceil(wait_s))

    def _wrong(self, sources: _Sources, kind: str, address: str, name: str | None = None) -> None:
        self._failures.count(sources, now=asyncio.get_running_loop().time())
        self._refused(kind, "wrong", address, name)

    def _refused(self, kind: str, result: str, address: str, name: str | None) -> None:
        self._metrics.keys_refused_total.labels(kind=kind, result=result).inc()
        # A name that is nobody's may be a key in the wrong field.
        operator = name if name is None or self._tickets.is_operator(name) else "(unknown)"
        log.warning("key_refused", kind=kind, result=result, address=address, operator=operator)

    def _is_device(self, token: str, operator: str) -> bool:
        name, _, signature = token.partition(".")
        return hmac.compare_digest(self._signed(name, operator).encode(), signature.encode(errors="surrogatepass"))

    def _signed(self, name: str, operator: str) -> str:
        said = f"{operator}\n{name}".encode(errors="surrogatepass")
        return hmac.digest(self._device_key, said, "sha256").hex()


def _address(request: web.Request) -> str:
    """Return the client's address; of IPv6 the network, as one customer has all addresses of it."""
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:  # a UNIX socket has none
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
