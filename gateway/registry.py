"""The live calls, found by our id, by Meta's id, by contact; and the ids of those that have ended.

Responsible for who is alive and who was. Not responsible for what happens to them (see `driver`, `inbox`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from gateway.ids import CallId, MetaCallId

if TYPE_CHECKING:
    from gateway.driver import CallDriver

#: Ended calls remembered, so that a webhook that comes late is not taken for a new call.
TOMBSTONES: Final = 20_000


class Registry:
    """Every call that is alive in this process."""

    def __init__(self) -> None:
        self._calls: dict[CallId, CallDriver] = {}
        self._by_meta_id: dict[MetaCallId, CallDriver] = {}
        self._ended: OrderedDict[MetaCallId, CallId] = OrderedDict()
        self._with_contact: dict[str, set[CallDriver]] = {}
        #: Told when a call learns Meta's id for it.
        self.on_learned: Callable[[CallDriver, MetaCallId], None] = lambda driver, meta_call_id: None

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator["CallDriver"]:
        return iter(tuple(self._calls.values()))

    def add(self, driver: "CallDriver") -> None:
        self._calls[driver.call.call_id] = driver
        self._with_contact.setdefault(driver.contact_key, set()).add(driver)
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
        same_contact = self._with_contact[driver.contact_key]
        same_contact.discard(driver)
        if not same_contact:
            del self._with_contact[driver.contact_key]
        if driver.call.meta_call_id is not None:
            if self._by_meta_id.get(driver.call.meta_call_id) is driver:
                del self._by_meta_id[driver.call.meta_call_id]
            self.bury(driver.call.meta_call_id, driver.call.call_id)

    def bury(self, meta_call_id: MetaCallId, call_id: CallId) -> None:
        self._ended[meta_call_id] = call_id
        if len(self._ended) > TOMBSTONES:
            self._ended.popitem(last=False)

    def get(self, call_id: CallId) -> "CallDriver | None":
        return self._calls.get(call_id)

    def by_meta_id(self, meta_call_id: MetaCallId) -> "CallDriver | None":
        return self._by_meta_id.get(meta_call_id)

    def has_ended(self, meta_call_id: MetaCallId) -> bool:
        return meta_call_id in self._ended

    def is_busy(self, contact_key: str) -> bool:
        """Tell whether a call of either direction is up or in the making with this contact."""
        return contact_key in self._with_contact

    def in_flight(self, contact_key: str) -> int:
        """Return how many business-initiated calls to this contact may still become connected ones."""
        return sum(driver.may_connect for driver in self._with_contact.get(contact_key, ()))
