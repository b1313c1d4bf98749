"""Breaks one call among several at its n-th use of anything that calls share.

The call's whole life runs in a context of its own, which the tasks that it starts inherit: so it is known on whose
behalf a service is used. An asynchronous method can break before it begins and after it is done. What else breaks with
it is looked at by `broken_call`.
"""

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from tests.support.harness.world import World

_ON_BEHALF: ContextVar[bool] = ContextVar("on_behalf_of_the_broken_call", default=False)

#: What a bug, a library or a peer may raise.
ERRORS: Final[tuple[Callable[[], BaseException], ...]] = (
    lambda: RuntimeError("injected"),
    lambda: KeyError("injected"),
    lambda: OSError("injected"),
    lambda: TimeoutError("injected"),
    lambda: ExceptionGroup("injected", [ValueError("injected")]),
    lambda: asyncio.CancelledError("injected"),
)


class Injector:
    """Counts the points at which a call may break, and breaks it at one."""

    def __init__(self, *, at: int, error: Callable[[], BaseException]) -> None:
        self._at = at
        self._error = error
        self.points = 0
        self.broke_at: str | None = None

    @contextmanager
    def on_behalf(self) -> Iterator[None]:
        """What is done here is done for the call that breaks."""
        token = _ON_BEHALF.set(True)
        try:
            yield
        finally:
            _ON_BEHALF.reset(token)

    def point(self, name: str) -> None:
        if not _ON_BEHALF.get():
            return
        self.points += 1
        if self.points == self._at:
            self.broke_at = name
            raise self._error()

    def arm(self, world: World) -> None:
        """Put a point in front of every public method that calls use, and behind every asynchronous one."""
        for service in (world.graph, world.media, world.store, world.contacts, world.hub, world.clock):
            for name, _ in inspect.getmembers(type(service), inspect.isfunction):
                if not name.startswith("_"):
                    self._wrap(service, name)
        for metric in vars(world.metrics).values():
            for name in ("labels", "inc", "set", "observe"):
                if hasattr(metric, name):
                    self._wrap(metric, name)
        for slots in (world.number.incoming, world.number.outgoing):
            self._wrap(slots, "_on_change")

    def _wrap(self, owner: Any, name: str) -> None:
        method, label = getattr(owner, name), f"{type(owner).__name__}.{name}"
        if inspect.iscoroutinefunction(method):

            @functools.wraps(method)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                self.point(f"before {label}")
                result = await method(*args, **kwargs)
                self.point(f"after {label}")
                return result

        else:

            @functools.wraps(method)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                self.point(label)
                return method(*args, **kwargs)

        setattr(owner, name, wrapped)
