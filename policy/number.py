"""The known state of a business number: from Meta's settings and webhooks, or configured by hand.

Values only; the gateway reads them, and `rules.py` says what they forbid.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from policy.facts import Direction
from policy.hours import CallHours


class CallingStatus(StrEnum):
    """Meta's `calling.status`. A number that was never configured reports NOT_SET, which means off."""

    ENABLED = "ENABLED"
    DISABLED = "DISABLED"
    NOT_SET = "NOT_SET"
    #: Not read yet. This is no reason to refuse: Meta decides.
    UNKNOWN = "UNKNOWN"


class RestrictionType(StrEnum):
    """What Meta restricts on a number with low quality or low pick-up rate; Meta's own values."""

    # Source: Meta, "Configure call settings", read 2026-11-22.
    BUSINESS_INITIATED = "RESTRICTED_BUSINESS_INITIATED_CALLING"
    USER_INITIATED = "RESTRICTED_USER_INITIATED_CALLING"
    #: Users see no call button, but incoming calls are still accepted.
    CALL_BUTTON_HIDDEN = "RESTRICTED_USER_INITIATED_CALLING_CALL_BUTTON_HIDDEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """One restriction; without an expiry it lasts until Meta lifts it."""

    type: RestrictionType
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberState:
    """A business number as the rules see it."""

    country: str | None = None  #: ISO 3166-1 alpha-2 by numbering plan (+1 876 is JM); None: unknown
    country_refused: bool = False  #: Meta answered 138013; Meta decides which countries are excluded
    eligibility_refused: bool = False  #: Meta answered 138015: the messaging limit is too low, whatever its value
    calling: CallingStatus = CallingStatus.UNKNOWN
    coexistence: bool = False  #: shared with the WhatsApp Business app
    sip_enabled: bool = False
    messaging_limit: int | None = None  #: business-initiated conversations per 24 h; None: not reported by Meta
    restrictions: tuple[Restriction, ...] = ()
    payment_ok: bool = True
    hours: CallHours | None = None
    #: Directions refused outside `hours`. Meta itself keeps users from calling then, so the default is empty.
    hours_enforced: frozenset[Direction] = frozenset()
