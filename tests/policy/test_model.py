"""A contact's life, step by step, beside a naive model that remembers everything: 0 differences.

What stands for the gateway here: a folded state, a snapshot as JSON in the place of the store, reservations in memory,
webhooks that come late, twice and again after a crash. What it is compared with keeps all facts in a list.

10,000 steps by default. HYPOTHESIS_PROFILE=nightly makes it 1,000,000, in ten runs with a seed each: half an hour of a
core (in a single run Hypothesis would remember 2 GB of choices). MODEL_SEED makes it other lives. The seed is in the
test's name, so a failure can be had again.
"""

import json
import os
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from policy.contact import EMPTY, apply, fold, state_from_dict, state_to_dict
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
from policy.number import NumberState, Restriction, RestrictionType
from policy.pack import BUILT_IN, Pack, load_pack
from policy.reasons import Reason
from policy.request import AskPermission, PlaceCall, Request
from tests.policy import naive
from tests.policy.make import DAY, GOOD, HOUR, SECOND, T0, TICK, WEEK

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SEED = int(os.environ.get("MODEL_SEED", "1"))
STEPS = 50  #: of one life
LIVES = 3_000 if NIGHTLY else 300
SEEDS = range(SEED, SEED + 10) if NIGHTLY else (SEED,)

FORMS = (None, *RequestForm)
#: What time does by itself; negative: the clock is set back.
LEAPS = st.sampled_from([SECOND, 10 * SECOND, 59 * SECOND, HOUR, 5 * HOUR, DAY - HOUR, DAY, 2 * DAY, WEEK])
#: How late Meta's word comes; negative: Meta's clock is ahead of ours.
LATE = st.sampled_from([timedelta()] * 6 + [SECOND, 30 * SECOND, HOUR, DAY, 3 * DAY, -SECOND, -HOUR])
#: Small limits: a pack of somebody's own.
TIGHT: dict[str, Any] = {
    "connected_per_24h": 3,
    "requests_per_24h": 2,
    "requests_per_7d": 3,
    "streak_notice": 1,
    "streak_revoke": 3,
}
TRIES = Counter[str]()  #: what the run as a whole went through


