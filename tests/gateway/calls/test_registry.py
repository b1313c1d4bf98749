"""The live calls are found by every name; the ended ones are remembered."""

from datetime import UTC, datetime
from typing import Any, cast

from gateway.calls import registry as registry_module
from gateway.calls.registry import LiveCall, Registry
from gateway.common.ids import CallId, MetaCallId, PhoneNumberId, UserRef
from gateway.contacts.engagements import Engagements, contact_keys
from gateway.contacts.webhook_facts import KnownCall
from gateway.meta.events import CallEvent, CallStatus
from policy.facts import Direction
from tests.support.harness.world import a_world


class _Call:
    def __init__(self, call_id: str, meta_call_id: str | None) -> None:
        self.call_id, self.meta_call_id = CallId(call_id), meta_call_id


class _Driver:
    """As much of a call as the registry looks at."""

    def __init__(
        self, call_id: str, meta_call_id: str | None = None, *, contact: str = "c", open_: bool = True
    ) -> None:
        self.call = _Call(call_id, meta_call_id)
        self.contact_keys = frozenset(contact.split())
        self.may_connect = open_
        self.heard: list[CallEvent] = []

    def told(self, event: CallEvent) -> None:
        self.heard.append(event)

    def known(self) -> KnownCall:
        return KNOWN


def an_event(meta_call_id: MetaCallId) -> CallStatus:
    return CallStatus(
        number_id=NUMBER,
        at=NOW,
        kind="calls.ringing",
        dedupe_key=f"{meta_call_id}/RINGING",
        body=b"{}",
        meta_call_id=meta_call_id,
        status="RINGING",
        user=None,
        opaque=None,
    )


def a_driver(*args: Any, **more: Any) -> LiveCall:
    return cast(LiveCall, _Driver(*args, **more))


WACID = MetaCallId("wacid.1")
NOW = datetime(2026, 11, 22, tzinfo=UTC)
NUMBER = PhoneNumberId("100000000000001")
KNOWN = KnownCall(user=UserRef(wa_id="5511900000001"), direction=Direction.BUSINESS_INITIATED)


def test_a_call_is_found_by_both_ids_until_it_is_removed() -> None:
    engagements = Engagements()
    registry = Registry(engagements)
    driver = a_driver("1", WACID)
    registry.add(driver)
    assert registry.get(CallId("1")) is registry.by_meta_id(WACID) is driver
    assert (len(registry), list(registry), registry.has_ended(WACID)) == (1, [driver], False)
    registry.remove(driver)
    registry.remove(driver)
    assert (registry.get(CallId("1")), registry.by_meta_id(WACID), len(registry)) == (None, None, 0)
    assert registry.has_ended(WACID)
    assert registry.known(WACID) is KNOWN


def test_metas_id_may_be_learnt_later_and_what_waited_for_it_is_told_once() -> None:
    registry = Registry(Engagements())
    early, other = an_event(WACID), an_event(MetaCallId("wacid.other"))
    registry.park(early, now=NOW)
    registry.park(other, now=NOW)
    driver = _Driver("1")
    call = cast(LiveCall, driver)
    registry.add(call)
    assert driver.heard == []
    registry.learn_meta_id(call, WACID)
    registry.learn_meta_id(call, WACID)
    assert driver.heard == [early]
    assert registry.by_meta_id(WACID) is call
    assert registry.take_parked(other.meta_call_id) == [other]
    assert registry.take_parked(other.meta_call_id) == []


def test_of_two_calls_with_one_id_the_first_keeps_it() -> None:
    engagements = Engagements()
    registry = Registry(engagements)
    first, second = a_driver("1", WACID), a_driver("2", WACID)
    registry.add(first)
    registry.add(second)
    registry.remove(second)
    assert registry.by_meta_id(WACID) is first


def test_a_call_that_never_had_an_id_leaves_no_stone() -> None:
    engagements = Engagements()
    registry = Registry(engagements)
    driver = a_driver("1")
    registry.add(driver)
    registry.remove(driver)
    assert not engagements.has_call(["c"])


def test_a_contact_is_busy_while_any_call_with_them_lives() -> None:
    engagements = Engagements()
    registry = Registry(engagements)
    first, second = a_driver("1"), a_driver("2", open_=False)
    for driver in (first, second, a_driver("3", contact="other")):
        registry.add(driver)
    assert (
        engagements.has_call(["c"]),
        engagements.calls_that_may_connect(["c"]),
        engagements.calls_that_may_connect(["nobody"]),
    ) == (True, 1, 0)
    registry.remove(first)
    assert (engagements.has_call(["c"]), engagements.calls_that_may_connect(["c"])) == (True, 0)
    registry.remove(second)
    assert not engagements.has_call(["c"])
    assert engagements.has_call(["other"])


def test_a_call_counts_under_every_name_and_once() -> None:
    engagements = Engagements()
    registry = Registry(engagements)
    by_number, by_both = a_driver("1", contact="n/551"), a_driver("2", contact="n/551 n/BR.1")
    registry.add(by_number)
    registry.add(by_both)
    assert engagements.calls_that_may_connect(["n/551"]) == engagements.calls_that_may_connect(["n/551", "n/BR.1"]) == 2
    assert engagements.calls_that_may_connect(["n/BR.1"]) == 1
    registry.remove(by_both)
    assert (engagements.has_call(["n/BR.1"]), engagements.has_call(["n/BR.1", "n/551"])) == (False, True)


def test_a_name_is_one_with_one_number_only() -> None:
    both = contact_keys(NUMBER, UserRef(wa_id="551"), UserRef(wa_id="551", user_id="BR.1"))
    assert both == {f"{NUMBER}/551", f"{NUMBER}/BR.1"}
    assert not both & contact_keys(PhoneNumberId("2"), UserRef(wa_id="551", user_id="BR.1"))


def test_so_many_ended_calls_are_remembered_and_no_more() -> None:
    engagements = Engagements()
    registry = Registry(engagements)
    for number in range(registry_module.TOMBSTONES + 1):
        registry.bury(MetaCallId(str(number)))
    assert not registry.has_ended(MetaCallId("0"))
    assert registry.has_ended(MetaCallId("1"))


async def test_a_list_of_calls_does_not_change_while_it_is_walked() -> None:
    async with a_world() as world:
        await world.user_calls()
        for driver in world.registry:
            world.registry.remove(driver)
        assert len(world.registry) == 0
