"""Ask Meta to end calls that have no driver any more, until Meta confirms the end.

Meta may still consider such a call alive, and bill it: a crash left it, or Meta could not be reached when its driver
ended, or its `connect` was never answered. Live calls end through `driver` and `performer`; `recovery` closes the
records of calls that a crash left.

Theory of operation. A call that is *owed* a hang-up is marked in the store (`EndOwed`) before Meta is asked. The mark
is removed only when the end is confirmed: by Meta's 200, Meta's "already ended", or its `terminate` webhook. So a crash
in between costs a delay and nothing else. The pause between attempts grows, and only a few requests run at once, so
that a thousand hang-ups leave room for new calls.

A call whose `connect` was never answered cannot be ended yet, because Meta's id for it is unknown. It is *expected* for
`EXPECT_S`: the first webhook that carries our own id (`biz_opaque_callback_data`) tells Meta's id, and from then on the
call is owed a hang-up. If no such webhook comes in that time, Meta never placed the call.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import structlog

from gateway.calls.registry import Registry
from gateway.common.background import Start
from gateway.common.backoff import Backoff
from gateway.common.errors import GraphError, GraphRefused
from gateway.common.ids import CallId, MetaCallId, PhoneNumberId
from gateway.common.metrics import Metrics
from gateway.common.shielding import was_cancelled
from gateway.contacts.webhook_facts import KnownCall
from gateway.meta.error_codes import already_ended
from gateway.meta.graph import Graph
from gateway.store.records import EndOwed
from gateway.store.store import Store

log = structlog.get_logger()

#: Concurrent requests to Meta: if each takes 200 ms, a thousand calls end in 5 s, and there is room for new calls.
AT_A_TIME: Final = 40
#: The pauses between two attempts; random, so that calls do not retry in step.
PAUSES: Final = Backoff((2.0, 4.0, 8.0, 16.0, 32.0, 60.0), jitter=0.2)
#: After this the call is forgotten, with an error in the log: no user stays so long in a call without audio.
GIVE_UP_S: Final = 2 * 3600.0
#: How long to wait for a webhook with Meta's id of a call whose `connect` was not answered.
EXPECT_S: Final = 600.0

OnDone = Callable[[], None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Owed:
    """A call at Meta whose end is not confirmed yet."""

    number_id: PhoneNumberId
    meta_call_id: MetaCallId
    calls: set[CallId] = field(default_factory=set)  #: our ids; two if one of our numbers called another
    then: list[OnDone] = field(default_factory=list)
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """A call that Meta may have placed, under an id that is not known yet."""

    number_id: PhoneNumberId
    known: KnownCall
    then: OnDone
    expiry: asyncio.TimerHandle


class OwedHangups:
    """All hang-ups that Meta has not confirmed."""

    def __init__(self, *, graph: Graph, store: Store, registry: Registry, metrics: Metrics, start: Start) -> None:
        self._graph = graph
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._start = start
        self._owed: dict[MetaCallId, _Owed] = {}
        self._expected: dict[CallId, _Expected] = {}
        self._turns = asyncio.Semaphore(AT_A_TIME)

    def __len__(self) -> int:
        """Return the number of calls that Meta may still consider alive."""
        return len(self._owed) + len(self._expected)

    # --- what others ask ---------------------------------------------------------------------------

    def keep_trying(
        self,
        number_id: PhoneNumberId,
        meta_call_id: MetaCallId,
        call_id: CallId,
        *,
        after_s: float = 0.0,
        then: OnDone | None = None,
    ) -> None:
        """Ask Meta to end a call, repeatedly until the end is confirmed.

        `then` is called when the end is confirmed or the attempts are given up. `after_s`: wait this long before the
        first attempt, because one has just failed. A second request for the same call starts no second series.
        """
        owed = self._owed.get(meta_call_id)
        is_new = owed is None
        if owed is None:
            owed = self._owed[meta_call_id] = _Owed(number_id=number_id, meta_call_id=meta_call_id)
        if then is not None:
            owed.then.append(then)
        if call_id not in owed.calls:
            owed.calls.add(call_id)
            self._store.write_soon(EndOwed(call_id=call_id, owed=True, meta_call_id=meta_call_id))
        if is_new:
            self._update_gauge()
            owed.task = self._start(self._until_confirmed(owed, after_s))

    def confirmed(self, meta_call_id: MetaCallId) -> None:
        """Note that a webhook reported the end of this call, whether or not a hang-up was owed."""
        owed = self._owed.get(meta_call_id)
        if owed is not None:
            owed.confirmed.set()

    def expect(
        self, number_id: PhoneNumberId, call_id: CallId, known: KnownCall, *, then: OnDone = lambda: None
    ) -> None:
        """Wait for a webhook about a call that Meta may have placed under an unknown id.

        `then` is called when its hang-up is settled, or when no webhook comes.
        """
        if call_id in self._expected:
            return
        expiry = asyncio.get_running_loop().call_later(EXPECT_S, self._give_up_expecting, call_id)
        self._expected[call_id] = _Expected(number_id=number_id, known=known, then=then, expiry=expiry)
        self._store.write_soon(EndOwed(call_id=call_id, owed=True))
        self._update_gauge()

    def turned_up(self, call_id: CallId, meta_call_id: MetaCallId, *, over: bool) -> bool:
        """Take Meta's id of an expected call from a webhook; return False if the call was not expected.

        The call is ended at Meta at once, unless the webhook says that it is `over`.
        """
        expected = self._expected.pop(call_id, None)
        if expected is None:
            return False
        log.warning("unanswered_connect_was_carried_out", call_id=call_id, over=over)
        expected.expiry.cancel()
        self._registry.bury(meta_call_id, expected.known)
        if over:
            self._store.write_soon(EndOwed(call_id=call_id, owed=False, meta_call_id=meta_call_id))
            _call_all([expected.then])
        else:
            self.keep_trying(expected.number_id, meta_call_id, call_id, then=expected.then)
        self._update_gauge()
        return True

    def close(self) -> None:
        """Stop. Owed hang-ups stay marked in the store, for the next start."""
        for expected in self._expected.values():
            expected.expiry.cancel()
        for owed in self._owed.values():
            if owed.task is not None:
                owed.task.cancel()

    # --- asking Meta -------------------------------------------------------------------------------

    async def _until_confirmed(self, owed: _Owed, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        try:
            await _pause(owed, after_s)
            for failures in count():
                if owed.confirmed.is_set() or await self._ask_once(owed):
                    break
                pause_s = PAUSES.pause_s(failures, chance=random.random())
                if loop.time() + pause_s > give_up_at:
                    log.error("call_end_given_up", number_id=owed.number_id, call_ids=sorted(owed.calls))
                    break
                await _pause(owed, pause_s)
            for call_id in owed.calls:
                self._store.write_soon(EndOwed(call_id=call_id, owed=False, meta_call_id=owed.meta_call_id))
        finally:  # also when the gateway stops: then the mark stays in the store
            self._forget(owed)

    async def _ask_once(self, owed: _Owed) -> bool:
        """Ask once (the Graph client retries by itself); return whether Meta confirmed the end."""
        async with self._turns:
            if owed.confirmed.is_set():
                return True
            try:
                await self._graph.terminate(owed.number_id, owed.meta_call_id)
            except GraphError as error:
                over = isinstance(error, GraphRefused) and already_ended(error)
                if not over:
                    log.warning("call_end_not_delivered", call_ids=sorted(owed.calls), detail=error.public)
                return over
            except (Exception, asyncio.CancelledError) as error:  # a bug must not make us forget a call
                if was_cancelled(error):
                    raise
                log.exception("ending_broken", call_ids=sorted(owed.calls))
                return False
        return True

    def _forget(self, owed: _Owed) -> None:
        if self._owed.pop(owed.meta_call_id, None) is not None:
            self._update_gauge()
            _call_all(owed.then)

    def _give_up_expecting(self, call_id: CallId) -> None:
        expected = self._expected.pop(call_id)
        self._store.write_soon(EndOwed(call_id=call_id, owed=False))
        self._update_gauge()
        _call_all([expected.then])

    def _update_gauge(self) -> None:
        self._metrics.calls_unconfirmed.set(len(self))


async def _pause(owed: _Owed, seconds: float) -> None:
    """Wait for some seconds, or until the end is confirmed."""
    if seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await owed.confirmed.wait()
    except TimeoutError:
        return


def _call_all(callbacks: list[OnDone]) -> None:
    for then in callbacks:
        then()
