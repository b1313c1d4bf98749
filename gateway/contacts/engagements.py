"""What is under way with each contact: calls, and permission requests that Meta has not answered yet.

The gate counts what is in flight, and Meta's counts are compared with ours only while nothing is.

A contact is found by every name. A call that came with a BSUID and a dial to the number are calls with one person as
soon as anybody knows that they are, so a call counts under each name of its user. A request counts under the contact's
id: it is sent to a contact that is loaded.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from gateway.common.ids import PhoneNumberId, UserRef
from gateway.contacts.directory import Contact


class Engaged(Protocol):
    """A call that keeps a contact busy."""

    @property
    def may_connect(self) -> bool:
        """Tell whether this may still become a connected business-initiated call."""
        ...


def contact_keys(number_id: PhoneNumberId, *users: UserRef) -> frozenset[str]:
    """Return a key for each name of a user; two with one in common are one person."""
    names = {name for user in users for name in (user.user_id, user.wa_id) if name}
    return frozenset(f"{number_id}/{name}" for name in names)


class Engagements:
    """One for all numbers."""

    def __init__(self) -> None:
        self._calls: dict[str, set[Engaged]] = {}  # by contact key
        self._requests: Counter[str] = Counter()  # by contact_id

    # --- calls -------------------------------------------------------------------------------------

    def engage(self, keys: Iterable[str], call: Engaged) -> None:
        """Count a call for its contact, until it is released."""
        for key in keys:
            self._calls.setdefault(key, set()).add(call)

    def release(self, keys: Iterable[str], call: Engaged) -> None:
        """Stop counting a call. Idempotent."""
        for key in keys:
            same_contact = self._calls.get(key, set())
            same_contact.discard(call)
            if not same_contact:
                self._calls.pop(key, None)

    def has_call(self, keys: Iterable[str]) -> bool:
        """Tell whether a call of either direction is up or in the making with this contact."""
        return any(key in self._calls for key in keys)

    def calls_that_may_connect(self, keys: Iterable[str]) -> int:
        """Count the business-initiated calls to this contact that may still become connected ones."""
        return sum(call.may_connect for call in set().union(*(self._calls.get(key, ()) for key in keys)))

    # --- permission requests -------------------------------------------------------------------------

    def request_begins(self, contact_id: str) -> None:
        """Count a permission request to a contact, until it has ended."""
        self._requests[contact_id] += 1

    def request_ended(self, contact_id: str) -> None:
        """Stop counting a permission request, once for each that began."""
        self._requests[contact_id] -= 1
        if not self._requests[contact_id]:
            del self._requests[contact_id]

    def requests_to(self, contact: Contact) -> int:
        """Count the requests on their way, also to a contact that turned out to be this one."""
        return sum(self._requests[contact_id] for contact_id in contact.current.ids)

    # --- both --------------------------------------------------------------------------------------

    def is_busy(self, contact: Contact) -> bool:
        """Tell whether Meta may have counted something that we have not counted yet."""
        return self.has_call(contact_keys(contact.number_id, contact.user)) or self.requests_to(contact) > 0

    def __len__(self) -> int:
        """Count the names and contacts that something is under way with."""
        return len(self._calls) + len(self._requests)
