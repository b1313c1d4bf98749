"""Open-loop load: requests are sent when they are due, however slow the answers are.

Arrivals are drawn from a seed in advance and do not depend on the other side, and a request's time counts from when it
was due. A stall of the other side therefore shows in every request that was due during it, and not only in the one that
was waiting (generators that wait for their answers suffer from "coordinated omission"). If the generator itself was
late, `Shot.late_s` says so.

`SignedWebhooks` is the client for loads of webhooks; their contents are in `simulator/payloads.py`.

    async with SignedWebhooks(url, app_secret=secret, number=number) as webhooks:
        send = lambda i: webhooks.post([webhooks.message(users[i])])
        shots = await open_loop(send, rate_per_s=200, count=2_000, seed=1)
    percentile([shot.took_s for shot in shots], 0.99)
"""

import asyncio
import itertools
import math
import random
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import aiohttp

from loadtest.common.clock import Clock, instant, wall_clock
from loadtest.common.guard import check_url
from loadtest.net.http_client import HttpClient
from loadtest.simulator.config import NumberSpec, UserSpec
from loadtest.simulator.payloads import (
    CallEnd,
    CallFacts,
    Direction,
    PermissionReply,
    call_status,
    connect,
    encoded,
    envelope,
    permission_reply,
    signed_headers,
    terminate,
    text_message,
)
from loadtest.simulator.sdp import MetaMedia, write_offer

Change: TypeAlias = dict[str, Any]

