"""Faults on demand, for Graph requests and for webhooks; seeded, so that a run can be repeated.

This module decides what goes wrong; the Graph and webhook modules carry it out.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

_MAX_WAIT_S = 3600.0
_MAX_BATCH = 1_000


class Fault(StrEnum):
    """A fault in a Graph request."""

    #: An error response; the request is not carried out.
    FAIL = "fail"
    #: Carried out; the response is late.
    DELAY = "delay"
    #: The connection is cut after the request was read; it is not carried out.
    CUT_BEFORE = "cut_before"
    #: The request is carried out, then the connection is cut: the caller cannot know the result.
    CUT_AFTER = "cut_after"
    #: Not carried out and without a response for a while; then the connection is cut.
    STALL = "stall"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFault:
    """One ordered fault: which, for which action, how often."""

    fault: Fault
    #: connect, pre_accept, accept, reject, terminate, call_permissions, messages, settings, number, or *.
    action: str = "*"
    times: int = 1
    code: int = 131000
    #: None: the status that Meta uses with the code.
    status: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.times <= 1_000_000:
            raise ValueError("times must be from 1 to 1000000")
        if self.status is not None and not 400 <= self.status <= 599:
            raise ValueError("status must be from 400 to 599")
        if not 0 <= self.seconds <= _MAX_WAIT_S:
            raise ValueError("seconds must be from 0 to 3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFaults:
    """Shares (0 to 1) of Graph requests with each fault; a request has at most one."""

    #: Error response with `code`; the request is not carried out.
    fail: float = 0.0
    #: No response for `hang_s`; every second one of them is carried out nevertheless.
    hang: float = 0.0
    cut_before: float = 0.0
    #: Carried out, then the connection is cut.
    cut_after: float = 0.0
    code: int = 131000
    hang_s: float = 20.0
    #: As in `GraphFault`, or *.
    action: str = "*"
    seed: int = 1

    def __post_init__(self) -> None:
        shares = (self.fail, self.hang, self.cut_before, self.cut_after)
        if any(not 0 <= share <= 1 for share in shares) or sum(shares) > 1:
            raise ValueError("fail, hang, cut_before and cut_after must be from 0 to 1, and together at most 1")
        if not 0 <= self.hang_s <= _MAX_WAIT_S:
            raise ValueError("hang_s must be from 0 to 3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookFaults:
    """Shares (0 to 1) of webhooks with each fault."""

    late: float = 0.0
    twice: float = 0.0
    reordered: float = 0.0
    lost: float = 0.0
    #: Longest extra delay of a late, repeated or reordered delivery.
    late_s: float = 1.0
    #: Collect webhooks for this long and deliver them together; 0: each on its own.
    batch_s: float = 0.0
    #: Deliver after this many webhooks, drawn uniformly from 1 to this each time; 0: no limit.
    batch: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        if any(not 0 <= share <= 1 for share in (self.late, self.twice, self.reordered, self.lost)):
            raise ValueError("late, twice, reordered and lost must be from 0 to 1")
        if not 0 <= self.late_s <= _MAX_WAIT_S or not 0 <= self.batch_s <= 60:
            raise ValueError("late_s must be from 0 to 3600, batch_s from 0 to 60")
        if not 0 <= self.batch <= _MAX_BATCH:
            raise ValueError(f"batch must be from 0 to {_MAX_BATCH}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What happens to one webhook. Delays in seconds."""

    lost: bool = False
    #: Delay of this delivery, and of everything behind it in the same call.
    late_s: float = 0.0
    #: Delay until it is delivered a second time.
    again_after_s: float | None = None
    #: Taken out of its call's order and delivered this much later.
    overtaken_s: float | None = None


