"""Settings that contradict each other, and what to do about it.

Each check sees settings whose fields are right one by one (see `settings`), and yields one plain line a mistake.
"""

from collections.abc import Callable, Iterator
from typing import Final

from gateway.config import values
from gateway.config.settings import PREFIX, Settings


def _numbers_are_told_apart(settings: Settings) -> Iterator[str]:
    for name in ("phone_number_id", "phone_number"):
        every = [getattr(number, name) for number in settings.numbers]
        for value in sorted({value for value in every if every.count(value) > 1}):
            yield f"{PREFIX}NUMBERS: {name} {value} is there more than once"


def _numbers_have_tokens(settings: Settings) -> Iterator[str]:
    if settings.access_token is None and any(number.access_token is None for number in settings.numbers):
        yield f"{PREFIX}ACCESS_TOKEN is not set: expected a token of Meta's, or one for each of {PREFIX}NUMBERS"


def _workers_have_ports(settings: Settings) -> Iterator[str]:
    ports = values.read_ports(settings.media_ports)
    # One of each worker's is for its browsers; every call with Meta has one of the others.
    if ports is not None and ports[1] - ports[0] + 1 < 2 * settings.media_workers:
        yield (
            f"{PREFIX}MEDIA_PORTS={settings.media_ports}: too few for {settings.media_workers} media workers:"
            " expected two or more for each"
        )


def _public_api_has_a_key(settings: Settings) -> Iterator[str]:
    if not values.is_loopback(settings.host) and settings.api_key is None:
        yield f"{PREFIX}HOST={settings.host}: opens the API to others: expected {PREFIX}API_KEY to be set"


def _ports_do_not_clash(settings: Settings) -> Iterator[str]:
    hosts = {settings.host, settings.admin_host}
    if settings.port == settings.admin_port != 0 and (len(hosts) == 1 or hosts & {"0.0.0.0", "::"}):
        yield f"{PREFIX}ADMIN_PORT={settings.admin_port}: is {PREFIX}PORT already: expected another port"


#: Each with the fields that it looks at: where one of them is wrong by itself, the check says nothing.
CHECKS: Final[tuple[tuple[frozenset[str], Callable[[Settings], Iterator[str]]], ...]] = (
    (frozenset({"numbers"}), _numbers_are_told_apart),
    (frozenset({"numbers", "access_token"}), _numbers_have_tokens),
    (frozenset({"media_ports", "media_workers"}), _workers_have_ports),
    (frozenset({"host", "api_key"}), _public_api_has_a_key),
    (frozenset({"host", "port", "admin_host", "admin_port"}), _ports_do_not_clash),
)
