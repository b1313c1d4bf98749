"""What is under way with a contact, under every name, until it is given back."""

from gateway.common.ids import PhoneNumberId, UserRef
from gateway.contacts.directory import Contact
from gateway.contacts.engagements import Engagements, contact_keys

NUMBER = PhoneNumberId("200000000000002")


class Call:
    def __init__(self, *, may_connect: bool) -> None:
        self.may_connect = may_connect


def a_contact(contact_id: str, *, former: tuple[str, ...] = ()) -> Contact:
    return Contact(contact_id=contact_id, number_id=NUMBER, user=UserRef(wa_id="5511"), name=None, former_ids=former)


def test_a_contact_is_busy_until_every_call_is_released() -> None:
    engagements = Engagements()
    ours, theirs = Call(may_connect=True), Call(may_connect=False)
    engagements.engage(["c"], ours)
    engagements.engage(["c"], theirs)
    assert (engagements.has_call(["c"]), engagements.calls_that_may_connect(["c"])) == (True, 1)
    engagements.release(["c"], ours)
    engagements.release(["c"], ours)
    assert (engagements.has_call(["c"]), engagements.calls_that_may_connect(["c"])) == (True, 0)
    engagements.release(["c"], theirs)
    assert not engagements.has_call(["c"])
    assert len(engagements) == 0


def test_a_request_counts_while_it_is_on_its_way_also_to_who_was_joined() -> None:
    engagements = Engagements()
    for contact_id in ("old", "new"):
        engagements.request_begins(contact_id)
    joined = a_contact("new", former=("old",))
    assert engagements.requests_to(joined) == 2
    assert engagements.requests_to(a_contact("old")) == 1
    assert engagements.is_busy(joined)
    for contact_id in ("old", "new"):
        engagements.request_ended(contact_id)
    assert engagements.requests_to(joined) == 0
    assert not engagements.is_busy(joined)
    assert len(engagements) == 0


def test_a_call_under_any_name_of_the_contact_keeps_it_busy() -> None:
    engagements = Engagements()
    engagements.engage(contact_keys(NUMBER, UserRef(wa_id="5511", user_id="BR.1")), Call(may_connect=False))
    assert engagements.is_busy(a_contact("c"))
