"""A simulated operator with audio: logs in, keeps warm legs, answers, dials, listens.

It speaks `calls.v1` (see `softphone_wire.py`) like the browser page, with a `BrowserPeer` for each media worker.

    bot = SoftphoneBot("http://127.0.0.1:8080", operator="ana", key="…")
    await bot.start()
    call = await bot.wait_push("incoming")
    await bot.request("accept", call_id=call["call"]["call_id"])
    await bot.close()
"""

from typing import Any

from loadtest.operators.signalling_bot import SignallingBot
from loadtest.operators.softphone_wire import Json, RequestFailed, SoftphoneWire
from loadtest.webrtc.browser_peer import BrowserPeer

__all__ = ["QuietBot", "RequestFailed", "SoftphoneBot"]


class SoftphoneBot(SoftphoneWire):
    """One operator. `start()` once, `close()` once."""

    def __init__(self, url: str, *, operator: str, key: str, tone_hz: int = 1000, audio: bool = True) -> None:
        super().__init__(url, operator=operator, key=key)
        self.tone_hz = tone_hz
        self.peers: dict[int, BrowserPeer] = {}
        self._audio = audio

    async def logged_in(self) -> None:
        """Make a warm leg for each worker that has none."""
        if self._audio:
            for worker in self.welcome["workers"]:
                if worker not in self.peers:
                    await self.make_leg(worker)

    async def make_leg(self, worker: int) -> None:
        """Make (or replace) the warm leg of one worker and wait until media can flow."""
        old = self.peers.pop(worker, None)
        if old is not None:
            await old.close()
        peer = self.peers[worker] = BrowserPeer(tone_hz=self.tone_hz)
        answer = await self.request("leg", worker=worker, sdp=await peer.offer())
        await peer.answer(answer["sdp"])
        await peer.connected()

    async def close(self) -> None:
        """Close everything. Idempotent."""
        await super().close()
        for peer in self.peers.values():
            await peer.close()

    def heard(self, push: Json) -> None:
        """Send audio during a conversation and at no other time, like the page."""
        if push["type"] != "call":
            return
        call = push["call"]
        peer = self.peers.get(call["worker"]) if call["worker"] is not None else None
        if peer is None:
            return
        if call["state"] == "active":
            peer.speak()
        elif call["state"] in ("held", "ending", "ended"):
            peer.hush()


class QuietBot(SignallingBot):
    """An operator that acts by policy, with real warm legs but silent: for gateways with media workers."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._peers: dict[int, BrowserPeer] = {}

    async def make_leg(self, worker: int) -> None:
        """Make (or replace) the warm leg of one worker and wait until media could flow."""
        old = self._peers.pop(worker, None)
        if old is not None:
            await old.close()
        peer = self._peers[worker] = BrowserPeer(listen_every_s=None)
        answer = await self.request("leg", worker=worker, sdp=await peer.offer())
        await peer.answer(answer["sdp"])
        await peer.connected()

    async def close(self) -> None:
        """Close everything. Idempotent."""
        await super().close()
        for peer in self._peers.values():
            await peer.close()