class Faults:
    """The faults in force."""

    def __init__(self) -> None:
        self.graph: list[GraphFault] = []
        self.graph_shares = GraphFaults()
        self.webhooks = WebhookFaults()
        self._random = random.Random(1)
        self._graph_random = random.Random(1)
        self._batch_random = random.Random(1)

    def order(
        self, graph: list[GraphFault], webhooks: WebhookFaults | None, graph_shares: GraphFaults | None = None
    ) -> None:
        """Add Graph faults; replace the shares of either side if given (which restarts its random sequence)."""
        self.graph += graph
        if graph_shares is not None:
            self.graph_shares = graph_shares
            self._graph_random = random.Random(graph_shares.seed)
        if webhooks is not None:
            self.webhooks = webhooks
            self._random = random.Random(webhooks.seed)
            self._batch_random = random.Random(webhooks.seed)

    def clear(self) -> None:
        """Remove all faults."""
        self.graph.clear()
        self.graph_shares = GraphFaults()
        self.webhooks = WebhookFaults()

    def take(self, action: str) -> GraphFault | None:
        """Return (and use up) the first fault ordered for this action; if there is none, draw one at random."""
        for index, fault in enumerate(self.graph):
            if fault.action in ("*", action):
                if fault.times > 1:
                    self.graph[index] = replace(fault, times=fault.times - 1)
                else:
                    del self.graph[index]
                return fault
        return self._thrown(action)

    def _thrown(self, action: str) -> GraphFault | None:
        """Draw a fault for one request; always the same number of draws, so that shares can change."""
        shares = self.graph_shares
        thrown, done = self._graph_random.random(), self._graph_random.random() < 0.5
        if shares.action not in ("*", action):
            return None
        hang = Fault.DELAY if done else Fault.STALL
        for fault, share in (
            (Fault.FAIL, shares.fail),
            (hang, shares.hang),
            (Fault.CUT_BEFORE, shares.cut_before),
            (Fault.CUT_AFTER, shares.cut_after),
        ):
            if thrown < share:
                return GraphFault(fault=fault, action=action, code=shares.code, seconds=shares.hang_s)
            thrown -= share
        return None

    def fate(self) -> Fate:
        """Draw the fate of one webhook; always the same number of draws, so that shares can change."""
        shares = self.webhooks
        lost, late, twice, reordered, wait = (self._random.random() for _ in range(5))
        wait_s = wait * shares.late_s
        return Fate(
            lost=lost < shares.lost,
            late_s=wait_s if late < shares.late else 0.0,
            again_after_s=wait_s if twice < shares.twice else None,
            overtaken_s=wait_s if reordered < shares.reordered else None,
        )

    def batch(self) -> int | None:
        """Return the most webhooks in the next delivery; None: no limit."""
        return self._batch_random.randint(1, self.webhooks.batch) if self.webhooks.batch else None

    def described(self) -> dict[str, Any]:
        """Return the faults in force for JSON."""
        return {
            "graph": [asdict(fault) for fault in self.graph],
            "graph_shares": asdict(self.graph_shares),
            "webhooks": asdict(self.webhooks),
        }


def read_graph_fault(data: Mapping[str, Any]) -> GraphFault:
    """Return a fault from JSON. Raises: ValueError."""
    known = _known(data, GraphFault)
    if "fault" not in known:
        raise ValueError(f"fault is missing: one of {', '.join(Fault)}")
    _check_types(known, {"action": str, "times": int, "code": int, "status": int, "seconds": (int, float)})
    return GraphFault(**{**known, "fault": Fault(known["fault"])})


def read_graph_shares(data: Mapping[str, Any]) -> GraphFaults:
    """Return shares of Graph faults from JSON. Raises: ValueError."""
    known = _known(data, GraphFaults)
    numbers = dict.fromkeys(("fail", "hang", "cut_before", "cut_after", "hang_s"), (int, float))
    _check_types(known, {**numbers, "code": int, "action": str, "seed": int})
    return GraphFaults(**known)


def read_webhook_faults(data: Mapping[str, Any]) -> WebhookFaults:
    """Return webhook faults from JSON. Raises: ValueError."""
    known = _known(data, WebhookFaults)
    numbers = dict.fromkeys(("late", "twice", "reordered", "lost", "late_s", "batch_s"), (int, float))
    _check_types(known, {**numbers, "batch": int, "seed": int})
    return WebhookFaults(**known)


def _known(data: Mapping[str, Any], kind: type[GraphFault] | type[GraphFaults] | type[WebhookFaults]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    unknown = set(data) - names
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")
    return dict(data)


def _check_types(data: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        value = data.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ValueError(f"{name} has the wrong type")
