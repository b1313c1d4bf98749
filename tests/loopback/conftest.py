"""Peers of these tests gather on 127.0.0.1, which aioice leaves out."""

import pytest

from tests.support.generators.hostile import gather_on_loopback


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched because the far ends are stock aiortc, and no test may touch another network."""
    gather_on_loopback(monkeypatch)
