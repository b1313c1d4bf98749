"""Peers of these tests gather on 127.0.0.1, which aioice leaves out."""

import aioice.ice
import pytest


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched because the far ends are stock aiortc, and no test may touch another network."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
