"""Short ways to write down contacts, numbers and instants in the tests of the policy."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count

from policy.contact import ContactState, fold
from policy.decision import Allow, Refusal
from policy.facts import (
    Action,
    CallConnected,
    CallRejected,
    CallUnanswered,
    Direction,
    Fact,
    LimitReported,
    PermissionDeclined,
    PermissionGranted,
    PermissionRequested,
    PermissionRevoked,
    ReplySource,
    RequestForm,
    UsageReported,
    WindowClosed,
    WindowOpened,
)
from policy.gate import evaluate
from policy.number import CallingStatus, NumberState
from policy.pack import BUILT_IN, Pack, load_pack
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request

#: A Sunday.
T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)

GUIDE, META, SANDBOX = PACKS = tuple(load_pack(name) for name in BUILT_IN)

PLACE, RECEIVE, ASK = PlaceCall(), ReceiveCall(), AskPermission()
ASK_FREE = AskPermission(form=RequestForm.FREE_FORM)
ASK_TEMPLATE = AskPermission(form=RequestForm.TEMPLATE)

#: A number with nothing against it.
GOOD = NumberState(country="BR", calling=CallingStatus.ENABLED, messaging_limit=10_000)

_keys = count(1)


def key() -> str:
    return f"fact-{next(_keys)}"


def hours(amount: float) -> datetime:
    """So many hours after T0."""
    return T0 + timedelta(hours=amount)


def granted(
    at: datetime = T0,
    *,
    permanent: bool = False,
    expires_at: datetime | None = None,
    source: ReplySource = ReplySource.USER_ACTION,
    request_id: str | None = None,
) -> Fact:
    return PermissionGranted(
        at=at, key=key(), permanent=permanent, expires_at=expires_at, source=source, request_id=request_id
    )


def callback(at: datetime = T0) -> Fact:
    """What Meta sends after a user's call, if the number has it on."""
    return granted(at, expires_at=at + WEEK, source=ReplySource.AUTOMATIC)


def declined(at: datetime = T0, *, request_id: str | None = None) -> Fact:
    return PermissionDeclined(at=at, key=key(), request_id=request_id)


def revoked(at: datetime = T0, *, source: ReplySource = ReplySource.USER_ACTION) -> Fact:
    return PermissionRevoked(at=at, key=key(), source=source)


def requested(
    at: datetime = T0, *, form: RequestForm = RequestForm.TEMPLATE, request_id: str | None = None
) -> PermissionRequested:
    return PermissionRequested(at=at, key=key(), form=form, request_id=request_id)


def answered(at: datetime = T0) -> Fact:
    """The contact picked up a call of ours."""
    return CallConnected(at=at, key=key(), direction=Direction.BUSINESS_INITIATED)


def user_call(at: datetime = T0) -> Fact:
    """We picked up a call of the contact's."""
    return CallConnected(at=at, key=key(), direction=Direction.USER_INITIATED)


def unanswered(at: datetime = T0) -> Fact:
    return CallUnanswered(at=at, key=key())


def rejected(at: datetime = T0) -> Fact:
    return CallRejected(at=at, key=key())


def message(at: datetime = T0) -> Fact:
    return WindowOpened(at=at, key=key())


def window_closed(at: datetime = T0) -> Fact:
    return WindowClosed(at=at, key=key())


def limit(at: datetime, until: datetime, action: Action = Action.START_CALL) -> Fact:
    return LimitReported(at=at, key=key(), action=action, until=until)


def usage(at: datetime, day: int, week: int = 0, action: Action = Action.START_CALL) -> Fact:
    return UsageReported(at=at, key=key(), action=action, used_24h=day, used_7d=week)


def contact(*facts: Fact) -> ContactState:
    return fold(facts)


#: A contact with permission for as long as it matters.
FRIEND = granted(T0 - 30 * DAY, permanent=True)


def misses(count: int, kind: Callable[[datetime], Fact] = unanswered) -> list[Fact]:
    """Calls of ours in vain, an hour apart, the first 20 hours before T0."""
    return [kind(hours(-20 + number)) for number in range(count)]


def judge(
    request: Request, *facts: Fact, now: datetime = T0, pack: Pack = GUIDE, number: NumberState = GOOD
) -> Allow | Refusal:
    """Ask the gate about somebody of whom these facts are known."""
    return evaluate(pack, number, contact(*facts), request, now=now)


def refused(decision: Allow | Refusal) -> Refusal:
    assert isinstance(decision, Refusal), decision
    return decision


def allowed(decision: Allow | Refusal) -> Allow:
    assert isinstance(decision, Allow), decision
    return decision
