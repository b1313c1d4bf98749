"""Random contacts for Hypothesis: facts on a coarse grid of instants, so that edges and ties are hit often."""

from collections.abc import Callable
from datetime import datetime, timedelta

from hypothesis import strategies as st

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
from tests.policy.make import T0

STEP = timedelta(hours=6)


def instants(low: int = -60, high: int = 4) -> st.SearchStrategy[datetime]:
    """Around T0, mostly before, 15 days back at most, up to a day ahead; on the grid."""
    return st.integers(low, high).map(lambda steps: T0 + steps * STEP)


@st.composite
def _until(draw: st.DrawFn, at: datetime) -> datetime:
    return at + draw(st.integers(0, 28)) * STEP


@st.composite
def _grants(draw: st.DrawFn, at: datetime, key: str) -> Fact:
    source = draw(st.sampled_from(ReplySource))
    permanent = source is not ReplySource.AUTOMATIC and draw(st.booleans())
    expires_at = None if permanent else draw(st.none() | _until(at))
    return PermissionGranted(at=at, key=key, permanent=permanent, expires_at=expires_at, source=source)


@st.composite
def _reports(draw: st.DrawFn, at: datetime, key: str) -> Fact:
    action = draw(st.sampled_from(Action))
    if draw(st.booleans()):
        return LimitReported(at=at, key=key, action=action, until=draw(_until(at)))
    day = draw(st.integers(0, 5))
    week = day + draw(st.integers(0, 2))
    return UsageReported(at=at, key=key, action=action, used_24h=day, used_7d=week)


def _requests(at: datetime, key: str) -> st.SearchStrategy[Fact]:
    return st.sampled_from(RequestForm).map(lambda form: PermissionRequested(at=at, key=key, form=form))


def _calls(at: datetime, key: str) -> st.SearchStrategy[Fact]:
    return st.sampled_from(Direction).map(lambda way: CallConnected(at=at, key=key, direction=way))


Maker = Callable[[datetime, str], st.SearchStrategy[Fact]]


def _plain(kind: Callable[..., Fact]) -> Maker:
    return lambda at, key: st.just(kind(at=at, key=key))


PLAIN = (
    PermissionDeclined,
    PermissionRevoked,
    CallUnanswered,
    CallRejected,
    WindowOpened,
    WindowClosed,
)
MAKERS: tuple[Maker, ...] = (_grants, _calls, _requests, _reports, *(_plain(kind) for kind in PLAIN))


@st.composite
def histories(draw: st.DrawFn, max_size: int = 20) -> list[Fact]:
    """Facts with keys of their own, in the order in which they were drawn.

    Each history is made of a few kinds only, and lies in a narrow or wide span: else hardly any would get as far as
    a permission that lives and a limit that is reached.
    """
    makers = [_grants, _calls, *draw(st.lists(st.sampled_from(MAKERS), max_size=4))]
    low = draw(st.sampled_from([-60, -8, -3]))
    facts: list[Fact] = []
    for index in range(draw(st.integers(0, max_size))):
        maker = draw(st.sampled_from(makers))
        facts.append(draw(maker(draw(instants(low)), f"k{index}")))
    return facts
