"""`python -m loadtest compare`: this gateway beside the alternatives, in one run on one machine.

Peers alternate round by round, so that other activity on the machine affects all of them. A peer that cannot be
installed or fails is reported and left out; the others continue. The work itself is in `setups.py`, `media.py` and
`probes.py`.
"""

import asyncio
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.common.stopping import STOPPED, cancelled_by_signals, take_back_cancellation
from loadtest.compare.contest import Contest, NotInstalled, PeerFailed, Tell
from loadtest.compare.media import CARRYING
from loadtest.compare.page import show, write
from loadtest.compare.peers import PEERS_OF_CALLS, Peer
from loadtest.compare.probes import PROBES, probe
from loadtest.compare.results import Comparison, Row, Score
from loadtest.compare.setups import SETUPS
from loadtest.measure.process import Cores, divide_cores
from loadtest.measure.report import check_folder, machine, versions
from loadtest.measure.results import Check
from loadtest.measure.stack import GatewayDied, PortTaken
from loadtest.operators.softphone_wire import RequestFailed
from loadtest.webrtc import browser_peer

CONTESTS: Final[Mapping[str, Contest]] = {"calls": SETUPS, "media": CARRYING}

#: Errors that a broken peer or machine causes; any other is a bug here, and its traceback is shown.
_EXPECTED: Final = (
    *(PeerFailed, NotInstalled, GatewayDied, PortTaken, RequestFailed, browser_peer.PeerFailed),
    *(aiohttp.ClientError, OSError),  # OSError includes TimeoutError
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to compare."""

    #: Keys of `CONTESTS`.
    contests: tuple[str, ...]
    #: Names of peers; each contest uses those that it has.
    peers: frozenset[str]
    rounds: int
    seed: int
    out: Path
    command: str


def peer_names(contests: Iterable[str] = tuple(CONTESTS)) -> list[str]:
    """Return the names of all peers of these contests."""
    return list(dict.fromkeys(name for contest in contests for name, _ in CONTESTS[contest].peers))


async def compare(order: Order, console: Console) -> int:
    """Run the comparison and write the report; return 0 if every check passed, 130 if stopped. Raises: NotWritten."""
    check_folder(order.out)
    cores = divide_cores()
    found = Comparison(
        machine=machine(),
        versions=versions(),
        pinning=_pinning(cores),
        command=order.command,
        seed=order.seed,
        rounds=order.rounds,
    )
    names = ", ".join(name for name in peer_names(order.contests) if name in order.peers)
    console.print(
        f"Comparing {names}; {found.machine['cpu']}, {found.machine['cores']} cores. Ctrl-C stops, with a report.",
        highlight=False,
    )
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with cancelled_by_signals(), Progress(*columns, console=console, transient=True) as progress:
        try:
            await _Run(order, found, cores, progress, console).all()
        except asyncio.CancelledError:
            take_back_cancellation()
            found.stopped = True
    found.seconds = round(loop.time() - began_at, 1)
    show(found, console)
    console.print("Report: " + ", ".join(str(path) for path in write(found, order.out)))
    return STOPPED if found.stopped else 0 if found.passed else 1


def _pinning(cores: Cores) -> str:
    if not cores.gateway:
        return cores.said
    generator, peer = (", ".join(map(str, sorted(some))) for some in (cores.generator, cores.gateway))
    return f"generator on core {generator}; the peer, with all its processes, on core {peer}"


class _Run:
    """One run, step by step; the comparison always contains what was found so far."""

    def __init__(self, order: Order, found: Comparison, cores: Cores, progress: Progress, console: Console) -> None:
        self._order, self._found, self._cores, self._console = order, found, cores, console
        self._progress = progress
        self._bar = progress.add_task("starting", total=None)

    async def all(self) -> None:
        """Install, probe, measure, check."""
        contests = [CONTESTS[name] for name in self._order.contests]
        wanted = [[peer for peer in contest.peers if peer[0] in self._order.peers] for contest in contests]
        there = [await self._prepared(contest, peers) for contest, peers in zip(contests, wanted, strict=True)]
        probed = [peer for peer in PEERS_OF_CALLS if "calls" in self._order.contests and self._has(peer.name)]
        self._progress.update(self._bar, total=len(probed) + self._order.rounds * sum(map(len, there)))
        if probed:
            await self._probe(probed)
        for contest, peers in zip(contests, there, strict=True):
            if peers:
                await self._measure(contest, peers)

    def _has(self, name: str) -> bool:
        return name in self._order.peers and name not in self._found.missing

    def _tell(self, prefix: str) -> Tell:
        return lambda what: self._progress.update(self._bar, description=f"{prefix}: {what}"[:100])

    def _done(self, what: str) -> None:
        self._progress.advance(self._bar)
        if not self._console.is_terminal:  # no progress bar is shown
            self._console.print(what, markup=False, highlight=False)

    async def _prepared(self, contest: Contest, peers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the peers that are on this machine, after installing the missing ones."""
        there = []
        for name, what in peers:
            try:
                await contest.prepare(name, self._tell(f"installing {name}"))
                there.append((name, what))
            except NotInstalled as error:
                self._found.missing[name] = str(error)
        return there

    async def _probe(self, peers: list[Peer]) -> None:
        self._found.probes = [one.name for one in PROBES]
        for peer in peers:
            score = Score(name=peer.name, what=peer.what)
            self._found.scores.append(score)
            try:
                await probe(peer, score, self._cores, self._tell(f"{peer.name}, probes"))
            except Exception as error:
                score.failure = why(error)
            if peer.ours:
                self._found.checks.append(_all_probes(score))
            self._done(f"{peer.name}: {score.passed} of {len(PROBES)} probes")

    async def _measure(self, contest: Contest, peers: list[tuple[str, str]]) -> None:
        part = contest.part()
        part.rows = [Row(name=name, what=what) for name, what in peers]
        self._found.parts.append(part)
        for number in range(self._order.rounds):
            for row in _turned(part.rows, number):
                if not row.failure:
                    tell = self._tell(f"{row.name}, round {number + 1} of {self._order.rounds}")
                    try:
                        await contest.round(row.name, row, self._cores, self._order.seed + number, tell)
                    except Exception as error:
                        row.failure = why(error)
                self._done(f"{row.name}: round {number + 1} of {self._order.rounds}")
        part.checks = contest.checks(part)


def _turned(rows: list[Row], number: int) -> Iterator[Row]:
    """Yield the rows, starting with another one in each round."""
    first = number % len(rows)
    yield from rows[first:]
    yield from rows[:first]


def _all_probes(score: Score) -> Check:
    return Check(
        name=f"{score.name}: probes passed",
        found=f"{score.passed}",
        wanted=f"{len(PROBES)}",
        kept=score.passed == len(PROBES),
    )


def why(error: BaseException) -> str:
    """Return what went wrong: a text if the error was expected, otherwise a traceback."""
    leaves = list(_leaves(error))
    if all(isinstance(leaf, _EXPECTED) for leaf in leaves):
        return "\n".join(dict.fromkeys(str(leaf) or type(leaf).__name__ for leaf in leaves))
    return "".join(traceback.format_exception(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
