"""One suite for every `Store`: what the gateway relies on, whichever is behind it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta, timezone
from types import MappingProxyType
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from gateway.callflow.outcome import EndReason, Result
from gateway.common.errors import StoreDown, StoreError
from gateway.common.ids import CallId, MetaCallId, OperatorId, UserRef
from gateway.store.records import CallDeclined, CallRecord, ContactsMerged, EndOwed, NumberSaved
from gateway.store.store import PostgresStore, Replay, ReplayState, Store
from policy.facts import Direction
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators import records as make
from tests.support.generators.records import NUMBER, OTHER_NUMBER, T0, at
from tests.support.harness.postgres import Server, temporary_database


@pytest_asyncio.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest, postgres_server: Server) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        made: Store
        if request.param == "memory":
            made = MemoryStore()
        else:
            made = PostgresStore(await stack.enter_async_context(temporary_database(postgres_server)))
        await made.start()
        stack.push_async_callback(made.aclose)
        yield made


# --- events ----------------------------------------------------------------------------------------


async def test_the_same_event_is_kept_once(store: Store) -> None:
    await store.write(make.event("connect/1"), make.event("connect/1", body=b"{}"))
    await store.write(make.event("connect/1"))
    assert await store.recent_event_keys(T0) == {"connect/1"}


async def test_event_keys_are_remembered_from_an_instant_on_inclusive(store: Store) -> None:
    await store.write(*(make.event(f"k{n}", received_at=at(n)) for n in range(4)))
    assert await store.recent_event_keys(at(2)) == {"k2", "k3"}


async def test_numbers_do_not_share_dedupe_keys(store: Store) -> None:
    await store.write(make.event("k", received_at=at(0)))
    await store.write(make.event("k", phone_number_id=OTHER_NUMBER, received_at=at(9)))
    assert await store.recent_event_keys(at(5)) == {"k"}


async def test_the_journal_says_which_events_it_holds(store: Store) -> None:
    await store.write(make.event("a"), make.event("b"), make.event("c", phone_number_id=OTHER_NUMBER))
    assert await store.known_events(NUMBER, ["a", "c", "d"]) == {"a"}
    assert await store.known_events(NUMBER, []) == set()


async def test_old_events_and_old_idempotency_keys_are_deleted_some_at_a_time(store: Store) -> None:
    await store.write(*(make.event(f"k{n}", received_at=at(n)) for n in range(5)))
    for n in range(5):
        await store.idempotent(f"i{n}", "f", at(n))
    assert await store.forget(events_before=at(3), keys_before=at(2), limit=2) == 4
    assert await store.forget(events_before=at(3), keys_before=at(2), limit=2) == 1
    assert await store.forget(events_before=at(3), keys_before=at(2), limit=2) == 0
    assert await store.recent_event_keys(T0) == {"k3", "k4"}
    replays = [await store.idempotent(f"i{n}", "f", at(9)) for n in range(5)]
    assert [replay is None for replay in replays] == [True, True, False, False, False]


async def test_an_event_may_name_no_number_and_hold_any_bytes(store: Store) -> None:
    await store.write(make.event("odd", phone_number_id="", body=b'{"name": "\\u0000\xff'))
    assert await store.recent_event_keys(T0) == {"odd"}


# --- calls -----------------------------------------------------------------------------------------


async def test_a_call_comes_back_as_it_was_written(store: Store) -> None:
    call = make.call(
        version=7,
        direction=Direction.BUSINESS_INITIATED,
        state="ended",
        operator=OperatorId("maria"),
        ringing_at=at(1.25),
        accepted_at=at(2.000001),
        ended_at=at(62),
        result=Result.COMPLETED,
        reason=EndReason.HUNG_UP_BY_USER,
        detail="fine",
        meta_status="COMPLETED",
        meta_start_at=at(2),
        meta_end_at=at(62),
        duration_s=60,
        leg_stats={"meta": {"packets_received": 3000, "jitter_ms": 1.5}, "names": ["ü", None, True]},
    )
    await store.write(call)
    assert await store.call(call.call_id) == call
    assert await store.call_by_meta_id(MetaCallId(str(call.meta_call_id))) == call


async def test_an_unknown_call_is_none(store: Store) -> None:
    assert await store.call(CallId("f" * 32)) is None
    assert await store.call_by_meta_id(MetaCallId("wacid.unknown")) is None


async def test_the_highest_version_of_a_call_wins_whatever_comes_last(store: Store) -> None:
    first = make.call(version=1)
    third = replace(first, version=3, state="active", operator=OperatorId("maria"))
    await store.write(first)
    await store.write(third)
    await store.write(replace(first, version=2, state="ended"))
    await store.write(replace(third, state="ended"))  # the same version again
    assert await store.call(first.call_id) == third


async def test_versions_in_one_group_and_out_of_order_leave_the_highest(store: Store) -> None:
    call = make.call(version=2, state="active")
    await store.write(replace(call, version=1, state="ringing"), call, replace(call, version=0))
    assert await store.call(call.call_id) == call


async def test_what_meta_said_in_an_older_version_of_the_same_group_stays(store: Store) -> None:
    declined = make.call(meta_status="FAILED", result=Result.USER, reason=EndReason.DECLINED)
    newer = replace(declined, version=2, meta_status=None, duration_s=7, reason=EndReason.NOT_ANSWERED)
    other = make.call(version=2, state="active")
    await store.write(declined, newer, replace(other, version=1, duration_s=5), other)
    assert await store.call(declined.call_id) == replace(newer, meta_status="FAILED", reason=EndReason.DECLINED)
    assert await store.call(other.call_id) == replace(other, duration_s=5)


async def test_a_late_terminate_fills_only_what_meta_had_not_said(store: Store) -> None:
    call = make.call(state="ended", meta_status="FAILED")
    await store.write(call)
    await store.write(make.terminate(call.meta_call_id))
    await store.write(make.terminate(call.meta_call_id, duration_s=999))
    expected = replace(call, meta_start_at=at(10), meta_end_at=at(70), duration_s=60)
    assert await store.call(call.call_id) == expected


async def test_a_newer_version_does_not_wipe_what_a_terminate_filled(store: Store) -> None:
    call = make.call(version=1)
    await store.write(call)
    await store.write(make.terminate(call.meta_call_id))
    await store.write(replace(call, version=2, state="ended", duration_s=61))
    found = await store.call(call.call_id)
    assert found is not None
    assert (found.state, found.duration_s, found.meta_end_at) == ("ended", 61, at(70))


async def test_a_terminate_in_the_group_of_its_call_finds_it(store: Store) -> None:
    call = make.call()
    await store.write(make.terminate(call.meta_call_id), call)
    found = await store.call(call.call_id)
    assert found is not None
    assert found.duration_s == 60


async def test_a_terminate_of_an_unknown_call_changes_nothing(store: Store) -> None:
    await store.write(make.terminate("wacid.unknown"))
    assert await store.unfinished_calls() == []


async def test_recent_calls_come_latest_first_and_limited(store: Store) -> None:
    calls = [make.call(created_at=at(n)) for n in range(5)]
    other = make.call(phone_number_id=OTHER_NUMBER, created_at=at(2.5))
    await store.write(*calls, other)
    both = await store.recent_calls(phone_number_ids=[NUMBER, OTHER_NUMBER, NUMBER], limit=4)
    assert both == [calls[4], calls[3], other, calls[2]]
    assert await store.recent_calls(phone_number_ids=[OTHER_NUMBER], limit=4) == [other]
    assert await store.recent_calls(phone_number_ids=[], limit=4) == []


async def test_recent_calls_of_one_operator(store: Store) -> None:
    mine = [make.call(created_at=at(n), operator=OperatorId("maria")) for n in range(3)]
    elsewhere = make.call(phone_number_id=OTHER_NUMBER, operator=OperatorId("maria"))
    await store.write(*mine, make.call(operator=OperatorId("joão")), make.call(), elsewhere)
    found = await store.recent_calls(phone_number_ids=[NUMBER], limit=2, operator=OperatorId("maria"))
    assert found == [mine[2], mine[1]]


async def test_unfinished_calls_are_those_that_have_not_ended_oldest_first(store: Store) -> None:
    late, early = make.call(state="active", created_at=at(5)), make.call(state="connecting")
    await store.write(late, early, make.call(state="ended"))
    assert await store.unfinished_calls() == [early, late]


async def test_one_call_between_two_of_our_numbers_has_two_records(store: Store) -> None:
    one = make.call(meta_call_id=MetaCallId("wacid.both"))
    two = make.call(meta_call_id=MetaCallId("wacid.both"), phone_number_id=OTHER_NUMBER, created_at=at(1))
    await store.write(one, two)
    assert await store.call_by_meta_id(MetaCallId("wacid.both")) == two


async def test_a_call_that_is_owed_its_end_is_unfinished_until_that_is_confirmed(store: Store) -> None:
    ended, live = make.call(state="ended", created_at=at(1)), make.call(created_at=at(2))
    await store.write(ended, live, EndOwed(call_id=ended.call_id, owed=True))
    assert await store.unfinished_calls() == [ended, live]
    await store.write(replace(live, version=2, state="ended"), EndOwed(call_id=ended.call_id, owed=False))
    assert await store.unfinished_calls() == []


async def test_the_last_word_on_an_ending_counts(store: Store) -> None:
    call = make.call(state="ended")
    mark = EndOwed(call_id=call.call_id, owed=True)
    await store.write(call, mark, replace(mark, owed=False))
    assert await store.unfinished_calls() == []
    await store.write(replace(mark, owed=False), mark)
    assert await store.unfinished_calls() == [call]


async def test_an_ending_may_tell_metas_id_and_no_version_takes_it_back(store: Store) -> None:
    call, meta_call_id = make.call(meta_call_id=None), MetaCallId("wacid.LATE")
    await store.write(call)
    terminated = make.terminate(meta_call_id)
    await store.write(EndOwed(call_id=call.call_id, owed=True, meta_call_id=meta_call_id), terminated)
    await store.write(replace(call, version=2, state="ended"))
    found = await store.call(call.call_id)
    assert found is not None
    assert (found.meta_call_id, found.state, found.duration_s) == (meta_call_id, "ended", terminated.duration_s)
    await store.write(EndOwed(call_id=call.call_id, owed=False, meta_call_id=MetaCallId("wacid.OTHER")))
    assert (await store.call_by_meta_id(meta_call_id)) == found


async def test_a_decline_that_comes_late_says_why_nobody_answered(store: Store) -> None:
    unanswered = make.call(
        direction=Direction.BUSINESS_INITIATED, state="ended", result=Result.USER, reason=EndReason.NOT_ANSWERED
    )
    others = [
        make.call(state="ended", result=Result.USER, reason=EndReason.NOT_ANSWERED),
        make.call(direction=Direction.BUSINESS_INITIATED, state="ringing"),
        make.call(direction=Direction.BUSINESS_INITIATED, result=Result.OPERATOR, reason=EndReason.CANCELLED),
    ]
    await store.write(unanswered, *others)
    for call in (unanswered, *others):
        assert call.meta_call_id is not None
        await store.write(CallDeclined(meta_call_id=call.meta_call_id))
    await store.write(replace(unanswered, version=2, leg_stats={"kept": 1}))
    assert await store.call(unanswered.call_id) == replace(
        unanswered, version=2, leg_stats={"kept": 1}, reason=EndReason.DECLINED
    )
    assert [await store.call(call.call_id) for call in others] == others


async def test_an_ending_of_an_unknown_call_changes_nothing(store: Store) -> None:
    await store.write(EndOwed(call_id=CallId("nobody"), owed=True))
    assert await store.unfinished_calls() == []


# --- contacts and facts ----------------------------------------------------------------------------


async def test_a_contact_is_found_by_either_name(store: Store) -> None:
    contact = make.contact(state={"connected": 3, "since": None})
    await store.write(contact)
    for user in (contact.user, UserRef(wa_id=contact.user.wa_id), UserRef(user_id=contact.user.user_id)):
        assert await store.contact(NUMBER, user) == contact
    assert await store.contact(OTHER_NUMBER, contact.user) is None
    assert await store.contact(NUMBER, UserRef(wa_id="5511900000099", user_id="BR.99")) is None


async def test_the_bsuid_goes_before_the_number(store: Store) -> None:
    by_id = make.contact(user=UserRef(user_id="BR.1"), seen_at=at(0))
    by_number = make.contact(user=UserRef(wa_id="5511900000002"), seen_at=at(9))
    await store.write(by_id, by_number)
    assert await store.contact(NUMBER, UserRef(wa_id="5511900000002", user_id="BR.1")) == by_id


async def test_a_number_that_changed_hands_is_not_the_former_user(store: Store) -> None:
    former = make.contact(user=UserRef(wa_id="5511900000002", user_id="BR.1"))
    await store.write(former)
    assert await store.contact(NUMBER, UserRef(wa_id="5511900000002", user_id="BR.2")) is None
    latter = make.contact(user=UserRef(wa_id="5511900000002", user_id="BR.2"), seen_at=at(5))
    await store.write(latter)
    assert await store.contact(NUMBER, UserRef(wa_id="5511900000002")) == latter


async def test_a_contact_gains_names_and_loses_no_bsuid(store: Store) -> None:
    number = UserRef(wa_id="5511900000002")
    contact = make.contact(user=number, name=None)
    await store.write(contact)
    await store.write(replace(contact, user=UserRef(user_id="BR.1"), name="Ana", seen_at=at(5)))
    assert await store.contact(NUMBER, number) is None  # it is somebody else's by now
    await store.write(replace(contact, name=None, state={"connected": 2}, seen_at=at(3)))
    assert await store.contact(NUMBER, UserRef(user_id="BR.1")) == replace(
        contact,
        user=UserRef(wa_id="5511900000002", user_id="BR.1"),
        name="Ana",
        state={"connected": 2},
        seen_at=at(5),
    )


async def test_a_contact_saved_twice_in_one_group_is_as_if_saved_one_after_the_other(store: Store) -> None:
    first = make.contact(seen_at=at(5))
    second = replace(first, user=UserRef(wa_id="5511900000002"), name=None, state={"connected": 1}, seen_at=at(3))
    await store.write(first, second)
    both = UserRef(wa_id="5511900000002", user_id=first.user.user_id)
    assert await store.contact(NUMBER, both) == replace(second, user=both, name="Ana", seen_at=at(5))


async def test_two_contacts_cannot_share_a_bsuid(store: Store) -> None:
    first = make.contact(user=UserRef(user_id="BR.1"))
    await store.write(first)
    with pytest.raises(StoreError) as caught:
        await store.write(make.contact(user=UserRef(user_id="BR.1")))
    assert not isinstance(caught.value, StoreDown)
    await store.write(make.contact(phone_number_id=OTHER_NUMBER, user=UserRef(user_id="BR.1")))
    assert await store.contact(NUMBER, UserRef(user_id="BR.1")) == first


async def test_facts_come_back_once_and_in_the_order_they_happened(store: Store) -> None:
    contact = make.contact()
    late, first, second = (
        make.fact(contact.contact_id, "late", at=at(9)),
        make.fact(contact.contact_id, "first", at=at(1), fact={"n": [1, 2]}),
        make.fact(contact.contact_id, "second", at=at(1)),
    )
    await store.write(contact, late, first, second, replace(first, fact={"n": "again"}))
    await store.write(replace(late, at=at(0)))
    assert await store.facts(contact.contact_id) == [first, second, late]
    assert await store.facts("nobody") == []


async def test_of_two_facts_with_one_key_the_later_stays_whichever_came_first(store: Store) -> None:
    contact = make.contact()
    early, late = (make.fact(contact.contact_id, "connected/1", at=at(s), fact={"s": s}) for s in (1, 2))
    await store.write(contact, early, late, early)
    assert await store.facts(contact.contact_id) == [late]
    other = make.contact(user=UserRef(user_id="BR.2"))
    facts = [replace(fact, contact_id=other.contact_id) for fact in (late, early)]
    await store.write(other, facts[0])
    await store.write(facts[1])
    assert await store.facts(other.contact_id) == [facts[0]]


async def test_everybody_is_found_who_is_known_by_either_name(store: Store) -> None:
    user = UserRef(wa_id="5511900000002", user_id="BR.1")
    by_id = make.contact(user=UserRef(user_id="BR.1", wa_id="5511900000009"), seen_at=at(0))
    by_number = make.contact(user=UserRef(wa_id="5511900000002"), seen_at=at(9))
    older = make.contact(user=UserRef(wa_id="5511900000002"), seen_at=at(8))
    former = make.contact(user=UserRef(wa_id="5511900000002", user_id="BR.2"), seen_at=at(10))
    elsewhere = make.contact(phone_number_id=OTHER_NUMBER, user=user)
    await store.write(older, by_number, by_id, former, elsewhere)
    assert await store.contacts_named(NUMBER, user) == [by_id, by_number, older, former]
    assert await store.contacts_named(NUMBER, UserRef(wa_id="5511900000003", user_id="BR.3")) == []


async def test_two_contacts_become_one_with_every_fact_once(store: Store) -> None:
    kept, absorbed = make.contact(user=UserRef(user_id="BR.1")), make.contact(user=UserRef(wa_id="5511900000002"))
    mine = [make.fact(kept.contact_id, key, at=at(s)) for key, s in (("a", 1), ("both", 5), ("older", 2))]
    theirs = [make.fact(absorbed.contact_id, key, at=at(s)) for key, s in (("b", 3), ("both", 4), ("older", 6))]
    await store.write(kept, *mine, absorbed, *theirs)
    both = replace(kept, user=UserRef(wa_id="5511900000002", user_id="BR.1"), state={"joined": True})
    merged = ContactsMerged(kept=kept.contact_id, absorbed=absorbed.contact_id)
    for _ in range(2):  # a group may be written again
        await store.write(merged, both)
        found = [(fact.key, fact.at) for fact in await store.facts(kept.contact_id)]
        assert found == [("a", at(1)), ("b", at(3)), ("both", at(5)), ("older", at(6))]
        assert await store.facts(absorbed.contact_id) == []
        for user in (both.user, UserRef(wa_id="5511900000002"), UserRef(user_id="BR.1")):
            assert await store.contact(NUMBER, user) == both


async def test_a_merge_in_the_group_of_both_contacts_finds_them_and_the_kept_one_may_be_new(store: Store) -> None:
    absorbed, kept = make.contact(user=UserRef(wa_id="5511900000002")), make.contact()
    merged = ContactsMerged(kept=kept.contact_id, absorbed=absorbed.contact_id)
    await store.write(absorbed, make.fact(absorbed.contact_id, "a"), kept, merged)
    assert [fact.key for fact in await store.facts(kept.contact_id)] == ["a"]
    assert await store.contact(NUMBER, absorbed.user) is None


async def test_three_contacts_become_one_in_two_steps_of_one_group(store: Store) -> None:
    contacts = [make.contact(user=UserRef(wa_id="5511900000002")) for _ in range(2)] + [make.contact()]
    first, second, last = (contact.contact_id for contact in contacts)
    await store.write(
        *contacts,
        *(make.fact(contact.contact_id, contact.contact_id) for contact in contacts),
        ContactsMerged(kept=second, absorbed=first),
        ContactsMerged(kept=last, absorbed=second),
    )
    assert {fact.key for fact in await store.facts(last)} == {first, second, last}


async def test_facts_cannot_be_moved_to_nobody(store: Store) -> None:
    absorbed = make.contact()
    await store.write(absorbed, make.fact(absorbed.contact_id, "a"))
    with pytest.raises(StoreError):
        await store.write(ContactsMerged(kept="nobody", absorbed=absorbed.contact_id))
    assert [fact.key for fact in await store.facts(absorbed.contact_id)] == ["a"]
    await store.write(ContactsMerged(kept="nobody", absorbed="nobody either"))


async def test_a_fact_of_nobody_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.write(make.fact("nobody"))


# --- decisions -------------------------------------------------------------------------------------


async def test_decisions_come_latest_first_by_number_and_by_user(store: Store) -> None:
    refusal = {"reason": "connected_limit", "observed": 5, "limit": 5, "retry_at": at(60).isoformat()}
    one = make.decision(at=at(1))
    two = make.decision(at=at(2), allowed=False, refusal=refusal, request="ask_permission")
    other = make.decision(at=at(3), user_key="5511900000009")
    await store.write(one, two, other, two, make.decision(phone_number_id=OTHER_NUMBER))
    assert await store.decisions(NUMBER) == [other, two, one]
    assert await store.decisions(NUMBER, limit=1) == [other]
    assert await store.decisions(NUMBER, user_key=one.user_key) == [two, one]


async def test_a_refusal_without_a_reason_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.write(make.decision(allowed=False))
    with pytest.raises(StoreError):
        await store.write(make.decision(request="guess"))


# --- groups ----------------------------------------------------------------------------------------


async def test_a_group_is_kept_whole_or_not_at_all(store: Store) -> None:
    call, contact = make.call(), make.contact()
    with pytest.raises(StoreError):
        await store.write(make.event("k"), call, contact, make.fact("nobody"))
    assert await store.recent_event_keys(T0) == set()
    assert await store.call(call.call_id) is None
    assert await store.contact(NUMBER, contact.user) is None


async def test_nothing_to_write_is_no_error(store: Store) -> None:
    await store.write()
    store.write_soon()


async def test_what_is_written_soon_is_there_after_the_next_write(store: Store) -> None:
    call = make.call()
    store.write_soon(call)
    store.write_soon(replace(call, version=2, state="active"))
    await store.write(make.event())
    assert await store.call(call.call_id) == replace(call, version=2, state="active")


async def test_bad_data_written_soon_harms_nobody(store: Store) -> None:
    call = make.call()
    store.write_soon(make.fact("nobody"))
    store.write_soon(call)
    await store.write(make.event())
    assert await store.call(call.call_id) == call


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [timedelta(hours=-3), timedelta(hours=-3, minutes=-6, seconds=-28)])
async def test_instants_come_back_in_utc(store: Store, offset: timedelta) -> None:
    call = make.call(ringing_at=at(1).astimezone(timezone(offset)))
    await store.write(call)
    found = await store.call(call.call_id)
    assert found is not None
    assert found.ringing_at == at(1)
    assert found.ringing_at is not None
    assert found.ringing_at.utcoffset() == timedelta(0)


async def test_an_instant_without_a_zone_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.write(make.call(ended_at=T0.replace(tzinfo=None)))


async def test_a_nul_in_what_people_type_does_not_cost_the_record(store: Store) -> None:
    call = make.call(user_name="A\0na", leg_stats={"a\0b": "\0", "c": "\\u0000 \\\0"})
    contact = make.contact(name="\0", state={"note": "\0"})
    await store.write(call, contact)
    found = await store.call(call.call_id)
    assert found is not None
    assert found.user_name == "A\ufffdna"
    assert found.leg_stats == {"a\ufffdb": "\ufffd", "c": "\\u0000 \\\ufffd"}
    again = await store.contact(NUMBER, contact.user)
    assert again is not None
    assert (again.name, again.state) == ("\ufffd", {"note": "\ufffd"})


async def test_a_nul_in_an_identifier_is_an_error_of_its_own_group_only(store: Store) -> None:
    for bad in (make.event("k\0"), make.call(state="\0"), make.contact(contact_id="\0")):
        with pytest.raises(StoreError):
            await store.write(bad)
    await store.write(make.event("k"))
    assert await store.recent_event_keys(T0) == {"k"}


async def test_json_may_be_any_mapping_and_must_be_json(store: Store) -> None:
    contact = make.contact(state=MappingProxyType({"kinds": frozenset({"b", "a"}), "pair": (1, 2)}))
    await store.write(contact)
    found = await store.contact(NUMBER, contact.user)
    assert found is not None
    assert found.state == {"kinds": ["a", "b"], "pair": [1, 2]}
    with pytest.raises(StoreError):
        await store.write(make.contact(user=UserRef(user_id="BR.2"), state={"x": object()}))


# --- idempotency -----------------------------------------------------------------------------------


async def test_the_first_with_a_key_goes_on_and_the_next_waits_for_its_answer(store: Store) -> None:
    assert await store.idempotent("k", "dial A", T0) is None
    assert await store.idempotent("k", "dial A", at(1)) == Replay(state=ReplayState.IN_PROGRESS)
    await store.save_idempotent("k", "dial A", {"status": 201, "body": {"call_id": "1"}})
    assert await store.idempotent("k", "dial A", at(2)) == Replay(
        state=ReplayState.DONE, response={"status": 201, "body": {"call_id": "1"}}
    )


async def test_the_same_key_for_another_request_is_a_conflict(store: Store) -> None:
    assert await store.idempotent("k", "dial A", T0) is None
    assert await store.idempotent("k", "dial B", T0) == Replay(state=ReplayState.CONFLICT)
    await store.save_idempotent("k", "dial B", {"status": 500})
    assert await store.idempotent("k", "dial A", T0) == Replay(state=ReplayState.IN_PROGRESS)


async def test_a_key_may_be_used_again_exactly_a_day_later(store: Store) -> None:
    day = 24 * 3600
    await store.idempotent("k", "dial A", T0)
    await store.save_idempotent("k", "dial A", {"status": 201})
    assert await store.idempotent("k", "dial B", at(day - 0.001)) == Replay(state=ReplayState.CONFLICT)
    assert await store.idempotent("k", "dial B", at(day)) is None
    assert await store.idempotent("k", "dial B", at(day)) == Replay(state=ReplayState.IN_PROGRESS)


async def test_an_answer_for_a_key_that_nobody_claimed_is_not_kept(store: Store) -> None:
    await store.save_idempotent("k", "dial A", {"status": 201})
    assert await store.idempotent("k", "dial A", T0) is None


# --- life ------------------------------------------------------------------------------------------


async def test_a_started_store_is_up_and_healthy(store: Store) -> None:
    assert store.up
    assert await store.healthy()


async def test_a_closed_store_is_down_and_may_be_closed_again(store: Store) -> None:
    await store.aclose()
    await store.aclose()
    assert not store.up
    assert not await store.healthy()
    with pytest.raises(StoreDown):
        await store.write(make.event())
    with pytest.raises(StoreDown):
        await store.unfinished_calls()


# --- business numbers --------------------------------------------------------------------------------


async def test_the_last_word_about_a_number_is_kept(store: Store) -> None:
    assert await store.numbers() == []
    first = NumberSaved(phone_number_id=NUMBER, state={"calling": "ENABLED"}, updated_at=T0)
    other = replace(first, phone_number_id=OTHER_NUMBER)
    await store.write(first, other, replace(first, state={"calling": "DISABLED"}))
    await store.write(last := replace(first, state={"hours": {"weekly": [1]}}, updated_at=at(-3_600)))
    found = {saved.phone_number_id: saved for saved in await store.numbers()}
    assert found == {NUMBER: last, OTHER_NUMBER: other}


async def test_placed_calls_are_those_that_meta_took_or_may_have(store: Store) -> None:
    ours = make.call(direction=Direction.BUSINESS_INITIATED, created_at=at(10))
    numbers = (NUMBER, OTHER_NUMBER)
    await store.write(
        ours,
        make.call(direction=Direction.USER_INITIATED, created_at=at(1)),
        new(ours, 5, meta_call_id=None, state="connecting"),
        new(ours, 6, meta_call_id=None, result=Result.INDETERMINATE, reason=EndReason.TIMEOUT),
        new(ours, 7, meta_call_id=None, result=Result.META, reason=EndReason.GRAPH_ERROR),
        new(ours, 8, result=Result.USER, reason=EndReason.DECLINED),
        new(ours, 0),
        new(ours, 9, phone_number_id=OTHER_NUMBER),
    )
    found = await store.placed_calls(numbers, T0)
    assert found == {NUMBER: [at(s) for s in (5, 6, 8, 10)], OTHER_NUMBER: [at(9)]}
    assert await store.placed_calls(numbers, at(10)) == {number: [] for number in numbers}
    assert await store.placed_calls([], T0) == {}


def new(call: CallRecord, second: float, **changes: Any) -> CallRecord:
    """Return another call like this one, begun at another second."""
    call_id = make.new_id()
    more = {"call_id": call_id, "meta_call_id": f"wacid.{call_id}", "created_at": at(second)}
    return replace(call, **{**more, **changes})
