"""The live calls, found by our id, by Meta's id, by contact; and what is remembered of those that have ended.

Responsible for who is alive and who was. Not responsible for what happens to them (see `driver`, `inbox`).

A contact is found by every name: a call that came with a BSUID and a dial to the number are calls with one person as
soon as anybody knows that they are. So a call counts under each name of its user, and whoever asks names all they know.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from gateway.common.ids import CallId, MetaCallId, PhoneNumberId, UserRef
from gateway.contacts.webhook_facts import KnownCall
from policy.facts import Direction

if TYPE_CHECKING:
    from gateway.calls.driver import CallDriver

#: Ended calls remembered, so that a webhook that comes late is not taken for a new call.
TOMBSTONES: Final = 20_000


class Engaged(Protocol):
    """Something that keeps a contact busy."""

    @property
    def may_connect(self) -> bool:
        """Tell whether this may still become a connected business-initiated call."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeftOverCall:
    """A call of a process that died, until Meta has been told to end it: it may still be picked up."""

    direction: Direction

    @property
    def may_connect(self) -> bool:
        return self.direction is Direction.BUSINESS_INITIATED


def contact_keys(number_id: PhoneNumberId, *users: UserRef) -> frozenset[str]:
    """Return a key for each name of a user; two with one in common are one person."""
    names = {name for user in users for name in (user.user_id, user.wa_id) if name}
    return frozenset(f"{number_id}/{name}" for name in names)


class Registry:
    """Every call that is alive in this process."""

    def __init__(self) -> None:
        self._calls: dict[CallId, CallDriver] = {}
        self._by_meta_id: dict[MetaCallId, CallDriver] = {}
        self._ended: OrderedDict[MetaCallId, KnownCall | None] = OrderedDict()
        self._engaged: dict[str, set[Engaged]] = {}
        #: Told when a call learns Meta's id for it.
        self.on_learned: Callable[[CallDriver, MetaCallId], None] = lambda driver, meta_call_id: None

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator["CallDriver"]:
        return iter(tuple(self._calls.values()))

    # --- calls -------------------------------------------------------------------------------------

    def add(self, driver: "CallDriver") -> None:
        self._calls[driver.call.call_id] = driver
        self.engage(driver.contact_keys, driver)
        if driver.call.meta_call_id is not None:
            self.learn_meta_id(driver, driver.call.meta_call_id)

    def learn_meta_id(self, driver: "CallDriver", meta_call_id: MetaCallId) -> None:
        if meta_call_id not in self._by_meta_id:
            self._by_meta_id[meta_call_id] = driver
            self.on_learned(driver, meta_call_id)

    def remove(self, driver: "CallDriver") -> None:
        """Forget a call that has ended, but for its tombstone."""
        if self._calls.pop(driver.call.call_id, None) is None:
            return
        self.release(driver.contact_keys, driver)
        if driver.call.meta_call_id is not None:
            if self._by_meta_id.get(driver.call.meta_call_id) is driver:
                del self._by_meta_id[driver.call.meta_call_id]
            self.bury(driver.call.meta_call_id, driver.known())

    def bury(self, meta_call_id: MetaCallId, known: KnownCall | None = None) -> None:
        self._ended[meta_call_id] = known
        if len(self._ended) > TOMBSTONES:
            self._ended.popitem(last=False)

    def get(self, call_id: CallId) -> "CallDriver | None":
        return self._calls.get(call_id)

    def by_meta_id(self, meta_call_id: MetaCallId) -> "CallDriver | None":
        return self._by_meta_id.get(meta_call_id)

    def has_ended(self, meta_call_id: MetaCallId) -> bool:
        return meta_call_id in self._ended

    def known(self, meta_call_id: MetaCallId) -> KnownCall | None:
        """Say what is known of a call, alive or not."""
        driver = self._by_meta_id.get(meta_call_id)
        return driver.known() if driver is not None else self._ended.get(meta_call_id)

    # --- contacts ----------------------------------------------------------------------------------

    def engage(self, keys: Iterable[str], what: Engaged) -> None:
        """Count a call for its contact, until it is released."""
        for key in keys:
            self._engaged.setdefault(key, set()).add(what)

    def release(self, keys: Iterable[str], what: Engaged) -> None:
        for key in keys:
            same_contact = self._engaged.get(key, set())
            same_contact.discard(what)
            if not same_contact:
                self._engaged.pop(key, None)

    def is_busy(self, keys: Iterable[str]) -> bool:
        """Tell whether a call of either direction is up or in the making with this contact."""
        return any(key in self._engaged for key in keys)

    def in_flight(self, keys: Iterable[str]) -> int:
        """Return how many business-initiated calls to this contact may still become connected ones."""
        return sum(each.may_connect for each in set().union(*(self._engaged.get(key, ()) for key in keys)))
