"""The simulated world's records: people, numbers, calls and violations, and their form as JSON.

It stores and finds; the rules of a call are in `calls.py`, those of a contact in `rules.py`.
"""

import asyncio
import base64
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loadtest.simulator.config import NumberSpec, SimConfig, Timers, UserSpec
from loadtest.simulator.errors import GraphError
from loadtest.simulator.payloads import CallFacts, Direction
from loadtest.simulator.rules import Contact
from loadtest.simulator.sdp import BusinessSdp
from loadtest.simulator.webrtc_user import UserMedia


class CallState(StrEnum):
    """The state of a call."""

    #: Business-initiated: requested, the phone is not ringing yet.
    DIALING = "dialing"
    RINGING = "ringing"
    #: User-initiated: the business has sent its SDP, but has not accepted.
    PRE_ACCEPTED = "pre_accepted"
    ACTIVE = "active"
    ENDED = "ended"


class EndReason(StrEnum):
    """Who or what ended a call."""

    USER_HUNG_UP = "user_hung_up"
    USER_DECLINED = "user_declined"
    BUSINESS_REJECTED = "business_rejected"
    BUSINESS_TERMINATED = "business_terminated"
    NO_ANSWER = "no_answer"
    FAILED = "failed"


class Happening(StrEnum):
    """Kinds of log lines; the page has a sentence for each in both languages."""

    CALLS_BUSINESS = "calls_business"
    CALLED = "called"
    CONNECTING = "connecting"
    RINGS = "rings"
    ANSWERED = "answered"
    PICKED_UP = "picked_up"
    MEDIA_FAILED = "media_failed"
    #: The details are an `EndReason`.
    ENDED = "ended"
    NUDGED = "nudged"
    AUTO_REVOKED = "auto_revoked"
    ASKED = "asked"
    GAVE_TEMPORARY = "gave_temporary"
    GAVE_PERMANENT = "gave_permanent"
    REFUSED = "refused"
    GRANTED = "granted"
    TOOK_BACK = "took_back"
    WROTE = "wrote"
    VIOLATION = "violation"


class ViolationKind(StrEnum):
    """Mistakes that a correct gateway never makes."""

    MEDIA_BEFORE_ACCEPT = "media_before_accept"
    SHARED_ADDRESS = "shared_address"
    RUNG_TWICE = "rung_twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One mistake of the gateway."""

    kind: ViolationKind
    call_id: str
    at: float
    details: str


@dataclass(slots=True, kw_only=True)
class Call:
    """One call, live or ended. Times are UNIX seconds."""

    facts: CallFacts
    state: CallState
    placed_at: float
    media: UserMedia
    #: The business's SDP of `pre_accept`, kept to compare with `accept`.
    sdp: str | None = None
    remote: BusinessSdp | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    end_reason: EndReason | None = None
    error_code: int | None = None
    ring_timer: asyncio.TimerHandle | None = None
    #: All running timers, including the ring timer.
    timers: set[asyncio.TimerHandle] = field(default_factory=set)

    @property
    def id(self) -> str:
        """The `wacid`."""
        return self.facts.id

    @property
    def live(self) -> bool:
        """Whether the call has not ended."""
        return self.state is not CallState.ENDED

    def described(self) -> dict[str, Any]:
        """Return the call for JSON; no SDP, no keys."""
        return {
            "id": self.id,
            "phone_number_id": self.facts.number.phone_number_id,
            "wa_id": self.facts.user.wa_id,
            "direction": self.facts.direction.value,
            "state": self.state.value,
            "placed_at": self.placed_at,
            "answered_at": self.answered_at,
            "ended_at": self.ended_at,
            "end_reason": self.end_reason,
            "error_code": self.error_code,
            "media": self.media.measured(),
        }


@dataclass(slots=True, kw_only=True)
class Number:
    """A business number and its settings."""

    spec: NumberSpec
    calling: dict[str, Any]
    #: Instants of accepted `connect` requests.
    new_calls: deque[float] = field(default_factory=deque)
    #: End of a restriction of business-initiated calling.
    restricted_until: float = 0.0

    @property
    def calling_on(self) -> bool:
        """Whether calling is enabled."""
        return bool(self.calling.get("status") == "ENABLED")

    @property
    def sip_on(self) -> bool:
        """Whether SIP replaces Graph signalling."""
        sip = self.calling.get("sip")
        return isinstance(sip, dict) and sip.get("status") == "ENABLED"

    @property
    def callback_permission(self) -> bool:
        """Whether a user's call grants a temporary permission."""
        return bool(self.calling.get("callback_permission_status") == "ENABLED")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRequest:
    """One Graph request and its response, without tokens and SDP."""

    at: float
    method: str
    path: str
    action: str
    status: int
    code: int | None
    call_id: str | None
    fault: str | None