class Life(RuleBasedStateMachine):
    """One contact of one number, under one pack."""

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.number: NumberState = GOOD
        self.keys = 0
        # The gateway: in memory, and in the store.
        self.state = EMPTY
        self.stored = json.dumps(state_to_dict(EMPTY))
        self.in_flight: list[str] = []  # calls of ours that ring
        # The model: all facts that anybody ever told, and those that the store does not have yet.
        self.facts: list[Fact] = []
        self.unstored: list[Fact] = []
        self.to_come_again: list[Fact] = []

    @initialize(name=st.sampled_from(BUILT_IN), tight=st.booleans(), friend=st.booleans())
    def begin(self, name: str, tight: bool, friend: bool) -> None:
        self.pack: Pack = load_pack(name)
        if tight:  # limits that a short life reaches
            self.pack = replace(self.pack, **TIGHT)
        if friend:  # else few lives get as far as a limit of calls
            self.happens(PermissionGranted(at=self.now, key="first", permanent=True))

    # What Meta tells, and what we do

    @rule(
        late=LATE,
        stored=st.booleans(),
        permanent=st.booleans(),
        source=st.sampled_from(ReplySource),
        days=st.none() | st.integers(0, 8),
    )
    def granted(self, late: timedelta, stored: bool, permanent: bool, source: ReplySource, days: int | None) -> None:
        at = self.now - late
        permanent = permanent and source is not ReplySource.AUTOMATIC
        expires_at = None if permanent or days is None else at + days * DAY
        self.happens(
            PermissionGranted(at=at, key=self.key(), permanent=permanent, expires_at=expires_at, source=source), stored
        )

    @rule(late=LATE, stored=st.booleans())
    def declined(self, late: timedelta, stored: bool) -> None:
        self.happens(PermissionDeclined(at=self.now - late, key=self.key()), stored)

    @rule(late=LATE, stored=st.booleans(), source=st.sampled_from(ReplySource))
    def revoked(self, late: timedelta, stored: bool, source: ReplySource) -> None:
        self.happens(PermissionRevoked(at=self.now - late, key=self.key(), source=source), stored)

    @rule(late=LATE, stored=st.booleans())
    def user_writes(self, late: timedelta, stored: bool) -> None:
        self.happens(WindowOpened(at=self.now - late, key=self.key()), stored)

    @rule(late=LATE, stored=st.booleans())
    def meta_says_the_window_is_closed(self, late: timedelta, stored: bool) -> None:
        self.happens(WindowClosed(at=self.now - late, key=self.key()), stored)

    @rule(late=LATE, stored=st.booleans())
    def user_call_is_taken(self, late: timedelta, stored: bool) -> None:
        self.happens(CallConnected(at=self.now - late, key=self.key(), direction=Direction.USER_INITIATED), stored)

    @rule(stored=st.booleans(), action=st.sampled_from(Action), hours=st.integers(0, 168))
    def meta_names_a_limit(self, stored: bool, action: Action, hours: int) -> None:
        self.happens(LimitReported(at=self.now, key=self.key(), action=action, until=self.now + hours * HOUR), stored)

    @rule(stored=st.booleans(), action=st.sampled_from(Action), day=st.integers(0, 6), more=st.integers(0, 2))
    def meta_names_a_count(self, stored: bool, action: Action, day: int, more: int) -> None:
        self.happens(
            UsageReported(at=self.now, key=self.key(), action=action, used_24h=day, used_7d=day + more), stored
        )

    @rule(form=st.sampled_from(FORMS), stored=st.booleans())
    def ask(self, form: RequestForm | None, stored: bool) -> None:
        if self.agree(AskPermission(form=form)):
            sent_as = form or RequestForm.TEMPLATE
            self.happens(PermissionRequested(at=self.now, key=self.key(), form=sent_as), stored)

    @rule(times=st.integers(2, 4), wait=st.sampled_from([DAY, DAY + HOUR, 3 * DAY]))
    def ask_again_and_again(self, times: int, wait: timedelta) -> None:
        for _ in range(times):
            self.ask(form=RequestForm.TEMPLATE, stored=True)
            self.now += wait

    @rule()
    def dial(self) -> None:
        if self.agree(PlaceCall(in_flight=len(self.in_flight))):
            self.in_flight.append(self.key())
        assert not self.agree(PlaceCall(in_flight=len(self.in_flight), user_busy=True))

    @rule(
        answered=st.sampled_from([1, 2, 3, 9]),
        wait=st.sampled_from([SECOND, 4 * HOUR]),
        allow=st.booleans(),
        ringing=st.booleans(),
    )
    def calls_that_are_picked_up(self, answered: int, wait: timedelta, allow: bool, ringing: bool) -> None:
        """Dial and talk as often as the gate lets us, perhaps while a call rings: so that limits are reached."""
        if allow:  # else permission would be missing most of the time
            self.happens(PermissionGranted(at=self.now, key=self.key(), permanent=True))
        if ringing:
            self.dial()
        for _ in range(answered):
            if not self.agree(PlaceCall(in_flight=len(self.in_flight))):
                break
            self.happens(CallConnected(at=self.now, key=self.key(), direction=Direction.BUSINESS_INITIATED))
            self.now += wait

    @rule(missed=st.sampled_from([1, 2, 3, 11]), kind=st.sampled_from([CallUnanswered, CallUnanswered, CallRejected]))
    def calls_that_are_not(self, missed: int, kind: type[CallUnanswered | CallRejected]) -> None:
        """Dial in vain as often as the gate lets us: so that a streak gets to its end."""
        for _ in range(missed):
            if not self.agree(PlaceCall(in_flight=len(self.in_flight))):
                break
            self.happens(kind(at=self.now, key=self.key()))
            self.now += SECOND

    @precondition(lambda self: self.in_flight)
    @rule(late=LATE, stored=st.booleans())
    def picked_up(self, late: timedelta, stored: bool) -> None:
        at, key = self.now - late, self.in_flight.pop(0)
        self.happens(CallConnected(at=at, key=key, direction=Direction.BUSINESS_INITIATED), stored)

    @precondition(lambda self: self.in_flight)
    @rule(late=LATE, stored=st.booleans(), declined=st.booleans())
    def not_picked_up(self, late: timedelta, stored: bool, declined: bool) -> None:
        kind = CallRejected if declined else CallUnanswered
        self.happens(kind(at=self.now - late, key=self.in_flight.pop(0)), stored)

    @precondition(lambda self: self.in_flight)
    @rule()
    def fails_before_it_rings(self) -> None:
        self.in_flight.pop(0)

    @rule(hours=st.sampled_from([0, 0, 1, 25]))
    def number_is_restricted(self, hours: int) -> None:
        ends = self.now + hours * HOUR
        restriction = Restriction(type=RestrictionType.BUSINESS_INITIATED, expires_at=ends)
        self.number = replace(GOOD, restrictions=(restriction,))

    # Time

    @rule(leap=LEAPS)
    def time_passes(self, leap: timedelta) -> None:
        self.now += leap

    @rule(forward=st.booleans())
    def the_clock_jumps_an_hour(self, forward: bool) -> None:
        self.now += HOUR if forward else -HOUR

    @precondition(lambda self: self.facts)
    @rule(data=st.data(), off=st.sampled_from([-SECOND, -TICK, timedelta(), TICK, SECOND]))
    def time_stops_at_an_edge(self, data: st.DataObject, off: timedelta) -> None:
        edges = sorted({edge for edge in self.edges() if edge > self.now})
        if edges:
            self.now = data.draw(st.sampled_from(edges)) + off

    def edges(self) -> list[datetime]:
        pack = self.pack
        spans = (DAY, WEEK, pack.after_decline, pack.service_window, pack.permission_lifetime, pack.request_lifetime)
        ends = [fact.at + span for fact in self.facts for span in spans]
        ends += [fact.until for fact in self.facts if isinstance(fact, LimitReported)]
        ends += [fact.expires_at for fact in self.facts if isinstance(fact, PermissionGranted) and fact.expires_at]
        return ends + [end for _, end in self.restrictions()]

    # Webhooks come again; the process dies

    @precondition(lambda self: self.facts)
    @rule(data=st.data())
    def an_old_webhook_comes_again(self, data: st.DataObject) -> None:
        self.happens(data.draw(st.sampled_from(self.facts)))

    @rule()
    def crash_and_restart(self) -> None:
        """Memory is gone; what was not stored was not acknowledged either, so it will come again."""
        self.state = state_from_dict(json.loads(self.stored))
        self.in_flight.clear()
        self.to_come_again += self.unstored
        self.facts = [fact for fact in self.facts if fact not in self.unstored]
        self.unstored = []
        TRIES["crash"] += 1

    @precondition(lambda self: self.to_come_again)
    @rule(data=st.data(), stored=st.booleans())
    def comes_again_after_the_crash(self, data: st.DataObject, stored: bool) -> None:
        fact = data.draw(st.sampled_from(self.to_come_again))
        self.to_come_again.remove(fact)
        self.happens(fact, stored)

    # What must hold

    @invariant()
    def they_agree(self) -> None:
        TRIES["step"] += 1
        if not hasattr(self, "pack"):
            return
        self.agree(PlaceCall(in_flight=len(self.in_flight)))
        for form in FORMS:
            self.agree(AskPermission(form=form, in_flight=self.keys % 2))

    def teardown(self) -> None:
        assert fold(reversed(self.facts)) == self.state

    def agree(self, request: PlaceCall | AskPermission) -> bool:
        """Ask both; also about the instant that the gate names, and about just before it."""
        decision = evaluate(self.pack, self.number, self.state, request, now=self.now)
        assert isinstance(decision, Allow) is self.model_says(request, self.now), decision
        if isinstance(decision, Refusal):
            TRIES[decision.rule] += 1
            TRIES[decision.reason] += 1
            if decision.rule == "contact/connected_per_24h" and self.state.connected:
                TRIES["by calls and reservations"] += request.in_flight > 0
                gap = self.state.connected[-1].at - self.state.connected[0].at
                TRIES["by calls hours apart"] += gap > DAY / 4
            if decision.rule == "request/per_7d" and self.state.requests:
                TRIES["by requests days apart"] += self.state.requests[-1].at - self.state.requests[0].at > 2 * DAY
            TRIES["by a streak"] += decision.reason is Reason.PERMISSION_REVOKED and decision.limit is not None
            self.check_when(request, decision)
        else:
            TRIES["allow"] += 1
        return isinstance(decision, Allow)

    def check_when(self, request: PlaceCall | AskPermission, no: Refusal) -> None:
        known = naive.unique(self.facts)

        def says(at: datetime) -> bool:
            return self.model_says(request, at)

        if no.retry_at is not None:
            assert says(no.retry_at)
            for before in (no.retry_at - SECOND, no.retry_at - TICK, self.now + (no.retry_at - self.now) / 2):
                assert before < self.now or not says(before), (before, no)
        if TRIES["step"] % 10 == 0:  # all instants: slow, so not each time
            TRIES["first yes"] += 1
            first = naive.first_yes(self.pack, known, self.now, says, [end for _, end in self.restrictions()])
            assert first == no.retry_at, no

    def model_says(self, request: Request, at: datetime) -> bool:
        if isinstance(request, PlaceCall) and request.user_busy:
            return False
        if any(at < end for _, end in self.restrictions()):
            return False
        known = naive.unique(self.facts)
        if isinstance(request, PlaceCall):
            return naive.may_call(self.pack, known, at, request.in_flight)
        assert isinstance(request, AskPermission)
        return naive.may_ask(self.pack, known, at, request.in_flight, request.form)

    # Small ones

    def restrictions(self) -> list[tuple[RestrictionType, datetime]]:
        return [(one.type, one.expires_at) for one in self.number.restrictions if one.expires_at]

    def key(self) -> str:
        self.keys += 1
        return f"k{self.keys}"

    def happens(self, fact: Fact, stored: bool = True) -> None:
        """Tell both. What is stored takes along what waited: one writer, in order."""
        note(f"{self.now} {fact}")
        self.state = apply(self.state, fact)
        self.facts.append(fact)
        self.unstored.append(fact)
        if stored:
            self.stored = json.dumps(state_to_dict(self.state))
            self.unstored = []


@pytest.mark.timeout(0 if NIGHTLY else 120)
@pytest.mark.parametrize("life_seed", [pytest.param(each, id=f"seed={each}") for each in SEEDS])
def test_the_gate_and_the_naive_model_never_differ(life_seed: int) -> None:
    TRIES.clear()
    run_state_machine_as_test(
        seed(life_seed)(Life),
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=STEPS,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert TRIES["step"] >= (100_000 if NIGHTLY else 10_000)
    # The lives were worth living: every rule about a contact has spoken, and so has the yes.
    rules = ("permission", "connected_per_24h", "connected_by_meta", "busy")
    asked = ("permission_exists", "after_decline", "per_24h", "per_7d", "by_meta", "window")
    seen = {*(f"contact/{rule}" for rule in rules), *(f"request/{rule}" for rule in asked)}
    reasons = (Reason.NO_PERMISSION, Reason.PERMISSION_EXPIRED, Reason.PERMISSION_REVOKED)
    assert {*seen, *reasons, "number/restriction", "allow", "crash", "first yes"} <= set(TRIES)
    for how in ("by a streak", "by calls and reservations", "by calls hours apart", "by requests days apart"):
        assert TRIES[how] > 0, how
