"""HTTP to the Graph API: connections, time limits, retries and the errors they end in.

Theory of operation. A try ends with success, with a definite no (`GraphRefused`) or with `GraphUnreachable`, whose
`maybe_sent` is False only if no byte of the request can have reached Meta because no connection was made. `Repeat` says
which of these may be followed by another try. aiohttp itself sends a POST once (it retries idempotent methods only).
Redirects are not followed: they would repeat a request and leak the token. No error contains a token or SDP: Meta's
text passes through `mask_text`. The caller always gets a result at most `SPARE_S` after the time limit of one try.
Before each try `MetaHealth` decides whether to send it; afterwards it is told the result.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from typing import Final

import aiohttp
import orjson
import stamina

from gateway.common.clock import Clock
from gateway.common.errors import GraphError, GraphRefused, GraphUnreachable
from gateway.common.ids import PhoneNumberId
from gateway.meta import error_codes
from gateway.meta.answers import Json
from gateway.meta.health import MetaHealth

#: Called after each try with the request's name, the status (HTTP's, or a word) and the seconds it took.
Observe = Callable[[str, str, float], None]

CONNECTIONS: Final = 128
CONNECT_S: Final = 2.0
SPARE_S: Final = 0.75
MAX_ANSWER_BYTES: Final = 256 * 1024


class Repeat(Enum):
    """When a request may be sent again."""

    NEVER = "never"
    UNSENT = "unsent"  #: only if Meta has certainly not acted on it
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often and how fast a request is retried."""

    tries: int = 3
    within_s: float = 4.0  #: no try begins later than this after the first
    first_wait_s: float = 0.1
    max_wait_s: float = 1.5
    jitter_s: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRequest:
    """One request, and when it may be repeated."""

    op: str
    number: PhoneNumberId
    path: str
    repeat: Repeat
    body: Json | None = None
    query: Mapping[str, str] | None = None
    #: Tells whether a refusal means that the wanted result is there already.
    settled: Callable[[GraphRefused], bool] | None = None
    #: Use `settled` only after a try that Meta may have acted on.
    settled_if_doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    """The HTTP response to one try, not parsed yet."""

    status: int
    raw: bytes
    headers: Mapping[str, str]