class World:
    """All records of one simulation."""

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self.limits = config.effective_limits
        self.timers: Timers = config.timers
        self.clock = config.clock
        self.random = random.Random(config.seed)
        self.users: dict[str, UserSpec] = {user.wa_id: user for user in config.users}
        self.numbers = {spec.phone_number_id: _number(spec) for spec in config.numbers}
        self.contacts: dict[tuple[str, str], Contact] = {}
        #: Live calls, and the most recent ended ones.
        self.calls: dict[str, Call] = {}
        self._live: dict[str, Call] = {}
        #: Indexes of live calls, by user and by number and direction: under load there are thousands of calls.
        self._live_of: defaultdict[str, dict[str, Call]] = defaultdict(dict)
        self._counts: Counter[tuple[str, Direction]] = Counter()
        self._ended: deque[str] = deque()
        self.opaque: dict[tuple[str, str], str] = {}
        self.violations: list[Violation] = []
        self.requests: deque[GraphRequest] = deque(maxlen=config.history)
        self.log: deque[dict[str, Any]] = deque(maxlen=config.history)
        #: Refused Graph requests, by Meta's code.
        self.refused: Counter[int] = Counter()
        #: Called with (action, call id) for each request about a call, once it is read and before it is carried out;
        #: for `connect`, when the call has an id. For measuring when requests arrive.
        self.heard: Callable[[str, str], None] = lambda action, call_id: None
        self._ids = 0
        self._watchers: set[asyncio.Event] = set()
        #: Timers that are not tied to one call, e.g. an automatic answer to a permission request.
        self.timers_running: set[asyncio.TimerHandle] = set()

    # Waiting

    def changed(self) -> None:
        """Wake everyone who waits for a condition."""
        for watcher in self._watchers:
            watcher.set()

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
        """Wait until `condition()` is true; it is checked after every change, and at least every 50 ms.

        Raises: TimeoutError.
        """
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    watcher.clear()
                    try:
                        async with asyncio.timeout(0.05):
                            await watcher.wait()
                    except TimeoutError:
                        continue
        finally:
            self._watchers.discard(watcher)

    # Creating and finding

    def new_id(self, prefix: str) -> str:
        """Return a new `wacid.…` or `wamid.…`: opaque, base64-like, different every time and in every run."""
        self._ids += 1
        text = f"{prefix}{self._ids:08d}{self.random.getrandbits(64):016x}{int(self.clock()):x}"
        return f"{prefix}.{base64.b64encode(text.encode()).decode()}"

    def number(self, phone_number_id: str) -> Number:
        """Return a business number. Raises: GraphError."""
        number = self.numbers.get(phone_number_id)
        if number is None:
            details = f"Object with ID '{phone_number_id}' does not exist or cannot be loaded"
            raise GraphError(100, details, subcode=33)
        return number

    def user(self, wa_id: str) -> UserSpec:
        """Return a user. Raises: KeyError."""
        return self.users[wa_id]

    def find_user(self, *, to: str | None, recipient: str | None) -> UserSpec | None:
        """Return the user that the business names by number (which takes precedence) or by user id."""
        if to:
            return self.users.get(to.removeprefix("+"))
        # The id is made from the number (see `UserSpec.user_id`); a number with leading zeros must be searched for.
        digits = (recipient or "").removeprefix("BR.").lstrip("0")
        known = self.users.get(digits)
        if known is not None and known.user_id == recipient:
            return known
        return next((user for user in self.users.values() if user.user_id == recipient), None)

    def contact(self, number: Number, user: UserSpec) -> Contact:
        """Return the counters of this pair, created on first use."""
        key = (number.spec.phone_number_id, user.wa_id)
        if key not in self.contacts:
            self.contacts[key] = Contact(self.limits)
        return self.contacts[key]

    def live_calls(self, *, number: Number | None = None, user: str | None = None) -> list[Call]:
        """Return the live calls, of one number or one user if given."""
        live = self._live if user is None else self._live_of.get(user, {})
        return [call for call in live.values() if number is None or call.facts.number is number.spec]

    @property
    def live(self) -> int:
        """Number of live calls."""
        return len(self._live)

    def count_live(self, number: Number, direction: Direction) -> int:
        """Return the number of live calls of a business number in one direction."""
        return self._counts[number.spec.phone_number_id, direction]

    def keep(self, call: Call) -> None:
        """Add a call."""
        facts = call.facts
        self.calls[call.id] = self._live[call.id] = self._live_of[facts.user.wa_id][call.id] = call
        self._counts[facts.number.phone_number_id, facts.direction] += 1

    def retire(self, call: Call) -> None:
        """Keep an ended call for a while."""
        if self._live.pop(call.id, None) is not None:
            facts = call.facts
            self._counts[facts.number.phone_number_id, facts.direction] -= 1
            of_user = self._live_of[facts.user.wa_id]
            del of_user[call.id]
            if not of_user:
                del self._live_of[facts.user.wa_id]
        self._ended.append(call.id)
        while len(self._ended) > self.config.history:
            self.calls.pop(self._ended.popleft(), None)

    # Recording

    def violate(self, kind: ViolationKind, call_id: str, details: str) -> None:
        """Record a mistake of the gateway."""
        self.violations.append(Violation(kind=kind, call_id=call_id, at=self.clock(), details=details))
        self.note(Happening.VIOLATION, user=None, call_id=call_id, details=f"{kind}: {details}")

    def note(self, what: Happening, *, user: UserSpec | None, call_id: str | None = None, details: str = "") -> None:
        """Add one line to the log."""
        line = {"at": self.clock(), "what": what.value, "call_id": call_id, "details": details}
        self.log.append(line | {"wa_id": user.wa_id if user else None})
        self.changed()

    def later(self, wait_s: float, work: Callable[[], None]) -> None:
        """Run `work` later, unless the world is stopped first."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            self.timers_running.discard(handle)
            work()

        handle = loop.call_later(wait_s, run)
        self.timers_running.add(handle)

    def stop_timers(self) -> None:
        """Cancel all timers."""
        for handle in self.timers_running:
            handle.cancel()
        self.timers_running.clear()
        for call in self.calls.values():
            for handle in call.timers:
                handle.cancel()


def _number(spec: NumberSpec) -> Number:
    return Number(
        spec=spec,
        calling={
            "status": "ENABLED" if spec.calling_enabled else "DISABLED",
            "call_icon_visibility": "DEFAULT",
            "callback_permission_status": "ENABLED" if spec.callback_permission else "DISABLED",
        },
    )
