"""Any bytes that come as a session description give an answer or a clean refusal, quickly, and leave nothing behind."""

import asyncio
import gc
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from loadtest.measure.process import descriptors
from media import negotiation, sdp
from media.engine import MediaEngine, WorkerPool
from media.errors import MediaError, SdpRefused
from media.model import LegId, MediaEvent, WorkerUp
from tests.loopback.peers import CONFIG, Stage, until
from tests.support.generators.hostile import Wire, gather_on_loopback
from tests.support.generators.sdp_mutations import documents, hostile_documents, mutate
from tests.support.harness.chaos import Chaos

PROMISE = "any bytes as SDP give an answer or a clean refusal in 20 ms; no task, socket or packet is left"


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_on_loopback(monkeypatch)


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """Yield the kept documents, then damaged ones."""
    rng, good = random.Random(seed), tuple(documents().values())
    yield from hostile_documents().values()
    for _ in range(count):
        yield mutate(rng, rng.choice(good))


@dataclass(slots=True)
class Reading:
    """What became of documents that were read."""

    read: int = 0
    refused: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    #: The first few that broke something, to be kept in `tests/data/sdp/hostile`.
    culprits: list[bytes] = field(default_factory=list)

    def take(self, document: bytes) -> None:
        """Do all that is done with a peer's text before a leg is made, as bytes and as the text of a JSON string."""
        for text in (document, document.decode(errors="surrogateescape")):
            began = time.thread_time()
            try:
                description = sdp.parse(text)
                negotiation.answer_to(description)
                sdp.usable_candidates(description.candidates)
                negotiation.agree(description)
            except SdpRefused:
                self.refused += 1
            except Exception as error:
                self.broken[type(error).__name__] += 1
                self.culprits = [*self.culprits, document][:5]
            else:
                self.read += 1
            self.worst_s = max(self.worst_s, time.thread_time() - began)


def read_all(given: Iterable[bytes]) -> Reading:
    reading = Reading()
    gc.collect()
    gc.freeze()  # as the program does: what the tests keep in memory is not the reader's to walk through
    try:
        for document in given:
            reading.take(document)
    finally:
        gc.unfreeze()
    return reading


