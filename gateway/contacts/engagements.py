"""Count what is under way with each contact: calls, and permission requests that Meta has not answered yet.

The gate counts what is in flight. Meta's counts are compared with ours only while nothing is in flight.

A call counts under each name of its user (BSUID and number): a call that came with a BSUID and a call placed to the
number belong to one contact as soon as both names are known to be one person. A permission request counts under the
contact's id, because it is always sent to a loaded contact.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from gateway.common.ids import PhoneNumberId, UserRef
from gateway.contacts.directory import Contact


class Engaged(Protocol):
    """A call that makes a contact busy."""

    @property
    def may_connect(self) -> bool:
        """Whether this may still become a connected business-initiated call."""
        ...


def contact_keys(number_id: PhoneNumberId, *users: UserRef) -> frozenset[str]:
    """Return a key for each name of the users; two users with a key in common are one person."""
    names = {name for user in users for name in (user.user_id, user.wa_id) if name}
    return frozenset(f"{number_id}/{name}" for name in names)


class Engagements:
    """The calls and permission requests under way, for all numbers."""

    def __init__(self) -> None:
        self._calls: dict[str, set[Engaged]] = {}  # by contact key
        self._requests: Counter[str] = Counter()  # by contact_id

    # --- calls -------------------------------------------------------------------------------------

    def engage(self, keys: Iterable[str], call: Engaged) -> None:
        """Count a call for its contact until `release`."""
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
        """Tell whether there is a call with this contact, in either direction, active or being set up."""
        return any(key in self._calls for key in keys)

    def calls_that_may_connect(self, keys: Iterable[str]) -> int:
        """Count the business-initiated calls to this contact that may still be connected."""
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
        """Count the permission requests under way, including those to contacts merged into this one."""
        return sum(self._requests[contact_id] for contact_id in contact.current.ids)

    # --- both --------------------------------------------------------------------------------------

    def is_busy(self, contact: Contact) -> bool:
        """Tell whether Meta may have counted something that we have not counted yet."""
        return self.has_call(contact_keys(contact.number_id, contact.user)) or self.requests_to(contact) > 0

    def __len__(self) -> int:
        """Return the number of names and contacts with something under way."""
        return len(self._calls) + len(self._requests)
