"""A ticket opens one door once, for 30 seconds."""

import pytest

from gateway.common.ids import OperatorId
from gateway.softphone.tickets import MAX_OPEN, TICKET_S, Tickets

ANA = OperatorId("ana")
KEYS = {"ana": "key-of-ana", "joão": "chave-do-joão"}


def a_desk(api_key: str | None = "the-api-key") -> Tickets:
    return Tickets(operators=KEYS, api_key=api_key)


@pytest.mark.parametrize(
    ("age_s", "good"), [(0.0, True), (TICKET_S - 0.001, True), (TICKET_S, False), (TICKET_S + 1, False)]
)
def test_a_ticket_is_good_for_30_seconds(age_s: float, good: bool) -> None:
    desk = a_desk()
    ticket = desk.issue(ANA, now=100.0)
    assert ticket is not None
    assert desk.use(ticket, now=100.0 + age_s) == (ANA if good else None)


def test_a_ticket_is_used_once() -> None:
    desk = a_desk()
    ticket = desk.issue(ANA, now=0.0)
    assert ticket is not None
    assert [desk.use(ticket, now=1.0), desk.use(ticket, now=1.0)] == [ANA, None]
    assert desk.use("never given out", now=1.0) is None


def test_no_two_tickets_are_alike() -> None:
    desk = a_desk()
    assert len({desk.issue(ANA, now=0.0) for _ in range(1_000)}) == 1_000


def test_too_many_open_tickets_are_refused_until_they_expire() -> None:
    desk = a_desk()
    for _ in range(MAX_OPEN):
        assert desk.issue(ANA, now=0.0)
    assert desk.issue(ANA, now=TICKET_S - 0.001) is None
    assert desk.issue(ANA, now=TICKET_S)


@pytest.mark.parametrize(
    ("operator", "key", "good"),
    [
        ("ana", "key-of-ana", True),
        ("joão", "chave-do-joão", True),
        ("ana", "chave-do-joão", False),
        ("ana", "", False),
        ("ana", "\udcff", False),
        ("ANA", "key-of-ana", False),
        ("nobody", "", False),
    ],
)
def test_an_operator_is_who_has_the_key(operator: str, key: str, good: bool) -> None:
    assert a_desk().operator_with_key(operator, key) == (operator if good else None)


@pytest.mark.parametrize("key", ["", "wrong", "the-api-key ", "\udcff"])
def test_what_is_not_the_api_key_opens_nothing(key: str) -> None:
    assert not a_desk().is_api_key(key)


def test_without_an_api_key_no_key_is_the_api_key() -> None:
    assert a_desk().is_api_key("the-api-key")
    assert not a_desk(None).is_api_key("")
    assert not a_desk("").is_api_key("")
