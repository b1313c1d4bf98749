"""The questions for the gate: may we place a call, take one, or ask for permission?

A request carries what no fact says and only the caller knows: what is in flight, and the state of the gateway.
"""

from dataclasses import dataclass
from datetime import datetime

from policy.facts import RequestForm


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceCall:
    """A business-initiated call."""

    #: Business-initiated calls to this contact in progress that would count if they connect (reservations).
    in_flight: int = 0
    user_busy: bool = False  #: a call with this contact is in progress, in either direction
    placed_today: int = 0  #: calls placed by the number in the last 24 h, to all contacts together
    placed_frees_at: datetime | None = None  #: when the number's daily limit allows one more; None: unknown
    store_up: bool = True
    draining: bool = False
    #: Meta does not answer or refuses the access token, and is not asked again before this instant.
    meta_away_until: datetime | None = None
    token_refused_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveCall:
    """A user-initiated call. Taking one needs no permission, no count and no store."""

    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPermission:
    """A call permission request, free-form or template."""

    form: RequestForm | None = None  #: None: the right one at that instant
    in_flight: int = 0  #: requests to this contact that were sent and are not yet recorded as facts
    store_up: bool = True
    draining: bool = False
    #: Meta does not answer or refuses the access token, and is not asked again before this instant.
    meta_away_until: datetime | None = None
    token_refused_until: datetime | None = None


Request = PlaceCall | ReceiveCall | AskPermission
