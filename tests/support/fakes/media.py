"""A media engine without media: records what it was asked, fails when told to."""

from collections import defaultdict, deque
from collections.abc import Sequence

from media.engine import LegConnected, LegFailed, LegFailure, LegId, LegStats, Tone, WorkerId
from media.errors import MediaError, NoWorker
from media.model import EventSink, unheard


class FakeMedia:
    """`media.engine.MediaEngine` in memory. Legs connect as soon as `connect` says so."""

    def __init__(self) -> None:
        self.on_event: EventSink = unheard
        self.asked: list[tuple[str, ...]] = []  #: what was asked, in order, with the ids it was about
        self.legs: set[LegId] = set()
        self.joined: set[frozenset[LegId]] = set()
        self.tones: dict[LegId, Tone] = {}
        self.alive: list[WorkerId] = [WorkerId(0)]
        self._failures: defaultdict[str, deque[MediaError]] = defaultdict(deque)

    # For tests

    def fail(self, method: str, *errors: MediaError) -> None:
        """Let the next calls of a method raise these, one each."""
        self._failures[method].extend(errors)

    def connect(self, leg: LegId) -> None:
        self.on_event(LegConnected(leg=leg))

    def lose(self, leg: LegId, reason: LegFailure = LegFailure.MEDIA_TIMEOUT) -> None:
        self.legs.discard(leg)
        self.on_event(LegFailed(leg=leg, reason=reason))

    def _ask(self, method: str, *ids: str) -> None:
        self.asked.append((method, *ids))
        if self._failures[method]:
            raise self._failures[method].popleft()

    # MediaEngine

    @property
    def workers(self) -> Sequence[WorkerId]:
        return tuple(self.alive)

    def pick_worker(self) -> WorkerId:
        if not self.alive:
            raise NoWorker
        return self.alive[0]

    async def answer_meta(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        self._ask("answer_meta", leg)
        self.legs.add(leg)
        return f"answer of {leg}"

    async def offer_meta(self, leg: LegId, worker: WorkerId) -> str:
        self._ask("offer_meta", leg)
        self.legs.add(leg)
        return f"offer of {leg}"

    async def accept_meta_answer(self, leg: LegId, answer_sdp: str) -> None:
        self._ask("accept_meta_answer", leg)

    async def answer_browser(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        self._ask("answer_browser", leg)
        self.legs.add(leg)
        return f"answer of {leg}"

    async def join(self, a: LegId, b: LegId) -> None:
        self._ask("join", a, b)
        self.joined.add(frozenset((a, b)))

    async def part(self, leg: LegId) -> None:
        self._ask("part", leg)
        self.joined = {pair for pair in self.joined if leg not in pair}

    async def play(self, leg: LegId, tone: Tone | None) -> None:
        self._ask("play", leg, tone.value if tone else "")
        self.tones.pop(leg, None)
        if tone is not None:
            self.tones[leg] = tone

    async def close(self, leg: LegId) -> LegStats | None:
        self._ask("close", leg)
        self.joined = {pair for pair in self.joined if leg not in pair}
        if leg not in self.legs:
            return None
        self.legs.discard(leg)
        return LegStats(rtp_packets_received=50, rtp_packets_sent=50)

    async def stats(self, leg: LegId) -> LegStats | None:
        return LegStats() if leg in self.legs else None

    async def start(self, on_event: EventSink) -> None:
        self.on_event = on_event
        self._ask("start")

    async def aclose(self) -> None:
        self._ask("aclose")
