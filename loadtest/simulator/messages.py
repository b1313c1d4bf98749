"""Messages and permissions, with their webhooks.

Covers the business's permission requests, the user's answers, grants and texts, and what an ended call does to
permissions.
"""

from collections.abc import Mapping
from typing import Any

from loadtest.simulator.config import PermissionAnswer, UserSpec
from loadtest.simulator.errors import GraphError, NotPossible
from loadtest.simulator.payloads import Direction, PermissionReply, message_status, permission_reply, text_message
from loadtest.simulator.rules import PermissionRequest, Streak
from loadtest.simulator.state import Call, EndReason, Happening, Number, World
from loadtest.simulator.webhooks import Webhooks

_ANSWERS: Mapping[PermissionAnswer, tuple[bool, bool]] = {
    PermissionAnswer.ACCEPT: (True, False),
    PermissionAnswer.ACCEPT_PERMANENT: (True, True),
    PermissionAnswer.REJECT: (False, False),
}


class Messages:
    """Messages between the business and its users."""

    def __init__(self, world: World, webhooks: Webhooks) -> None:
        self._world, self._webhooks = world, webhooks

    def request_permission(
        self, number: Number, user: UserSpec | None, *, text: str, free_form: bool
    ) -> PermissionRequest:
        """Deliver a call permission request to the user. Raises: GraphError."""
        world, now = self._world, self._world.clock()
        if user is not None and world.limits.allow_list_only and not user.allow_listed:
            raise GraphError(131030, "The recipient is not on the allowed list")
        if user is None or not user.callable:
            raise GraphError(138001, "The receiver is not on WhatsApp or cannot be called")
        contact = world.contact(number, user)
        contact.check_request(now=now, free_form=free_form)
        request = contact.add_request(world.new_id("wamid"), text, now=now)
        for status in ("sent", "delivered"):
            change = message_status(number.spec, user, request.id, status, now)
            self._webhooks.send(request.id, change, waba_id=number.spec.waba_id)
        world.note(Happening.ASKED, user=user, details=text)
        self._answer_later(number, user)
        return request

    def _answer_later(self, number: Number, user: UserSpec) -> None:
        decision = _ANSWERS.get(user.permission_answer)
        if decision is None:
            return
        accept, permanent = decision

        def answer() -> None:
            contact = self._world.contact(number, user)
            if contact.open_requests(now=self._world.clock()):
                self.answer_request(number, user, accept=accept, permanent=permanent)

        self._world.later(user.after_s, answer)

    def answer_request(self, number: Number, user: UserSpec, *, accept: bool, permanent: bool) -> None:
        """Answer the newest open request, or change an earlier answer. Raises: NotPossible."""
        world, now = self._world, self._world.clock()
        contact = world.contact(number, user)
        requests = contact.open_requests(now=now)
        if not requests:
            raise NotPossible("no permission request is waiting")
        if permanent and not world.limits.permanent_permission:
            raise NotPossible("this profile has no permanent permissions")
        request = requests[-1]
        contact.answer(request, accept=accept, permanent=permanent, now=now)
        expires_at = contact.permission.expires_at if contact.permission else None
        self._reply(
            number,
            user,
            PermissionReply(
                accept=accept,
                automatic=False,
                permanent=accept and permanent,
                expires_at=expires_at,
                context_id=request.id,
            ),
        )
        given = Happening.GAVE_PERMANENT if permanent else Happening.GAVE_TEMPORARY
        world.note(given if accept else Happening.REFUSED, user=user)

    def grant(self, number: Number, user: UserSpec) -> None:
        """Let the user allow calls in the business profile: a permanent permission, without a request.

        If the profile has no permanent permissions, it is temporary.
        """
        contact = self._world.contact(number, user)
        permission = contact.grant(permanent=True, now=self._world.clock())
        permanent = permission.expires_at is None
        reply = PermissionReply(accept=True, automatic=False, permanent=permanent, expires_at=permission.expires_at)
        self._reply(number, user, reply)
        self._world.note(Happening.GRANTED, user=user)

    def revoke(self, number: Number, user: UserSpec) -> None:
        """Let the user withdraw the permission in the profile; Meta documents no webhook for this."""
        self._world.contact(number, user).revoke()
        self._world.note(Happening.TOOK_BACK, user=user)

    def write(self, number: Number, user: UserSpec, text: str) -> str:
        """Let the user send a message, which opens the 24-hour window; return its id."""
        now = self._world.clock()
        self._world.contact(number, user).open_window(now=now)
        message_id = self._world.new_id("wamid")
        change = text_message(number.spec, user, message_id, text, now)
        self._webhooks.send(message_id, change, waba_id=number.spec.waba_id)
        self._world.note(Happening.WROTE, user=user, details=text)
        return message_id

    def after_call(self, call: Call) -> None:
        """Update permissions after a call: a streak of unanswered ones revokes, a user's call may grant."""
        number = self._world.numbers[call.facts.number.phone_number_id]
        if call.facts.direction is Direction.USER_INITIATED:
            self._grant_callback(call, number)
            return
        if call.answered_at is not None or call.end_reason is EndReason.FAILED:
            return
        declined = call.end_reason is EndReason.USER_DECLINED
        if declined and not self._world.limits.declined_is_unanswered:
            return
        user = call.facts.user
        streak = self._world.contact(number, user).call_unanswered()
        if streak is Streak.NUDGE:
            self._world.note(Happening.NUDGED, user=user, call_id=call.id)
        elif streak is Streak.REVOKED:
            self._world.note(Happening.AUTO_REVOKED, user=user, call_id=call.id)
            self._reply(number, user, PermissionReply(accept=False, automatic=True))

    def _grant_callback(self, call: Call, number: Number) -> None:
        """Grant the callback permission of `callback_permission_status: ENABLED` after a user's call."""
        user, now = call.facts.user, self._world.clock()
        contact = self._world.contact(number, user)
        live = contact.live_permission(now=now)
        if not number.callback_permission or (live is not None and live.expires_at is None):
            return
        permission = contact.grant(permanent=False, now=now)
        self._reply(
            number,
            user,
            PermissionReply(accept=True, automatic=True, expires_at=permission.expires_at, context_id=call.id),
        )

    def _reply(self, number: Number, user: UserSpec, reply: PermissionReply) -> None:
        message_id, now = self._world.new_id("wamid"), self._world.clock()
        change: dict[str, Any] = permission_reply(number.spec, user, message_id, reply, now)
        key = f"permission {number.spec.phone_number_id} {user.wa_id}"
        self._webhooks.send(key, change, waba_id=number.spec.waba_id)