class GraphHttp:
    """A pool of connections to Meta."""

    def __init__(
        self,
        *,
        base_url: str,
        token_for: Callable[[PhoneNumberId], str],
        clock: Clock,
        observe: Observe,
        timeout_s: float,
        retries: Retries,
        health: MetaHealth,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._token_for = token_for
        self._clock = clock
        self._observe = observe
        self._timeout_s = timeout_s
        self._retries = retries
        self._health = health
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Create the connection pool; no connection is opened yet."""
        self._session = aiohttp.ClientSession(
            # We close idle connections before Meta is likely to: if Meta closes one while a `connect` is written to
            # it, we do not know whether that call was placed.
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=30.0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close every connection, also those with a request under way. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(self, request: GraphRequest) -> Json:
        """Send a request, retry it as its `repeat` allows, and return the answer. Raises: GraphError."""
        begun = asyncio.get_running_loop().time()
        try:
            return await self._send_once(request, begun)
        except GraphError as error:
            if request.repeat is Repeat.NEVER:
                raise
            return await self._retry(error, request, begun)

    async def _retry(self, first: GraphError, request: GraphRequest, begun: float) -> Json:
        """Retry after a first try that failed; most requests never come here."""
        failed: GraphError | None = first
        doubtful = False
        plan = self._retries
        attempts = stamina.retry_context(
            on=partial(_retry_wait, request.repeat, clock=self._clock, plan=plan, begun=begun),
            attempts=plan.tries,
            timeout=plan.within_s,
            wait_initial=plan.first_wait_s,
            wait_max=plan.max_wait_s,
            wait_jitter=plan.jitter_s,
        ).with_name(request.op, (), {})
        async for attempt in attempts:
            with attempt:
                try:
                    if failed is not None:
                        raise failed
                    return await self._send_once(request, begun)
                except GraphUnreachable as error:
                    doubtful = doubtful or error.maybe_sent
                    raise
                except GraphRefused as error:
                    if _is_settled(request, error, doubtful=doubtful):
                        return {}
                    raise
                finally:
                    failed = None
        raise AssertionError("unreachable: the last try returns or raises")

    async def _send_once(self, request: GraphRequest, begun: float) -> Json:
        """Send a request once if `MetaHealth` permits it, and report the result to it."""
        permit = self._health.begin(request.op, request.number)
        try:
            answer = await self._send_and_read(request, permit.token, begun)
        except GraphError as error:
            self._health.end(permit, error)
            raise
        except BaseException:
            self._health.cut(permit)
            raise
        self._health.end(permit, None)
        return answer

    async def _send_and_read(self, request: GraphRequest, token: str, begun: float) -> Json:
        loop = asyncio.get_running_loop()
        started, asked_at = loop.time(), self._health.steady()
        timeout = self._timeout(request.repeat, left_s=begun + self._timeout_s + SPARE_S - started)
        status = "cut"
        try:
            reply = await self._exchange(request, token, timeout)
            status = str(reply.status)
        except GraphUnreachable as error:
            status = error.status
            raise
        finally:
            self._observe(request.op, status, loop.time() - started)
        body = error_codes.read_json(reply.raw)
        if body is not None:  # else it may be from a proxy, with a clock of its own
            self._health.heard(reply.headers.get("Date"), asked_at=asked_at)
        answer = error_codes.Answer(op=request.op, status=reply.status, body=body, headers=reply.headers)
        failure = error_codes.error_from(answer, token=token, now=self._clock.now())
        if failure is not None:
            raise failure
        return body or {}

    async def _exchange(self, request: GraphRequest, token: str, timeout: aiohttp.ClientTimeout) -> RawAnswer:
        """Send the HTTP request and read the response; every failure becomes `GraphUnreachable`."""
        op = request.op
        if self._session is None:
            raise GraphUnreachable("the client is closed", op=op, maybe_sent=False, status="not_connected")
        body = None if request.body is None else orjson.dumps(request.body)
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                f"{self._base_url}/{request.number}{request.path}",
                params=request.query,
                data=body,
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                return RawAnswer(status=response.status, raw=await _read(response, op), headers=response.headers)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise GraphUnreachable(_kind(error), op=op, maybe_sent=False, status="not_connected") from error
        except TimeoutError as error:
            raise GraphUnreachable("no answer in time", op=op, maybe_sent=True, status="timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            raise GraphUnreachable(_kind(error), op=op, maybe_sent=True, status="cut") from error

    def _timeout(self, repeat: Repeat, *, left_s: float) -> aiohttp.ClientTimeout:
        # A request that may be retried gets half the time for each try: a first try that hangs leaves time for a
        # second, and the caller waits about as long as for a request that is sent once.
        total_s = min(self._timeout_s / 2 if repeat is Repeat.ALWAYS else self._timeout_s, left_s)
        return _limits(total_s)


@lru_cache(maxsize=8)
def _limits(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, connect=min(CONNECT_S, total_s))


def _retry_wait(repeat: Repeat, error: Exception, *, clock: Clock, plan: Retries, begun: float) -> bool | float:
    """Return whether to retry after an error, or after how many seconds, with no try later than `within_s`."""
    again = _may_retry(repeat, error, clock=clock, longest_s=plan.max_wait_s)
    if again is False:
        return False
    wait_s = plan.first_wait_s + plan.jitter_s if again is True else again
    return again if asyncio.get_running_loop().time() + wait_s <= begun + plan.within_s else False


def _may_retry(repeat: Repeat, error: Exception, *, clock: Clock, longest_s: float) -> bool | float:
    """Return whether an error allows a retry, or after how many seconds."""
    if isinstance(error, GraphUnreachable):
        return repeat is Repeat.ALWAYS or not error.maybe_sent
    if not isinstance(error, GraphRefused) or not (error.transient or error.http_status == 429):
        return False
    if error.retry_at is None:
        return True
    wait_s = (error.retry_at - clock.now()).total_seconds()
    return max(wait_s, 0.0) if wait_s <= longest_s else False


def _is_settled(request: GraphRequest, error: GraphRefused, *, doubtful: bool) -> bool:
    if request.settled is None or (request.settled_if_doubtful and not doubtful):
        return False
    return request.settled(error)


async def _read(response: aiohttp.ClientResponse, op: str) -> bytes:
    """Read a response body of at most `MAX_ANSWER_BYTES`, more than any of Meta's answers has."""
    raw = bytearray()
    while chunk := await response.content.readany():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            response.close()
            raise GraphUnreachable("the answer is too large", op=op, maybe_sent=True, status=str(response.status))
    return bytes(raw)


def _kind(error: Exception) -> str:
    """Return an error's type name; its text may contain a URL with a query."""
    return type(error).__name__
