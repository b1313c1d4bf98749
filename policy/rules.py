"""The rules: each looks at one case and returns None, or why it blocks and until when.

`gate.py` asks them in the order of RULES and works out when all of them agree. It relies on two properties: a rule
blocks without a gap up to the instant that it returns, and that instant is always in the future.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from policy.contact import ContactState, calls_counted, limited_until, requests_counted, window_opened_at
from policy.decision import Warning, WarningCode
from policy.facts import Action, Direction, RequestForm
from policy.hours import next_open
from policy.number import CallingStatus, NumberState, RestrictionType
from policy.pack import Pack
from policy.permission import Permission, PermissionStatus
from policy.reasons import Reason, Remedy
from policy.request import AskPermission, PlaceCall, ReceiveCall, Request
from policy.windows import DAY, WEEK, count_in, fewer_than, is_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything a rule may look at, at one instant."""

    pack: Pack
    number: NumberState
    contact: ContactState
    request: Request
    permission: Permission
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One rule's no. `until` is the first instant at which this rule no longer blocks; None: time does not help."""

    reason: Reason
    remedy: Remedy | None  #: None: permission, by the means that `how_to_ask` finds
    observed: int | None = None
    limit: int | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the gate's table."""

    name: str
    source: str  #: a rule of the guide, or Meta's page and when it was read
    on: tuple[type[Request], ...]
    check: Callable[[Case], Block | None]


def choose_form(pack: Pack, contact: ContactState, *, now: datetime) -> RequestForm:
    """Return the form of a request (guide R3): free-form inside the customer service window, otherwise a template."""
    return RequestForm.FREE_FORM if window_open_until(pack, contact, now=now) else RequestForm.TEMPLATE


def window_open_until(pack: Pack, contact: ContactState, *, now: datetime) -> datetime | None:
    """Return when the open customer service window closes; None: it is closed."""
    opened = window_opened_at(contact)
    if opened is None or not is_within(opened, window=pack.service_window, now=now):
        return None
    return opened + pack.service_window


def how_to_ask(case: Case) -> Remedy:
    """Return what can be done now about a permission that is missing, or will be."""
    if case.permission.pending:
        return Remedy.WAIT_FOR_REPLY
    asking = replace(case, request=AskPermission())
    if any(rule.check(asking) for rule in _ASKING_RULES):
        return Remedy.ASK_LATER
    free_form = choose_form(case.pack, case.contact, now=case.now) is RequestForm.FREE_FORM
    return Remedy.ASK_FREE_FORM if free_form else Remedy.ASK_TEMPLATE


# The gateway itself


def _draining(case: Case) -> Block | None:
    if not case.request.draining:
        return None
    return Block(reason=Reason.DRAINING, remedy=Remedy.TRY_AGAIN_SOON)


def _store(case: Case) -> Block | None:
    if isinstance(case.request, ReceiveCall) or case.request.store_up:
        return None
    return Block(reason=Reason.STORE_DOWN, remedy=Remedy.TRY_AGAIN_SOON)


def _token(case: Case) -> Block | None:
    until = None if isinstance(case.request, ReceiveCall) else case.request.token_refused_until
    if until is None or until <= case.now:
        return None
    return Block(reason=Reason.TOKEN_REFUSED, remedy=Remedy.FIX_TOKEN, until=until)


def _meta(case: Case) -> Block | None:
    until = None if isinstance(case.request, ReceiveCall) else case.request.meta_away_until
    if until is None or until <= case.now:
        return None
    return Block(reason=Reason.META_AWAY, remedy=Remedy.WAIT, until=until)


# The business number


def _coexistence(case: Case) -> Block | None:
    if not case.number.coexistence:
        return None
    return Block(reason=Reason.COEXISTENCE, remedy=Remedy.USE_ANOTHER_NUMBER)


def _sip(case: Case) -> Block | None:
    if not case.number.sip_enabled:
        return None
    return Block(reason=Reason.SIP_MODE, remedy=Remedy.FIX_SETTINGS)


