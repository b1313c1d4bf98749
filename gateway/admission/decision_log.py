"""Record each answer of the gate: count it, log it, and store it with its figures."""

import uuid
from datetime import datetime
from typing import Final

import structlog

from gateway.calls.overflow import NO_ROOM
from gateway.common.ids import UserRef
from gateway.common.metrics import Metrics
from gateway.numbers.number import Number
from gateway.store.records import DecisionRecord
from gateway.store.store import Store
from gateway.wire import views
from policy.decision import Decision, Refusal
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request

log = structlog.get_logger()

_NAMES: Final[dict[type[Request], str]] = {
    PlaceCall: "place",
    ReceiveCall: "receive",
    AskPermission: "ask_permission",
}


class DecisionLog:
    """Records decisions; one instance for all numbers."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    def keep(
        self, number: Number, user: UserRef, request: Request, decision: Decision, *, asked_by: str, now: datetime
    ) -> None:
        """Record a decision. `asked_by` is an operator's name, "meta" or "api"."""
        refused = decision if isinstance(decision, Refusal) else None
        self._metrics.gate_decisions_total.labels(
            decision="refuse" if refused else "allow", reason=refused.reason.value if refused else ""
        ).inc()
        if refused is not None and refused.reason in NO_ROOM and not isinstance(request, AskPermission):
            self._metrics.setups_refused_total.labels(reason=refused.rule.rpartition("/")[2]).inc()
        log.info(
            "gate_decision",
            number_id=number.id,
            user=user.key,
            request=_NAMES[type(request)],
            asked_by=asked_by,
            allowed=refused is None,
            reason=refused.reason.value if refused else None,
            rule=refused.rule if refused else None,
        )
        self._store.write_soon(
            DecisionRecord(
                decision_id=uuid.uuid4().hex,
                phone_number_id=number.id,
                user_key=user.key,
                asked_by=asked_by,
                request=_NAMES[type(request)],
                at=now,
                allowed=refused is None,
                pack=number.pack_label,
                refusal=views.refusal_json(refused) if refused else None,
            )
        )
