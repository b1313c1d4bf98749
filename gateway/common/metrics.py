"""Every metric, with its labels and buckets, and the sampler of the loop's lag.

A `Metrics` is constructed once, in `app`, and handed to who counts; there is no global registry, so two gateways
in one process (tests) do not mix. Labels come from closed sets: an enum's value, an error code, Meta's id of a
business number. Never a user's number, never a text that somebody sent us. `gateway/METRICS.md` lists them all. Not
responsible for serving the page (see `http/admin`).
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: From a webhook's first byte to our 200: Meta asks for a median of 250 ms and under 1 % above 1 s.
ACK_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
#: From the request (or pick-up) to audio both ways.
SETUP_BUCKETS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
GRAPH_BUCKETS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

#: In front of every name: one Prometheus watches many programs.
PREFIX: Final = "wacg"

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One metric as `gateway/METRICS.md` shows it."""

    name: str  #: of the series; a histogram's have `_bucket`, `_sum` and `_count` behind it
    type: str  #: counter, gauge or histogram
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """The gateway's metrics. Attributes are named as the series are, without the prefix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        #: What there is, in the order of the documentation.
        self.described: list[Described] = []
        self._calls()
        self._edges()
        self._parts()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def _calls(self) -> None:
        self.calls_active = self._gauge("calls_active", "Calls that have not ended.", "direction", "number")
        self.call_setup_seconds = self._histogram(
            "call_setup_seconds",
            "Time from Meta's connect webhook, or from dialling, to audio both ways.",
            SETUP_BUCKETS,
            "direction",
        )
        self.calls_ended_total = self._counter(
            "calls_ended_total", "Calls that ended, by who decided the end and why.", "direction", "result", "reason"
        )
        self.calls_unconfirmed = self._gauge(
            "calls_unconfirmed", "Calls that the gateway no longer runs and Meta may still hold open."
        )
        self.slots_in_use = self._gauge("slots_in_use", "Slots of a number taken by calls.", "direction", "number")
        self.slots_limit = self._gauge(
            "slots_limit", "Slots of a number, which is the most calls at a time.", "direction", "number"
        )
        self.number_restricted = self._gauge(
            "number_restricted", "1 while Meta restricts calling on a number.", "number", "type"
        )
        self.gate_decisions_total = self._counter(
            "gate_decisions_total",
            "Decisions of the policy gate, with an empty reason when it allowed the request.",
            "decision",
            "reason",
        )
        self.policy_drift_total = self._counter(
            "policy_drift_total", "Differences found between Meta's record of a contact and ours, by rule.", "rule"
        )

    def _edges(self) -> None:
        self.webhooks_total = self._counter("webhooks_total", "Webhook requests received, by how they ended.", "result")
        self.webhook_ack_seconds = self._histogram(
            "webhook_ack_seconds",
            "Time from a webhook's arrival until it was stored and answered with 200.",
            ACK_BUCKETS,
        )
        self.keys_refused_total = self._counter(
            "keys_refused_total", "Logins and API requests refused because of their key.", "kind", "result"
        )
        self.events_total = self._counter(
            "events_total", "Events in webhooks, by kind, where a second copy counts as repeated.", "kind"
        )
        self.graph_requests_total = self._counter(
            "graph_requests_total", "Requests to the Graph API, each attempt counted.", "op", "status"
        )
        self.graph_request_seconds = self._histogram(
            "graph_request_seconds", "Time the Graph API took to answer, for each attempt.", GRAPH_BUCKETS, "op"
        )
        self.meta_away = self._gauge(
            "meta_away", "1 while the circuit breaker of a number is open because Meta does not answer.", "number"
        )
        self.token_refused = self._gauge(
            "token_refused", "1 while Meta refuses the access token of a number for calls or messages.", "number"
        )
        self.clock_offset_seconds = self._gauge(
            "clock_offset_seconds", "Meta's clock minus this machine's clock, 0 until Meta has answered."
        )

    def _parts(self) -> None:
        self.softphones_connected = self._gauge("softphones_connected", "Softphones with an open WebSocket.")
        self.media_workers_alive = self._gauge("media_workers_alive", "Media worker processes that are ready.")
        self.media_worker_restarts_total = self._counter(
            "media_worker_restarts_total", "Media workers that died and were started again."
        )
        self.store_up = self._gauge("store_up", "1 while the database answers.")
        self.store_backlog = self._gauge("store_backlog", "Groups of changes waiting to be written to the database.")
        self.store_dropped_total = self._counter(
            "store_dropped_total", "Groups of changes lost before they reached the database."
        )
        self.database_restarts_total = self._counter(
            "database_restarts_total", "Times the embedded PostgreSQL died and was started again."
        )
        self.spool_deliveries = self._gauge("spool_deliveries", "Webhooks in the spool, waiting for the database.")
        self.spool_bytes = self._gauge("spool_bytes", "Size of the webhooks in the spool.")
        self.spooled_total = self._counter(
            "spooled_total", "Webhooks written to the spool because the database was away."
        )
        self.spool_refused_total = self._counter(
            "spool_refused_total", "Webhooks set apart in the spool because they cannot be processed or stored."
        )
        self.overload_level = self._gauge(
            "overload_level", "0 when calm, 1 when late (no new calls), 2 when stuck (no look-ups either)."
        )
        self.setups_refused_total = self._counter(
            "setups_refused_total",
            "Calls refused because the gateway or the number had no room for them, by what was short.",
            "reason",
        )
        self.calls_left_ringing_total = self._counter(
            "calls_left_ringing_total",
            "Calls turned away that Meta could not be told of, so they ring until they expire.",
        )
        self.tasks = self._gauge("tasks", "Tasks of the event loop.")
        self.loop_lag_seconds = self._gauge("loop_lag_seconds", "Longest delay of the event loop in the last second.")
        self.loop_delay_seconds = self._histogram(
            "loop_delay_seconds", "Delay of the event loop, sampled 50 times a second.", LAG_BUCKETS
        )

    def observe_graph(self, op: str, status: str, seconds: float) -> None:
        """Count one try of one request to Meta; fits `GraphClient(observe=…)`."""
        self.graph_requests_total.labels(op, status).inc()
        self.graph_request_seconds.labels(op).observe(seconds)

    async def render(self) -> bytes:
        """Return the page for `/metrics`, in Prometheus' text format (`CONTENT_TYPE`).

        Family by family, the loop goes on in between: with hundreds of numbers all of them take tens of milliseconds.
        """
        parts = []
        for family in self.registry.collect():
            parts.append(generate_latest(_Family(family)))
            await asyncio.sleep(0)
        return b"".join(parts)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        self._describe(name, "counter", meaning, labels)
        return _remembering(Counter(name, meaning, labels, namespace=PREFIX, registry=self.registry))

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        self._describe(name, "gauge", meaning, labels)
        return _remembering(Gauge(name, meaning, labels, namespace=PREFIX, registry=self.registry))

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        self._describe(name, "histogram", meaning, labels)
        return _remembering(Histogram(name, meaning, labels, namespace=PREFIX, registry=self.registry, buckets=buckets))

    def _describe(self, name: str, type_: str, meaning: str, labels: tuple[str, ...]) -> None:
        self.described.append(Described(name=f"{PREFIX}_{name}", type=type_, labels=labels, meaning=meaning))


class _Family(Collector):
    """One family as a registry of its own."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _remembering(metric: _Metric) -> _Metric:
    """Let a metric find the series of its labels in a tenth of the time: there are few, and it keeps them anyway."""
    metric.labels = lru_cache(maxsize=None)(metric.labels)  # type: ignore[method-assign]
    return metric


