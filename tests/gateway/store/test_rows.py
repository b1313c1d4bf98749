"""Changes to the argument of `save_changes`; what the database makes of it is in the contract suite."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.callflow.outcome import EndReason, Result
from gateway.common.errors import StoreError
from gateway.common.ids import MetaCallId
from gateway.store import rows
from gateway.store.postgres import PostgresLink
from gateway.store.records import CallDeclined, Change, ContactsMerged, EndOwed, NumberSaved
from tests.support.generators import records as make
from tests.support.generators.records import NUMBER, T0, at


def written(*changes: Change) -> Any:
    return orjson.loads(rows.argument(changes))


def versions(*changes: Change) -> list[tuple[str, int]]:
    return [(row["call_id"], row["version"]) for row in written(*changes)["calls"]]


CALL = make.call()
ENDED = replace(CALL, version=3, state="ended", result=Result.USER, reason=EndReason.NOT_ANSWERED)


def test_of_the_versions_of_a_call_the_newest_is_written() -> None:
    other = make.call()
    assert versions(CALL, other, replace(CALL, version=2), ENDED) == [(CALL.call_id, 3), (other.call_id, 1)]


@pytest.mark.parametrize(
    "said",
    [
        {"meta_call_id": "wacid.x"},
        {"meta_status": "FAILED"},
        {"meta_start_at": T0},
        {"meta_end_at": at(1)},
        {"duration_s": 0},
        {"reason": EndReason.DECLINED},
    ],
    ids=lambda said: next(iter(said)),
)
def test_an_older_version_that_says_more_of_what_stays_is_written_first(said: dict[str, Any]) -> None:
    silent = replace(ENDED, meta_call_id=None)
    older = replace(silent, version=2, **said)
    assert versions(older, silent) == [(CALL.call_id, 2), (CALL.call_id, 3)]
    assert versions(older, replace(silent, **said)) == [(CALL.call_id, 3)]


def test_a_version_that_comes_late_is_left_to_the_database() -> None:
    """It is older, or the same again: only the one that came first counts."""
    assert versions(ENDED, CALL) == [(CALL.call_id, 3), (CALL.call_id, 1)]
    assert versions(CALL, replace(CALL, state="active")) == [(CALL.call_id, 1)] * 2


def test_the_order_of_a_kind_is_kept() -> None:
    marks = [EndOwed(call_id=CALL.call_id, owed=owed) for owed in (True, False, True)]
    assert [row["owed"] for row in written(marks[0], CALL, *marks[1:])["endings"]] == [True, False, True]


def test_any_bytes_of_an_event_can_be_written() -> None:
    assert written(make.event(body=b"\x00\xff{"))["events"][0]["body"] == "\\x00ff7b"


def test_a_nul_is_mended_in_what_people_type_and_left_in_identifiers_where_it_is_an_error() -> None:
    contact = written(make.contact(name="A\0", state={"n": "\0"}, contact_id="\0"))["contacts"][0]
    assert (contact["name"], contact["state"], contact["contact_id"]) == ("A\ufffd", {"n": "\ufffd"}, "\0")


def test_a_naive_instant_is_an_error() -> None:
    with pytest.raises(StoreError):
        written(make.fact("somebody", at=T0.replace(tzinfo=None)))


class _Connection:
    def __init__(self) -> None:
        self.executed: list[tuple[str, Sequence[object]]] = []

    async def execute(self, sql: str, *args: object) -> None:
        self.executed.append((sql, args))


async def test_groups_of_every_kind_go_in_one_statement() -> None:
    connection = _Connection()
    contact = make.contact()
    groups: list[list[Change]] = [
        [make.event(), contact, make.fact(contact.contact_id), make.decision()],
        [CALL, make.terminate("wacid.x"), CallDeclined(meta_call_id=MetaCallId("wacid.x"))],
        [EndOwed(call_id=CALL.call_id, owed=True), ContactsMerged(kept="a", absorbed="b")],
        [NumberSaved(phone_number_id=NUMBER, state={}, updated_at=T0)],
    ]
    await PostgresLink(connection).apply(groups)
    [(_, [argument])] = connection.executed
    assert isinstance(argument, str)
    assert {kind: len(found) for kind, found in orjson.loads(argument).items()} == dict.fromkeys(
        (
            "events", "contacts", "facts", "merges", "calls", "endings", "terminates", "declines", "decisions",
            "numbers",
        ),
        1,
    )  # fmt: skip
