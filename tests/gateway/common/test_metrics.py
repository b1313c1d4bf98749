"""The metrics: what they are called, that their page says so, and that readers know them by these names."""

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.callflow.outcome import EndReason, Result
from gateway.common.metrics import Described, LoopLag, Metrics
from gateway.intake.intake import Kept
from policy.facts import Direction
from policy.number import RestrictionType
from policy.reasons import Reason

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "gateway" / "METRICS.md").read_text(encoding="utf-8")
NAMES = {one.name for one in Metrics().described}
#: Words that are a metric's name without its prefix, and something else too: a refusal's reason.
REASONS = {reason.value for reason in Reason}


def sources(*folders: str) -> Iterator[Path]:
    """Every program and page that may name a series, but this file."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".toml", ".yaml", ".json") and path != Path(__file__).resolve():
                yield path


def pages() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    for path in sources("gateway", "policy", "media", "loadtest", "tests", "deploy"):
        if path.suffix == ".md" and path.name != "CHANGELOG.md":  # which may tell of old names
            yield path


def test_two_gateways_in_one_process_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.webhooks_total.labels("ok").inc()
    assert one.registry.get_sample_value("wacg_webhooks_total", {"result": "ok"}) == 1
    assert two.registry.get_sample_value("wacg_webhooks_total", {"result": "ok"}) is None


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


def test_an_attribute_is_named_as_its_series_without_the_prefix() -> None:
    metrics = Metrics()
    attributes = {name: value for name, value in vars(metrics).items() if hasattr(value, "_labelnames")}
    for name, value in attributes.items():
        assert value._name == "wacg_" + name.removesuffix("_total")
    assert {f"wacg_{name}" for name in attributes} == NAMES


@pytest.mark.parametrize("one", Metrics().described, ids=lambda one: one.name)
def test_a_name_follows_prometheus_conventions(one: Described) -> None:
    assert re.fullmatch(r"wacg_[a-z][a-z0-9]*(_[a-z0-9]+)*", one.name)
    assert one.name.endswith("_total") == (one.type == "counter")
    assert not one.name.endswith(("_count", "_sum", "_bucket", "_created", "_info"))
    # Base units only, and a histogram says which. Source: Prometheus, "Metric and label naming", read 2026-12-01.
    assert not {"ms", "us", "ns", "minutes", "hours", "kb", "mb", "percent"} & set(one.name.split("_"))
    if one.type == "histogram":
        assert one.name.endswith(("_seconds", "_bytes"))


@pytest.mark.parametrize("one", Metrics().described, ids=lambda one: one.name)
def test_a_meaning_is_one_sentence(one: Described) -> None:
    assert re.fullmatch(r"[A-Z0-9][^.!?;|\n]*\.", one.meaning)


def test_the_page_of_the_metrics_is_the_programs() -> None:
    between = re.search(r"<!-- metrics[^>]*-->\n(.*?)\n<!-- /metrics -->", PAGE, re.DOTALL)
    assert between is not None
    rows = [
        f"| `{one.name}` | {one.type} | {', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |"
        for one in Metrics().described
    ]
    assert between[1] == "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows])


def test_the_page_says_what_each_label_holds() -> None:
    told = set()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", PAGE.partition("## Labels")[2], re.MULTILINE)
    for label, of in rows:
        having = {one.name for one in Metrics().described if label in one.labels}
        named = having if of == "all metrics that have it" else set(re.findall(r"`(\w+)`", of))
        assert named <= having, label
        told |= {(name, label) for name in named}
    assert told == {(one.name, label) for one in Metrics().described for label in one.labels}


@pytest.mark.parametrize(
    ("label", "of", "values"),
    [
        ("direction", "all metrics that have it", Direction),
        ("result", "`wacg_calls_ended_total`", Result),
        ("reason", "`wacg_calls_ended_total`", EndReason),
        ("type", "`wacg_number_restricted`", RestrictionType),
    ],
)
def test_the_page_names_every_value_of_a_closed_set(label: str, of: str, values: type[StrEnum]) -> None:
    (said,) = re.findall(rf"^\| `{label}` \| {of} \| (.*) \|$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", said) == [value.value for value in values]


def test_the_page_names_every_answer_to_a_webhook() -> None:
    (said,) = re.findall(r"^\| `result` \| `wacg_webhooks_total` \| (.*) \|$", PAGE, re.MULTILINE)
    source = (ROOT / "gateway" / "intake" / "webhook.py").read_text(encoding="utf-8")
    written = set(re.findall(r"_(?:respond|count_result)\(\"(\w+)\"", source))
    assert set(re.findall(r"`(\w+)`", said)) == written | {kept.value for kept in Kept}


def test_every_series_that_somebody_reads_is_there() -> None:
    named = 0
    for path in (*sources("gateway", "loadtest", "tests", "deploy"), *pages()):
        for name in re.findall(r"\bwacg_[a-z]\w*", path.read_text(encoding="utf-8")):
            named += 1
            assert re.sub(r"_(bucket|sum|count)$", "", name) in NAMES, path
    assert named > 2 * len(NAMES)


def test_no_page_names_a_series_without_its_prefix() -> None:
    bare = {name.removeprefix("wacg_") for name in NAMES} - REASONS
    for path in pages():
        for name in re.findall(r"(?<![\w.])(\w+)(?=[`{])", path.read_text(encoding="utf-8")):
            assert name not in bare, path


def test_the_load_suite_reads_no_series_without_its_prefix() -> None:
    # A sum over a series that is not there is 0, which is what most checks want to see.
    bare = {name.removeprefix("wacg_") for name in NAMES} - {"tasks"}  # also a figure of the load suite's own
    for path in sources("loadtest", "tests/loadtest", "tests/chaos", "tests/e2e", "tests/support"):
        if path.suffix == ".py":
            for name in re.findall(r"[\"'](\w+?)(?:_bucket|_sum|_count)?[\"'{]", path.read_text(encoding="utf-8")):
                assert name not in bare - REASONS, path


def test_no_label_can_hold_a_user() -> None:
    labels = {label for value in vars(Metrics()).values() for label in getattr(value, "_labelnames", ())}
    assert labels <= {"direction", "number", "result", "reason", "decision", "op", "status", "kind", "rule", "type"}


async def test_the_page_is_prometheus_text() -> None:
    metrics = Metrics()
    metrics.observe_graph("accept", "200", 0.12)
    families = {family.name: family for family in text_string_to_metric_families((await metrics.render()).decode())}
    (total,) = (s for s in families["wacg_graph_requests"].samples if s.name == "wacg_graph_requests_total")
    assert (total.labels, total.value) == ({"op": "accept", "status": "200"}, 1)
    assert any(s.name == "wacg_graph_request_seconds_sum" for s in families["wacg_graph_request_seconds"].samples)
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
    assert metrics.registry.get_sample_value("wacg_loop_lag_seconds") == lag.worst_s
    over = metrics.registry.get_sample_value("wacg_loop_delay_seconds_bucket", {"le": "0.1"})
    every = metrics.registry.get_sample_value("wacg_loop_delay_seconds_count")
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
    total = metrics.registry.get_sample_value("wacg_loop_delay_seconds_sum")
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
