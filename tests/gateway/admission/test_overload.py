"""Who is refused first, from which load on, and for how long."""

from datetime import UTC, datetime, timedelta

import pytest

from gateway.admission.overload import CALM_FOR_S, RETRY_S, Level, Overload, Work
from policy.reasons import Reason, Remedy

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ALL = set(Work)


def sample(overload: Overload, lag_s: float, *, since: float, for_s: float, levels: list[Level] | None = None) -> float:
    """Let the loop be so late for a while, sampled ten times a second; return the time after it.

    `levels` gets each level that was entered.
    """
    now = since
    while now < since + for_s - 1e-9:
        now += 0.1
        if overload.sampled(lag_s, now=now) and levels is not None:
            levels.append(overload.level)
    return now


def served(overload: Overload, *, now: float) -> set[Work]:
    return {work for work in Work if overload.refusal(work, now=now) is None}


def test_without_a_ceiling_and_on_time_everything_is_served() -> None:
    overload = Overload()
    assert all(overload.take(Work.INCOMING, now=100.0) is None for _ in range(10_000))
    assert served(overload, now=100.0) == ALL


# --- the ceiling -------------------------------------------------------------------------------------


def test_half_a_seconds_calls_may_come_at_once_and_no_more() -> None:
    overload = Overload(max_setups_per_s=100)
    taken = [overload.take(Work.INCOMING, now=7.0) is None for _ in range(200)]
    assert sum(taken) == 50
    assert taken == sorted(taken, reverse=True)


@pytest.mark.parametrize("per_s", [1, 3, 100, 2_500])
def test_over_time_as_many_calls_pass_as_the_ceiling_says(per_s: int) -> None:
    overload = Overload(max_setups_per_s=per_s)
    asked = 3 * per_s * 10
    passed = sum(overload.take(Work.INCOMING, now=5.0 + turn / (3 * per_s)) is None for turn in range(asked))
    assert per_s * 10 - 1 <= passed <= per_s * 10.5 + 1


def test_calls_that_come_in_keep_a_share_of_the_ceiling_for_themselves() -> None:
    overload = Overload(max_setups_per_s=80)
    while overload.take(Work.OUTGOING, now=1.0) is None:
        pass
    assert served(overload, now=1.0) == {Work.LOOK_UP, Work.INCOMING}
    assert sum(overload.take(Work.INCOMING, now=1.0) is None for _ in range(80)) == 10


def test_who_is_refused_takes_nothing() -> None:
    overload = Overload(max_setups_per_s=2)
    assert overload.take(Work.INCOMING, now=1.0) is None
    assert all(overload.take(Work.INCOMING, now=1.0) for _ in range(1_000))
    assert overload.take(Work.INCOMING, now=1.5) is None


def test_asking_takes_nothing() -> None:
    overload = Overload(max_setups_per_s=1)
    assert all(overload.refusal(Work.INCOMING, now=1.0) is None for _ in range(100))
    assert overload.take(Work.INCOMING, now=1.0) is None


def test_the_smallest_ceiling_lets_every_kind_of_call_through() -> None:
    for work in (Work.INCOMING, Work.OUTGOING, Work.REPORT):
        assert Overload(max_setups_per_s=1).take(work, now=1.0) is None


def test_a_clock_that_stands_still_or_steps_back_gives_nothing_away() -> None:
    overload = Overload(max_setups_per_s=2)
    overload.take(Work.INCOMING, now=10.0)
    assert overload.take(Work.INCOMING, now=9.0) is not None


def test_a_refusal_names_the_figures() -> None:
    overload = Overload(max_setups_per_s=4, jitter=lambda: 0.25)
    for _ in range(8):
        overload.take(Work.INCOMING, now=3.2)
    refused = overload.take(Work.INCOMING, now=3.2)
    assert refused is not None
    assert (refused.rule, refused.limit) == ("gateway/setups_per_s", 4)
    assert 7 <= refused.observed <= 9
    said = refused.refusal(now=NOW)
    assert (said.reason, said.remedy) == (Reason.OVERLOADED, Remedy.TRY_AGAIN_SOON)
    assert said.retry_at == NOW + timedelta(seconds=3)