@pytest.mark.row(17, PROMISE)
def test_any_bytes_are_read_or_refused(chaos: Chaos) -> None:
    count = chaos.size(test=500, short=10_000, long=100_000)
    reading = read_all(mutants(chaos.seed, count))

    chaos.note("descriptions read, each as bytes and as text", (reading.read + reading.refused) // 2)
    chaos.note("of these accepted", reading.read // 2)
    chaos.promise("other errors than a refusal", reading.broken.total(), at_most=0)
    chaos.promise("worst time of the processor", reading.worst_s * 1_000, at_most=20, unit="ms", timed=True)
    assert reading.broken == {}, reading.culprits
    assert reading.read > count / 10, "most damage hits nothing that matters, and must not be refused"


@pytest.mark.row(17, PROMISE)
async def test_legs_made_of_them_leave_nothing_and_write_to_nobody(
    chaos: Chaos, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire.tap(monkeypatch)
    given = list(mutants(chaos.seed + 1, chaos.size(test=60, short=600, long=6_000)))
    other_errors = made = 0
    caplog.set_level(logging.ERROR, logger="media")
    async with Stage(replace(CONFIG, candidate_networks=(), setup_timeout_s=0.5)) as stage:
        before = left_over()
        for start in range(0, len(given), 20):
            batch = [
                make(stage, f"{n}", document.decode(errors="replace"))
                for n, document in enumerate(given[start : start + 20], start)
            ]
            results = await asyncio.gather(*batch, return_exceptions=True)
            made += sum(result is None for result in results)
            other_errors += sum(isinstance(r, BaseException) and not isinstance(r, MediaError) for r in results)
        await until(lambda: left_over() == before)
        tasks, sockets = left_over()

    forbidden = {host for host, _ in wire.addresses if not sdp.usable_candidates([candidate_at(host)])}
    broken = [record for record in caplog.records if record.levelno >= logging.ERROR]
    chaos.note("legs tried", 3 * len(given))
    chaos.note("documents of which a leg was made", made)
    chaos.promise("other errors than a refusal", other_errors + len(broken), at_most=0)
    chaos.promise("tasks left", tasks - before[0], at_most=0)
    chaos.promise("sockets left", sockets - before[1], at_most=0)
    chaos.promise("addresses written to that are not global", len(forbidden), at_most=0)
    assert made > 0


async def make(stage: Stage, name: str, text: str) -> None:
    """Try all three doors of a leg, and close what was made. Raises a refusal, or what should not be."""
    host = stage.host
    failed: list[Exception] = []
    for door in ("meta", "browser", "called"):
        leg = LegId(f"{name} {door}")
        try:
            if door == "meta":
                await host.answer_meta(leg, text)
            elif door == "browser":
                await host.answer_browser(leg, text)
            else:
                await host.offer_meta(leg)
                await host.accept_meta_answer(leg, text)
            await asyncio.sleep(0.03)  # the first checks would go out now
        except Exception as error:
            failed.append(error)
        finally:
            await host.close(leg)
    failed.sort(key=lambda error: isinstance(error, MediaError))
    if failed:
        raise failed[0]


def candidate_at(host: str) -> sdp.Candidate:
    return sdp.Candidate(foundation="1", component=1, transport="udp", priority=1, address=host, port=3478, type="host")


def left_over() -> tuple[int, int]:
    return len(asyncio.all_tasks()), descriptors(os.getpid())


@pytest.mark.row(17, PROMISE)
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_worker_process_outlives_them(chaos: Chaos) -> None:
    events: list[MediaEvent] = []
    pool = WorkerPool(CONFIG)
    engine: MediaEngine = pool
    await engine.start(events.append)
    other_errors = 0
    worker = engine.pick_worker()
    texts = [document.decode(errors="surrogateescape") for document in mutants(chaos.seed + 2, 0)]
    texts += ["v=0\r\n" + "a" * (2 << 20), "\ud800" * 100]
    for document in mutants(chaos.seed + 2, chaos.size(test=30, short=500, long=5_000)):
        text = document.decode(errors="surrogateescape")
        if not names_somebody(text):  # a worker's own sockets are not ours to tap: nothing may leave this machine
            texts.append(text)
    for n, text in enumerate(texts):
        leg = LegId(str(n))
        try:
            await (engine.answer_meta if n % 2 else engine.answer_browser)(leg, worker, text)
        except SdpRefused:
            pass
        except Exception:
            other_errors += 1
        await engine.close(leg)
    await engine.aclose()

    chaos.note("documents", len(texts))
    chaos.promise("other errors than a refusal", other_errors, at_most=0)
    chaos.promise("worker processes lost", len(events) - 1, at_most=0)
    assert events == [WorkerUp(worker)]


def names_somebody(text: str) -> bool:
    try:
        return bool(sdp.usable_candidates(sdp.parse(text).candidates))
    except SdpRefused:
        return False


def test_a_reader_that_breaks_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(text: str, maximum: int, what: str) -> int:
        return int(text)

    monkeypatch.setattr(sdp, "_number", careless)
    reading = read_all(mutants(1, 500))

    assert reading.broken["ValueError"] > 0
    assert reading.culprits


def test_a_reader_that_dawdles_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    check = sdp._matching

    def slow(pattern: object, value: str, what: str) -> str:
        until_then = time.thread_time() + 0.03
        while len(value) > 60 and time.thread_time() < until_then:
            pass
        return check(pattern, value, what)  # type: ignore[arg-type]

    monkeypatch.setattr(sdp, "_matching", slow)
    assert read_all(documents().values()).worst_s > 0.02


async def test_a_leg_that_writes_where_it_may_not_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire.tap(monkeypatch)
    monkeypatch.setattr(sdp, "usable_candidates", lambda candidates, networks=(): tuple(candidates))
    offer = documents()["meta_offer"].decode().replace("203.0.113.40 3484 typ", "127.0.0.1 3484 typ")
    async with Stage() as stage:
        await stage.host.answer_meta(LegId("a"), offer)
        await until(lambda: ("127.0.0.1", 3484) in wire.addresses)
