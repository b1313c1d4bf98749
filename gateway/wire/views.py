"""Convert records and decisions to the views of `messages`. [P]"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec

from gateway.callflow.call import CallState
from gateway.common.ids import UserRef
from gateway.store.records import CallRecord, DecisionRecord, Json
from gateway.wire.messages import (
    CallView,
    ContactView,
    CounterView,
    DecidedView,
    DecisionView,
    OutcomeView,
    PermissionRequestView,
    RefusalView,
    UserView,
)
from policy.decision import Allow, Decision, Refusal
from policy.facts import RequestForm
from policy.gate import source_of
from policy.overview import Counter, Overview, RequestView
from policy.reasons import Reason

_REASONS: Final = frozenset(Reason)
#: The state as shown to operators; any other one is shown as "connecting".
_SHOWN: Final = {
    CallState.ACTIVE.value: "active",
    "held": "held",
    CallState.RINGING.value: "ringing",
    CallState.ENDING.value: "ending",
    CallState.CANCELLING.value: "ending",
    CallState.ENDED.value: "ended",
}

#: One sentence for each refusal, for logs and REST clients. The page has its own, translated texts.
TITLES: Final[dict[Reason, str]] = {
    Reason.NO_PERMISSION: "The contact has not given permission to be called.",
    Reason.PERMISSION_EXPIRED: "The contact's permission has expired.",
    Reason.PERMISSION_REVOKED: "The contact's permission was revoked.",
    Reason.CONNECTED_LIMIT: "The limit of connected calls to this contact is reached.",
    Reason.REQUEST_LIMIT: "The limit of permission requests to this contact is reached.",
    Reason.NUMBER_RATE: "The number has reached Meta's limit of calls placed in 24 hours.",
    Reason.NUMBER_BUSY: "The number has reached its limit of concurrent calls.",
    Reason.USER_BUSY: "There is already a call with this contact.",
    Reason.NUMBER_RESTRICTED: "Meta has restricted calling on this number.",
    Reason.COUNTRY_EXCLUDED: "Numbers of this country cannot place calls.",
    Reason.CALLING_OFF: "Calling is switched off on this number.",
    Reason.NO_PAYMENT: "Meta has no valid payment method for this number.",
    Reason.OUTSIDE_HOURS: "The number is outside its calling hours.",
    Reason.DRAINING: "The gateway is shutting down and takes no new calls.",
    Reason.OVERLOADED: "The gateway is overloaded: try again in a moment.",
    Reason.STORE_DOWN: "The database does not answer, so the gateway cannot count calls and places none.",
    Reason.META_AWAY: "Meta has not answered the last requests; the gateway retries soon.",
    Reason.TOKEN_REFUSED: "Meta refuses the number's access token.",
    Reason.NOT_ELIGIBLE: "The number's messaging limit is too low for calling.",
    Reason.COEXISTENCE: "A number connected through Coexistence cannot make or take calls.",
    Reason.SIP_MODE: "The number is in SIP mode; calls through the Graph API are refused.",
    Reason.WINDOW_CLOSED: "The customer service window is closed: only a template may be sent.",
    Reason.AFTER_DECLINE: "The contact declined the last request; wait before asking again.",
    Reason.PERMISSION_EXISTS: "The contact has already given permission.",
    Reason.UNKNOWN_NUMBER: "This gateway does not serve that number.",
    Reason.INVALID_USER: "This is neither a phone number nor a business-scoped user id.",
}


def user_view(user: UserRef, name: str | None) -> UserView:
    return UserView(number="+" + user.wa_id if user.wa_id else None, user_id=user.user_id, name=name)


def call_view(record: CallRecord, *, worker: int | None = None) -> CallView:
    return CallView(
        call_id=record.call_id,
        number_id=record.phone_number_id,
        direction=record.direction.value,
        state=_SHOWN.get(record.state, "connecting"),
        user=user_view(record.user, record.user_name),
        operator=record.operator,
        worker=worker,
        created_at=record.created_at,
        accepted_at=record.accepted_at,
        ended_at=record.ended_at,
        duration_s=record.duration_s,
        outcome=OutcomeView(result=record.result.value, reason=record.reason.value, detail=record.detail)
        if record.result is not None and record.reason is not None
        else None,
    )


def refusal_view(refusal: Refusal) -> RefusalView:
    return RefusalView(
        reason=refusal.reason.value,
        rule=refusal.rule,
        observed=refusal.observed,
        limit=refusal.limit,
        retry_at=refusal.retry_at,
        remedy=refusal.remedy.value if refusal.remedy else None,
        title=TITLES[refusal.reason],
        source=source_of(refusal.rule),
    )


def decided_view(record: DecisionRecord) -> DecidedView:
    """Show a stored decision: with its stored figures, but with the current title."""
    return DecidedView(
        decision_id=record.decision_id,
        phone_number_id=record.phone_number_id,
        user_key=record.user_key,
        asked_by=record.asked_by,
        request=record.request,
        at=record.at,
        allowed=record.allowed,
        pack=record.pack,
        refusal=_stored_refusal_view(record.refusal) if record.refusal is not None else None,
    )


def _stored_refusal_view(stored: Json) -> RefusalView:
    """Show what `refusal_json` stored; a reason that this version does not know is its own title."""
    reason = str(stored["reason"])
    title = TITLES[Reason(reason)] if reason in _REASONS else reason
    return msgspec.convert({**stored, "title": title, "source": source_of(str(stored["rule"]))}, RefusalView)


def decision_view(overview: Overview) -> DecisionView:
    """Show whether a contact may be called, and whether a permission request may be sent."""
    place = overview.place
    ask = overview.ask_free_form if overview.form is RequestForm.FREE_FORM else overview.ask_template
    return DecisionView(
        allowed=isinstance(place, Allow),
        refusal=refusal_view(place) if isinstance(place, Refusal) else None,
        warnings=[warning.code.value for warning in place.warnings] if isinstance(place, Allow) else [],
        permission_expires_at=place.permission_expires_at if isinstance(place, Allow) else None,
        ask_form=overview.form.value,
        ask=refusal_view(ask) if isinstance(ask, Refusal) else None,
        asked_at=overview.asked_at,
        declined_at=overview.declined_at,
        streak=overview.permission.streak,
        streak_limit=overview.streak_limit,
    )


def refused_view(refusal: Refusal) -> DecisionView:
    """Show a refusal of both calls and permission requests: unknown number or invalid user."""
    return DecisionView(
        allowed=False,
        refusal=refusal_view(refusal),
        warnings=[],
        permission_expires_at=None,
        ask_form=None,
        ask=refusal_view(refusal),
        asked_at=None,
        declined_at=None,
        streak=0,
        streak_limit=None,
    )


def contact_view(
    user: UserRef, name: str | None, overview: Overview, requests: Iterable[RequestView] = ()
) -> ContactView:
    """Show everything that the gate knows about a contact now."""
    return ContactView(
        user=user_view(user, name),
        decision=decision_view(overview),
        permission=overview.permission.status.value,
        window_open_until=overview.window_open_until,
        connected_24h=_counter_view(overview.connected_24h),
        requests_24h=_counter_view(overview.requests_24h),
        requests_7d=_counter_view(overview.requests_7d),
        ask_free_form=refusal_view(overview.ask_free_form) if isinstance(overview.ask_free_form, Refusal) else None,
        ask_template=refusal_view(overview.ask_template) if isinstance(overview.ask_template, Refusal) else None,
        checked_at=overview.at,
        next_call_at=_next_yes(overview.place, overview.at),
        next_free_form_at=_next_yes(overview.ask_free_form, overview.at),
        next_template_at=_next_yes(overview.ask_template, overview.at),
        requests=[_request_view(request) for request in requests],
    )


def _next_yes(decision: Decision, now: datetime) -> datetime | None:
    return decision.retry_at if isinstance(decision, Refusal) else now


def _request_view(view: RequestView) -> PermissionRequestView:
    return PermissionRequestView(
        message_id=view.request.request_id,
        form=view.request.form.value,
        asked_at=view.request.at,
        outcome=view.outcome.value,
        answered_at=view.answered_at,
    )


def _counter_view(counter: Counter) -> CounterView:
    return CounterView(used=counter.used, limit=counter.limit, next_frees_at=counter.next_frees_at)


def refusal_json(refusal: Refusal) -> Json:
    """Return a refusal in the form that is stored with its decision."""
    return {
        "reason": refusal.reason.value,
        "rule": refusal.rule,
        "observed": refusal.observed,
        "limit": refusal.limit,
        "retry_at": refusal.retry_at.isoformat() if refusal.retry_at else None,
        "remedy": refusal.remedy.value if refusal.remedy else None,
    }
