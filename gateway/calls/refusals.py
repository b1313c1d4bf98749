"""Take over what a refusal by Meta says about a contact, so that the gate's next answer agrees with Meta.

Records the fact, counts and logs the contradiction, and notes the gate's new answer on the error. What an error code
means is in `contacts.refusal_facts`.
"""

import structlog

from gateway.common.clock import Clock
from gateway.common.errors import GraphError, GraphRefused
from gateway.common.metrics import Metrics
from gateway.contacts.directory import Contact, Contacts
from gateway.contacts.reconciler import CONTRADICTIONS, Reconciler
from gateway.contacts.refusal_facts import told_by
from gateway.numbers.number import Number
from gateway.store.store import Store
from policy.decision import Refusal
from policy.gate import evaluate
from policy.request import Request

log = structlog.get_logger()


class MetaRefusals:
    """Takes over refusals; one instance for all numbers."""

    def __init__(
        self, *, contacts: Contacts, reconciler: Reconciler, store: Store, metrics: Metrics, clock: Clock
    ) -> None:
        self._contacts = contacts
        self._reconciler = reconciler
        self._store = store
        self._metrics = metrics
        self._clock = clock

    def take_over(self, number: Number, contact: Contact, error: GraphError, request: Request) -> None:
        """Record what a refusal says about the contact; note on the error what the gate now answers to `request`."""
        if not isinstance(error, GraphRefused):
            return
        contact, now = contact.current, self._clock.now()
        told = told_by(error, number.pack, contact.state, now=now)
        if told is not None:
            self._metrics.policy_drift_total.labels(rule=told.rule).inc()
            log.warning(
                "policy_drift",
                number_id=number.id,
                user=contact.user.key,
                rule=told.rule,
                ours="allow",
                metas=error.code,
            )
            self._store.write_soon(*self._contacts.apply(contact, told.fact, seen_at=now))
            decision = evaluate(number.pack, number.state, contact.state, request, now=now)
            error.refusal = decision if isinstance(decision, Refusal) else None
        if error.code in CONTRADICTIONS:
            self._reconciler.reconcile_soon(number, contact)
