"""Which operators ring for a call. [P]

First a few who are free ring, those whose last ring, or last call, is the longest ago; a moment later everybody who is
free. The first to answer has the call. At a phone only a few calls ring at a time. So a crew of a thousand, or a
thousand callers who wait, cost a call no more than four.
"""

from collections.abc import Collection, Container, Iterable
from itertools import islice
from typing import Final, Protocol, TypeVar

from gateway.common.ids import OperatorId

#: So many ring at first: enough that one of them is at the desk. Each more costs every call two messages.
FIRST: Final = 4
#: So many calls ring at a phone at a time, the oldest: more nobody could choose from, and with more callers than
#: operators each call would cost as many messages as there are callers.
MOST_CALLS: Final = 4
#: After this everybody who is free rings: half a ring of a telephone, so a caller whom the first missed hardly notices.
WIDEN_S: Final = 3.0


class Candidate(Protocol):
    """What routing needs to know of an operator."""

    @property
    def operator(self) -> OperatorId: ...


C = TypeVar("C", bound=Candidate)


def has_room(*, rings: int, declined: int, widened: bool) -> bool:
    """Tell whether one more may ring. Who declined keeps the place: if all of the first do, the call is widened."""
    return widened or rings + declined < FIRST


def may_ring(operator: OperatorId, *, at: Container[OperatorId], declined: Container[OperatorId]) -> bool:
    """Tell whether a call may begin to ring at an operator's phone: where it does not yet, and was not declined."""
    return operator not in at and operator not in declined


def who_rings(
    free: Iterable[C], *, at: Collection[OperatorId], declined: Collection[OperatorId], widened: bool
) -> list[C]:
    """Return who begins to ring now, of those who are `free` in that order; `at`: it rings there already.

    Nobody who has declined this call rings for it again.
    """
    new = (phone for phone in free if may_ring(phone.operator, at=at, declined=declined))
    return list(new if widened else islice(new, max(0, FIRST - len(at) - len(declined))))
