"""Convert a business number to the views of `wire.messages`. [P]"""

from dataclasses import replace
from datetime import datetime

from gateway.numbers.facts import live_restrictions, live_warnings
from gateway.numbers.number import Number
from gateway.numbers.slots import Slots
from gateway.wire import messages as msg
from gateway.wire import views
from policy.contact import EMPTY, apply
from policy.decision import Refusal
from policy.facts import PermissionGranted
from policy.gate import evaluate
from policy.hours import is_open, next_open
from policy.request import PlaceCall, ReceiveCall


def number_view(number: Number, *, now: datetime, status: msg.NumberStatusView | None = None) -> msg.NumberView:
    """Show everything about a number; pass `status` if it was computed before."""
    return msg.NumberView(
        number_id=number.id,
        number=number.phone_number,
        name=number.name,
        pack=number.pack_label,
        incoming=slots_view(number.incoming),
        outgoing=slots_view(number.outgoing),
        placed_24h=msg.CounterView(
            used=number.placed.count(now=now),
            limit=number.placed.limit,
            next_frees_at=number.placed.next_frees_at(now=now),
        ),
        status=status or status_view(number, now=now),
    )


def status_view(number: Number, *, now: datetime) -> msg.NumberStatusView:
    """Show what changes rarely. Slots and counts are not part of it: they change with every call."""
    state = number.state
    return msg.NumberStatusView(
        country=state.country,
        calling=state.calling.value,
        coexistence=state.coexistence,
        sip=state.sip_enabled,
        payment_ok=state.payment_ok,
        messaging_limit=state.messaging_limit,
        restrictions=[
            msg.RestrictionView(type=restriction.type.value, until=restriction.expires_at)
            for restriction in live_restrictions(state, now=now)
        ],
        warnings=[
            msg.NumberWarningView(violation=warned.violation, at=warned.at, remediation=warned.remediation)
            for warned in live_warnings(number.facts, now=now)
        ],
        hours=_hours_view(number, now=now),
        place=_refusal(number, PlaceCall(), now=now),
        receive=_refusal(number, ReceiveCall(), now=now),
        read_at=number.facts.read_at,
    )


def _hours_view(number: Number, *, now: datetime) -> msg.CallHoursView | None:
    hours = number.state.hours
    if hours is None:
        return None
    opened = is_open(hours, now=now)
    return msg.CallHoursView(
        timezone=hours.timezone,
        open=opened,
        opens_at=None if opened else next_open(hours, now=now),
        enforced=sorted(direction.value for direction in number.state.hours_enforced),
    )


def _refusal(number: Number, request: PlaceCall | ReceiveCall, *, now: datetime) -> msg.RefusalView | None:
    """Ask the gate about a contact with a permanent permission: only the number's own rules can then refuse."""
    pack = replace(number.pack, permanent_permissions=True)
    willing = apply(EMPTY, PermissionGranted(at=now, key="willing", permanent=True))
    decision = evaluate(pack, number.state, willing, request, now=now)
    return views.refusal_view(decision) if isinstance(decision, Refusal) else None


def slots_view(slots: Slots) -> msg.SlotsView:
    """Show how many slots of one direction are in use."""
    return msg.SlotsView(used=slots.in_use, limit=slots.limit)
