"""What a part of a comparison has to bring: its peers, how one round of one of them is measured, what has to hold.

Not responsible for the order of rounds (see `compare`).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from loadtest.compare.results import Part, Row
from loadtest.measure.process import Cores
from loadtest.measure.results import Check

#: Told what is going on.
Tell: TypeAlias = Callable[[str], None]


class NotInstalled(Exception):
    """A peer is not on this machine and cannot be had; the text says why."""


class PeerFailed(Exception):
    """A peer did not start, or ended by itself; the text ends with its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All peers at one kind of work."""

    #: The empty part.
    part: Callable[[], Part]
    #: Name and description of each peer, ours first.
    peers: tuple[tuple[str, str], ...]
    #: Install a peer where it is missing. Raises: NotInstalled.
    prepare: Callable[[str, Tell], Awaitable[None]]
    #: Measure a peer once (peer, its row, cores, seed): add one dict to `row.rounds`, and fill it as figures come.
    #: Whatever it raises is the row's failure, and the peer is not measured again.
    round: Callable[[str, Row, Cores, int, Tell], Awaitable[None]]
    #: Judge the medians, for the rows that are there.
    checks: Callable[[Part], list[Check]]
