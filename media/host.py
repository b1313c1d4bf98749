"""All legs of one process: made, joined, played to and closed. It knows no frames and no other process.

`LegHost` is what a worker serves over its socket; tests use it without a process. All its tasks live in its TaskGroup.
A leg emits at most two events: `LegConnected`, and then `LegFailed` unless it is closed first.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

from media import negotiation, sdp
from media.bridge import Endpoint, join, part
from media.dtls import Certificates
from media.errors import MediaError, SdpRefused, TooBusy, UnknownLeg
from media.leg import MediaLeg, Remote, Side, Turns
from media.model import (
    DtmfReceived,
    LegConnected,
    LegFailed,
    LegFailure,
    LegId,
    MediaConfig,
    MediaEvent,
    Tone,
)
from media.negotiation import Agreement
from media.port import MetaPorts, SharedPort, browser_port
from media.stats import LegStats
from media.tones import TonePlayer, encode_tones

log = logging.getLogger(__name__)

#: Statistics of failed legs kept until the gateway closes them; beyond this many, the oldest are dropped.
MAX_EPITAPHS: Final = 1_024


class LegHost:
    """Make legs and join them. An asynchronous context manager; inside it, the shared port is open."""

    def __init__(self, config: MediaConfig, index: int, emit: Callable[[MediaEvent], None]) -> None:
        self._config = config
        self._index = index
        self._emit = emit
        self._address = config.announced_address or config.bind_address
        self._networks = sdp.parse_networks(config.candidate_networks)
        self._rng = random.SystemRandom()
        self._certificates = Certificates()
        self._meta_ports = MetaPorts(config, index)
        self._legs: dict[LegId, MediaLeg] = {}
        self._owners: dict[Endpoint, MediaLeg] = {}
        self._answers: dict[LegId, str] = {}
        self._epitaphs: OrderedDict[LegId, LegStats] = OrderedDict()
        #: Legs that wait for a set-up slot or for their socket.
        self._making: dict[LegId, asyncio.Event] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._tones = TonePlayer(encode_tones())
        self._set_ups = asyncio.Semaphore(self._config.setups_at_once)
        self._turns = Turns(self._config.setups_at_once)
        self._shared = await SharedPort.open(self._config.bind_address, browser_port(self._config, self._index))
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for leg in self._legs.values():
            leg.end(None)
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            self._tones.close()
            await self._shared.close()

    @property
    def legs(self) -> int:
        """Return the number of open legs."""
        return len(self._legs)

    @property
    def browser_port(self) -> int:
        """Return the port of the socket that all browser legs share."""
        return self._shared.address[1]

    async def answer_meta(self, leg_id: LegId, offer_sdp: str) -> str:
        """See `MediaEngine.answer_meta`."""
        offer = sdp.parse(offer_sdp)
        agreement = negotiation.answer_to(offer)
        remote = Remote(description=offer, agreement=agreement, candidates=self._candidates(offer))
        async with self._turn(leg_id):
            leg, port = await self._open_meta(leg_id, agreement)
            leg.accept(remote)
            return leg.describe(agreement, address=self._address, port=port)

    async def offer_meta(self, leg_id: LegId) -> str:
        """See `MediaEngine.offer_meta`."""
        async with self._turn(leg_id):
            leg, port = await self._open_meta(leg_id, negotiation.OFFER)
            self._answers[leg_id] = ""
            return leg.describe(negotiation.OFFER, address=self._address, port=port)

    async def accept_meta_answer(self, leg_id: LegId, answer_sdp: str) -> None:
        """See `MediaEngine.accept_meta_answer`."""
        leg = self._leg(leg_id)
        applied = self._answers.get(leg_id)
        if applied == answer_sdp:
            return
        if applied != "":
            raise SdpRefused("this leg is not waiting for an answer")
        answer = sdp.parse(answer_sdp)
        agreement = negotiation.agree(answer)
        leg.accept(Remote(description=answer, agreement=agreement, candidates=self._candidates(answer)))
        self._answers[leg_id] = answer_sdp

    async def answer_browser(self, leg_id: LegId, offer_sdp: str) -> str:
        """See `MediaEngine.answer_browser`."""
        offer = sdp.parse(offer_sdp)
        agreement = negotiation.answer_to(offer)
        async with self._turn(leg_id):
            leg = self._make(leg_id, Side.BROWSER, agreement)
            self._shared.attach(leg.ice.ufrag, leg.ice.link)
            self._start(leg, None)
            # No candidates: the operator's page must not make us probe addresses of its choice. The browser checks us.
            leg.accept(Remote(description=offer, agreement=agreement, candidates=()))
            return leg.describe(agreement, address=self._address, port=self.browser_port)

    def join(self, a: LegId, b: LegId) -> None:
        """See `MediaEngine.join`."""
        one, other = self._leg(a), self._leg(b)
        if one is other:
            raise MediaError("a leg cannot be joined to itself")
        touched = {one, other, *self._partners(one), *self._partners(other)}
        join(one.endpoint, other.endpoint, now=self._loop.time())
        for leg in touched:
            self._refresh_tone(leg)

    def part(self, leg_id: LegId) -> None:
        """See `MediaEngine.part`."""
        self._part(self._leg(leg_id))

    def play(self, leg_id: LegId, tone: Tone | None) -> None:
        """See `MediaEngine.play`."""
        leg = self._leg(leg_id)
        leg.tone = tone
        if tone is not None:
            leg.endpoint.may_report = True
        self._refresh_tone(leg)

    async def close(self, leg_id: LegId) -> LegStats | None:
        """See `MediaEngine.close`."""
        making = self._making.get(leg_id)
        if making is not None:
            await making.wait()
        leg = self._legs.get(leg_id)
        if leg is not None:
            leg.end(None)
            await leg.finished.wait()
            return leg.stats()
        return self._epitaphs.pop(leg_id, None)

    def stats(self, leg_id: LegId) -> LegStats | None:
        """See `MediaEngine.stats`."""
        leg = self._legs.get(leg_id)
        return leg.stats() if leg is not None else self._epitaphs.get(leg_id)

    @asynccontextmanager
    async def _turn(self, leg_id: LegId) -> AsyncIterator[None]:
        """Wait for a set-up slot; there are few. Raises: TooBusy, MediaError."""
        if leg_id in self._legs or leg_id in self._making:
            raise MediaError("the leg exists already")
        if len(self._making) >= self._config.setups_at_once + self._config.setups_waiting:
            raise TooBusy("the set-up queue is full")
        made = self._making[leg_id] = asyncio.Event()
        try:
            async with self._set_ups:
                await asyncio.sleep(0)  # let audio through between two set-ups, however many are waiting
                yield
        finally:
            del self._making[leg_id]
            made.set()

    async def _open_meta(self, leg_id: LegId, agreement: Agreement) -> tuple[MediaLeg, int]:
        leg = self._make(leg_id, Side.META, agreement)
        port = await self._meta_ports.open(leg.ice.link)
        self._start(leg, port)
        return leg, port

    def _make(self, leg_id: LegId, side: Side, agreement: Agreement) -> MediaLeg:
        return MediaLeg(
            leg_id,
            side,
            controlling=agreement.ice_controlling,
            config=self._config,
            certificate=self._certificates.current(now=self._loop.time()),
            turns=self._turns,
            on_digit=lambda digit: self._emit(DtmfReceived(leg_id, digit)),
            on_connected=lambda: self._connected(leg_id),
            rng=self._rng,
        )

    def _start(self, leg: MediaLeg, port: int | None) -> None:
        self._legs[leg.id] = leg
        self._owners[leg.endpoint] = leg
        self._group.create_task(self._run(leg, port))

    async def _run(self, leg: MediaLeg, port: int | None) -> None:
        reason: LegFailure | None = None
        try:
            reason = await leg.run()
        except Exception:  # a bug ends one leg, not the worker
            log.exception("leg %s ended by an unexpected error", leg.id)
            reason = LegFailure.ICE_FAILED
        finally:
            self._tones.play(leg.endpoint, None)
            self._part(leg)
            del self._legs[leg.id], self._owners[leg.endpoint]
            self._answers.pop(leg.id, None)
            if port is not None:
                self._meta_ports.release(port)
        if reason is not None:
            self._epitaphs[leg.id] = leg.stats()
            if len(self._epitaphs) > MAX_EPITAPHS:
                self._epitaphs.popitem(last=False)
            self._emit(LegFailed(leg.id, reason))

    def _connected(self, leg_id: LegId) -> None:
        leg = self._legs[leg_id]
        for touched in (leg, *self._partners(leg)):
            self._refresh_tone(touched)
        self._emit(LegConnected(leg_id))

    def _part(self, leg: MediaLeg) -> None:
        touched = (leg, *self._partners(leg))
        part(leg.endpoint)
        for other in touched:
            self._refresh_tone(other)

    def _refresh_tone(self, leg: MediaLeg) -> None:
        """Play the leg's tone exactly while the leg is connected and no connected peer feeds it."""
        endpoint = leg.endpoint
        fed = endpoint.peer is not None and endpoint.peer.connected
        self._tones.play(endpoint, leg.tone if endpoint.connected and not fed else None)

    def _partners(self, leg: MediaLeg) -> tuple[MediaLeg, ...]:
        peer = leg.endpoint.peer
        return () if peer is None else (self._owners[peer],)

    def _candidates(self, description: sdp.Description) -> tuple[sdp.Candidate, ...]:
        usable = sdp.usable_candidates(description.candidates, self._networks)
        if not usable and description.ice_lite:
            raise SdpRefused("no usable candidate, and an ICE-lite peer sends no checks of its own")
        return usable

    def _leg(self, leg_id: LegId) -> MediaLeg:
        leg = self._legs.get(leg_id)
        if leg is None:
            raise UnknownLeg()
        return leg
