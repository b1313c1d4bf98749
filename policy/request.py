"""What the gate can be asked: may we place a call, take one, ask for permission?

A request carries what only the caller knows and no fact says: what is in flight at this moment, and how the gateway is.
"""

from dataclasses import dataclass
from datetime import datetime

from policy.facts import RequestForm


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceCall:
    """A business-initiated call."""

    #: Business-initiated calls to this contact under way that would count if they connected (reservations).
    in_flight: int = 0
    user_busy: bool = False  #: a call with this contact, in either direction, is going on
    placed_today: int = 0  #: calls that the number placed in the last 24 h, to anybody
    placed_frees_at: datetime | None = None  #: when the number's daily limit lets one more pass; None: not known
    store_up: bool = True
    draining: bool = False
    #: Meta does not answer, or refuses the access token: it is not asked again before this instant.
    meta_away_until: datetime | None = None
    token_refused_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveCall:
    """A user-initiated call. No permission, no count and no store is needed to take one."""

    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPermission:
    """A call permission request, free-form or template."""

    form: RequestForm | None = None  #: None: whichever is right at that instant
    in_flight: int = 0  #: requests to this contact sent and not yet recorded as facts
    store_up: bool = True
    draining: bool = False
    #: Meta does not answer, or refuses the access token: it is not asked again before this instant.
    meta_away_until: datetime | None = None
    token_refused_until: datetime | None = None


Request = PlaceCall | ReceiveCall | AskPermission
