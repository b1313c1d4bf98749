"""A day of one contact's webhooks, drawn at random: what a number is told of a person who has two names."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from tests.support.harness.world import ANA, World

#: What a delivery holds: keyword arguments of `World.deliver`.
Webhook = dict[str, Any]

OURS = "551155550100"
DAY_S = 86_400
#: By the end of the day every call is so old that it does not ring.
LATEST_S = 120


class Day:
    """Webhooks in the order in which things happened; an event names the person by number, by BSUID, or by both."""

    def __init__(self, rng: random.Random, *, now: float, events: int = 12) -> None:
        self._rng = rng
        self._now = int(now)
        self._made = 0
        makers = (self._message, self._reply, self._users_call, self._our_call)
        ages = sorted((rng.randint(LATEST_S, DAY_S) for _ in range(events)), reverse=True)
        self.webhooks = [webhook for age in ages for webhook in rng.choice(makers)(self._now - age)]
        tie = self._message(self._now - LATEST_S, names=("wa_id", "user_id"))
        self.webhooks += tie

    def shuffled(self, rng: random.Random) -> list[Webhook]:
        """Return all webhooks, some of them twice, in any order."""
        again = rng.sample(self.webhooks, rng.randint(0, len(self.webhooks)))
        mixed = self.webhooks + again
        rng.shuffle(mixed)
        return mixed

    def _id(self, kind: str) -> str:
        self._made += 1
        return f"{kind}.{self._made}"

    def _names(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """Return the contact as an event names them."""
        chosen = names or self._rng.choice((("wa_id",), ("user_id",), ("wa_id", "user_id")))
        return {name: str(getattr(ANA, name)) for name in chosen}

    def _message(self, at: int, *, names: Sequence[str] | None = None, **more: Any) -> list[Webhook]:
        who = self._names(names)
        message = {"id": self._id("wamid"), "timestamp": str(at), "type": "text", **more}
        return [{"messages": [message | _prefixed(who, "from", "from_user_id")]}]

    def _reply(self, at: int) -> list[Webhook]:
        reply: dict[str, Any] = {"response": self._rng.choice(("accept", "accept", "reject"))}
        reply["response_source"] = self._rng.choice(("user_action", "user_action", "automatic"))
        if reply["response"] == "accept":
            reply["expiration_timestamp"] = at + 7 * DAY_S
        more: dict[str, Any] = {"type": "interactive"}
        more["interactive"] = {"type": "call_permission_reply", "call_permission_reply": reply}
        if self._rng.random() < 0.5:
            more["context"] = {"id": self._id("request")}
        return self._message(at, **more)

    def _users_call(self, at: int) -> list[Webhook]:
        who = _prefixed(self._names(), "from", "from_user_id")
        call = {"id": self._id("wacid"), "direction": "USER_INITIATED", "to": OURS, **who}
        offer = {"sdp_type": "offer", "sdp": "v=0 offer"}
        end = self._end(call, at) | _prefixed(self._names(), "from", "from_user_id")
        return [{"calls": [call | {"event": "connect", "timestamp": str(at), "session": offer}]}, {"calls": [end]}]

    def _our_call(self, at: int) -> list[Webhook]:
        call = {"id": self._id("wacid"), "direction": "BUSINESS_INITIATED", "from": OURS}
        fate = self._rng.choice(("ACCEPTED", "ACCEPTED", "REJECTED", None, None, "FAILED"))
        said = [status for status in ("RINGING", fate) if status in ("RINGING", "ACCEPTED", "REJECTED")]
        statuses = [
            {
                "statuses": [
                    {"id": call["id"], "type": "call", "status": status, "timestamp": str(at + n)}
                    | _prefixed(self._names(), "recipient_id", "recipient_user_id")
                ]
            }
            for n, status in enumerate(said)
        ]
        end = self._end(call, at + 1, talked=fate == "ACCEPTED") | _prefixed(self._names(), "to", "to_user_id")
        return [*statuses, {"calls": [end | ({"status": "FAILED"} if fate == "FAILED" else {})]}]

    def _end(self, call: dict[str, Any], at: int, *, talked: bool | None = None) -> dict[str, Any]:
        ended = at + self._rng.randint(1, 60)
        end = {"id": call["id"], "direction": call["direction"], "event": "terminate", "status": "COMPLETED"}
        end["timestamp"] = str(ended)
        if talked is None:
            talked = self._rng.random() < 0.5
        return end | ({"start_time": str(at), "end_time": str(ended), "duration": ended - at} if talked else {})


def _prefixed(who: dict[str, str], wa_id: str, user_id: str) -> dict[str, str]:
    return {{"wa_id": wa_id, "user_id": user_id}[name]: value for name, value in who.items()}


async def deliver_all(world: World, webhooks: Sequence[Webhook], *, at_once: int = 1) -> None:
    """Deliver in this order, so many at the same moment."""
    for first in range(0, len(webhooks), at_once):
        await asyncio.gather(*(world.deliver(**webhook) for webhook in webhooks[first : first + at_once]))
