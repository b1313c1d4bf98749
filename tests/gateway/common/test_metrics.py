import asyncio
import contextlib
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.common.metrics import LoopLag, Metrics


def test_two_gateways_in_one_process_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.webhooks_total.labels("ok").inc()
    assert one.registry.get_sample_value("webhooks_total", {"result": "ok"}) == 1
    assert two.registry.get_sample_value("webhooks_total", {"result": "ok"}) is None


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("calls_active", {"direction", "number"}),
        ("call_setup_seconds", {"direction"}),
        ("calls_ended_total", {"direction", "result", "reason"}),
        ("webhooks_total", {"result"}),
        ("webhook_ack_seconds", set()),
        ("slots_in_use", {"direction", "number"}),
        ("slots_limit", {"direction", "number"}),
        ("gate_decisions_total", {"decision", "reason"}),
        ("graph_requests_total", {"op", "status"}),
        ("graph_request_seconds", {"op"}),
        ("loop_lag_seconds", set()),
        ("softphones_connected", set()),
        ("media_workers_alive", set()),
        ("media_worker_restarts_total", set()),
        ("store_up", set()),
        ("tasks", set()),
        ("events_total", {"kind"}),
    ],
)
def test_names_and_labels_are_a_promise(name: str, labels: set[str]) -> None:
    assert set(getattr(Metrics(), name)._labelnames) == labels


def test_an_attribute_is_named_as_its_series() -> None:
    metrics = Metrics()
    series = {name for name, value in vars(metrics).items() if hasattr(value, "_labelnames")}
    for name in series:
        assert getattr(metrics, name)._name == name.removesuffix("_total")


def test_no_label_can_hold_a_user() -> None:
    labels = {label for value in vars(Metrics()).values() for label in getattr(value, "_labelnames", ())}
    assert labels <= {"direction", "number", "result", "reason", "decision", "op", "status", "kind", "rule", "type"}


async def test_the_page_is_prometheus_text() -> None:
    metrics = Metrics()
    metrics.observe_graph("accept", "200", 0.12)
    families = {family.name: family for family in text_string_to_metric_families((await metrics.render()).decode())}
    (total,) = (s for s in families["graph_requests"].samples if s.name == "graph_requests_total")
    assert (total.labels, total.value) == ({"op": "accept", "status": "200"}, 1)
    assert any(s.name == "graph_request_seconds_sum" for s in families["graph_request_seconds"].samples)
    assert "process_resident_memory_bytes" in families


async def test_the_loop_goes_on_while_the_page_is_made() -> None:
    metrics, turns = Metrics(), 0
    made = asyncio.get_running_loop().create_task(metrics.render())
    while not made.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= len(list(metrics.registry.collect())) > 20


async def run_for(lag: LoopLag, seconds: float, block_s: float = 0.0) -> None:
    task = asyncio.get_running_loop().create_task(lag.run())
    await asyncio.sleep(seconds)
    if block_s:
        time.sleep(block_s)  # noqa: ASYNC251 - what is measured
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_blocked_loop_shows_as_lag() -> None:
    metrics = Metrics()
    lag = LoopLag(metrics, interval_s=0.005, samples=400)
    await run_for(lag, 0.02, block_s=0.12)
    assert lag.worst_s >= 0.1
    assert metrics.registry.get_sample_value("loop_lag_seconds") == lag.worst_s
    over = metrics.registry.get_sample_value("loop_delay_seconds_bucket", {"le": "0.1"})
    every = metrics.registry.get_sample_value("loop_delay_seconds_count")
    assert over is not None
    assert every is not None
    assert over < every


async def test_old_lag_is_forgotten() -> None:
    lag = LoopLag(Metrics(), interval_s=0.001, samples=3)
    lag._recent[0] = 60.0
    await run_for(lag, 0.05)
    assert lag.worst_s < 10


async def test_lag_is_never_negative() -> None:
    metrics = Metrics()
    await run_for(LoopLag(metrics, interval_s=0.001), 0.03)
    total = metrics.registry.get_sample_value("loop_delay_seconds_sum")
    assert total is not None
    assert total >= 0


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_overload_is_told_of_the_worst_delay_ten_times_a_second() -> None:
    told: list[float] = []
    loop, lag = asyncio.get_running_loop(), LoopLag(Metrics(), on_sample=told.append)
    task = loop.create_task(lag.run())
    await asyncio.sleep(0.55)
    task.cancel()
    assert told == pytest.approx([0.0] * 5, abs=1e-6)


async def test_of_the_delays_in_between_overload_is_told_the_worst() -> None:
    told: list[float] = []
    await run_for(LoopLag(Metrics(), interval_s=0.002, tell_every=3, on_sample=told.append), 0.02, block_s=0.05)
    assert max(told) >= 0.04