class LoopLag:
    """Measures how late the event loop runs its timers.

    `worst_s` is the worst delay of the last second or so; `/healthz` and admission read it. It looks often, or it would
    miss most stalls: one of 30 ms is met by a timer each 20 ms, but seldom by one each 100 ms.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        interval_s: float = 0.02,
        samples: int = 50,
        tell_every: int = 5,
        on_sample: Callable[[float], None] = lambda delay_s: None,
    ) -> None:
        """`on_sample` is told the worst of each `tell_every` delays, in seconds."""
        self._metrics = metrics
        self._on_sample = on_sample
        self._interval_s = interval_s
        self._recent = [0.0] * samples
        self._tell_every = tell_every

    @property
    def worst_s(self) -> float:
        return max(self._recent)

    async def run(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        worst_s = 0.0
        for turn in itertools.count(1):
            due_at = loop.time() + self._interval_s
            await asyncio.sleep(self._interval_s)
            # A timer may fire a clock tick early: that is no negative lag.
            delay_s = max(0.0, loop.time() - due_at)
            self._recent[turn % len(self._recent)] = delay_s
            self._metrics.loop_delay_seconds.observe(delay_s)
            self._metrics.loop_lag_seconds.set(self.worst_s)
            worst_s = max(worst_s, delay_s)
            if turn % self._tell_every == 0:
                self._on_sample(worst_s)
                worst_s = 0.0
