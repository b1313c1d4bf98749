"""The configuration of a simulated world: numbers, people, limits, timers. Values only, validated on creation.

The limits follow Meta's documentation (profile `meta`), a service provider's older guide (`guide`) or Meta's public
test numbers (`sandbox`). They are written here separately from the gateway's, on purpose.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from loadtest.common.clock import Clock, wall_clock
from loadtest.common.guard import check_host, check_url
from loadtest.simulator.sdp import Setup

DAY_S: Final = 86_400.0
_DIGITS = re.compile(r"[0-9]{6,15}")
_ID = re.compile(r"[0-9]{5,20}")


class Profile(StrEnum):
    """Which set of limits applies."""

    META = "meta"
    GUIDE = "guide"
    SANDBOX = "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits per business number and user, unless noted otherwise."""

    connected_per_24h: int = 100
    requests_per_24h: int = 1
    requests_per_7d: int = 2
    nudge_after: int = 2
    revoke_after: int = 4
    #: Whether a declined call counts as unanswered.
    declined_is_unanswered: bool = True
    #: Wait after the user declined a permission request; 0: no such rule.
    after_decline_s: float = 0.0
    temporary_ttl_s: float = 7 * DAY_S
    permanent_permission: bool = True
    request_ttl_s: float = 7 * DAY_S
    window_s: float = DAY_S
    #: Per business number.
    new_calls_per_24h: int = 10_000
    concurrent_in: int = 1_000
    concurrent_out: int = 1_000
    permission_reads_per_s: int = 100
    messaging_limit_minimum: int = 2_000
    #: Countries of *business* numbers that may not place calls.
    no_business_calls: frozenset[str] = frozenset({"US", "CA", "EG", "VN", "NG"})
    #: Whether recipients must be on an allow list (test numbers).
    allow_list_only: bool = False


LIMITS: Final[Mapping[Profile, Limits]] = {
    Profile.META: Limits(),
    Profile.GUIDE: Limits(
        connected_per_24h=5,
        after_decline_s=DAY_S,
        permanent_permission=False,
        declined_is_unanswered=False,
    ),
    Profile.SANDBOX: Limits(
        requests_per_24h=25,
        requests_per_7d=100,
        nudge_after=5,
        revoke_after=10,
        messaging_limit_minimum=0,
        allow_list_only=True,
    ),
}


class Behaviour(StrEnum):
    """How a person reacts to a call from the business."""

    MANUAL = "manual"
    AUTO_ACCEPT = "auto_accept"
    AUTO_DECLINE = "auto_decline"
    NO_ANSWER = "no_answer"
    #: The phone is off: RINGING never comes.
    OFFLINE = "offline"


