"""Identifiers, each with a type of its own, so that ours and Meta's are never mixed up. [P]"""

from dataclasses import dataclass
from typing import NewType

CallId = NewType("CallId", str)  #: ours, 32 hex digits
MetaCallId = NewType("MetaCallId", str)  #: Meta's, `wacid.…`, opaque
PhoneNumberId = NewType("PhoneNumberId", str)  #: Meta's id of a business number, digits
OperatorId = NewType("OperatorId", str)  #: the login name of a person at a softphone


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRef:
    """A WhatsApp user, named by number, by business-scoped user id (BSUID), or by both.

    `wa_id` is the number as E.164 digits without "+"; `user_id` is Meta's BSUID, such as `BR.13491208655302741918`. The
    number may be missing for a user with a username (Source: Meta, user-initiated calls, read 2026-11-22).
    """

    wa_id: str | None = None
    user_id: str | None = None

    def __post_init__(self) -> None:
        if self.wa_id is None and self.user_id is None:
            raise ValueError("a user needs a number or a BSUID")

    @property
    def key(self) -> str:
        """The BSUID if known, because it survives a change of number; else the number."""
        return self.user_id or self.wa_id or ""
