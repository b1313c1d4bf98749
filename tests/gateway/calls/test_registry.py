"""The live calls are found by every name; the ended ones are remembered."""

from typing import Any, cast

from gateway.calls import registry as registry_module
from gateway.calls.driver import CallDriver
from gateway.calls.registry import LeftOverCall, Registry, contact_keys
from gateway.common.ids import CallId, MetaCallId, PhoneNumberId, UserRef
from gateway.contacts.webhook_facts import KnownCall
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

    def known(self) -> KnownCall:
        return KNOWN


def a_driver(*args: Any, **more: Any) -> CallDriver:
    return cast(CallDriver, _Driver(*args, **more))


WACID = MetaCallId("wacid.1")
NUMBER = PhoneNumberId("100000000000001")
KNOWN = KnownCall(user=UserRef(wa_id="5511900000001"), direction=Direction.BUSINESS_INITIATED)


def test_a_call_is_found_by_both_ids_until_it_is_removed() -> None:
    registry = Registry()
    driver = a_driver("1", WACID)
    registry.add(driver)
    assert registry.get(CallId("1")) is registry.by_meta_id(WACID) is driver
    assert (len(registry), list(registry), registry.has_ended(WACID)) == (1, [driver], False)
    registry.remove(driver)
    registry.remove(driver)
    assert (registry.get(CallId("1")), registry.by_meta_id(WACID), len(registry)) == (None, None, 0)
    assert registry.has_ended(WACID)
    assert registry.known(WACID) is KNOWN


def test_metas_id_may_be_learnt_later_and_is_told_once() -> None:
    registry = Registry()
    learnt: list[MetaCallId] = []
    registry.on_learned = lambda driver, meta_call_id: learnt.append(meta_call_id)
    driver = a_driver("1")
    registry.add(driver)
    assert learnt == []
    registry.learn_meta_id(driver, WACID)
    registry.learn_meta_id(driver, WACID)
    assert learnt == [WACID]
    assert registry.by_meta_id(WACID) is driver


def test_of_two_calls_with_one_id_the_first_keeps_it() -> None:
    registry = Registry()
    first, second = a_driver("1", WACID), a_driver("2", WACID)
    registry.add(first)
    registry.add(second)
    registry.remove(second)
    assert registry.by_meta_id(WACID) is first


def test_a_call_that_never_had_an_id_leaves_no_stone() -> None:
    registry = Registry()
    driver = a_driver("1")
    registry.add(driver)
    registry.remove(driver)
    assert not registry.is_busy(["c"])


def test_a_contact_is_busy_while_any_call_with_them_lives() -> None:
    registry = Registry()
    first, second = a_driver("1"), a_driver("2", open_=False)
    for driver in (first, second, a_driver("3", contact="other")):
        registry.add(driver)
    assert (registry.is_busy(["c"]), registry.in_flight(["c"]), registry.in_flight(["nobody"])) == (True, 1, 0)
    registry.remove(first)
    assert (registry.is_busy(["c"]), registry.in_flight(["c"])) == (True, 0)
    registry.remove(second)
    assert not registry.is_busy(["c"])
    assert registry.is_busy(["other"])


def test_a_call_counts_under_every_name_and_once() -> None:
    registry = Registry()
    by_number, by_both = a_driver("1", contact="n/551"), a_driver("2", contact="n/551 n/BR.1")
    registry.add(by_number)
    registry.add(by_both)
    assert registry.in_flight(["n/551"]) == registry.in_flight(["n/551", "n/BR.1"]) == 2
    assert registry.in_flight(["n/BR.1"]) == 1
    registry.remove(by_both)
    assert (registry.is_busy(["n/BR.1"]), registry.is_busy(["n/BR.1", "n/551"])) == (False, True)


def test_a_name_is_one_with_one_number_only() -> None:
    both = contact_keys(NUMBER, UserRef(wa_id="551"), UserRef(wa_id="551", user_id="BR.1"))
    assert both == {f"{NUMBER}/551", f"{NUMBER}/BR.1"}
    assert not both & contact_keys(PhoneNumberId("2"), UserRef(wa_id="551", user_id="BR.1"))


def test_what_a_crash_left_keeps_a_contact_busy_until_it_is_let_go() -> None:
    registry = Registry()
    ours = LeftOverCall(direction=Direction.BUSINESS_INITIATED)
    theirs = LeftOverCall(direction=Direction.USER_INITIATED)
    registry.engage(["c"], ours)
    registry.engage(["c"], theirs)
    assert (registry.is_busy(["c"]), registry.in_flight(["c"])) == (True, 1)
    registry.release(["c"], ours)
    registry.release(["c"], ours)
    assert (registry.is_busy(["c"]), registry.in_flight(["c"])) == (True, 0)
    registry.release(["c"], theirs)
    assert not registry.is_busy(["c"])


def test_so_many_ended_calls_are_remembered_and_no_more() -> None:
    registry = Registry()
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
