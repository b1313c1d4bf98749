"""Tells Meta to end calls that nobody runs any more, again and again until that is confirmed.

Responsible for every call that Meta may still think alive, and bill, while no driver has it: what a crash left, what
Meta did not hear when its driver was done, what was placed without an answer. Not responsible for live calls (see
`driver`, `performer`) nor for closing records (see `recovery`).

Theory of operation. A call that is *owed* an end is marked in the store (`EndOwed`) before Meta is asked, and the mark
goes only when the end is confirmed: Meta's 200, Meta's "already ended", or its `terminate` webhook. So a crash in
between costs a pause and nothing else. Between two tries the pause grows; few requests run at once, so that a thousand
endings leave room for new calls.

A call whose `connect` was never answered cannot be ended yet: Meta's id for it is not known. It is *expected* for a
while: whatever webhook comes with our own id in it (`biz_opaque_callback_data`) tells Meta's id, and then the call is
owed its end. When none comes in that time there was no such call.
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

#: Requests to Meta under way at once: with Meta at 200 ms a thousand calls are ended in 5 s, and new calls find room.
AT_A_TIME: Final = 40
#: Between two tries; no two calls keep step with each other.
PAUSES: Final = Backoff((2.0, 4.0, 8.0, 16.0, 32.0, 60.0), jitter=0.2)
#: Nobody talks to a party without audio for so long: then the call is forgotten, with an error in the log.
GIVE_UP_S: Final = 2 * 3600.0
#: How long a webhook may take to tell Meta's id of a call whose `connect` was not answered.
EXPECT_S: Final = 600.0

OnDone = Callable[[], None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Owed:
    """One call at Meta, until its end is confirmed."""

    number_id: PhoneNumberId
    meta_call_id: MetaCallId
    calls: set[CallId] = field(default_factory=set)  #: ours; two if one of our numbers called another
    then: list[OnDone] = field(default_factory=list)
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """A call that may be at Meta, under an id that we do not know."""

    number_id: PhoneNumberId
    known: KnownCall
    then: OnDone
    expiry: asyncio.TimerHandle


class OwedHangups:
    """Every end that Meta still has to hear of."""

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
        """Count the calls that Meta may still think alive."""
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
        """End a call at Meta from here on, until it is confirmed; `then` is called when it is, or nobody tries on.

        `after_s`: whoever has just failed waits before the next try. To ask for the same call again changes nothing.
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
            self._count()
            owed.task = self._start(self._until_confirmed(owed, after_s))

    def confirmed(self, meta_call_id: MetaCallId) -> None:
        """Meta said by webhook that this call is over, whether or not anybody was trying to end it."""
        owed = self._owed.get(meta_call_id)
        if owed is not None:
            owed.confirmed.set()

    def expect(
        self, number_id: PhoneNumberId, call_id: CallId, known: KnownCall, *, then: OnDone = lambda: None
    ) -> None:
        """Watch for webhooks of a call that may be at Meta under an id that we do not know."""
        if call_id in self._expected:
            return
        expiry = asyncio.get_running_loop().call_later(EXPECT_S, self._never_came, call_id)
        self._expected[call_id] = _Expected(number_id=number_id, known=known, then=then, expiry=expiry)
        self._store.write_soon(EndOwed(call_id=call_id, owed=True))
        self._count()

    def turned_up(self, call_id: CallId, meta_call_id: MetaCallId, *, over: bool) -> bool:
        """Take what a webhook says of a call that nobody runs; False: it is none that was expected.

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
            _tell([expected.then])
        else:
            self.keep_trying(expected.number_id, meta_call_id, call_id, then=expected.then)
        self._count()
        return True

    def close(self) -> None:
        """Stop; what is owed stays marked in the store, for the next start."""
        for expected in self._expected.values():
            expected.expiry.cancel()
        for owed in self._owed.values():
            if owed.task is not None:
                owed.task.cancel()

    # --- the work ----------------------------------------------------------------------------------

    async def _until_confirmed(self, owed: _Owed, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        try:
            await _pause(owed, after_s)
            for failures in count():
                if owed.confirmed.is_set() or await self._try(owed):
                    break
                pause_s = PAUSES.pause_s(failures, chance=random.random())
                if loop.time() + pause_s > give_up_at:
                    log.error("call_end_given_up", number_id=owed.number_id, call_ids=sorted(owed.calls))
                    break
                await _pause(owed, pause_s)
            for call_id in owed.calls:
                self._store.write_soon(EndOwed(call_id=call_id, owed=False, meta_call_id=owed.meta_call_id))
        finally:  # also where the gateway stops: the store remembers
            self._forget(owed)

    async def _try(self, owed: _Owed) -> bool:
        """Ask once (the Graph client repeats by itself); True: Meta has heard."""
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
            except (Exception, asyncio.CancelledError) as error:  # a bug is no reason to forget a call
                if was_cancelled(error):
                    raise
                log.exception("ending_broken", call_ids=sorted(owed.calls))
                return False
        return True

    def _forget(self, owed: _Owed) -> None:
        if self._owed.pop(owed.meta_call_id, None) is not None:
            self._count()
            _tell(owed.then)

    def _never_came(self, call_id: CallId) -> None:
        expected = self._expected.pop(call_id)
        self._store.write_soon(EndOwed(call_id=call_id, owed=False))
        self._count()
        _tell([expected.then])

    def _count(self) -> None:
        self._metrics.calls_unconfirmed.set(len(self))


async def _pause(owed: _Owed, seconds: float) -> None:
    """Wait, but no longer than until the end is confirmed."""
    if seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await owed.confirmed.wait()
    except TimeoutError:
        return


def _tell(whom: list[OnDone]) -> None:
    for then in whom:
        then()
