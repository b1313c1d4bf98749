"""Which operators ring for a call. [P]

Today: every operator who is logged in, available and not in a call rings at once; the first to answer has the call.
"""

from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

from gateway.ids import OperatorId


class Candidate(Protocol):
    """What routing needs to know of an operator."""

    @property
    def operator(self) -> OperatorId: ...

    @property
    def can_ring(self) -> bool: ...


C = TypeVar("C", bound=Candidate)


def who_rings(phones: Iterable[C], *, declined: Collection[OperatorId]) -> list[C]:
    """Return those who ring now; nobody who has declined this call rings for it again."""
    return [phone for phone in phones if phone.can_ring and phone.operator not in declined]
