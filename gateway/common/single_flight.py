"""Share one piece of work among all callers that ask for the same result while it is under way.

The work runs in a task of its own. So a caller that is cancelled does not take the answer from the others, and a
request that may have reached its peer is always completed.
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
    """The work under way, by key."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._flights: dict[Key, _Flight[Answer]] = {}

    def join(self, *keys: Key) -> "asyncio.Future[Answer] | None":
        """Return the answer of the work under way for any of these keys; None if there is none."""
        flights = (self._flights[key] for key in keys if key in self._flights)
        return next((_share(flight.answer) for flight in flights), None)

    def begin(self, key: Key, work: Callable[[], Awaitable[Answer]]) -> "asyncio.Future[Answer]":
        """Start work for `key`, which must not be under way; return its answer, which may be left unawaited."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        task = self._start(_set_answer(work, answer))
        self._flights[key] = _Flight(task, answer)
        task.add_done_callback(lambda _: self._remove_flight(key))
        return _share(answer)

    def close(self) -> None:
        """Cancel all work under way, and every caller that waits for it."""
        for flight in self._flights.values():
            flight.task.cancel()

    def _remove_flight(self, key: Key) -> None:
        """Remove finished work, before its callers resume: they may start the same work again."""
        # The cancellation has an effect only if the work was cancelled and set neither an answer nor an error.
        self._flights.pop(key).answer.cancel()


async def _set_answer(work: Callable[[], Awaitable[Answer]], answer: "asyncio.Future[Answer]") -> None:
    try:
        answer.set_result(await work())
    except Exception as error:
        answer.set_exception(error)


def _share(answer: "asyncio.Future[Answer]") -> "asyncio.Future[Answer]":
    """Return a future for one caller, who may cancel it or leave its error unread."""
    own = asyncio.shield(answer)
    own.add_done_callback(lambda done: done.cancelled() or done.exception())
    return own
