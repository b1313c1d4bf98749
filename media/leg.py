"""One leg: aiortc's ICE and DTLS transports around one `Endpoint`, opened once and closed once.

Theory of operation. A leg is made with its own half of the SDP known, and is given a socket. `accept` gives it the
peer's half. `run` is its whole life, in one task: connect within the set-up time, then wait for the end. The first
cause of the end wins, whoever reports it (`end`): the gateway's close, ICE, DTLS or the watchdog. `run` always closes
everything, however it ends.

The watchdog ends a leg whose peer has gone. A browser leg must always show signs of life; its STUN checks count. A Meta
leg must do so only while it is joined, and only RTP and RTCP count: Meta is ICE-lite and sends no checks of its own.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from media import sdp
from media.bridge import Endpoint
from media.dtls import LegDtls, SharedCertificate
from media.errors import DtlsFailed, IceFailed
from media.ice import IceRemote, LegIce
from media.model import LegFailure, LegId, MediaConfig, Tone
from media.negotiation import Agreement
from media.stats import LegStats

log = logging.getLogger(__name__)

#: After this long a handshake no longer blocks the next one: it is waiting for its peer, not using our CPU.
TURN_S: Final = 0.5


class Side(StrEnum):
    """Who is at the other end of a leg."""

    META = "meta"
    BROWSER = "browser"


class Turns:
    """Limit concurrent handshakes, so that set-ups do not delay the audio of connected calls."""

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn; it ends with the block, or after `TURN_S`."""
        await self._free.acquire()
        pending = True

        def give_back() -> None:
            nonlocal pending
            if pending:
                pending = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(TURN_S, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The peer's half: its description, what was negotiated, and the candidates that we are willing to probe."""

    description: sdp.Description
    agreement: Agreement
    candidates: tuple[sdp.Candidate, ...]


class MediaLeg:
    """One leg; `controlling` is our ICE role."""

    def __init__(
        self,
        leg_id: LegId,
        side: Side,
        *,
        controlling: bool,
        config: MediaConfig,
        certificate: SharedCertificate,
        turns: Turns,
        on_digit: Callable[[str], None],
        on_connected: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.id = leg_id
        self.side = side
        #: The tone played while no join feeds the leg.
        self.tone: Tone | None = None
        self.finished = asyncio.Event()
        self._config = config
        self._turns = turns
        self._on_connected = on_connected
        self._rng = rng
        self._fingerprint = certificate.fingerprint
        self.ice = LegIce(controlling=controlling, packet_budget=config.packet_budget_per_s)
        self._dtls = LegDtls(self.ice, certificate)
        self._dtls.on_closed = self._closed_by_peer
        self.endpoint = Endpoint(
            transmit=self.ice.send,
            on_digit=on_digit,
            drops=self.ice.link.drops,
            may_report=side is Side.BROWSER,
            now=self._loop.time,
            rng=rng,
        )
        self.ice.link.on_media = self.endpoint.received
        if side is Side.BROWSER:
            self.ice.link.on_alive = self._alive
        self._remote: asyncio.Future[Remote] = self._loop.create_future()
        self._ended: asyncio.Future[LegFailure | None] = self._loop.create_future()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    def describe(self, agreement: Agreement, *, address: str, port: int) -> str:
        """Return our half of the SDP."""
        meta = self.side is Side.META
        return sdp.build(
            sdp.LocalDescription(
                mid=agreement.mid,
                setup=agreement.setup,
                direction=agreement.direction,
                ice_ufrag=self.ice.ufrag,
                ice_pwd=self.ice.pwd,
                fingerprint=self._fingerprint,
                payloads=agreement.receive,
                opus_parameters=sdp.OPUS_TO_META if meta else sdp.OPUS_TO_BROWSER,
                address=address,
                port=port,
                ssrc=self.endpoint.ssrc,
                cname=self.endpoint.cname,
                session_id=self._rng.getrandbits(53),
            )
        )

    def accept(self, remote: Remote) -> None:
        """Take the peer's half of the SDP and start connecting. Call once."""
        self._remote.set_result(remote)

    def end(self, reason: LegFailure | None) -> None:
        """End the leg; None is a requested close. Only the first call counts."""
        if not self._ended.done():
            self._ended.set_result(reason)

    async def run(self) -> LegFailure | None:
        """Run the leg until it ends and return why it ended. Leaves no socket, task or timer."""
        reason: LegFailure | None = None
        try:
            async with asyncio.TaskGroup() as group:
                connecting = group.create_task(self._connect())
                reason = await self._ended
                connecting.cancel()
        finally:
            await self._shut()
        return reason

    def stats(self) -> LegStats:
        """Return the counters so far."""
        return self.endpoint.stats()

    async def _connect(self) -> None:
        remote = await self._remote
        try:
            async with asyncio.timeout(self._config.setup_timeout_s):
                await self._ice_and_dtls(remote)
        except TimeoutError:
            self.end(LegFailure.SETUP_TIMEOUT)
        except IceFailed:
            self.end(LegFailure.ICE_FAILED)
        except DtlsFailed:
            mismatch = self._dtls.fingerprint_mismatch
            self.end(LegFailure.FINGERPRINT_MISMATCH if mismatch else LegFailure.DTLS_FAILED)
        except Exception:  # a bug ends one leg, not the worker
            log.exception("leg %s: unexpected error during set-up", self.id)
            self.end(LegFailure.DTLS_FAILED)
        else:
            self._every(self._config.rtcp_interval_s, self._report)
            self._watch()
            self._on_connected()

    async def _ice_and_dtls(self, remote: Remote) -> None:
        description, agreement = remote.description, remote.agreement
        await self.ice.connect(
            IceRemote(
                ufrag=description.ice_ufrag,
                pwd=description.ice_pwd,
                lite=description.ice_lite,
                candidates=remote.candidates,
            )
        )
        async with self._turns.take():
            keys = await self._dtls.handshake(agreement.role, description.fingerprint)
        hears_us = agreement.direction in (sdp.Direction.SENDRECV, sdp.Direction.SENDONLY)
        self.endpoint.secure(keys, send=agreement.send if hears_us else None, receive=agreement.receive)

    async def _shut(self) -> None:
        self.endpoint.shut()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        try:
            await self._dtls.close()
        finally:
            try:
                await self.ice.close()
            finally:
                self.finished.set()

    def _alive(self) -> None:
        self.endpoint.heard_at = self._loop.time()

    def _closed_by_peer(self) -> None:
        # aioice closes the connection itself when the peer's consent expires; DTLS then reports a closed transport.
        self.end(LegFailure.ICE_FAILED if self.ice.lost else LegFailure.CLOSED_BY_PEER)

    def _report(self) -> None:
        self.endpoint.report()
        self._every(self._config.rtcp_interval_s, self._report)

    def _watch(self) -> None:
        endpoint, limit = self.endpoint, self._config.media_timeout_s
        silent_s = 0.0
        if self.side is Side.BROWSER:
            silent_s = self._loop.time() - endpoint.heard_at
        elif endpoint.peer is not None:
            silent_s = self._loop.time() - max(endpoint.heard_at, endpoint.joined_at)
        if silent_s >= limit:
            self.end(LegFailure.MEDIA_TIMEOUT)
        else:
            self._timers[self._watch] = self._loop.call_later(limit - silent_s, self._watch)

    def _every(self, interval_s: float, action: Callable[[], None]) -> None:
        # Random from half to one and a half intervals (RFC 3550 §6.3.1), so that legs do not report in step.
        delay_s = interval_s * self._rng.uniform(0.5, 1.5)
        self._timers[action] = self._loop.call_later(delay_s, action)
