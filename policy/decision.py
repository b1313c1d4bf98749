"""The gate's answers: yes, with warnings, or no, with everything that explains it.

Values only. The rules behind them are in `rules.py`, the decision in `gate.py`, the texts in the page and the API.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from policy.reasons import Reason, Remedy


class WarningCode(StrEnum):
    """What an operator should know before doing what is allowed."""

    #: Meta has not reported the number's messaging limit (guide R1).
    ELIGIBILITY_UNKNOWN = "eligibility_unknown"
    #: The business number's country is unknown (guide R12); Meta will decide.
    COUNTRY_UNKNOWN = "country_unknown"
    #: The number's calling settings have not been read yet.
    CALLING_UNKNOWN = "calling_unknown"
    #: Meta has asked the contact to reconsider after unanswered calls (guide R9).
    STREAK_NOTICE_SENT = "streak_notice_sent"
    #: Permission is requested from a contact who can be called already.
    PERMISSION_LIVE = "permission_live"


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning:
    """One warning; the figures are in the unit of its rule."""

    code: WarningCode
    observed: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """Yes, at the instant of the question."""

    warnings: tuple[Warning, ...] = ()
    #: When the permission behind this answer ends; None: never, or none is needed.
    permission_expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """No: a request that we refuse, and why."""

    reason: Reason
    rule: str  #: name in `gate.RULES`, such as "contact/connected_per_24h"
    observed: int | None = None  #: what was counted, in the rule's unit (calls, requests, seconds)
    limit: int | None = None
    retry_at: datetime | None = None  #: first instant of a yes; None: waiting does not help
    remedy: Remedy | None = None


Decision = Allow | Refusal
