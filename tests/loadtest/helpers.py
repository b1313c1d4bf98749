"""A reference business for tests of the simulator: a callback, a Graph client and a media peer of its own.

Written against Meta's documentation like the simulator, but from the other side.
"""

import asyncio
import hashlib
import hmac
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from loadtest.common.clock import wall_clock
from loadtest.simulator.config import SimConfig, Timers, UserSpec
from loadtest.simulator.meta_sim import MetaSim
from loadtest.webrtc.browser_peer import BrowserPeer
from loadtest.webrtc.dtls_leg import DtlsLeg, DtlsRole
from loadtest.webrtc.full_ice import FullIce
from loadtest.webrtc.rtp import Payloads, parse_rtp
from loadtest.webrtc.voice import Ear, Talker

ANA = "5511900000001"
NUMBER = "200000000000002"
SECRET = "test_app_secret"
FINGERPRINT = ":".join(f"{index:02X}" for index in range(32))
QUICK = Timers(
    answer_after_s=0.0,
    ringing_after_s=0.01,
    speak_after_s=0.01,
    webhook_retry_s=(0.01, 0.01),
    verification_retry_s=0.02,
    media_check_every_s=0.05,
    listen_every_s=0.12,
)


class FakeWallClock:
    """UNIX time that moves when told to."""

    def __init__(self, now: float = 1_790_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def config(**changes: Any) -> SimConfig:
    """Return a quick configuration with one user."""
    values: dict[str, Any] = {
        "users": (UserSpec(wa_id=ANA, name="Ana"),),
        "timers": QUICK,
        "app_secret": SECRET,
    }
    return SimConfig(**values | changes)


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[MetaSim]:
    """Run a simulator, and fail if anything in its background did."""
    sim = MetaSim(config(**changes))
    await sim.start()
    try:
        yield sim
    finally:
        await sim.close()
    assert sim.background.failures == []


class Graph:
    """A Graph client that returns (status, body)."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session, self.base = session, base

    async def request(
        self, method: str, path: str, *, token: str = "simulated-access-token", **more: Any
    ) -> tuple[int, Any]:
        """Send one request."""
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        async with self._session.request(method, self.base + path, headers=headers, **more) as response:
            return response.status, await response.json()

    async def calls(self, action: str, /, **body: Any) -> tuple[int, Any]:
        """POST /<number>/calls."""
        whole = {"messaging_product": "whatsapp", "action": action, **body}
        return await self.request("POST", f"/v23.0/{NUMBER}/calls", json=whole)

    async def connect(self, sdp: str | None = None, *, to: str = ANA, **more: Any) -> tuple[int, Any]:
        """Place a call."""
        session = {"sdp_type": "offer", "sdp": sdp or offer_sdp()}
        return await self.calls("connect", **{"to": to, "session": session} | more)

    async def answer(self, action: str, call_id: str, sdp: str, **more: Any) -> tuple[int, Any]:
        """pre_accept or accept a call."""
        return await self.calls(action, call_id=call_id, session={"sdp_type": "answer", "sdp": sdp}, **more)

    async def ask(self, **changes: Any) -> tuple[int, Any]:
        """Send a free-form permission request."""
        body = {
            "messaging_product": "whatsapp",
            "to": ANA,
            "type": "interactive",
            "interactive": {
                "type": "call_permission_request",
                "action": {"name": "call_permission_request"},
                "body": {"text": "May we call you?"},
            },
        }
        return await self.request("POST", f"/v23.0/{NUMBER}/messages", json=body | changes)

    async def ask_by_template(self, name: str = "call_permission_request", code: str = "pt_BR") -> tuple[int, Any]:
        """Send a template permission request."""
        return await self.ask(type="template", template={"name": name, "language": {"code": code}})

    async def sim(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Use the control API."""
        return await self.request(method, "/sim" + path, **more)


@asynccontextmanager
async def graph(sim: MetaSim) -> AsyncIterator[Graph]:
    """Return a Graph client for a running simulator."""
    async with aiohttp.ClientSession() as session:
        yield Graph(session, sim.url)


class Callback:
    """A webhook endpoint that checks signatures and keeps what it got."""

    def __init__(self) -> None:
        self.deliveries: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        #: Statuses to answer with, one each, before 200.
        self.statuses: list[int] = []
        self.challenges = 0
        self.url = ""

    async def verify(self, request: web.Request) -> web.Response:
        """Echo the challenge."""
        self.challenges += 1
        assert request.query["hub.mode"] == "subscribe"
        assert request.query["hub.verify_token"] == "simulated-verify-token"
        return web.Response(text=request.query["hub.challenge"])

    async def receive(self, request: web.Request) -> web.Response:
        """Take one delivery."""
        raw = await request.read()
        expected = "sha256=" + hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(request.headers["X-Hub-Signature-256"], expected)
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        self.bodies.append(raw)
        self.deliveries.append(json.loads(raw))
        return web.Response(status=200)

    def changes(self, field: str | None = None) -> list[dict[str, Any]]:
        """Return the values received, of one field if given."""
        return [
            change["value"]
            for delivery in self.deliveries
            for entry in delivery["entry"]
            for change in entry["changes"]
            if field in (None, change["field"])
        ]

    def events(self) -> list[str]:
        """Return the call events and statuses in order of arrival."""
        return [
            one.get("event") or one["status"]
            for value in self.changes("calls")
            for one in value.get("calls", []) + value.get("statuses", [])
        ]


@asynccontextmanager
async def callback(*, port: int = 0) -> AsyncIterator[Callback]:
    """Run a callback server."""
    server = Callback()
    app = web.Application()
    app.add_routes([web.get("/hook", server.verify), web.post("/hook", server.receive)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield server
    finally:
        await runner.cleanup()


def events_of(sim: MetaSim, call_id: str) -> list[dict[str, Any]]:
    """Return the call events and statuses the simulator has sent for a call."""
    return [
        one
        for delivery in sim.webhooks.sent
        for one in delivery.change["value"].get("calls", []) + delivery.change["value"].get("statuses", [])
        if one["id"] == call_id
    ]


def names_of(sim: MetaSim, call_id: str) -> list[str]:
    """Return the names of those events, in order."""
    return [one.get("event") or one["status"] for one in events_of(sim, call_id)]


def business_sdp(
    *,
    setup: str,
    mid: str,
    ufrag: str = "bizU",
    password: str = "ExamplePwdBusiness01234567",
    fingerprint: str = FINGERPRINT,
    ssrc: int = 2_000_000_002,
) -> str:
    """Return an SDP of the business as Meta documents it; without candidates, which Meta does not need."""
    return "".join(
        f"{line}\r\n"
        for line in (
            "v=0",
            "o=- 4000000001 4000000001 IN IP4 0.0.0.0",
            "s=-",
            "t=0 0",
            f"a=group:BUNDLE {mid}",
            "m=audio 9 UDP/TLS/RTP/SAVPF 111 126",
            "c=IN IP4 0.0.0.0",
            f"a=ice-ufrag:{ufrag}",
            f"a=ice-pwd:{password}",
            f"a=fingerprint:sha-256 {fingerprint}",
            f"a=setup:{setup}",
            f"a=mid:{mid}",
            "a=sendrecv",
            "a=rtcp-mux",
            "a=rtpmap:111 opus/48000/2",
            "a=fmtp:111 minptime=10;useinbandfec=1",
            "a=rtpmap:126 telephone-event/8000",
            "a=ptime:20",
            f"a=ssrc:{ssrc} cname:bizGatewayAudio",
        )
    )


def answer_sdp() -> str:
    """Return a good answer."""
    return business_sdp(setup="active", mid="audio")


def offer_sdp() -> str:
    """Return a good offer."""
    return business_sdp(setup="actpass", mid="0")


class BusinessPeer:
    """A business's media server: answers Meta's offer, full ICE, DTLS client by default."""

    def __init__(self, *, tone_hz: int = 1000, setup: str = "active") -> None:
        self.ice = FullIce()
        self.dtls = DtlsLeg(self.ice, on_rtp=self._on_rtp, on_rtcp=lambda data: None)
        self.ssrc = random.getrandbits(32)
        self.ear = Ear(Payloads(), 0.12)
        self.setup = setup
        self.talker = Talker(
            send=self.dtls.send_rtp,
            send_rtcp=self.dtls.send_rtcp,
            tone_hz=tone_hz,
            clock=wall_clock,
            ssrc=self.ssrc,
        )

    def _on_rtp(self, data: bytes) -> None:
        packet = parse_rtp(data)
        assert packet is not None
        self.ear.hear(packet, now=asyncio.get_running_loop().time())

    async def answer(self, *, fingerprint: str | None = None) -> str:
        """Return an answer to any offer of Meta."""
        await self.ice.gather()
        return business_sdp(
            setup=self.setup,
            mid="audio",
            ufrag=self.ice.ufrag,
            password=self.ice.password,
            fingerprint=fingerprint or self.dtls.fingerprint,
            ssrc=self.ssrc,
        )

    async def connect(self, offer: str) -> None:
        """Run ICE and DTLS against Meta's offer."""
        said = dict(line[2:].split(":", 1) for line in offer.split("\r\n") if line.startswith("a=") and ":" in line)
        await self.ice.connect(
            ufrag=said["ice-ufrag"],
            password=said["ice-pwd"],
            candidates=[said["candidate"]],
            lite=True,
            timeout_s=5,
        )
        role = DtlsRole.CLIENT if self.setup == "active" else DtlsRole.SERVER
        await self.dtls.handshake(role=role, peer_fingerprint=said["fingerprint"].removeprefix("sha-256 "))

    async def close(self) -> None:
        """Stop everything."""
        self.talker.stop()
        await self.dtls.close()
        await self.ice.close()


@asynccontextmanager
async def closing(*peers: BusinessPeer | BrowserPeer) -> AsyncIterator[None]:
    """Close peers at the end."""
    try:
        yield
    finally:
        for peer in peers:
            await peer.close()


async def until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  nothing sets an event here
            await asyncio.sleep(0.01)
