"""Which operators' phones ring for a call. [P]

At first a few free phones ring: those whose last ring or call is the longest ago. After `WIDEN_S` all free phones ring.
The first operator to answer gets the call. At each phone only a few calls ring at a time. So a call costs about the
same with a thousand operators, or a thousand waiting callers, as with four.
"""

from collections.abc import Collection, Container, Iterable
from itertools import islice
from typing import Final, Protocol, TypeVar

from gateway.common.ids import OperatorId

#: How many phones ring at first: enough that one operator is at the desk. Each more costs every call two messages.
FIRST: Final = 4
#: How many calls ring at a phone at a time, the oldest. An operator cannot choose among more, and with more callers
#: than operators each call would cost as many messages as there are callers.
MOST_CALLS: Final = 4
#: After this all free phones ring: half a telephone ring, so a caller whom the first few missed hardly notices.
WIDEN_S: Final = 3.0


class Candidate(Protocol):
    """What the ring policy needs to know about a phone."""

    @property
    def operator(self) -> OperatorId: ...


C = TypeVar("C", bound=Candidate)


def has_room(*, rings: int, declined: int, widened: bool) -> bool:
    """Tell whether one more phone may ring. A phone that declined keeps its place: if all decline, the call widens."""
    return widened or rings + declined < FIRST


def may_ring(operator: OperatorId, *, at: Container[OperatorId], declined: Container[OperatorId]) -> bool:
    """Tell whether a call may begin to ring at an operator's phone: it neither rings there nor was declined there."""
    return operator not in at and operator not in declined


def who_rings(
    free: Iterable[C], *, at: Collection[OperatorId], declined: Collection[OperatorId], widened: bool
) -> list[C]:
    """Return the phones that begin to ring now, taken from `free` in its order.

    `at`: operators at whose phone the call rings already; `declined`: operators who declined it and do not ring again.
    """
    new = (phone for phone in free if may_ring(phone.operator, at=at, declined=declined))
    return list(new if widened else islice(new, max(0, FIRST - len(at) - len(declined))))
