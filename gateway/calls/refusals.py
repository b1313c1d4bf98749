"""Takes over what Meta's refusal says about a contact: Meta knew better than the gate, whose next answer is right.

Responsible for the fact, the count, the log line, and for the gate's new answer beside Meta's. Not responsible for what
an error means (see `meta_facts`) nor for asking Meta whether that is all (see `reconcile`).
"""

import structlog

from gateway.calls.context import Services
from gateway.common.errors import GraphError, GraphRefused
from gateway.contacts.directory import Contact
from gateway.contacts.reconciler import CONTRADICTIONS
from gateway.contacts.refusal_facts import told_by
from gateway.numbers.number import Number
from policy.decision import Refusal
from policy.gate import evaluate
from policy.request import Request

log = structlog.get_logger()


def take_over(services: Services, number: Number, contact: Contact, error: GraphError, request: Request) -> None:
    """Record what a refusal says, and note on the error what the gate answers to the same request now."""
    if not isinstance(error, GraphRefused):
        return
    contact, now = contact.current, services.clock.now()
    told = told_by(error, number.pack, contact.state, now=now)
    if told is not None:
        services.metrics.policy_drift_total.labels(rule=told.rule).inc()
        log.warning(
            "policy_drift", number_id=number.id, user=contact.user.key, rule=told.rule, ours="allow", metas=error.code
        )
        services.store.write_soon(*services.contacts.apply(contact, told.fact, seen_at=now))
        decision = evaluate(number.pack, number.state, contact.state, request, now=now)
        error.refusal = decision if isinstance(decision, Refusal) else None
    if error.code in CONTRADICTIONS:
        services.reconcile_soon(number, contact)
