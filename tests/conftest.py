"""What every test shares: both event loops, no leftovers, the repository on the path."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Otherwise pytest-asyncio 1.5 leaves a loop open on Python 3.11 and the strict run fails.
asyncio.set_event_loop(None)

# How long an example took says more of the machine than of us: none fails for that. pytest-timeout is the bound.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test on both loops.

    `pytest.mark.asyncio(loop_factories=["uvloop"])` narrows a test whose cost does not depend on the loop.
    """
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
