"""Each refusal of Meta's that speaks of a contact becomes the fact that makes the gate answer alike."""

from datetime import UTC, datetime, timedelta

import pytest

from gateway.common.errors import GraphRefused
from gateway.contacts.refusal_facts import told_by
from gateway.meta.error_codes import CODES
from policy.contact import ContactState, fold
from policy.decision import Allow, Refusal
from policy.facts import (
    Action,
    Fact,
    LimitReported,
    PermissionGranted,
    PermissionRevoked,
    ReplySource,
    RequestForm,
    WindowClosed,
    WindowOpened,
)
from policy.gate import evaluate
from policy.number import CallingStatus, NumberState
from policy.pack import load_pack
from policy.reasons import Reason
from policy.request import AskPermission, PlaceCall, Request
from tests.support.fakes.graph import refused, unreachable

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
PACK = load_pack("guide")
GOOD = NumberState(country="BR", calling=CallingStatus.ENABLED, messaging_limit=10_000)
LIVE = fold([PermissionGranted(at=NOW - DAY, key="g")])
OPEN = fold([WindowOpened(at=NOW - timedelta(hours=1), key="w")])
FREE_FORM = AskPermission(form=RequestForm.FREE_FORM)


def error(code: int, *, retry_at: datetime | None = None) -> GraphRefused:
    made = refused("connect", code)
    made.retry_at = retry_at
    return made


@pytest.mark.parametrize(
    ("code", "state", "request_", "kind", "rule"),
    [
        (138006, LIVE, PlaceCall(), PermissionRevoked, "contact/permission"),
        (138012, LIVE, PlaceCall(), LimitReported, "contact/connected_per_24h"),
        (138009, OPEN, FREE_FORM, LimitReported, "request/per_24h"),
        (131047, OPEN, FREE_FORM, WindowClosed, "request/window"),
    ],
)
def test_after_metas_no_the_gate_says_no_for_the_same_reason(
    code: int, state: ContactState, request_: Request, kind: type[Fact], rule: str
) -> None:
    assert isinstance(evaluate(PACK, GOOD, state, request_, now=NOW), Allow)
    told = told_by(error(code), PACK, state, now=NOW)
    assert told is not None
    assert (type(told.fact), told.rule) == (kind, rule)
    after = evaluate(PACK, GOOD, fold([told.fact, *_facts(state)]), request_, now=NOW)
    assert isinstance(after, Refusal)
    reason = Reason.PERMISSION_REVOKED if code == 138006 else CODES[code].reason
    assert after.reason is reason


def _facts(state: ContactState) -> list[Fact]:
    return [fact for fact in (state.granted, state.window_opened) if fact is not None]


def test_a_permanent_permission_that_meta_has_is_one_of_ours() -> None:
    told = told_by(error(138017), PACK, OPEN, now=NOW)
    assert told is not None
    assert told.rule == "request/permission_exists"
    assert isinstance(told.fact, PermissionGranted)
    assert (told.fact.permanent, told.fact.source) == (True, ReplySource.META_RECORD)
    assert isinstance(evaluate(PACK, GOOD, fold([told.fact]), PlaceCall(), now=NOW), Allow)


@pytest.mark.parametrize(
    ("retry_at", "until"),
    [
        (NOW + timedelta(hours=3), NOW + timedelta(hours=3)),
        (None, NOW + DAY),
        (NOW, NOW + DAY),
        (NOW - DAY, NOW + DAY),
        (NOW + 30 * DAY, NOW + 7 * DAY),
    ],
)
@pytest.mark.parametrize(("code", "action"), [(138012, Action.START_CALL), (138009, Action.SEND_REQUEST)])
def test_a_limit_lasts_until_metas_instant_or_its_shortest_window(
    code: int, action: Action, retry_at: datetime | None, until: datetime
) -> None:
    told = told_by(error(code, retry_at=retry_at), PACK, LIVE, now=NOW)
    assert told is not None
    assert isinstance(told.fact, LimitReported)
    assert (told.fact.action, told.fact.until) == (action, until)


PERMANENT = PermissionGranted(at=NOW - DAY, key="g", permanent=True)
LIMIT = LimitReported(at=NOW - DAY, key="l", action=Action.START_CALL, until=NOW + 2 * DAY)


@pytest.mark.parametrize(
    ("code", "pack", "state"),
    [
        (138006, "guide", OPEN),  # we have none either
        (138017, "meta", fold([PERMANENT])),
        (131047, "guide", LIVE),  # closed for us, too
        (138012, "guide", fold([LIMIT])),
        (138013, "guide", LIVE),  # speaks of the number
        (138003, "guide", LIVE),
    ],
)
def test_what_we_knew_or_what_is_not_about_the_contact_is_no_fact(code: int, pack: str, state: ContactState) -> None:
    assert told_by(error(code), load_pack(pack), state, now=NOW) is None


def test_silence_says_nothing() -> None:
    assert told_by(unreachable("connect"), PACK, LIVE, now=NOW) is None


def test_metas_word_outweighs_a_grant_whose_clock_is_ahead() -> None:
    ahead = fold([PermissionGranted(at=NOW + timedelta(minutes=5), key="g")])
    told = told_by(error(138006), PACK, ahead, now=NOW)
    assert told is not None
    assert told.fact.at > NOW + timedelta(minutes=5)
    assert isinstance(evaluate(PACK, GOOD, fold([told.fact, *_facts(ahead)]), PlaceCall(), now=NOW), Refusal)
