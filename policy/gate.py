"""The gate: may this be done now, and if not, why not, and from when on.

Theory of operation
-------------------
RULES (`rules.py`) is a table in order. A rule looks at one `Case` and returns None or a `Block`: the reason, the
figures, and the first instant at which *this rule* no longer blocks (None: time alone does not help). The first rule
that blocks is the answer. Its `retry_at` takes the other rules into account too, since waiting for one rule gains
nothing if another blocks then: `_settle` goes from block to block, each time to the instant at which the current one
ends, until the whole table allows it or a rule blocks without end; then its remedy is returned. Each rule blocks
without a gap up to its instant, so no earlier yes is skipped. Reservations and other values in the request are assumed
to stay as they are.

All decisions are made here: the store keeps facts, the gateway counts slots (`slot_refusal`), page and API make the
texts. A call in progress is not evaluated again: a permission that expires while the phone rings is no reason to hang
up.
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
#: Sources of the rules that come from the guide or from Meta; the other rules are this gateway's own.
_SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {rule.name: rule.source for rule in RULES if rule.source != OURS} | dict.fromkeys(_SLOTS.values(), "guide R14")
)


def evaluate(pack: Pack, number: NumberState, contact: ContactState, request: Request, *, now: datetime) -> Decision:
    """Decide one request at one instant.

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
    """Return the refusal of a call because no slot is free (guide R14). The caller counts the slots and decides."""
    return Refusal(
        reason=Reason.NUMBER_BUSY,
        rule=_SLOTS[direction],
        observed=in_use,
        limit=limit,
        remedy=Remedy.FREE_SLOT,
    )


def source_of(rule: str) -> str | None:
    """Return the source of a refusal's rule: a rule of the guide, or Meta's page and its date; None: our own."""
    return _SOURCES.get(rule)


def _first_block(case: Case) -> tuple[Rule, Block] | None:
    for rule in _RULES_ON[type(case.request)]:
        block = rule.check(case)
        if block is not None:
            return rule, block
    return None


def _settle(case: Case, block: Block) -> tuple[datetime | None, Remedy | None]:
    """Return the first instant of a yes, or the remedy of the rule that waiting does not satisfy.

    Raises:
        AssertionError: a rule's block ends at an instant that is not in the future; asking it again would never end.
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