def test_those_who_are_refused_do_not_come_back_together() -> None:
    draws = iter([0.0, 0.5, 0.999])
    overload = Overload(max_setups_per_s=1, jitter=lambda: next(draws))
    overload.take(Work.INCOMING, now=1.0)
    waits = [refused.retry_in_s for _ in range(3) if (refused := overload.take(Work.INCOMING, now=1.0))]
    assert waits == sorted(set(waits))
    assert waits[0] == RETRY_S[0]
    assert waits[-1] < RETRY_S[1]


def test_what_was_asked_for_long_ago_is_not_in_the_figures() -> None:
    overload = Overload(max_setups_per_s=1)
    for _ in range(500):
        overload.take(Work.INCOMING, now=3.0)
    overload.take(Work.INCOMING, now=60.0)
    refused = overload.take(Work.INCOMING, now=60.0)
    assert refused is not None
    assert refused.observed <= 2


# --- the loop's lag ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lag_s", "for_s", "level"),
    [
        (0.050, 10.0, Level.CALM),
        (0.051, 0.9, Level.CALM),
        (0.051, 1.2, Level.LATE),
        (0.200, 5.0, Level.LATE),
        (0.201, 0.4, Level.CALM),
        (0.201, 0.7, Level.STUCK),
    ],
)
def test_a_level_needs_a_lag_that_lasts(lag_s: float, for_s: float, level: Level) -> None:
    overload = Overload()
    sample(overload, lag_s, since=50.0, for_s=for_s)
    assert overload.level is level


def test_one_long_pause_is_no_overload() -> None:
    overload = Overload()
    overload.sampled(0.9, now=1.0)
    overload.sampled(0.001, now=1.1)
    assert overload.level is Level.CALM


@pytest.mark.parametrize(
    ("lag_s", "left"),
    [(0.1, {Work.LOOK_UP}), (0.3, set())],
)
def test_the_later_the_loop_the_less_is_served(lag_s: float, left: set[Work]) -> None:
    overload = Overload()
    now = sample(overload, lag_s, since=0.0, for_s=2.0)
    assert served(overload, now=now) == left
    refused = overload.refusal(Work.REPORT, now=now)
    assert refused is not None
    assert (refused.rule, refused.observed) == ("gateway/loop_lag", round(lag_s * 1_000))


def test_a_level_is_left_step_by_step_after_a_calm_second() -> None:
    levels: list[Level] = []
    overload = Overload()
    now = sample(overload, 0.5, since=0.0, for_s=2.0, levels=levels)
    now = sample(overload, 0.001, since=now, for_s=2 * CALM_FOR_S + 0.5, levels=levels)
    assert overload.level is Level.CALM
    assert levels == [Level.STUCK, Level.LATE, Level.CALM]
    assert served(overload, now=now) == ALL


def test_a_lag_around_the_limit_does_not_flap() -> None:
    levels: list[Level] = []
    overload = Overload()
    now = sample(overload, 0.06, since=0.0, for_s=1.5, levels=levels)
    for turn in range(100):
        now = sample(overload, 0.04 if turn % 2 else 0.06, since=now, for_s=0.1, levels=levels)
    assert levels == [Level.LATE]


def test_the_calm_second_is_one_without_a_relapse() -> None:
    overload = Overload()
    now = sample(overload, 0.1, since=0.0, for_s=1.5)
    for lag_s in (0.001, 0.03, 0.001):  # 30 ms is not late, and not calm either
        now = sample(overload, lag_s, since=now, for_s=0.7)
    assert overload.level is Level.LATE
    sample(overload, 0.001, since=now, for_s=0.6)
    assert overload.level.name == "CALM"


def test_a_refused_set_up_takes_no_token_while_the_loop_is_late() -> None:
    overload = Overload(max_setups_per_s=4)
    now = sample(overload, 0.1, since=0.0, for_s=1.5)
    assert all(overload.take(Work.INCOMING, now=now) for _ in range(50))
    now = sample(overload, 0.0, since=now, for_s=2.0)
    assert sum(overload.take(Work.INCOMING, now=now) is None for _ in range(10)) == 2


def test_how_late_is_late_can_be_chosen() -> None:
    overload = Overload(max_lag_s=0.2)
    levels = []
    for lag_s in (0.15, 0.25, 0.85):
        sample(overload, lag_s, since=1_000 * lag_s, for_s=3.0)
        levels.append((overload.level, overload.refusal(Work.INCOMING, now=2_000.0)))
    assert [level for level, _ in levels] == [Level.CALM, Level.LATE, Level.STUCK]
    assert [(no.observed, no.limit) for _, no in levels if no] == [(250, 200), (850, 800)]
