"""One piece of work for all who ask for the same: who asks while it is under way gets its answer.

The work runs in a task of its own: whoever stops waiting takes the answer from nobody, and what has perhaps reached
somebody is followed to its end.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.common.background import Start

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Flight(Generic[Answer]):
    task: "asyncio.Task[None]"
    answer: "asyncio.Future[Answer]"


class SingleFlight(Generic[Key, Answer]):
    """The work that is under way, by what it is about."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._flights: dict[Key, _Flight[Answer]] = {}

    def join(self, *keys: Key) -> "asyncio.Future[Answer] | None":
        """Return the answer to what is under way under any of these keys; None: nothing is."""
        flights = (self._flights[key] for key in keys if key in self._flights)
        return next((_share(flight.answer) for flight in flights), None)

    def begin(self, key: Key, work: Callable[[], Awaitable[Answer]]) -> "asyncio.Future[Answer]":
        """Start work about `key`, about which nothing is under way; return its answer, which nobody need wait for."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        task = self._start(_fly(work, answer))
        self._flights[key] = _Flight(task, answer)
        task.add_done_callback(lambda _: self._landed(key))
        return _share(answer)

    def close(self) -> None:
        """Cut what is under way; whoever waits for it is cancelled."""
        for flight in self._flights.values():
            flight.task.cancel()

    def _landed(self, key: Key) -> None:
        """Make room before anybody hears the answer."""
        # Where neither answer nor error came; and an error that nobody has looked at is none to complain of.
        self._flights.pop(key).answer.cancel()


async def _fly(work: Callable[[], Awaitable[Answer]], answer: "asyncio.Future[Answer]") -> None:
    try:
        answer.set_result(await work())
    except Exception as error:
        answer.set_exception(error)


def _share(answer: "asyncio.Future[Answer]") -> "asyncio.Future[Answer]":
    """Return a future that one asker may cancel, and whose error nobody has to look at."""
    own = asyncio.shield(answer)
    own.add_done_callback(lambda done: done.cancelled() or done.exception())
    return own
