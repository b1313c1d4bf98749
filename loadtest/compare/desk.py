"""Meta's side in a comparison: places calls at the simulated Meta and delivers their webhooks by hand.

The simulated Meta sends no webhooks by itself here, so that each one can be timed, duplicated, modified or held back,
in the same way for all peers. Graph requests are checked by the usual rules.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from loadtest.common.clock import instant
from loadtest.compare.peers import Target
from loadtest.loads.generator import NO_ANSWER
from loadtest.net.http_client import HttpClient
from loadtest.simulator.faults import GraphFault, WebhookFaults
from loadtest.simulator.payloads import envelope, signature
from loadtest.simulator.state import Call, CallState

Change: TypeAlias = dict[str, Any]

_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The response to a webhook."""

    #: HTTP status; 0: no response.
    status: int
    took_s: float

    def __str__(self) -> str:
        return f"{self.status or 'no answer'} after {self.took_s:.1f} s"


class Desk:
    """Meta's side, for one peer. Open it with `desk()`."""

    def __init__(self, target: Target, http: HttpClient) -> None:
        self.target, self.sim = target, target.sim
        self._http = http
        self._users = deque(self.sim.world.users)
        #: When the simulated Graph had read a request, by call and action; the first, if there are several.
        self.heard: dict[tuple[str, str], float] = {}
        self._waiting: dict[tuple[str, str], asyncio.Event] = {}
        self.sim.world.heard = self._hear
        self.clear_faults()

    # The user's side

    def call(self) -> tuple[Call, Change]:
        """Let the user who has waited longest call; return the call and its `connect`. Raises: NotPossible."""
        self._users.rotate(-1)
        return self.sim.user(self._users[0]).call(), self._last()

    def hang_up(self, call: Call) -> Change:
        """Let the caller hang up; return the `terminate`. Raises: NotPossible."""
        self.sim.user(call.facts.user.wa_id).hang_up()
        return self._last()

    def _last(self) -> Change:
        return self.sim.webhooks.sent[-1].change

    # Webhooks

    async def post(self, *changes: Change, signed: str | None = None) -> Reply:
        """Deliver changes together; `signed` replaces the signature header, "" leaves it out."""
        body = json.dumps(envelope(changes, self.sim.number.spec.waba_id), separators=(",", ":")).encode()
        header = signature(body, self.sim.config.app_secret) if signed is None else signed
        headers = {"Content-Type": "application/json", "User-Agent": "facebookexternalua"}
        if header:
            headers["X-Hub-Signature-256"] = header
        left_at, status = instant(), NO_ANSWER
        with contextlib.suppress(OSError):  # includes TimeoutError: no response came
            status = (await self._http.request("POST", headers, body)).status
        return Reply(status=status, took_s=instant() - left_at)

    # Graph's side

    def _hear(self, action: str, call_id: str) -> None:
        key = (call_id, action)
        self.heard.setdefault(key, instant())
        if key in self._waiting:
            self._waiting[key].set()

    async def hears(self, call: Call, action: str, *, timeout_s: float) -> bool:
        """Wait until Graph has read such a request; return whether it came."""
        key = (call.id, action)
        if key not in self.heard:
            event = self._waiting.setdefault(key, asyncio.Event())
            try:
                async with asyncio.timeout(timeout_s):
                    await event.wait()
            except TimeoutError:
                return False
            finally:
                self._waiting.pop(key, None)
        return True

    async def answers(self, call: Call, *, timeout_s: float) -> bool:
        """Wait until the call is answered; return whether it was."""
        try:
            await self.sim.until(lambda: call.state is CallState.ACTIVE, timeout_s=timeout_s)
        except TimeoutError:
            return False
        return True

    def asked(self, call: Call) -> list[str]:
        """Return the Graph requests about a call with their status, in order: `pre_accept 200` for example."""
        return [f"{one.action} {one.status}" for one in self.sim.world.requests if one.call_id == call.id]

    def order(self, *faults: GraphFault) -> None:
        """Let Graph requests fail or be slow."""
        self.sim.faults.order(list(faults), None)

    def clear_faults(self) -> None:
        """Remove all Graph faults; webhooks are still delivered by hand only."""
        self.sim.faults.clear()
        self.sim.faults.order([], WebhookFaults(lost=1.0))

    async def clear_up(self) -> None:
        """End every call, at Meta and at the peer."""
        self.clear_faults()
        ended: Sequence[Change] = [self.hang_up(call) for call in self.sim.world.live_calls()]
        for change in ended:
            await self.post(change)
        self.heard.clear()


@asynccontextmanager
async def desk(target: Target) -> AsyncIterator[Desk]:
    """Open the desk for one target."""
    async with HttpClient(target.hook_url, timeout_s=_TIMEOUT_S) as http:
        yield Desk(target, http)
