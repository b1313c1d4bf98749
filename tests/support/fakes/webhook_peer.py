"""A small business that answers calls and does everything right, or one thing wrong: to test what compares peers."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, cast

import aiohttp
from aiohttp import web

from loadtest.compare.peers import Peer, Target
from loadtest.measure.stack import free_port
from loadtest.simulator.config import SimConfig
from loadtest.simulator.meta_sim import MetaSim


class Flaw(StrEnum):
    """What it does wrong."""

    FIRST_CALL_ONLY = "first_call_only"
    ANSWERS_TWICE = "answers_twice"
    NO_STATUSES = "no_statuses"
    NO_PERMISSIONS = "no_permissions"
    NEEDS_DIRECTION = "needs_direction"
    NEEDS_CONTACTS = "needs_contacts"
    ANSWERS_THE_DEAD = "answers_the_dead"
    KEEPS_THE_DEAD = "keeps_the_dead"
    ACCEPTS_AGAIN = "accepts_again"
    STOPS_ANSWERING = "stops_answering"
    TRUSTS_ANY_SIGNATURE = "trusts_any_signature"
    TRUSTS_NO_SIGNATURE = "trusts_no_signature"
    LETS_IT_RING = "lets_it_ring"
    ANSWERS_LATE = "answers_late"
    ENDS = "ends"


class WebhookPeer:
    """The business: calls are answered at once, by tasks of their own."""

    def __init__(self, sim: MetaSim, sdp: str, flaw: Flaw | None = None) -> None:
        self.sim, self.sdp, self.flaw = sim, sdp, flaw
        #: As of a process.
        self.returncode: int | None = None
        self._known: set[str] = set()
        self._live: set[str] = set()
        self._dead: set[str] = set()

    async def running(self, app: web.Application) -> AsyncIterator[None]:
        headers = {"Authorization": f"Bearer {self.sim.config.access_token}"}
        async with aiohttp.ClientSession(headers=headers) as self._http, asyncio.TaskGroup() as self._tasks:
            yield

    async def live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": len(self._live)})

    async def webhook(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not self._signed(body, request.headers.get("X-Hub-Signature-256")):
            return web.Response(status=401)
        values = [change["value"] for entry in json.loads(body)["entry"] for change in entry["changes"]]
        refused = {Flaw.NO_STATUSES: "statuses", Flaw.NO_PERMISSIONS: "messages"}
        if self.flaw and any(refused.get(self.flaw) in value for value in values):
            return web.Response(status=422)
        calls = [(value, call) for value in values for call in value.get("calls", []) if self._new(call)]
        if self.flaw is Flaw.FIRST_CALL_ONLY:
            del calls[1:]
        tasks = [self._tasks.create_task(self._answer(value, call)) for value, call in calls]
        if self.flaw is Flaw.ANSWERS_LATE and tasks:
            await asyncio.wait(tasks)
        return web.Response()

    def _signed(self, body: bytes, header: str | None) -> bool:
        expected = "sha256=" + hmac.new(self.sim.config.app_secret.encode(), body, hashlib.sha256).hexdigest()
        if header is None:
            return self.flaw is Flaw.TRUSTS_NO_SIGNATURE
        return self.flaw is Flaw.TRUSTS_ANY_SIGNATURE or hmac.compare_digest(header, expected)

    def _new(self, call: dict[str, Any]) -> bool:
        """Tell whether this begins a call; note the end of one."""
        call_id = call["id"]
        if call["event"] == "terminate":
            self._dead.add(call_id)
            if self.flaw is not Flaw.KEEPS_THE_DEAD:
                self._live.discard(call_id)
            return False
        if call_id in self._dead and self.flaw is not Flaw.ANSWERS_THE_DEAD:
            return False
        if call_id in self._known and self.flaw is not Flaw.ANSWERS_TWICE:
            return False
        self._known.add(call_id)
        return True

    async def _answer(self, value: dict[str, Any], call: dict[str, Any]) -> None:
        call_id = call["id"]
        if self.flaw is Flaw.NEEDS_DIRECTION and "direction" not in call:
            return
        if self.flaw is Flaw.NEEDS_CONTACTS and "contacts" not in value:
            return
        if self.flaw is Flaw.STOPS_ANSWERING and self._dead:
            return
        self._live.add(call_id)
        await self._ask("pre_accept", call_id)
        status = await self._ask("accept", call_id)
        if self.flaw is Flaw.ACCEPTS_AGAIN and call_id in self._dead:
            await self._ask("accept", call_id)
        if status != 200 and self.flaw is not Flaw.LETS_IT_RING:
            await self._ask("terminate", call_id)
            self._live.discard(call_id)
        if self.flaw is Flaw.ENDS and len(self._known) > 3:
            self.returncode = 1

    async def _ask(self, action: str, call_id: str) -> int:
        url = f"{self.sim.url}/v26.0/{self.sim.number.spec.phone_number_id}/calls"
        session = {"sdp_type": "answer", "sdp": self.sdp}
        body = {"messaging_product": "whatsapp", "action": action, "call_id": call_id, "session": session}
        async with self._http.post(url, json=body) as response:
            await response.read()
            return response.status


@asynccontextmanager
async def webhook_peer(sdp: str, flaw: Flaw | None = None, **world: Any) -> AsyncIterator[Target]:
    """Run one beside a simulated Meta; `sdp` is its answer to every offer."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    sim = MetaSim(SimConfig(callback_url=f"{url}/hook", **world))
    peer, app = WebhookPeer(sim, sdp, flaw), web.Application()
    app.cleanup_ctx.append(peer.running)
    app.add_routes([web.post("/hook", peer.webhook), web.get("/live", peer.live)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await sim.start()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    what = Peer(name="test", what="a test", script="none")
    process = cast(asyncio.subprocess.Process, peer)  # it ends as a process does
    try:
        yield Target(peer=what, sim=sim, hook_url=f"{url}/hook", process=process)
    finally:
        await runner.cleanup()
        await sim.close()
