"""The business numbers that this gateway serves: settings, policy pack, country, slots.

Responsible for what is known of a business number, and for reading the numbers that people type. Not responsible for
the rules (see `policy.gate`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

import phonenumbers

from gateway.graph import Graph
from gateway.ids import PhoneNumberId, UserRef
from gateway.settings import NumberSettings
from gateway.slots import Slots
from policy.facts import Direction
from policy.number import NumberState
from policy.pack import Pack

#: Meta's business-scoped user id, also of a parent account.
BSUID: Final = re.compile(r"^[A-Z]{2}\.(ENT\.)?[0-9]{6,40}\Z")


class Number:
    """One business number."""

    def __init__(self, settings: NumberSettings, pack: Pack, on_slots: Callable[["Number"], None]) -> None:
        self.id = PhoneNumberId(settings.phone_number_id)
        self.settings = settings
        self.pack = pack
        self.phone_number = settings.phone_number
        self.name = settings.name or settings.phone_number
        self.state = NumberState(
            country=country_of(settings.phone_number),
            coexistence=settings.coexistence,
            messaging_limit=settings.messaging_limit,
        )
        incoming, outgoing = settings.slots(pack)
        self.incoming = Slots(Direction.USER_INITIATED, incoming, lambda: on_slots(self))
        self.outgoing = Slots(Direction.BUSINESS_INITIATED, outgoing, lambda: on_slots(self))

    async def read_from_meta(self, graph: Graph) -> None:
        """Take over what Meta says of this number; what it does not say stays as the settings have it.

        Raises: GraphError.
        """
        calling = await graph.settings(self.id)
        info = await graph.number_info(self.id)
        known = self.state
        self.state = replace(
            known,
            calling=calling.calling,
            sip_enabled=calling.sip_enabled,
            restrictions=calling.restrictions,
            hours=calling.hours,
            coexistence=known.coexistence or bool(info.coexistence),
            messaging_limit=info.messaging_limit if info.messaging_limit is not None else known.messaging_limit,
        )

    @property
    def pack_label(self) -> str:
        return f"{self.pack.name}/{self.pack.version}"

    def read_user(self, text: str) -> UserRef | None:
        """Read what an operator typed: E.164, a national number of this number's country, or a BSUID."""
        text = text.strip()
        if BSUID.match(text):
            return UserRef(user_id=text)
        region = self.state.country if self.state.country != "001" else None
        for candidate, default in ((text, region), ("+" + re.sub(r"\D", "", text), None)):
            try:
                number = phonenumbers.parse(candidate, default)
            except phonenumbers.NumberParseException:
                continue
            if phonenumbers.is_possible_number(number):
                return UserRef(wa_id=phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)[1:])
        return None


def country_of(phone_number: str) -> str | None:
    """Return the ISO-2 country by numbering plan (+1 876 is Jamaica), None if it has none.

    Source: guide R12; the country is the business number's, never the customer's.
    """
    try:
        return phonenumbers.region_code_for_number(phonenumbers.parse(phone_number))
    except phonenumbers.NumberParseException:
        return None


def preload_numbering_plans() -> None:
    """Load every region's metadata now: the first use of a region costs the loop up to 1.8 ms."""
    for region in phonenumbers.SUPPORTED_REGIONS:
        phonenumbers.PhoneMetadata.metadata_for_region(region, None)


class Numbers:
    """All numbers of this gateway by id."""

    def __init__(self, numbers: Iterable[Number]) -> None:
        self._by_id = {number.id: number for number in numbers}

    def __iter__(self) -> Iterator[Number]:
        return iter(self._by_id.values())

    def get(self, number_id: str) -> Number | None:
        return self._by_id.get(PhoneNumberId(number_id))

    @property
    def ids(self) -> list[PhoneNumberId]:
        return list(self._by_id)
