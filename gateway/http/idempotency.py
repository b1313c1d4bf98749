"""`Idempotency-Key`: what was asked for under one key is done once.

What succeeded is kept under its key and answered again. What certainly came to nothing leaves the key free. Where
nobody knows (Meta may have got it, or this gateway died before it knew) the key stays shut for its 24 hours: the
client is told so, and what to do. Not responsible for what is done (see `api`).
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
#: Kept under a key whose request came to nothing: it may be tried again.
NOTHING_DONE: Final[Json] = {"status": 0}
#: Kept under a key whose request has perhaps been carried out.
UNKNOWN: Final[Json] = {"status": -1}

_LOOK_FIRST: Final = (
    "It is not repeated under this key. Look first whether it arrived: the contact shows its permission requests, "
    "the contact's reconcile asks Meta, /v1/calls shows the calls. To do it anew, send another key."
)

Work = Callable[[], Awaitable[tuple[int, Any]]]


class Once:
    """The keys of one gateway. A key in the store that is not under way here was left by a process that died."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._under_way: set[str] = set()

    async def do(self, key: str | None, path: str, body: bytes, work: Work) -> tuple[int, Any]:
        """Do the work, or give the first answer again. Raises: Problem, and what the work raises."""
        if key is None:
            return await work()
        if not KEY.match(key):
            raise Problem(400, "bad_request", "An Idempotency-Key is 1 to 128 printable ASCII characters.")
        if key in self._under_way:
            raise Problem(
                409,
                "in_progress",
                "The first request with this Idempotency-Key has no answer yet.",
                detail="Wait a moment and send the same request with the same key.",
            )
        fingerprint = hashlib.sha256(path.encode() + b"\n" + body).hexdigest()
        self._under_way.add(key)
        try:
            kept = await self._first_answer(key, fingerprint)
            if kept is not None:
                return int(kept["status"]), kept["body"]
            return await self._work(key, fingerprint, work)
        finally:
            self._under_way.discard(key)

    async def _first_answer(self, key: str, fingerprint: str) -> Json | None:
        """Return what was answered under this key; None: go on. Raises: Problem, StoreDown."""
        replay = await self._store.idempotent(key, fingerprint, self._clock.now())
        if replay is None:
            return None
        if replay.state is ReplayState.CONFLICT:
            raise Problem(422, "idempotency_conflict", "This Idempotency-Key belongs to another request.")
        if replay.response is None:
            title = "The gateway stopped, or lost its database, before it knew what became of the first request."
            raise Problem(409, "in_progress", title, detail=_LOOK_FIRST)
        if replay.response == UNKNOWN:
            title = "Meta gave no clear answer to the first request with this Idempotency-Key."
            raise Problem(409, "outcome_unknown", title, detail=_LOOK_FIRST)
        return None if replay.response == NOTHING_DONE else replay.response

    async def _work(self, key: str, fingerprint: str, work: Work) -> tuple[int, Any]:
        try:
            status, answer = await work()
        except GraphError as error:
            await self._keep(key, fingerprint, UNKNOWN if error.maybe_sent else NOTHING_DONE)
            raise
        except (Problem, CannotDial, StoreDown):  # nothing has left for Meta
            await self._keep(key, fingerprint, NOTHING_DONE)
            raise
        await self._keep(key, fingerprint, {"status": status, "body": msgspec.to_builtins(answer)})
        return status, answer

    async def _keep(self, key: str, fingerprint: str, answer: Json) -> None:
        """Keep an answer; one that cannot be kept is given all the same, since what it tells of has happened."""
        try:
            await self._store.save_idempotent(key, fingerprint, answer)
        except StoreError as error:
            log.warning("idempotent_answer_not_kept", detail=error.public)
