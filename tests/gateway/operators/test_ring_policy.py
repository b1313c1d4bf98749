"""A few ring at first, whoever declined rings no more, and nobody looks at the whole crew."""

from dataclasses import dataclass
from itertools import count

import pytest

from gateway.common.ids import OperatorId
from gateway.operators.ring_policy import FIRST, has_room, who_rings


@dataclass(frozen=True)
class Candidate:
    operator: OperatorId


def crew(size: int) -> list[Candidate]:
    return [Candidate(OperatorId(str(number))) for number in range(size)]


def names(*numbers: int) -> set[OperatorId]:
    return {OperatorId(str(number)) for number in numbers}


def test_the_first_in_the_queue_ring_first() -> None:
    assert who_rings(crew(20), at=(), declined=(), widened=False) == crew(FIRST)


def test_fewer_than_that_ring_all_at_once() -> None:
    assert who_rings(crew(FIRST - 1), at=(), declined=(), widened=False) == crew(FIRST - 1)


def test_later_everybody_else_rings() -> None:
    assert who_rings(crew(20), at=names(*range(FIRST)), declined=(), widened=True) == crew(20)[FIRST:]


def test_who_declined_does_not_ring_again_and_keeps_the_place() -> None:
    assert who_rings(crew(20), at=names(1, 2), declined=names(0), widened=False) == crew(20)[3:FIRST]
    assert who_rings(crew(2), at=(), declined=names(0), widened=True) == crew(2)[1:]


def test_nobody_may_be_left() -> None:
    assert who_rings([], at=(), declined=(), widened=False) == []
    assert who_rings(crew(1), at=(), declined=names(0), widened=True) == []
    assert who_rings(crew(20), at=names(*range(12)), declined=(), widened=False) == []


def test_only_the_head_of_the_queue_is_looked_at() -> None:
    endless = (Candidate(OperatorId(str(number))) for number in count())
    assert who_rings(endless, at=(), declined=(), widened=False) == crew(FIRST)


@pytest.mark.parametrize(
    ("rings", "declined", "widened", "room"),
    [
        (0, 0, False, True),
        (FIRST - 1, 0, False, True),
        (FIRST, 0, False, False),
        (FIRST - 1, 1, False, False),
        (FIRST + 1, 0, False, False),
        (1_000, 9, True, True),
    ],
)
def test_there_is_room_for_the_first_few_until_it_is_widened(
    rings: int, declined: int, widened: bool, room: bool
) -> None:
    assert has_room(rings=rings, declined=declined, widened=widened) is room
