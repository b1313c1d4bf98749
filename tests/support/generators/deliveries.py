"""Webhook bodies as Meta sends them, with invented values, and a store that will never keep one of them."""

from typing import Any

import orjson

from gateway.common.errors import StoreError
from gateway.store.records import Change, EventRecord
from tests.support.fakes.memory_store import MemoryStore
from tests.support.harness.world import ANA, NUMBER_ID, WACID, World

_METADATA = {"display_phone_number": "551155550100", "phone_number_id": NUMBER_ID}


class PickyStore(MemoryStore):
    """Will never keep an event with `poison` in it, whatever comes with it."""

    async def write(self, *changes: Change) -> None:
        if any(isinstance(change, EventRecord) and b"poison" in change.body for change in changes):
            raise StoreError("bad data")
        await super().write(*changes)


def body_of(*changes: dict[str, Any]) -> bytes:
    return orjson.dumps({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": list(changes)}]})


def joined(*bodies: bytes) -> bytes:
    """Return one delivery with the changes of several."""
    return body_of(*(change for body in bodies for change in orjson.loads(body)["entry"][0]["changes"]))


def messages(world: World, *ids: str, user: str = str(ANA.wa_id)) -> bytes:
    """Messages of a user: each is one event and one fact."""
    at = str(int(world.clock.now().timestamp()))
    found = [{"id": name, "from": user, "timestamp": at, "type": "text"} for name in ids]
    return body_of({"field": "messages", "value": {"metadata": _METADATA, "messages": found}})


def connect(world: World, call_id: str = WACID, *, age_s: float = 0.0) -> bytes:
    """A user calls."""
    call = _call(world, call_id, "connect", age_s) | {
        "from_user_id": ANA.user_id,
        "session": {"sdp_type": "offer", "sdp": "v=0 offer"},
    }
    return body_of({"field": "calls", "value": {"metadata": _METADATA, "calls": [call]}})


def terminate(world: World, call_id: str = WACID, *, talked_s: int = 20) -> bytes:
    """A user's call is over."""
    now = int(world.clock.now().timestamp())
    call = _call(world, call_id, "terminate", 0.0) | {
        "status": "COMPLETED",
        "start_time": str(now - talked_s),
        "end_time": str(now),
        "duration": talked_s,
    }
    return body_of({"field": "calls", "value": {"metadata": _METADATA, "calls": [call]}})


def _call(world: World, call_id: str, event: str, age_s: float) -> dict[str, Any]:
    return {
        "id": call_id,
        "from": ANA.wa_id,
        "to": "551155550100",
        "event": event,
        "timestamp": str(int(world.clock.now().timestamp() - age_s)),
        "direction": "USER_INITIATED",
    }
