"""The parts of a comparison: its peers, how one round of a peer is measured, and its checks.

The order of rounds is in `run.py`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from loadtest.compare.results import Part, Row
from loadtest.measure.process import Cores
from loadtest.measure.results import Check

#: Reports progress.
Tell: TypeAlias = Callable[[str], None]


class NotInstalled(Exception):
    """A peer is not on this machine and cannot be installed; the text says why."""


class PeerFailed(Exception):
    """A peer did not start, or ended unexpectedly; the text ends with its last log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All peers at one kind of work."""

    #: Makes the empty part.
    part: Callable[[], Part]
    #: Name and description of each peer, this gateway first.
    peers: tuple[tuple[str, str], ...]
    #: Installs a peer if it is missing. Raises: NotInstalled.
    prepare: Callable[[str, Tell], Awaitable[None]]
    #: Measures a peer once (peer, its row, cores, seed): adds one dict to `row.rounds` and fills it as figures come.
    #: Any error is recorded as the row's failure, and the peer is not measured again.
    round: Callable[[str, Row, Cores, int, Tell], Awaitable[None]]
    #: Checks the medians of the rows that are there.
    checks: Callable[[Part], list[Check]]
