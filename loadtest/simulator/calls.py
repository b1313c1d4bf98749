"""The life of a call at Meta: what the business may do and when, what the user does, which webhooks follow.

User-initiated: RINGING -> (PRE_ACCEPTED) -> ACTIVE -> ENDED. Business-initiated: DIALING -> RINGING -> ACTIVE -> ENDED.
Every call ends through `_end()`, which sends the one `terminate`. Methods that the business calls raise GraphError;
those that act as the user raise `NotPossible`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from loadtest.common.background import Background
from loadtest.simulator.config import DAY_S, Behaviour, UserSpec
from loadtest.simulator.errors import GraphError, NotPossible
from loadtest.simulator.messages import Messages
from loadtest.simulator.payloads import (
    CallEnd,
    CallFacts,
    Direction,
    call_status,
    connect,
    terminate,
)
from loadtest.simulator.relay import Relay, RelayLeg
from loadtest.simulator.sdp import BusinessSdp, Setup, read_business_sdp
from loadtest.simulator.silent_user import SilentMedia
from loadtest.simulator.state import Call, CallState, EndReason, Happening, Number, ViolationKind, World
from loadtest.simulator.webhooks import Webhooks
from loadtest.simulator.webrtc_user import UserMedia, UserVoice
from loadtest.webrtc.dtls_leg import DtlsRole, HandshakeFailed

_UNANSWERED = frozenset({CallState.DIALING, CallState.RINGING, CallState.PRE_ACCEPTED})
_OFFER_OPUS = 111


class Calls:
    """All calls of a world."""

    def __init__(self, world: World, webhooks: Webhooks, messages: Messages, background: Background) -> None:
        self._world, self._webhooks, self._background = world, webhooks, background
        self._messages = messages
        self.relay: Relay | None = None
        #: Class of the users' media.
        self.media_kind: Callable[..., UserMedia] = UserMedia

    def use_relay(self, relay: Relay) -> None:
        """Set the media relay, before the first call."""
        self.relay = relay
        relay.on_shared_address = self._shared_address

    # User-initiated

    def user_calls(self, user: UserSpec, number: Number, *, deeplink: str | None, cta: str | None) -> Call:
        """Let the user call the business. Raises: NotPossible, in which case no webhook is sent."""
        world = self._world
        if not number.calling_on:
            raise NotPossible("calling is disabled on this number")
        if number.sip_on:
            raise NotPossible("the number is in SIP mode, which is not simulated")
        if world.live_calls(user=user.wa_id):
            raise NotPossible("the user is already in a call")
        if world.count_live(number, Direction.USER_INITIATED) >= world.limits.concurrent_in:
            raise NotPossible("the business already has the maximum number of calls")
        facts = CallFacts(
            id=world.new_id("wacid"),
            direction=Direction.USER_INITIATED,
            number=number.spec,
            user=user,
            deeplink_payload=deeplink,
            cta_payload=cta,
        )
        call = self._new_call(facts, CallState.RINGING)
        world.contact(number, user).open_window(now=call.placed_at)
        self._send(call, connect(facts, call.media.offer(), call.placed_at))
        self._ring_until(call, world.timers.user_initiated_ring_s)
        self._note(call, Happening.CALLS_BUSINESS)
        return call

    def pre_accept(self, call_id: str, sdp: str) -> Call:
        """Take the business's SDP and start ICE and DTLS."""
        call = self._unanswered(call_id, Direction.USER_INITIATED)
        if call.state is CallState.PRE_ACCEPTED:
            raise GraphError(100, "The call was already pre-accepted")
        self._take_answer(call, sdp)
        call.state = CallState.PRE_ACCEPTED
        self._note(call, Happening.CONNECTING)
        return call

    def accept(self, call_id: str, sdp: str, opaque: str | None) -> Call:
        """Start the conversation; without an earlier `pre_accept`, start the media path too."""
        call = self._unanswered(call_id, Direction.USER_INITIATED)
        if call.sdp is None:
            self._take_answer(call, sdp)
        elif call.sdp != sdp:
            raise GraphError(138008, "The SDP of accept differs from the SDP of pre_accept")
        call.facts = replace(call.facts, biz_opaque_callback_data=opaque)
        self._answered(call)
        self._note(call, Happening.ANSWERED)
        return call

    def reject(self, call_id: str) -> Call:
        """Decline an unanswered user-initiated call."""
        call = self._unanswered(call_id, Direction.USER_INITIATED)
        self._end(call, EndReason.BUSINESS_REJECTED)
        return call

    def _take_answer(self, call: Call, sdp: str) -> None:
        remote = read_business_sdp(sdp, is_offer=False, mid="audio", opus=_OFFER_OPUS)
        call.sdp, call.remote = sdp, remote
        role = DtlsRole.SERVER if remote.setup is Setup.ACTIVE else DtlsRole.CLIENT
        self._begin_media(call, remote, role)

    # Business-initiated

    def check_business_calling(self, number: Number) -> None:
        """Raise GraphError if this number may not place any calls."""
        if number.sip_on:
            raise GraphError(131055, "Graph API calling is not available while SIP is enabled")
        if not number.calling_on:
            raise GraphError(138000, "Calling is not enabled on this phone number")
        if number.restricted_until > self._world.clock():
            raise GraphError(138014, "Business-initiated calling is restricted for low quality")

    def connect(self, number: Number, user: UserSpec | None, sdp: str, opaque: str | None) -> Call:
        """Place a call for the business."""
        target = self._check_connect(number, user)
        remote = read_business_sdp(sdp, is_offer=True)
        world = self._world
        now = world.clock()
        number.new_calls.append(now)
        facts = CallFacts(
            id=world.new_id("wacid"),
            direction=Direction.BUSINESS_INITIATED,
            number=number.spec,
            user=target,
            biz_opaque_callback_data=opaque,
        )
        call = self._new_call(facts, CallState.DIALING)
        call.sdp, call.remote = sdp, remote
        self._watch_opaque(call, opaque)
        timers = world.timers
        self._after(call, timers.answer_after_s, lambda: self._send_answer(call, remote))
        if target.behaviour is not Behaviour.OFFLINE:
            self._after(call, timers.ringing_after_s, lambda: self._ring(call))
        self._ring_until(call, timers.business_initiated_ring_s)
        self._note(call, Happening.CALLED)
        return call

    def _check_connect(self, number: Number, user: UserSpec | None) -> UserSpec:
        world, limits, now = self._world, self._world.limits, self._world.clock()
        self.check_business_calling(number)
        if number.spec.country in limits.no_business_calls:
            raise GraphError(138013, f"Not available for business numbers of {number.spec.country}")
        if not number.spec.payment_method:
            raise GraphError(131044, "The account has no valid payment method")
        if user is not None and limits.allow_list_only and not user.allow_listed:
            raise GraphError(131030, "The recipient is not on the allowed list")
        if user is None or not user.callable:
            raise GraphError(138001, "The receiver is not on WhatsApp or cannot be called")
        contact = world.contact(number, user)
        if world.live_calls(number=number, user=user.wa_id):
            raise GraphError(138003, "A call with this user is already ongoing")
        contact.check_call(now=now)
        while number.new_calls and now - number.new_calls[0] >= DAY_S:
            number.new_calls.popleft()
        if len(number.new_calls) >= limits.new_calls_per_24h:
            raise GraphError(138005, f"{limits.new_calls_per_24h} new calls in 24 hours")
        if world.count_live(number, Direction.BUSINESS_INITIATED) >= limits.concurrent_out:
            raise GraphError(138002, f"{limits.concurrent_out} concurrent calls")
        return user

    def _watch_opaque(self, call: Call, opaque: str | None) -> None:
        """Detect a `connect` that was sent twice: a correct gateway uses each opaque value once."""
        if opaque is None:
            return
        key = (call.facts.number.phone_number_id, opaque)
        if key in self._world.opaque:
            self._world.violate(ViolationKind.RUNG_TWICE, call.id, f"{opaque!r} was used before")
        self._world.opaque[key] = call.id

    def _send_answer(self, call: Call, remote: BusinessSdp) -> None:
        setup = self._world.config.answer_setup
        sdp = call.media.answer(remote, setup)
        role = DtlsRole.CLIENT if setup is Setup.ACTIVE else DtlsRole.SERVER
        self._send(call, connect(call.facts, sdp, self._world.clock()))
        self._begin_media(call, remote, role)

    def _ring(self, call: Call) -> None:
        if call.state is not CallState.DIALING:
            return
        call.state = CallState.RINGING
        self._status(call, "RINGING")
        self._note(call, Happening.RINGS)
        user = call.facts.user
        if user.behaviour is Behaviour.AUTO_ACCEPT:
            self._after(call, user.after_s, lambda: self._pick_up(call))
        elif user.behaviour is Behaviour.AUTO_DECLINE:
            self._after(call, user.after_s, lambda: self._decline(call))

    def user_accepts(self, wa_id: str) -> Call:
        """Let the user answer. Raises: NotPossible."""
        call = self._ringing_call(wa_id)
        self._pick_up(call)
        return call

    def user_declines(self, wa_id: str) -> Call:
        """Let the user decline. Raises: NotPossible."""
        call = self._ringing_call(wa_id)
        self._decline(call)
        return call

    def _pick_up(self, call: Call) -> None:
        if call.state is not CallState.RINGING:
            return
        self._answered(call)
        number = self._world.numbers[call.facts.number.phone_number_id]
        self._world.contact(number, call.facts.user).open_window(now=self._world.clock())
        self._status(call, "ACCEPTED")
        self._note(call, Happening.PICKED_UP)

    def _decline(self, call: Call) -> None:
        if call.state is CallState.RINGING:
            self._status(call, "REJECTED")
            self._end(call, EndReason.USER_DECLINED)

    # Both directions

    def business_terminates(self, call_id: str) -> Call:
        """End a call for the business, in any state."""
        call = self._live_call(call_id)
        self._end(call, EndReason.BUSINESS_TERMINATED)
        return call

    def user_hangs_up(self, wa_id: str) -> Call:
        """Let the user hang up or give up. Raises: NotPossible."""
        call = self.current(wa_id)
        if call is None or call.state is CallState.DIALING:
            raise NotPossible("the user is not in a call")
        if call.state is CallState.RINGING and call.facts.direction is Direction.BUSINESS_INITIATED:
            self._decline(call)
        else:
            self._end(call, EndReason.USER_HUNG_UP)
        return call

    def ring_out(self, wa_id: str) -> Call:
        """End the ringing call of the business unanswered, as if its ring time had passed. Raises: NotPossible."""
        call = self._ringing_call(wa_id)
        self._end(call, EndReason.NO_ANSWER)
        return call

    def current(self, wa_id: str) -> Call | None:
        """Return the user's live call (the newest, if several businesses are calling)."""
        calls = self._world.live_calls(user=wa_id)
        return calls[-1] if calls else None

    def _ringing_call(self, wa_id: str) -> Call:
        for call in self._world.live_calls(user=wa_id):
            if call.state is CallState.RINGING and call.facts.direction is Direction.BUSINESS_INITIATED:
                return call
        raise NotPossible("no call of the business is ringing")

    def _live_call(self, call_id: str) -> Call:
        call = self._world.calls.get(call_id)
        if call is None:
            raise GraphError(100, "Invalid call_id")
        if not call.live:
            raise GraphError(100, "The call has already been terminated")
        return call

    def _unanswered(self, call_id: str, direction: Direction) -> Call:
        call = self._live_call(call_id)
        if call.facts.direction is not direction:
            raise GraphError(100, f"Not possible for a {call.facts.direction} call")
        if call.state not in _UNANSWERED:
            raise GraphError(100, "The call is already in progress")
        return call

    def _new_call(self, facts: CallFacts, state: CallState) -> Call:
        world = self._world
        media = self._media_of(facts.user, lambda: self._early(call))
        call = Call(facts=facts, state=state, placed_at=world.clock(), media=media)
        world.keep(call)
        return call

    def _media_of(self, user: UserSpec, on_early: Callable[[], None]) -> UserMedia:
        world = self._world
        if world.config.silent:
            return SilentMedia(world.config.media_host, clock=world.clock)
        assert self.relay is not None, "use_relay() must be called first"
        echo_after_s = world.timers.echo_after_s if user.echo else None
        voice = UserVoice(tone_hz=user.tone_hz, echo_after_s=echo_after_s, listen_every_s=world.timers.listen_every_s)
        return self.media_kind(self.relay, voice, clock=world.clock, on_early=on_early)

    def _begin_media(self, call: Call, remote: BusinessSdp, role: DtlsRole) -> None:
        if isinstance(call.media, SilentMedia):
            call.media.connect_now()
        else:
            self._background.spawn(self._connect(call, remote, role), f"media of {call.id}")

    async def _connect(self, call: Call, remote: BusinessSdp, role: DtlsRole) -> None:
        try:
            await call.media.connect(remote, role)
        except HandshakeFailed as failure:
            self._note(call, Happening.MEDIA_FAILED, str(failure))
            self._fail(call, 138019)
        else:
            self._world.changed()

    def _answered(self, call: Call) -> None:
        """Enter ACTIVE: from now on media flows both ways, and missing media is noticed."""
        world, now = self._world, self._world.clock()
        if call.ring_timer is not None:
            call.ring_timer.cancel()
        call.state, call.answered_at = CallState.ACTIVE, now
        number = world.numbers[call.facts.number.phone_number_id]
        by_business = call.facts.direction is Direction.BUSINESS_INITIATED
        world.contact(number, call.facts.user).call_connected(by_business=by_business, now=now)
        call.media.welcome()
        if not world.config.silent:
            self._after(call, world.timers.speak_after_s, call.media.talk)
            self._after(call, world.timers.media_check_every_s, lambda: self._watch_media(call))
        if call.facts.user.talk_s is not None:
            hang_up = EndReason.USER_HUNG_UP
            self._after(call, call.facts.user.talk_s, lambda: self._end(call, hang_up))

    def _watch_media(self, call: Call) -> None:
        """End a call in which the user has received nothing, not even RTCP, for too long."""
        timers, now = self._world.timers, asyncio.get_running_loop().time()
        last, since = call.media.ear.last_at, call.media.welcome_since or now
        silent_s = now - since if last is None or last < since else now - last
        limit_s = timers.no_media_at_start_s if last is None or last < since else timers.no_media_later_s
        if silent_s >= limit_s:
            self._fail(call, 138021)
        else:
            self._after(call, timers.media_check_every_s, lambda: self._watch_media(call))

    def _early(self, call: Call) -> None:
        when = "ACCEPTED" if call.facts.direction is Direction.BUSINESS_INITIATED else "the 200 to accept"
        self._world.violate(ViolationKind.MEDIA_BEFORE_ACCEPT, call.id, f"RTP arrived before {when}")
        if self._world.config.strict_media:
            self._fail(call, 138019)

    def _shared_address(self, leg: RelayLeg) -> None:
        for call in self._world.live_calls():
            if call.media.leg is leg:
                text = "two live calls come from one address and port of the business"
                self._world.violate(ViolationKind.SHARED_ADDRESS, call.id, text)

    def _fail(self, call: Call, code: int) -> None:
        call.error_code = code
        self._end(call, EndReason.FAILED)

    def _end(self, call: Call, reason: EndReason) -> None:
        """End a call once, whatever the cause."""
        if not call.live:
            return
        world, now = self._world, self._world.clock()
        for timer in call.timers:
            timer.cancel()
        call.timers.clear()
        call.state, call.ended_at, call.end_reason = CallState.ENDED, now, reason
        world.retire(call)
        end = CallEnd(
            failed=reason is EndReason.FAILED,
            started_at=call.answered_at,
            ended_at=now,
            error_code=call.error_code,
        )
        self._send(call, terminate(call.facts, end))
        if not world.config.silent:
            self._background.spawn(call.media.close(), f"end of media of {call.id}")
        self._note(call, Happening.ENDED, reason.value)
        self._messages.after_call(call)

    # Helpers

    def _ring_until(self, call: Call, wait_s: float) -> None:
        call.ring_timer = self._after(call, wait_s, lambda: self._end(call, EndReason.NO_ANSWER))

    def _after(self, call: Call, wait_s: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        """Run `work` later, unless the call has ended by then."""

        def run() -> None:
            call.timers.discard(handle)
            work()

        handle = asyncio.get_running_loop().call_later(wait_s, run)
        call.timers.add(handle)
        return handle

    def _status(self, call: Call, status: str) -> None:
        self._send(call, call_status(call.facts, status, self._world.clock()))

    def _send(self, call: Call, change: dict[str, object]) -> None:
        self._webhooks.send(call.id, change, waba_id=call.facts.number.waba_id)

    def _note(self, call: Call, what: Happening, details: str = "") -> None:
        self._world.note(what, user=call.facts.user, call_id=call.id, details=details)
