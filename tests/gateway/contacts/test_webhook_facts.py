"""What each webhook says about a contact: the same fact from whatever tells of the same thing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.common.ids import MetaCallId, PhoneNumberId, UserRef
from gateway.contacts.webhook_facts import KnownCall, Said, connected, said_by, unanswered
from gateway.meta import events as ev
from policy.facts import (
    CallConnected,
    CallRejected,
    Direction,
    PermissionDeclined,
    PermissionGranted,
    PermissionRevoked,
    ReplySource,
    WindowOpened,
    WindowSource,
)

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
WACID = MetaCallId("wacid.1")
ANA, HIDDEN = UserRef(wa_id="5511900000001"), UserRef(user_id="BR.1")
BOTH = UserRef(wa_id="5511900000001", user_id="BR.1")
OURS, THEIRS = Direction.BUSINESS_INITIATED, Direction.USER_INITIATED
COMMON = {"number_id": PhoneNumberId("2"), "at": AT, "kind": "k", "dedupe_key": "messages/1", "body": b"{}"}

STATUS = ev.CallStatus(**COMMON, meta_call_id=WACID, user=ANA, status="ACCEPTED", opaque=None)  # type: ignore[arg-type]
END = ev.CallTerminated(
    **COMMON,  # type: ignore[arg-type]
    meta_call_id=WACID,
    direction=OURS,
    user=ANA,
    status="COMPLETED",
    start_at=None,
    end_at=None,
    duration_s=None,
    error=None,
    error_code=None,
    opaque=None,
)
REPLY = ev.PermissionReply(
    **COMMON,  # type: ignore[arg-type]
    user=ANA,
    user_name="Ana",
    accepted=True,
    permanent=False,
    expires_at=AT + timedelta(days=7),
    automatic=False,
    request_id="wamid.1",
)


def nothing(call_id: MetaCallId) -> KnownCall | None:
    return None


def said(event: ev.Event, known: KnownCall | None = None) -> Said | None:
    return said_by(event, lambda call_id: known)


def test_a_users_call_opens_the_window_when_it_comes() -> None:
    offer = ev.CallOffered(**COMMON, meta_call_id=WACID, user=BOTH, user_name="Ana", sdp="")  # type: ignore[arg-type]
    opened = WindowOpened(at=AT, key="window/wacid.1", source=WindowSource.USER_CALL)
    assert said(offer) == (BOTH, "Ana", opened)


def test_a_message_opens_the_window() -> None:
    message = ev.UserMessage(**COMMON, user=HIDDEN, user_name=None)  # type: ignore[arg-type]
    assert said(message) == (HIDDEN, None, WindowOpened(at=AT, key="messages/1"))


@pytest.mark.parametrize(
    ("status", "fact"),
    [
        ("ACCEPTED", CallConnected(at=AT, key="connected/wacid.1", direction=OURS)),
        ("REJECTED", CallRejected(at=AT, key="rejected/wacid.1")),
        ("RINGING", None),
    ],
)
def test_a_status_says_whether_the_user_picked_up(status: str, fact: object) -> None:
    found = said(replace(STATUS, status=status))
    assert (found and found.fact) == fact


@pytest.mark.parametrize("direction", Direction)
def test_an_end_with_a_start_says_that_people_talked_from_then_on(direction: Direction) -> None:
    started = AT - timedelta(seconds=30)
    event = replace(END, direction=direction, start_at=started)
    assert said(event) == (ANA, None, connected(WACID, direction, at=started))


def test_an_end_without_a_start_says_that_our_call_was_not_answered() -> None:
    assert said(END) == (ANA, None, unanswered(WACID, at=AT))


@pytest.mark.parametrize(
    "event",
    [
        replace(END, direction=THEIRS),  # we did not answer them
        replace(END, status="FAILED"),
        replace(END, direction=None),  # and we know no such call
        replace(END, user=None),
        replace(STATUS, user=None),
        ev.UnknownEvent(**COMMON),  # type: ignore[arg-type]
        ev.CallAnswered(**COMMON, meta_call_id=WACID, sdp="", opaque=None),  # type: ignore[arg-type]
    ],
)
def test_what_says_nothing_about_a_contact_is_no_fact(event: ev.Event) -> None:
    assert said(event) is None


def test_a_known_call_says_what_the_event_leaves_open() -> None:
    known = KnownCall(user=ANA, direction=OURS)
    bare = replace(END, direction=None, user=None)
    assert said(bare, known) == (ANA, None, unanswered(WACID, at=AT))
    assert said(replace(STATUS, user=None), known) == (ANA, None, connected(WACID, OURS, at=AT))


def test_a_call_ties_the_name_that_was_dialled_to_the_one_that_the_event_has() -> None:
    found = said(replace(END, user=HIDDEN), KnownCall(user=ANA, direction=OURS))
    assert found is not None
    assert found.user == BOTH


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, PermissionGranted),
        ({"accepted": False}, PermissionDeclined),
        ({"accepted": False, "request_id": None}, PermissionRevoked),
        ({"accepted": False, "automatic": True}, PermissionRevoked),
    ],
)
def test_a_reply_grants_declines_or_takes_away(changes: dict[str, object], kind: type) -> None:
    found = said(replace(REPLY, **changes))  # type: ignore[arg-type]
    assert found is not None
    assert type(found.fact) is kind
    assert (found.fact.at, found.fact.key) == (AT, "messages/1")


def test_a_permanent_permission_has_no_end_and_an_automatic_one_is_metas() -> None:
    permanent = said(replace(REPLY, permanent=True))
    automatic = said(replace(REPLY, automatic=True, request_id=None))
    assert permanent is not None
    assert automatic is not None
    assert isinstance(permanent.fact, PermissionGranted)
    assert isinstance(automatic.fact, PermissionGranted)
    assert (permanent.fact.permanent, permanent.fact.expires_at) == (True, None)
    assert automatic.fact.source is ReplySource.AUTOMATIC