def _calling(case: Case) -> Block | None:
    if case.number.calling in (CallingStatus.ENABLED, CallingStatus.UNKNOWN):
        return None
    return Block(reason=Reason.CALLING_OFF, remedy=Remedy.FIX_SETTINGS)


def _eligibility(case: Case) -> Block | None:
    known, least = case.number.messaging_limit, case.pack.messaging_limit_min
    if not case.number.eligibility_refused and (known is None or known >= least):
        return None
    return Block(reason=Reason.NOT_ELIGIBLE, remedy=Remedy.RAISE_MESSAGING_LIMIT, observed=known, limit=least)


def _country(case: Case) -> Block | None:
    if not case.number.country_refused and case.number.country not in case.pack.excluded_countries:
        return None
    return Block(reason=Reason.COUNTRY_EXCLUDED, remedy=Remedy.USE_ANOTHER_NUMBER)


def _payment(case: Case) -> Block | None:
    if case.number.payment_ok:
        return None
    return Block(reason=Reason.NO_PAYMENT, remedy=Remedy.FIX_PAYMENT)


def _restriction(case: Case) -> Block | None:
    kind = RestrictionType.BUSINESS_INITIATED
    if isinstance(case.request, ReceiveCall):
        kind = RestrictionType.USER_INITIATED
    ends = [
        restriction.expires_at
        for restriction in case.number.restrictions
        if restriction.type is kind and (restriction.expires_at is None or restriction.expires_at > case.now)
    ]
    if not ends:
        return None
    if None in ends:
        return Block(reason=Reason.NUMBER_RESTRICTED, remedy=Remedy.CONTACT_SUPPORT)
    until = max(end for end in ends if end is not None)
    return Block(reason=Reason.NUMBER_RESTRICTED, remedy=Remedy.WAIT, until=until)


def _hours(case: Case) -> Block | None:
    direction = Direction.BUSINESS_INITIATED
    if isinstance(case.request, ReceiveCall):
        direction = Direction.USER_INITIATED
    hours = case.number.hours
    if hours is None or direction not in case.number.hours_enforced:
        return None
    opens = next_open(hours, now=case.now)
    if opens == case.now:
        return None
    remedy = Remedy.WAIT if opens else Remedy.FIX_SETTINGS
    return Block(reason=Reason.OUTSIDE_HOURS, remedy=remedy, until=opens)


def _calls_of_number(case: Case) -> Block | None:
    request, limit = case.request, case.pack.calls_per_24h
    if not isinstance(request, PlaceCall) or request.placed_today < limit:
        return None
    until = request.placed_frees_at
    if until is not None and until <= case.now:
        return None
    return Block(
        reason=Reason.NUMBER_RATE,
        remedy=Remedy.WAIT if until else Remedy.TRY_AGAIN_SOON,
        observed=request.placed_today,
        limit=limit,
        until=until,
    )


# The contact: calls


def _permission(case: Case) -> Block | None:
    permission = case.permission
    if permission.live:
        return None
    reason, observed, limit = Reason.NO_PERMISSION, None, None
    if permission.status is PermissionStatus.REVOKED:
        reason = Reason.PERMISSION_REVOKED
        if permission.streak >= case.pack.streak_revoke:
            observed, limit = permission.streak, case.pack.streak_revoke
    elif permission.status is PermissionStatus.EXPIRED and permission.granted_at and permission.expires_at:
        reason = Reason.PERMISSION_EXPIRED
        observed = _seconds(case.now - permission.granted_at)
        limit = _seconds(permission.expires_at - permission.granted_at)
    return Block(reason=reason, remedy=None, observed=observed, limit=limit)


def _connected(case: Case) -> Block | None:
    limit, in_flight = case.pack.connected_per_24h, _in_flight(case)
    counted = calls_counted(case.contact)
    observed = count_in(counted, window=DAY, now=case.now) + in_flight
    if observed < limit:
        return None
    until = fewer_than(counted, limit=limit - in_flight, window=DAY)
    remedy = Remedy.WAIT if until else Remedy.WAIT_FOR_CALL_END
    return Block(reason=Reason.CONNECTED_LIMIT, remedy=remedy, observed=observed, limit=limit, until=until)


