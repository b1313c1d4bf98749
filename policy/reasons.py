"""Every reason for a refusal, every remedy, and Meta's error code for the same thing.

Values are stored and shown to clients, so they are never renamed. Texts for people are made elsewhere.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Reason(StrEnum):
    """Why a request is refused; clients branch on it."""

    # The contact
    NO_PERMISSION = "no_permission"
    PERMISSION_EXPIRED = "permission_expired"
    PERMISSION_REVOKED = "permission_revoked"
    PERMISSION_EXISTS = "permission_exists"
    CONNECTED_LIMIT = "connected_limit"
    REQUEST_LIMIT = "request_limit"
    AFTER_DECLINE = "after_decline"
    WINDOW_CLOSED = "window_closed"
    USER_BUSY = "user_busy"
    INVALID_USER = "invalid_user"
    # The business number
    UNKNOWN_NUMBER = "unknown_number"
    NOT_ELIGIBLE = "not_eligible"
    COEXISTENCE = "coexistence"
    SIP_MODE = "sip_mode"
    CALLING_OFF = "calling_off"
    COUNTRY_EXCLUDED = "country_excluded"
    NUMBER_RESTRICTED = "number_restricted"
    NUMBER_RATE = "number_rate"
    NUMBER_BUSY = "number_busy"
    NO_PAYMENT = "no_payment"
    OUTSIDE_HOURS = "outside_hours"
    # This gateway
    DRAINING = "draining"
    STORE_DOWN = "store_down"
    #: Here `retry_at` is no promise; it is an instant from which asking again is fair.
    OVERLOADED = "overloaded"
    META_AWAY = "meta_away"
    TOKEN_REFUSED = "token_refused"


class Remedy(StrEnum):
    """What changes the answer."""

    ASK_FREE_FORM = "ask_free_form"
    ASK_TEMPLATE = "ask_template"
    #: The contact has a pending request of ours.
    WAIT_FOR_REPLY = "wait_for_reply"
    #: Permission is missing and may not be requested yet: the decision about asking says when.
    ASK_LATER = "ask_later"
    #: `retry_at` says until when.
    WAIT = "wait"
    WAIT_FOR_CALL_END = "wait_for_call_end"
    FREE_SLOT = "free_slot"
    #: The contact can be called, so no request is needed.
    CALL_NOW = "call_now"
    RAISE_MESSAGING_LIMIT = "raise_messaging_limit"
    USE_ANOTHER_NUMBER = "use_another_number"
    FIX_SETTINGS = "fix_settings"
    FIX_PAYMENT = "fix_payment"
    FIX_TOKEN = "fix_token"
    FIX_INPUT = "fix_input"
    CONTACT_SUPPORT = "contact_support"
    #: This gateway will recover soon; the instant is not known.
    TRY_AGAIN_SOON = "try_again_soon"


#: Meta's error for the same reason. Reasons that are not listed are this gateway's own.
# Source: Meta, "Calling API troubleshooting" (138xxx) and "Error codes" (131xxx), read 2026-11-22.
META_CODE: Final[Mapping[Reason, int]] = MappingProxyType(
    {
        Reason.NO_PERMISSION: 138006,
        Reason.PERMISSION_EXPIRED: 138006,
        Reason.PERMISSION_REVOKED: 138006,
        Reason.PERMISSION_EXISTS: 138017,
        Reason.CONNECTED_LIMIT: 138012,
        Reason.REQUEST_LIMIT: 138009,
        Reason.WINDOW_CLOSED: 131047,
        Reason.USER_BUSY: 138003,
        Reason.NOT_ELIGIBLE: 138015,
        Reason.SIP_MODE: 131055,
        Reason.CALLING_OFF: 138000,
        Reason.COUNTRY_EXCLUDED: 138013,
        Reason.NUMBER_RESTRICTED: 138014,
        Reason.NUMBER_RATE: 138005,
        Reason.NUMBER_BUSY: 138002,
        Reason.NO_PAYMENT: 131044,
    }
)
