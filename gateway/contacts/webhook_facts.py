"""Read webhook events as facts about a contact, for the gate. [P]

Theory of operation. Meta sends a webhook, with its own instant, for everything that it counts. So facts come from
webhooks wherever possible. They are written in one transaction with the journal, and the same webhooks give the same
facts in any order and however often they are delivered, even if the call is no longer in memory or was never ours. The
key names the call and what happened to it, so a fact that a live call records itself (see `calls.driver`) has the same
key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from gateway.common.ids import MetaCallId, UserRef
from gateway.meta import events as ev
from policy import facts
from policy.facts import Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCall:
    """What this process knows about the call of an event."""

    user: UserRef
    direction: Direction


class Said(NamedTuple):
    """A fact and the user it is about."""

    user: UserRef
    name: str | None
    fact: facts.Fact


def said_by(event: ev.Event, known: Callable[[MetaCallId], KnownCall | None]) -> Said | None:
    """Read an event as a fact about a contact; None if it has none. `known` looks up the call of the event."""
    match event:
        case ev.CallOffered(at=at, meta_call_id=call_id):
            # Source: Meta, pricing: a user's call opens the window whether or not it is accepted. Read 2026-11-22.
            fact: facts.Fact = facts.WindowOpened(at=at, key=f"window/{call_id}", source=facts.WindowSource.USER_CALL)
            return Said(event.user, event.user_name, fact)
        case ev.UserMessage(at=at, dedupe_key=key):
            fact = facts.WindowOpened(at=at, key=key, source=facts.WindowSource.MESSAGE)
            return Said(event.user, event.user_name, fact)
        case ev.PermissionReply():
            return Said(event.user, event.user_name, _reply(event))
        case ev.CallStatus():
            call = known(event.meta_call_id)
            return _about(event.user, call, _status(event))
        case ev.CallTerminated():
            call = known(event.meta_call_id)
            return _about(event.user, call, _end(event, call))
        case _:
            return None


def connected(call_id: MetaCallId, direction: Direction, *, at: datetime) -> facts.Fact:
    """Return the fact that a call was connected."""
    return facts.CallConnected(at=at, key=f"connected/{call_id}", direction=direction)


def unanswered(call_id: MetaCallId, *, at: datetime) -> facts.Fact:
    """Return the fact that a business-initiated call ended unanswered, even if we ended it: Meta cannot tell why."""
    return facts.CallUnanswered(at=at, key=f"unanswered/{call_id}")


def _about(user: UserRef | None, call: KnownCall | None, fact: facts.Fact | None) -> Said | None:
    """Pair a fact with its user, named by both the event and the known call: one call has one user."""
    ours = call.user if call is not None else None
    if user is not None and ours is not None:
        user = UserRef(wa_id=user.wa_id or ours.wa_id, user_id=user.user_id or ours.user_id)
    user = user or ours
    return Said(user, None, fact) if user is not None and fact is not None else None


def _status(event: ev.CallStatus) -> facts.Fact | None:
    match event.status:
        case "ACCEPTED":
            return connected(event.meta_call_id, Direction.BUSINESS_INITIATED, at=event.at)
        case "REJECTED":
            return facts.CallRejected(at=event.at, key=f"rejected/{event.meta_call_id}")
        case _:
            return None


def _end(event: ev.CallTerminated, call: KnownCall | None) -> facts.Fact | None:
    direction = event.direction or (call.direction if call is not None else None)
    if direction is None:
        return None
    if event.start_at is not None:
        return connected(event.meta_call_id, direction, at=event.start_at)
    if direction is Direction.USER_INITIATED or event.status == "FAILED":  # a failed call never rang
        return None
    return unanswered(event.meta_call_id, at=event.at)


def _reply(event: ev.PermissionReply) -> facts.Fact:
    """Return the fact in a permission reply.

    Source: Meta, user call permissions (table of replies), read 2026-11-22.
    """
    at, key = event.at, event.dedupe_key
    source = facts.ReplySource.AUTOMATIC if event.automatic else facts.ReplySource.USER_ACTION
    if event.accepted:
        return facts.PermissionGranted(
            at=at,
            key=key,
            permanent=event.permanent,
            expires_at=None if event.permanent else event.expires_at,
            source=source,
            request_id=event.request_id,
        )
    if event.automatic or event.request_id is None:
        return facts.PermissionRevoked(at=at, key=key, source=source)
    return facts.PermissionDeclined(at=at, key=key, source=source, request_id=event.request_id)
