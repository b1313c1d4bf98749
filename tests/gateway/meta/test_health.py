"""What is not worth sending is not sent, and somebody is told why; what ends a call is always sent."""

import asyncio
import random
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from gateway.common.clock import MetaClock
from gateway.common.errors import GraphError, GraphPaused
from gateway.common.ids import PhoneNumberId
from gateway.common.metrics import Metrics
from gateway.meta.circuit_breaker import FAILURES, WAITS
from gateway.meta.health import TOKEN_PAUSE_S, Area, MetaHealth, Pauses, Permit
from policy.reasons import Reason, Remedy
from tests.support.fakes.clock import START, FakeClock
from tests.support.fakes.graph import refused, unreachable

ONE, TWO, OWN = (PhoneNumberId(f"20000000000000{index}") for index in (1, 2, 3))
TOKENS = {ONE: "token-of-all", TWO: "token-of-all", OWN: "token-of-its-own"}
GUARDED = ["connect", "request_free_form", "request_template", "call_permissions", "settings", "number_info"]


class Health:
    """`MetaHealth` with its clock, and requests that are over at once."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.meta = MetaHealth(token_for=TOKENS.__getitem__, clock=self.clock, rng=random.Random(1))

    def ask(self, op: str = "connect", number: PhoneNumberId = ONE, error: GraphError | None = None) -> None:
        """Send a request that ends like this. Raises: GraphPaused."""
        self.meta.end(self.meta.begin(op, number), error)

    def lose_meta(self, number: PhoneNumberId = ONE) -> None:
        for _ in range(FAILURES):
            self.ask("accept", number, unreachable("accept"))

    def is_sent(self, op: str, number: PhoneNumberId = ONE) -> bool:
        return self.meta.paused(op, number) is None

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.clock.advance(seconds)


# --- Meta is away ----------------------------------------------------------------------------------


async def test_after_failures_in_a_row_nothing_is_sent_but_what_calls_need() -> None:
    health = Health()
    health.lose_meta()
    assert not any(health.is_sent(op) for op in GUARDED)
    assert all(health.is_sent(op) for op in ("accept", "pre_accept", "terminate", "reject"))


async def test_whoever_asks_is_told_when_the_next_try_is() -> None:
    health = Health()
    health.lose_meta()
    with pytest.raises(GraphPaused) as raised:
        health.ask("connect")
    error = raised.value
    assert error.public == "Meta has not answered the last 10 requests; the next try is in 2 s."
    assert (error.maybe_sent, error.retryable, error.code, error.wait_s) == (False, True, None, 2)
    assert (error.refusal.reason, error.refusal.remedy) == (Reason.META_AWAY, Remedy.WAIT)
    assert error.refusal.retry_at is not None
    assert timedelta(0) < error.refusal.retry_at - START <= timedelta(seconds=2)


async def test_the_gate_is_told_the_same() -> None:
    health = Health()
    assert health.meta.pauses("connect", ONE) == Pauses(meta_away_until=None, token_refused_until=None)
    health.lose_meta()
    paused = health.meta.paused("connect", ONE)
    told = health.meta.pauses("connect", ONE)
    assert paused is not None
    assert told["meta_away_until"] == pytest.approx(paused.retry_at, abs=timedelta(seconds=0.1))
    assert told["token_refused_until"] is None


async def test_other_numbers_are_not_held_back() -> None:
    health = Health()
    health.lose_meta(ONE)
    assert health.is_sent("connect", TWO)
    assert (health.meta.in_trouble(ONE), health.meta.in_trouble(TWO)) == (True, False)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_one_request_probes_and_its_success_lets_all_others_through() -> None:
    health = Health()
    health.lose_meta()
    await health.wait(WAITS.pauses_s[-1])
    probe = health.meta.begin("settings", ONE)
    assert probe.probe
    assert not health.is_sent("connect")
    health.meta.end(probe, None)
    assert health.is_sent("connect")
    assert not health.meta.is_away(ONE)


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_probe_that_was_given_up_leaves_its_place() -> None:
    health = Health()
    health.lose_meta()
    await health.wait(WAITS.pauses_s[-1])
    health.meta.cut(health.meta.begin("settings", ONE))
    assert health.is_sent("connect")


async def test_an_end_of_a_call_that_gets_through_is_news() -> None:
    health = Health()
    health.lose_meta()
    health.ask("terminate")
    assert health.is_sent("connect")


@pytest.mark.parametrize(
    "error",
    [
        refused("connect", 138006, http_status=401),
        refused("connect", 138007, http_status=500),  # one call's own trouble, whatever its status
        refused("connect", 4, http_status=400),
    ],
)
async def test_a_refusal_is_an_answer(error: GraphError) -> None:
    health = Health()
    for _ in range(3 * FAILURES):
        health.ask("connect", error=error)
    assert not health.meta.is_away(ONE)


@pytest.mark.parametrize("code", [131016, 138004, 131057])
async def test_a_refusal_in_which_meta_calls_itself_broken_is_none(code: int) -> None:
    health = Health()
    for _ in range(FAILURES):
        health.ask("connect", error=refused("connect", code, http_status=500))
    assert health.meta.is_away(ONE)


async def test_going_and_coming_back_are_logged_once_each() -> None:
    health = Health()
    with capture_logs() as logs:
        health.lose_meta()
        health.lose_meta()
        health.ask("terminate")
        health.ask("connect")
    assert [line["event"] for line in logs] == ["meta_away", "meta_back"]


# --- the token -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 190])
async def test_a_refused_token_is_not_tried_again_but_to_end_calls(code: int) -> None:
    health = Health()
    health.ask("connect", error=refused("connect", code, http_status=401))
    assert not any(health.is_sent(op) for op in [*GUARDED, "pre_accept", "accept"])
    assert all(health.is_sent(op) for op in ("terminate", "reject"))
    with pytest.raises(GraphPaused, match="token_refused") as raised:
        health.ask("pre_accept")
    assert (raised.value.refusal.reason, raised.value.refusal.remedy) == (Reason.TOKEN_REFUSED, Remedy.FIX_TOKEN)
    assert raised.value.public == "Meta refuses the number's access token; the next try is in 30 s."


async def test_numbers_that_share_a_token_share_its_trouble_and_others_do_not() -> None:
    health = Health()
    health.ask("settings", ONE, refused("settings", 190))
    assert [health.is_sent("connect", number) for number in (ONE, TWO, OWN)] == [False, False, True]
    assert [health.meta.is_token_refused(number) for number in (ONE, TWO, OWN)] == [True, True, False]


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_there_is_one_try_in_thirty_seconds_whoever_asks() -> None:
    health = Health()
    sent = 0
    health.ask("connect", ONE, refused("connect", 190))
    for second in range(1, 121):
        await health.wait(1)
        for number in (ONE, TWO):
            for op in ("connect", "accept", "settings", "request_template"):
                try:
                    health.ask(op, number, refused(op, 190))
                    sent += 1
                except GraphPaused:
                    pass
        assert sent <= second // TOKEN_PAUSE_S
    assert sent >= 3


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_try_that_is_under_way_is_the_one() -> None:
    health = Health()
    health.ask("connect", error=refused("connect", 190))
    await health.wait(TOKEN_PAUSE_S)
    health.meta.begin("connect", ONE)
    assert not health.is_sent("connect")


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_ends_of_calls_that_are_refused_do_not_put_off_the_next_try() -> None:
    health = Health()
    health.ask("connect", error=refused("connect", 190))
    for _ in range(6):
        await health.wait(5)
        health.ask("terminate", error=refused("terminate", 190))
    assert health.is_sent("connect")


async def test_a_success_takes_everything_back() -> None:
    health = Health()
    health.ask("connect", error=refused("connect", 190))
    health.ask("terminate")  # with the same token
    assert health.is_sent("connect", TWO)
    assert not health.meta.is_token_refused(ONE)


@pytest.mark.parametrize("code", [3, 10, 200, 299, 131005])
async def test_a_permission_that_a_token_lacks_stops_only_what_it_lacks_it_for(code: int) -> None:
    health = Health()
    health.ask("request_template", error=refused("request_template", code))
    assert not health.is_sent("request_free_form")
    assert health.is_sent("connect")
    assert health.meta.is_token_refused(ONE)
    assert not health.meta.in_trouble(ONE)  # no reading of settings would find out
    health.ask("settings")
    assert not health.is_sent("request_free_form")
    health.meta.end(Permit(number=ONE, token=TOKENS[ONE], area=Area.MESSAGES, probe=False), None)  # was under way
    assert health.is_sent("request_free_form")


async def test_a_token_that_may_not_read_settings_is_good_for_calls() -> None:
    health = Health()
    health.ask("settings", error=refused("settings", 200))
    assert health.is_sent("connect")
    assert not health.meta.is_token_refused(ONE)
    assert health.meta.degraded([ONE]) == []


@pytest.mark.parametrize("error", [refused("connect", 138006), unreachable("connect")])
async def test_other_errors_say_nothing_about_the_token(error: GraphError) -> None:
    health = Health()
    health.ask("connect", error=error)
    assert not health.meta.is_token_refused(ONE)


# --- what is shown ---------------------------------------------------------------------------------


async def test_trouble_is_told_with_the_number_the_time_and_what_to_do() -> None:
    health = Health()
    assert health.meta.degraded(TOKENS) == []
    health.ask("connect", OWN, refused("connect", 190))
    health.lose_meta(ONE)
    away, token = health.meta.degraded(TOKENS)
    assert away == f"number {ONE}: Meta has not answered the last 10 requests; retrying"
    assert token == (
        f"number {OWN}: Meta has refused the access token since 2026-11-22 12:00:00 UTC, code 190: the access token "
        "has expired or was revoked. Set a new token in GATEWAY_ACCESS_TOKEN, or in the number's own settings, and "
        "restart"
    )
    assert "token-of" not in away + token


async def test_a_missing_permission_is_told_with_what_it_is_for() -> None:
    health = Health()
    health.ask("request_template", error=refused("request_template", 10))
    (told,) = health.meta.degraded([ONE])
    assert "code 10: the access token lacks a permission. Set a token that has this permission (messages)" in told


async def test_the_gauges_show_it() -> None:
    health, metrics = Health(), Metrics()
    health.meta.show_in(metrics, TOKENS)
    health.ask("connect", OWN, refused("connect", 190))
    health.lose_meta(ONE)
    text = (await metrics.render()).decode()
    for line in (
        f'wacg_token_refused{{number="{OWN}"}} 1.0',
        f'wacg_token_refused{{number="{ONE}"}} 0.0',
        f'wacg_meta_away{{number="{ONE}"}} 1.0',
        f'wacg_meta_away{{number="{TWO}"}} 0.0',
        "wacg_clock_offset_seconds 0.0",
    ):
        assert line in text


async def test_a_machine_whose_clock_is_wrong_is_told_of_and_logged_once() -> None:
    wall = FakeClock(START - timedelta(hours=1))
    clock = MetaClock(wall, steady=lambda: 5.0)
    meta, metrics = MetaHealth(token_for=TOKENS.__getitem__, clock=clock), Metrics()
    meta.show_in(metrics, [ONE])
    with capture_logs() as logs:
        for _ in range(3):
            meta.heard("Sun, 22 Nov 2026 12:00:00 GMT", asked_at=meta.steady())
    assert [(line["event"], line["offset_s"]) for line in logs] == [("clock_wrong", 3600.5)]
    assert meta.degraded([ONE]) == [
        "this machine's clock is 3600 s behind Meta's; the gateway uses Meta's time. Set the clock (NTP)"
    ]
    assert "wacg_clock_offset_seconds 3600.5" in (await metrics.render()).decode()
    wall.advance(7_200)
    assert meta.degraded([ONE]) == [
        "this machine's clock is 3600 s ahead of Meta's; the gateway uses Meta's time. Set the clock (NTP)"
    ]
    wall.advance(-3_600)
    assert meta.degraded([ONE]) == []


async def test_any_other_clock_is_left_alone() -> None:
    health = Health()
    health.meta.heard("Sun, 22 Nov 2026 15:00:00 GMT", asked_at=health.meta.steady())
    assert health.meta.offset_s == 0
