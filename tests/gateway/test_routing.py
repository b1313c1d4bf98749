"""Everybody who can ring rings, but for those who declined."""

from dataclasses import dataclass

from gateway.ids import OperatorId
from gateway.routing import who_rings


@dataclass(frozen=True)
class Candidate:
    operator: OperatorId
    can_ring: bool = True


ANA, BIA = Candidate(OperatorId("ana")), Candidate(OperatorId("bia"))
BUSY = Candidate(OperatorId("caio"), can_ring=False)


def test_all_who_can_ring_at_once() -> None:
    assert who_rings([ANA, BUSY, BIA], declined=()) == [ANA, BIA]


def test_who_declined_does_not_ring_again() -> None:
    assert who_rings([ANA, BIA], declined={ANA.operator}) == [BIA]


def test_nobody_may_be_left() -> None:
    assert who_rings([BUSY], declined=()) == []
    assert who_rings([ANA], declined=[ANA.operator]) == []
