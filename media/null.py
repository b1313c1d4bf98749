"""A media engine without media, for measuring signalling alone. Not for real calls.

It checks and writes SDP as strictly as a worker does and reports every leg as connected. Nothing is ever sent or
received, and no process is started.
"""

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from media import negotiation, sdp
from media.errors import MediaError, NoWorker, SdpRefused, UnknownLeg, WorkerGone
from media.model import EventSink, LegConnected, LegId, MediaConfig, Tone, WorkerId, WorkerUp, unheard
from media.negotiation import Agreement
from media.stats import LegStats

#: The `discard` port (RFC 863): media sent to our SDP's address reaches nobody.
PORT: Final = 9


@dataclass(slots=True, kw_only=True)
class _Leg:
    worker: WorkerId
    began_at: float
    #: None: the peer offered. Otherwise the peer's answer to our offer, empty while we wait for it.
    answer: str | None
    connected_after_ms: float | None = None

    def stats(self) -> LegStats:
        return LegStats(connected_after_ms=self.connected_after_ms)


class NullEngine:
    """A `MediaEngine` that answers at once and carries no media."""

    def __init__(self, config: MediaConfig) -> None:
        self._config = config
        self._on_event: EventSink = unheard
        self._legs: dict[LegId, _Leg] = {}
        #: Number of legs of each worker; empty before `start` and after `aclose`.
        self._loads: dict[WorkerId, int] = {}
        self._ssrcs = itertools.count(secrets.randbelow(1 << 31))
        self._fingerprint = ":".join(f"{byte:02X}" for byte in secrets.token_bytes(32))

    @property
    def workers(self) -> Sequence[WorkerId]:
        """See `MediaEngine`."""
        return tuple(self._loads)

    def pick_worker(self) -> WorkerId:
        """See `MediaEngine`. Raises: NoWorker."""
        if not self._loads:
            raise NoWorker()
        return min(self._loads, key=self._loads.__getitem__)

    async def start(self, on_event: EventSink) -> None:
        """See `MediaEngine`."""
        self._on_event = on_event
        self._loads = dict.fromkeys(map(WorkerId, range(self._config.workers)), 0)
        for worker in self._loads:
            self._on_event(WorkerUp(worker))

    async def aclose(self) -> None:
        """See `MediaEngine`."""
        self._loads.clear()
        self._legs.clear()

    async def answer_meta(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        """See `MediaEngine`."""
        return await self._answer(leg, worker, offer_sdp, sdp.OPUS_TO_META)

    async def answer_browser(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        """See `MediaEngine`."""
        return await self._answer(leg, worker, offer_sdp, sdp.OPUS_TO_BROWSER)

    async def offer_meta(self, leg: LegId, worker: WorkerId) -> str:
        """See `MediaEngine`."""
        await self._make(leg, worker, answer="")
        return self._describe(negotiation.OFFER, sdp.OPUS_TO_META)

    async def accept_meta_answer(self, leg: LegId, answer_sdp: str) -> None:
        """See `MediaEngine`."""
        made = self._find(leg)
        if made.answer == answer_sdp:
            return
        if made.answer != "":
            raise SdpRefused("this leg is not waiting for an answer")
        negotiation.agree(sdp.parse(answer_sdp))
        made.answer = answer_sdp
        self._connect(leg, made)

    async def join(self, a: LegId, b: LegId) -> None:
        """See `MediaEngine`."""
        if self._find(a).worker != self._find(b).worker:
            raise MediaError("the legs live in different workers")

    async def part(self, leg: LegId) -> None:
        """See `MediaEngine`."""
        self._find(leg)

    async def play(self, leg: LegId, tone: Tone | None) -> None:
        """See `MediaEngine`."""
        self._find(leg)

    async def close(self, leg: LegId) -> LegStats | None:
        """See `MediaEngine`."""
        made = self._legs.pop(leg, None)
        if made is None:
            return None
        if made.worker in self._loads:
            self._loads[made.worker] -= 1
        return made.stats()

    async def stats(self, leg: LegId) -> LegStats | None:
        """See `MediaEngine`."""
        made = self._legs.get(leg)
        return None if made is None else made.stats()

    async def _answer(self, leg: LegId, worker: WorkerId, offer_sdp: str, opus_parameters: str) -> str:
        agreement = negotiation.answer_to(sdp.parse(offer_sdp))
        self._connect(leg, await self._make(leg, worker, answer=None))
        return self._describe(agreement, opus_parameters)

    async def _make(self, leg: LegId, worker: WorkerId, *, answer: str | None) -> _Leg:
        if worker not in self._loads:
            raise WorkerGone("the worker process ended")
        if leg in self._legs:
            raise MediaError("the leg exists already")
        made = self._legs[leg] = _Leg(worker=worker, began_at=self._now(), answer=answer)
        self._loads[worker] += 1
        try:
            await asyncio.sleep(0)  # like a worker's answer, it arrives in a later iteration of the loop
        except BaseException:
            await self.close(leg)  # the cancelled caller will never close it
            raise
        return made

    def _find(self, leg: LegId) -> _Leg:
        made = self._legs.get(leg)
        if made is None:
            raise UnknownLeg()
        return made

    def _connect(self, leg: LegId, made: _Leg) -> None:
        """Report the leg as connected, after the caller has received the answer."""

        def say() -> None:
            if self._legs.get(leg) is made:
                made.connected_after_ms = (self._now() - made.began_at) * 1000
                self._on_event(LegConnected(leg))

        asyncio.get_running_loop().call_soon(say)

    def _describe(self, agreement: Agreement, opus_parameters: str) -> str:
        return sdp.build(
            sdp.LocalDescription(
                mid=agreement.mid,
                setup=agreement.setup,
                direction=agreement.direction,
                ice_ufrag=secrets.token_hex(4),
                ice_pwd=secrets.token_hex(16),
                fingerprint=self._fingerprint,
                payloads=agreement.receive,
                opus_parameters=opus_parameters,
                address=self._config.announced_address or self._config.bind_address,
                port=PORT,
                ssrc=next(self._ssrcs) & 0xFFFFFFFF,
                cname="null",
                session_id=secrets.randbits(53),
            )
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
