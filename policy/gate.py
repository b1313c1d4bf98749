"""The gate: may this be done now, and if not, why not, since when, and from when on again.

Theory of operation
-------------------
RULES (`rules.py`) is a table in order. A rule looks at one `Case` and either has nothing to say or gives a `Block`:
reason, figures, and the first instant at which *this rule* would let go (None: time alone does not help). The first
rule that blocks is the answer. Its `retry_at` is more than its own instant: nothing is gained by waiting for one rule
if another refuses then. `_settle` goes from block to block, each time to the instant at which the present one lets go,
until the whole table says yes, or until one blocks for good; the remedy is then the latter's. Each rule refuses
without a gap up to its instant, so no earlier yes is jumped over. Reservations and other figures that the request
carries are taken to stay as they are.

Nothing is decided elsewhere: the store keeps facts, the gateway holds semaphores (`slot_refusal`), texts are made by
page and API. A call that is on its way is not judged again: a permission that expires while the phone rings is no
reason to hang up.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Final

from policy.contact import ContactState
from policy.decision import Allow, Decision, Refusal
from policy.facts import Direction
from policy.number import NumberState
from policy.pack import Pack
from policy.permission import permission_at
from policy.reasons import Reason, Remedy
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request
from policy.rules import OURS, RULES, WARNINGS, Block, Case, Rule, choose_form, how_to_ask, window_open_until

__all__ = ["RULES", "choose_form", "evaluate", "slot_refusal", "source_of", "window_open_until"]

_RULES_ON: Final[Mapping[type[Request], tuple[Rule, ...]]] = MappingProxyType(
    {kind: tuple(rule for rule in RULES if kind in rule.on) for kind in (PlaceCall, ReceiveCall, AskPermission)}
)
_SLOTS: Final = MappingProxyType({direction: f"number/slots_{direction.lower()}" for direction in Direction})
#: Rules that stand on somebody's word; the others are this gateway's own.
_SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {rule.name: rule.source for rule in RULES if rule.source != OURS} | dict.fromkeys(_SLOTS.values(), "guide R14")
)


def evaluate(pack: Pack, number: NumberState, contact: ContactState, request: Request, *, now: datetime) -> Decision:
    """Decide about one request at one instant.

    Raises:
        ValueError: `now` has no time zone.
    """
    if now.tzinfo is None:
        raise ValueError("now must be aware")
    case = Case(
        pack=pack,
        number=number,
        contact=contact,
        request=request,
        permission=permission_at(pack, contact, now=now),
        now=now,
    )
    blocked = _first_block(case)
    if blocked is None:
        return _allow(case)
    rule, block = blocked
    retry_at, remedy = _settle(case, block)
    return Refusal(
        reason=block.reason,
        rule=rule.name,
        observed=block.observed,
        limit=block.limit,
        retry_at=retry_at,
        remedy=remedy,
    )


def slot_refusal(direction: Direction, *, in_use: int, limit: int) -> Refusal:
    """Refuse a call for want of a slot (guide R14). Who counts slots decides that; this only says it."""
    return Refusal(
        reason=Reason.NUMBER_BUSY,
        rule=_SLOTS[direction],
        observed=in_use,
        limit=limit,
        remedy=Remedy.FREE_SLOT,
    )


def source_of(rule: str) -> str | None:
    """Say whose rule a refusal names: the guide's sentence, or Meta's page and when it was read; None: our own."""
    return _SOURCES.get(rule)


def _first_block(case: Case) -> tuple[Rule, Block] | None:
    for rule in _RULES_ON[type(case.request)]:
        block = rule.check(case)
        if block is not None:
            return rule, block
    return None


def _settle(case: Case, block: Block) -> tuple[datetime | None, Remedy | None]:
    """Find the first instant of a yes, or the remedy of the rule that waiting runs into.

    Raises:
        AssertionError: a rule lets go at an instant that has come; better than to ask it for ever.
    """
    blocked, at = block, case.now
    while blocked.until is not None:
        if blocked.until <= at:
            raise AssertionError(f"{blocked.reason} at {at} until {blocked.until}")
        at = blocked.until
        permission = permission_at(case.pack, case.contact, now=at)
        following = _first_block(replace(case, now=at, permission=permission))
        if following is None:
            return at, block.remedy
        blocked = following[1]
    return None, blocked.remedy or how_to_ask(case)


def _allow(case: Case) -> Allow:
    warnings = tuple(warning for warn in WARNINGS if (warning := warn(case)) is not None)
    places = isinstance(case.request, PlaceCall)
    return Allow(warnings=warnings, permission_expires_at=case.permission.expires_at if places else None)
