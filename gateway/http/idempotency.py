"""Carry out the requests under one `Idempotency-Key` once.

The answer of a request that succeeded is stored under its key and given again. A request that certainly had no effect
leaves its key free. If the effect is unknown (Meta may have received the request, or the gateway died before it knew),
the key stays blocked for its 24 hours, and the client is told so and what to do.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from gateway.common.clock import Clock
from gateway.common.errors import CannotDial, GraphError, StoreDown, StoreError
from gateway.http.problems import Problem
from gateway.store.records import Json
from gateway.store.store import ReplayState, Store

log = structlog.get_logger()

KEY: Final = re.compile(r"[\x21-\x7e]{1,128}\Z")
#: Stored under a key whose request had no effect: it may be sent again.
NOTHING_DONE: Final[Json] = {"status": 0}
#: Stored under a key whose request may have been carried out.
UNKNOWN: Final[Json] = {"status": -1}

_LOOK_FIRST: Final = (
    "The request is not repeated under this key. Check first whether it was carried out: the contact shows its "
    "permission requests, the contact's reconcile asks Meta, /v1/calls lists the calls. To repeat it, send another key."
)

#: Carries out a request; returns the status and body of the answer.
Perform = Callable[[], Awaitable[tuple[int, Any]]]


class IdempotencyKeys:
    """The keys of one gateway. A stored key without an answer and not in use here was left by a process that died."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._in_use: set[str] = set()

    async def do(self, key: str | None, path: str, body: bytes, perform: Perform) -> tuple[int, Any]:
        """Call `perform`, or return the answer that is stored under the key. Raises: Problem, and what it raises."""
        if key is None:
            return await perform()
        if not KEY.match(key):
            raise Problem(400, "bad_request", "An Idempotency-Key is 1 to 128 printable ASCII characters.")
        if key in self._in_use:
            raise Problem(
                409,
                "in_progress",
                "The first request with this Idempotency-Key is still in progress.",
                detail="Wait a moment, then send the same request with the same key.",
            )
        fingerprint = hashlib.sha256(path.encode() + b"\n" + body).hexdigest()
        self._in_use.add(key)
        try:
            stored = await self._first_answer(key, fingerprint)
            if stored is not None:
                return int(stored["status"]), stored["body"]
            return await self._perform_and_store(key, fingerprint, perform)
        finally:
            self._in_use.discard(key)

    async def _first_answer(self, key: str, fingerprint: str) -> Json | None:
        """Return the answer stored under this key; None if the request is to be carried out.

        Raises: Problem, StoreDown.
        """
        replay = await self._store.idempotent(key, fingerprint, self._clock.now())
        if replay is None:
            return None
        if replay.state is ReplayState.CONFLICT:
            raise Problem(422, "idempotency_conflict", "This Idempotency-Key belongs to another request.")
        if replay.response is None:
            title = "The gateway stopped, or lost its database, before it knew the result of the first request."
            raise Problem(409, "in_progress", title, detail=_LOOK_FIRST)
        if replay.response == UNKNOWN:
            title = "Meta gave no clear answer to the first request with this Idempotency-Key."
            raise Problem(409, "outcome_unknown", title, detail=_LOOK_FIRST)
        return None if replay.response == NOTHING_DONE else replay.response

    async def _perform_and_store(self, key: str, fingerprint: str, perform: Perform) -> tuple[int, Any]:
        try:
            status, answer = await perform()
        except GraphError as error:
            await self._store_answer(key, fingerprint, UNKNOWN if error.maybe_sent else NOTHING_DONE)
            raise
        except (Problem, CannotDial, StoreDown):  # nothing was sent to Meta
            await self._store_answer(key, fingerprint, NOTHING_DONE)
            raise
        await self._store_answer(key, fingerprint, {"status": status, "body": msgspec.to_builtins(answer)})
        return status, answer

    async def _store_answer(self, key: str, fingerprint: str, answer: Json) -> None:
        """Store an answer. If that fails, the client gets the answer all the same, because its effect has happened."""
        try:
            await self._store.save_idempotent(key, fingerprint, answer)
        except StoreError as error:
            log.warning("idempotent_answer_not_kept", detail=error.public)
