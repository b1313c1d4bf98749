"""A business number that this gateway serves: its settings, policy pack, facts and slots.

Also reads phone numbers and user ids as operators type them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final, Protocol

import phonenumbers

from gateway.common.errors import GraphError, GraphRefused
from gateway.common.ids import PhoneNumberId, UserRef
from gateway.config.settings import NumberSettings
from gateway.meta.error_codes import refuses_token
from gateway.meta.graph import Graph
from gateway.meta.number_events import NumberEvent, NumberSettingsChanged
from gateway.numbers.facts import (
    ASK_AGAIN,
    NO_PAYMENT,
    ByHand,
    NumberFacts,
    asked_by_hand,
    state_of,
    with_error,
    with_event,
    with_info,
    with_settings,
    with_success,
)
from gateway.numbers.placed_calls import PlacedCalls
from gateway.numbers.slots import Slots
from policy.facts import Direction
from policy.number import CallingStatus
from policy.pack import Pack
from policy.reasons import META_CODE, Reason

#: Meta's business-scoped user id, also of a parent account.
BSUID: Final = re.compile(r"^[A-Z]{2}\.(ENT\.)?[0-9]{6,40}\Z")
NUMBER_RATE: Final = META_CODE[Reason.NUMBER_RATE]


class NumberListener(Protocol):
    """Listens for news about a number. `monitor.NumberMonitor` is one."""

    def learned(self, number: "Number") -> None:
        """Handle new facts of a number."""

    def in_doubt(self, number: "Number") -> None:
        """Handle that the facts of a number may be wrong and should be read from Meta again."""


class _NoListener:
    def learned(self, number: "Number") -> None: ...
    def in_doubt(self, number: "Number") -> None: ...


class Number:
    """One business number: what the settings and Meta say about it, its slots, and the calls it placed."""

    def __init__(
        self,
        settings: NumberSettings,
        pack: Pack,
        *,
        listener: NumberListener | None = None,
        on_slots: Callable[["Number"], None] = lambda number: None,
    ) -> None:
        """Create a number without facts. `on_slots` is called when a slot was taken or released."""
        self.id = PhoneNumberId(settings.phone_number_id)
        self.settings = settings
        self.pack = pack
        self.phone_number = settings.phone_number
        self.name = settings.name or settings.phone_number
        self.hand = by_hand(settings)
        self.facts = NumberFacts()
        self.state = state_of(self.facts, self.hand)
        self.placed = PlacedCalls(pack.calls_per_24h)
        incoming, outgoing = settings.slots(pack)
        self.incoming = Slots(Direction.USER_INITIATED, incoming, lambda: on_slots(self))
        self.outgoing = Slots(Direction.BUSINESS_INITIATED, outgoing, lambda: on_slots(self))
        self._listener = listener or _NoListener()

    # --- learning facts --------------------------------------------------------------------------

    def learn(self, facts: NumberFacts) -> None:
        """Replace the facts; the gate uses them from the next request on."""
        if facts == self.facts:
            return
        self.facts = facts
        self.state = state_of(facts, self.hand)
        self._listener.learned(self)

    async def read_from_meta(self, graph: Graph, *, now: datetime, by_hand: bool = False) -> None:
        """Read this number's settings and record from Meta; what Meta does not say stays. Raises: GraphError.

        `by_hand`: an administrator asks for it, and may have fixed problems that the settings do not show.
        """
        if by_hand:
            self.learn(asked_by_hand(self.facts))
        try:
            said = await graph.settings(self.id)
        except GraphRefused as error:  # a token for messages only may not read settings, but may read the rest
            if not refuses_token(error.code):
                self.learn(with_info(self.facts, await graph.number_info(self.id)))
            raise
        self.learn(with_settings(self.facts, said, asked_at=now))
        self.learn(with_info(self.facts, await graph.number_info(self.id)))

    def told(self, event: NumberEvent, *, now: datetime) -> None:
        """Fold a webhook into the facts. One about settings may name only some of them: then all are read from Meta."""
        self.learn(with_event(self.facts, event, now=now))
        if isinstance(event, NumberSettingsChanged) and event.calling:
            self._listener.in_doubt(self)

    def meta_refused(self, error: GraphError, *, now: datetime) -> None:
        """Fold the refusal of a `connect` or of a permission request into the facts."""
        if error.code is None:
            return
        if error.code == NUMBER_RATE:
            self.placed.meta_says_full(now=now)
        self.learn(with_error(self.facts, error.code))
        if error.code in ASK_AGAIN:
            self._listener.in_doubt(self)

    def meta_reported(self, code: int | None) -> None:
        """Fold the error of a call that Meta ended into the facts: only a payment error concerns the number."""
        if code == NO_PAYMENT:
            self.learn(with_error(self.facts, code))

    def meta_took(self) -> None:
        """Record that Meta accepted a call or a permission request."""
        self.learn(with_success(self.facts))

    @property
    def pack_label(self) -> str:
        return f"{self.pack.name}/{self.pack.version}"

    def read_user(self, text: str) -> UserRef | None:
        """Read what an operator typed: E.164, a national number in this number's country, or a BSUID; else None."""
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


def by_hand(settings: NumberSettings) -> ByHand:
    """Return what the gateway's settings say about a number."""
    return ByHand(
        country=settings.country or country_of(settings.phone_number),
        calling=CallingStatus(settings.calling) if settings.calling else None,
        sip_enabled=settings.sip,
        coexistence=settings.coexistence,
        messaging_limit=settings.messaging_limit,
        hours=settings.call_hours.to_hours() if settings.call_hours else None,
        hours_enforced=frozenset(Direction(word) for word in settings.enforce_hours),
    )


def country_of(phone_number: str) -> str | None:
    """Return the ISO 3166 alpha-2 country by numbering plan (+1 876 is Jamaica); None if it has none.

    Source: guide R12; the country is the business number's, never the customer's.
    """
    try:
        return phonenumbers.region_code_for_number(phonenumbers.parse(phone_number))
    except phonenumbers.NumberParseException:
        return None


def preload_numbering_plans() -> None:
    """Load every region's metadata now: the first use of a region blocks the loop for up to 1.8 ms."""
    for region in phonenumbers.SUPPORTED_REGIONS:
        phonenumbers.PhoneMetadata.metadata_for_region(region, None)


class Numbers:
    """All numbers of this gateway by id."""

    def __init__(self, numbers: Iterable[Number]) -> None:
        self._by_id = {number.id: number for number in numbers}
        self._by_digits = {number.phone_number.removeprefix("+"): number for number in self._by_id.values()}

    def __iter__(self) -> Iterator[Number]:
        return iter(self._by_id.values())

    def get(self, number_id: str) -> Number | None:
        return self._by_id.get(PhoneNumberId(number_id))

    def by_digits(self, digits: str) -> Number | None:
        """Find a number by its digits as Meta displays them: some webhooks name it only so."""
        return self._by_digits.get(digits)

    @property
    def ids(self) -> list[PhoneNumberId]:
        return list(self._by_id)