#: Status of a request without a response.
NO_ANSWER: Final = 0
_MEDIA: Final = MetaMedia(
    host="127.0.0.1",
    port=3480,
    ufrag="simulatedOffer01",
    password="c2ltdWxhdGVkIG9mZmVyLg==",
    fingerprint=":".join(f"{byte:02X}" for byte in range(32)),
    ssrc=1_000_000_001,
    session_id=1_790_000_000_000,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One request and its result."""

    index: int
    #: When it was due, in seconds from the start of the run.
    due_s: float
    #: Seconds from when it was due to its response.
    took_s: float
    #: HTTP status; 0: no response.
    status: int
    #: Delay between due and sent: nearly 0, unless the generator was the limit.
    late_s: float = 0.0


def arrivals(*, rate_per_s: float, count: int, seed: int) -> list[float]:
    """Return when requests are due, in seconds from the start: a Poisson process of this rate. Raises: ValueError."""
    if not (math.isfinite(rate_per_s) and rate_per_s > 0) or count < 0:
        raise ValueError("the rate must be above 0, the count 0 or more")
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.expovariate(rate_per_s) for _ in range(count)))


async def open_loop(
    send: Callable[[int], Awaitable[int]],
    *,
    rate_per_s: float,
    count: int,
    seed: int,
    most: int = 2_000,
) -> list[Shot]:
    """Call `send(0)` to `send(count - 1)` when each is due; return all shots in this order.

    `send` returns a status; `OSError`, `TimeoutError` and aiohttp's errors count as no response, any other error is a
    bug and ends the run. At most `most` requests are in flight; a request that is due beyond that waits, and its time
    runs. Raises: ValueError.
    """
    if most < 1:
        raise ValueError("most must be at least 1")
    due = arrivals(rate_per_s=rate_per_s, count=count, seed=seed)
    shots: list[Shot] = []
    places = asyncio.Semaphore(most)

    async def shoot(index: int, began_at: float) -> None:
        due_at = began_at + due[index]
        late_s = max(0.0, instant() - due_at)
        try:
            status = await send(index)
        except (aiohttp.ClientError, OSError):  # OSError includes TimeoutError
            status = NO_ANSWER
        finally:
            places.release()
        took_s = max(0.0, instant() - due_at)
        shots.append(Shot(index=index, due_s=due[index], took_s=took_s, status=status, late_s=late_s))

    async with asyncio.TaskGroup() as group:
        began_at = instant()
        for index, due_s in enumerate(due):
            wait_s = began_at + due_s - instant()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await places.acquire()
            group.create_task(shoot(index, began_at))
    return sorted(shots, key=lambda shot: shot.index)


def percentile(values: Collection[float], share: float) -> float:
    """Return the smallest value that at least this share (0 to 1) of the values do not exceed (nearest rank).

    Raises: ValueError if there are no values.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError("a percentile needs at least one value, and a share from 0 to 1")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class SignedWebhooks:
    """Post webhooks as Meta does, for one business number. Close it at the end: it keeps connections.

    The methods that make changes draw new ids; posting the same change twice is a duplicate delivery.
    """

    def __init__(
        self,
        url: str,
        *,
        app_secret: str,
        number: NumberSpec,
        timeout_s: float = 20.0,
        clock: Clock = wall_clock,
        run: str | None = None,
    ) -> None:
        """`run` is part of every id; by default it is random, so that runs against one database do not mix.

        Raises: NotLoopback, ValueError.
        """
        self.url = check_url(url)
        self.number = number
        self._secret = app_secret
        self._clock = clock
        self._run = run or secrets.token_hex(4)
        self._ids = itertools.count(1)
        # No connection limit: waiting for a connection would distort the figures.
        self._http = HttpClient(self.url, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def post(self, changes: Sequence[Change]) -> int:
        """Post one delivery; return the HTTP status, 0 for no response."""
        return await self.post_raw(self.body(changes))

    def body(self, changes: Sequence[Change]) -> bytes:
        """Return the bytes of a delivery."""
        return encoded(envelope(changes, self.number.waba_id))

    async def post_raw(self, body: bytes, *, signed: str | None = None) -> int:
        """Post these bytes, with their signature or the given one; return the HTTP status, 0 for no response."""
        headers = signed_headers(body, self._secret)
        if signed is not None:
            headers["X-Hub-Signature-256"] = signed
        try:
            return (await self._http.request("POST", headers, body)).status
        except OSError:
            return NO_ANSWER

    # Contents of webhooks. `at` is UNIX seconds; default: now.

    def new_id(self, prefix: str) -> str:
        """Return a fresh `wacid.…` or `wamid.…`."""
        return f"{prefix}.{self._run}{next(self._ids):08d}"

    def facts(
        self,
        user: UserSpec,
        call_id: str | None = None,
        *,
        direction: Direction = Direction.USER_INITIATED,
        opaque: str | None = None,
    ) -> CallFacts:
        """Return the facts of a call for `connect`, `status` and `terminate`."""
        return CallFacts(
            id=call_id or self.new_id("wacid"),
            direction=direction,
            number=self.number,
            user=user,
            biz_opaque_callback_data=opaque,
        )

    def message(self, user: UserSpec, text: str = "hello", *, at: float | None = None) -> Change:
        """Return a message written by the user."""
        return text_message(self.number, user, self.new_id("wamid"), text, self._now(at))

    def permission(
        self, user: UserSpec, *, accept: bool = True, permanent: bool = True, at: float | None = None
    ) -> Change:
        """Return the user's decision about calls; a temporary permission is valid for seven days."""
        now = self._now(at)
        expires_at = now + 7 * 86_400 if accept and not permanent else None
        reply = PermissionReply(accept=accept, automatic=False, permanent=accept and permanent, expires_at=expires_at)
        return permission_reply(self.number, user, self.new_id("wamid"), reply, now)

    def connect(self, call: CallFacts, *, sdp: str | None = None, at: float | None = None) -> Change:
        """Return `connect` with Meta's SDP; by default an offer without media behind it."""
        return connect(call, write_offer(_MEDIA) if sdp is None else sdp, self._now(at))

    def status(self, call: CallFacts, status: str, *, at: float | None = None) -> Change:
        """Return RINGING, ACCEPTED or REJECTED of a business-initiated call."""
        return call_status(call, status, self._now(at))

    def terminate(
        self, call: CallFacts, *, started_at: float | None = None, failed: bool = False, at: float | None = None
    ) -> Change:
        """Return the end of a call; with `started_at` it had been answered."""
        return terminate(call, CallEnd(failed=failed, started_at=started_at, ended_at=self._now(at)))

    def _now(self, at: float | None) -> float:
        return self._clock() if at is None else at