class PermissionAnswer(StrEnum):
    """How a person reacts to a call permission request."""

    MANUAL = "manual"
    ACCEPT = "accept"
    ACCEPT_PERMANENT = "accept_permanent"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSpec:
    """A simulated WhatsApp user."""

    wa_id: str
    name: str
    tone_hz: int = 440
    #: Sends the tone for a second, then echoes what it receives.
    echo: bool = False
    behaviour: Behaviour = Behaviour.MANUAL
    permission_answer: PermissionAnswer = PermissionAnswer.MANUAL
    #: Delay of automatic reactions, in seconds.
    after_s: float = 1.0
    #: Hangs up after talking for this long; None: never by itself.
    talk_s: float | None = None
    #: Has a username: webhooks carry only the user id, no phone number.
    hides_number: bool = False
    callable: bool = True
    #: On the allow list of a test number.
    allow_listed: bool = True

    def __post_init__(self) -> None:
        if not _DIGITS.fullmatch(self.wa_id):
            raise ValueError(f"wa_id {self.wa_id!r} must be 6 to 15 digits")
        if not 1 <= len(self.name) <= 100:
            raise ValueError("a name must have 1 to 100 characters")
        if not 100 <= self.tone_hz <= 3400:
            raise ValueError("tone_hz must be from 100 to 3400")
        if not 0 <= self.after_s <= 3600 or (self.talk_s is not None and not 0 <= self.talk_s <= 86_400):
            raise ValueError("after_s must be from 0 to 3600, talk_s from 0 to 86400")

    @property
    def user_id(self) -> str:
        """The business-scoped user id; derived from the number, so that runs repeat."""
        return f"BR.{int(self.wa_id):020d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberSpec:
    """A business number."""

    phone_number_id: str = "200000000000002"
    #: Digits without `+`, as in real webhooks.
    display_phone_number: str = "551155550100"
    waba_id: str = "100000000000001"
    verified_name: str = "Loja Exemplo"
    #: ISO 3166 code of the business number.
    country: str = "BR"
    #: Unique recipients per 24 hours; None: unlimited.
    messaging_limit: int | None = 10_000
    on_business_app: bool = False
    payment_method: bool = True
    calling_enabled: bool = True
    callback_permission: bool = False

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.phone_number_id) or not _ID.fullmatch(self.waba_id):
            raise ValueError("phone_number_id and waba_id must be 5 to 20 digits")
        if not _DIGITS.fullmatch(self.display_phone_number):
            raise ValueError(f"phone number {self.display_phone_number!r} must be 6 to 15 digits")
        if not re.fullmatch("[A-Z]{2}", self.country):
            raise ValueError(f"country {self.country!r} is not an ISO code such as BR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """Delays in seconds."""

    user_initiated_ring_s: float = 45.0
    business_initiated_ring_s: float = 60.0
    #: From `connect` to the webhook with Meta's answer, and to RINGING.
    answer_after_s: float = 0.05
    ringing_after_s: float = 0.15
    #: From the answer to the user's first packet; by then the 200 to `accept` has been sent.
    speak_after_s: float = 0.03
    #: Time without media from the business before the call fails (138021): at the start, and later.
    no_media_at_start_s: float = 20.0
    no_media_later_s: float = 30.0
    media_check_every_s: float = 1.0
    echo_after_s: float = 1.0
    #: Delays between attempts to deliver a webhook without a 200; after the last it is abandoned.
    webhook_retry_s: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 5.0)
    webhook_timeout_s: float = 20.0
    verification_retry_s: float = 0.5
    #: Interval between two measurements of received audio; None: count packets only.
    listen_every_s: float | None = 0.25

    def __post_init__(self) -> None:
        waits = (getattr(self, name) for name in self.__slots__)
        flat = [wait for value in waits for wait in (value if isinstance(value, tuple) else (value,))]
        if any(wait is not None and not 0 <= wait <= 86_400 for wait in flat):
            raise ValueError("every timer must be from 0 to 86400 seconds")


def crowd(count: int, *, first: int = 5_511_910_000_000, **more: Any) -> tuple[UserSpec, ...]:
    """Return many users with consecutive numbers; `more` sets fields of `UserSpec` for all of them."""
    return tuple(UserSpec(wa_id=str(first + index), name=f"User {index}", **more) for index in range(count))


PEOPLE: Final = (
    UserSpec(wa_id="5511900000001", name="Ana", tone_hz=440),
    UserSpec(wa_id="5511900000002", name="Bruno", tone_hz=620, echo=True),
    UserSpec(wa_id="5511900000003", name="Carla", tone_hz=850, behaviour=Behaviour.AUTO_ACCEPT, after_s=2.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """One simulated world. Raises ValueError or NotLoopback if the configuration is invalid."""

    host: str = "127.0.0.1"
    port: int = 0
    media_host: str = "127.0.0.1"
    #: None: webhooks are recorded (see `MetaSim.webhooks.sent`) but not delivered.
    callback_url: str | None = None
    app_secret: str = field(default="simulated-app-secret", repr=False)
    verify_token: str = field(default="simulated-verify-token", repr=False)
    access_token: str = field(default="simulated-access-token", repr=False)
    numbers: tuple[NumberSpec, ...] = (NumberSpec(),)
    users: tuple[UserSpec, ...] = PEOPLE
    profile: Profile = Profile.META
    #: Replaces the profile's limits.
    limits: Limits | None = None
    timers: Timers = Timers()
    #: Templates that contain a call permission request, with their languages.
    templates: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"call_permission_request": ("pt_BR", "en_US", "en")}
    )
    #: a=setup of Meta's answer in business-initiated calls.
    answer_setup: Setup = Setup.ACTIVE
    #: No media: SDP of the right shape, but no media behind it; for loads of signalling.
    silent: bool = False
    #: End a call as FAILED when media arrives too early; by default it is only recorded.
    strict_media: bool = False
    allow_hosts: frozenset[str] = frozenset()
    #: Number of requests, webhooks and log lines kept.
    history: int = 2_000
    seed: int = 1
    clock: Clock = wall_clock

    def __post_init__(self) -> None:
        check_host(self.host, allowed=self.allow_hosts)
        check_host(self.media_host, allowed=self.allow_hosts)
        if self.callback_url is not None:
            check_url(self.callback_url, allowed=self.allow_hosts)
        if not (self.app_secret and self.verify_token and self.access_token):
            raise ValueError("app secret, verify token and access token must not be empty")
        if not self.numbers or len({number.phone_number_id for number in self.numbers}) != len(self.numbers):
            raise ValueError("at least one number is needed, all with different ids")
        if self.answer_setup is Setup.ACTPASS:
            raise ValueError("answer_setup must be active or passive")

    @property
    def effective_limits(self) -> Limits:
        """The limits in force."""
        return self.limits or LIMITS[self.profile]