def _connected_by_meta(case: Case) -> Block | None:
    return _limited_by_meta(case, Action.START_CALL, Reason.CONNECTED_LIMIT)


def _user_busy(case: Case) -> Block | None:
    if not isinstance(case.request, PlaceCall) or not case.request.user_busy:
        return None
    return Block(reason=Reason.USER_BUSY, remedy=Remedy.WAIT_FOR_CALL_END)


# The contact: permission requests


def _exists(case: Case) -> Block | None:
    if case.permission.status is not PermissionStatus.PERMANENT:
        return None
    return Block(reason=Reason.PERMISSION_EXISTS, remedy=Remedy.CALL_NOW)


def _after_decline(case: Case) -> Block | None:
    declined, wait = case.contact.declined, case.pack.after_decline
    if declined is None or not is_within(declined.at, window=wait, now=case.now):
        return None
    return Block(
        reason=Reason.AFTER_DECLINE,
        remedy=Remedy.WAIT,
        observed=max(_seconds(case.now - declined.at), 0),
        limit=_seconds(wait),
        until=declined.at + wait,
    )


def _requests_per_24h(case: Case) -> Block | None:
    return _requests(case, limit=case.pack.requests_per_24h, window=DAY)


def _requests_per_7d(case: Case) -> Block | None:
    return _requests(case, limit=case.pack.requests_per_7d, window=WEEK)


def _requests(case: Case, *, limit: int, window: timedelta) -> Block | None:
    in_flight = _in_flight(case)
    counted = requests_counted(case.contact, window=window)
    observed = count_in(counted, window=window, now=case.now) + in_flight
    if observed < limit:
        return None
    until = fewer_than(counted, limit=limit - in_flight, window=window)
    remedy = Remedy.WAIT if until else Remedy.WAIT_FOR_REPLY
    return Block(reason=Reason.REQUEST_LIMIT, remedy=remedy, observed=observed, limit=limit, until=until)


def _requests_by_meta(case: Case) -> Block | None:
    return _limited_by_meta(case, Action.SEND_REQUEST, Reason.REQUEST_LIMIT)


def _window(case: Case) -> Block | None:
    request = case.request
    if not isinstance(request, AskPermission) or request.form is not RequestForm.FREE_FORM:
        return None
    if window_open_until(case.pack, case.contact, now=case.now):
        return None
    opened = window_opened_at(case.contact)
    return Block(
        reason=Reason.WINDOW_CLOSED,
        remedy=Remedy.ASK_TEMPLATE,
        observed=_seconds(case.now - opened) if opened else None,
        limit=case.pack.service_window_s,
    )


def _limited_by_meta(case: Case, action: Action, reason: Reason) -> Block | None:
    until = limited_until(case.contact, action)
    if until is None or until <= case.now:
        return None
    return Block(reason=reason, remedy=Remedy.WAIT, until=until)


def _in_flight(case: Case) -> int:
    return 0 if isinstance(case.request, ReceiveCall) else case.request.in_flight


def _seconds(span: timedelta) -> int:
    return span // timedelta(seconds=1)


_CALLING_PAGES: Final = 'Meta, "Configure call settings", read 2026-11-22'
_TROUBLESHOOTING: Final = 'Meta, "Calling API troubleshooting", read 2026-11-22'
#: Source of the rules that are this gateway's own.
OURS: Final = "ours"
_OUT: Final = (PlaceCall, AskPermission)
_CALLS: Final = (PlaceCall, ReceiveCall)
_ALL: Final = (PlaceCall, ReceiveCall, AskPermission)
_PLACE: Final = (PlaceCall,)
_ASK: Final = (AskPermission,)

#: First the rules that exclude everything, then those about the contact's decisions, then those that waiting satisfies.
RULES: Final[tuple[Rule, ...]] = (
    Rule(name="gateway/draining", source=OURS, on=_ALL, check=_draining),
    Rule(name="gateway/store", source=OURS, on=_OUT, check=_store),
    Rule(name="gateway/token", source=OURS, on=_OUT, check=_token),
    Rule(name="gateway/meta", source=OURS, on=_OUT, check=_meta),
    Rule(name="number/coexistence", source="guide R15", on=_ALL, check=_coexistence),
    Rule(name="number/sip_mode", source=_TROUBLESHOOTING, on=_ALL, check=_sip),
    Rule(name="number/calling_status", source=_CALLING_PAGES, on=_ALL, check=_calling),
    Rule(name="number/messaging_limit", source="guide R1", on=_OUT, check=_eligibility),
    Rule(name="number/country", source="guide R12", on=_OUT, check=_country),
    Rule(name="number/payment", source=_TROUBLESHOOTING, on=_OUT, check=_payment),
    Rule(name="number/restriction", source=_CALLING_PAGES, on=_ALL, check=_restriction),
    Rule(name="number/hours", source=_CALLING_PAGES, on=_CALLS, check=_hours),
    Rule(name="number/calls_per_24h", source=_TROUBLESHOOTING, on=_PLACE, check=_calls_of_number),
    Rule(name="contact/permission", source="guide R2, R6, R10, R11", on=_PLACE, check=_permission),
    Rule(name="contact/connected_per_24h", source="guide R8", on=_PLACE, check=_connected),
    Rule(name="contact/connected_by_meta", source=_TROUBLESHOOTING, on=_PLACE, check=_connected_by_meta),
    Rule(name="contact/busy", source=_TROUBLESHOOTING, on=_PLACE, check=_user_busy),
    Rule(name="request/permission_exists", source=_TROUBLESHOOTING, on=_ASK, check=_exists),
    Rule(name="request/after_decline", source="guide R7", on=_ASK, check=_after_decline),
    Rule(name="request/per_24h", source="guide R4, R5", on=_ASK, check=_requests_per_24h),
    Rule(name="request/per_7d", source="guide R4, R5", on=_ASK, check=_requests_per_7d),
    Rule(name="request/by_meta", source=_TROUBLESHOOTING, on=_ASK, check=_requests_by_meta),
    Rule(name="request/window", source="guide R3", on=_ASK, check=_window),
)
_ASKING_RULES: Final = tuple(rule for rule in RULES if rule.name.startswith("request/"))


def _warn_calling(case: Case) -> Warning | None:
    unknown = case.number.calling is CallingStatus.UNKNOWN
    return Warning(code=WarningCode.CALLING_UNKNOWN) if unknown else None


def _warn_eligibility(case: Case) -> Warning | None:
    limit = case.pack.messaging_limit_min
    if isinstance(case.request, ReceiveCall) or not limit or case.number.messaging_limit is not None:
        return None
    return Warning(code=WarningCode.ELIGIBILITY_UNKNOWN, limit=limit)


def _warn_country(case: Case) -> Warning | None:
    if isinstance(case.request, ReceiveCall) or case.number.country is not None:
        return None
    return Warning(code=WarningCode.COUNTRY_UNKNOWN)


def _warn_streak(case: Case) -> Warning | None:
    if not isinstance(case.request, PlaceCall) or not case.permission.notice_sent:
        return None
    return Warning(
        code=WarningCode.STREAK_NOTICE_SENT,
        observed=case.permission.streak,
        limit=case.pack.streak_revoke,
    )


def _warn_live(case: Case) -> Warning | None:
    if not isinstance(case.request, AskPermission) or not case.permission.live:
        return None
    return Warning(code=WarningCode.PERMISSION_LIVE)


#: Warnings that accompany a yes.
WARNINGS: Final[tuple[Callable[[Case], Warning | None], ...]] = (
    _warn_calling,
    _warn_eligibility,
    _warn_country,
    _warn_streak,
    _warn_live,
)
