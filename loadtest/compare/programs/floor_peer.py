"""The floor: the cost of a user-initiated call with aiohttp and nothing else. Run with this project's own interpreter.

Checks the signature over the raw bytes, parses the JSON, answers 200, and sends Graph a `pre_accept` and an `accept`
with a canned SDP for every `connect`. It has no state, store, gate or media: it is fast because it does nothing that a
business needs, as most probes of the comparison show.

Settings are environment variables: PEER_PORT, GRAPH_URL, APP_SECRET, VERIFY_TOKEN, ACCESS_TOKEN, PHONE_NUMBER_ID.
`/live` returns the number of live calls for the comparison; here it is always 0.
"""

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

ANSWER = "".join(
    f"{line}\r\n"
    for line in (
        "v=0",
        "o=- 4000000001 4000000001 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE audio",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111 126",
        "c=IN IP4 0.0.0.0",
        "a=ice-ufrag:bizU",
        "a=ice-pwd:ExamplePwdBusiness01234567",
        "a=fingerprint:sha-256 " + ":".join(f"{byte:02X}" for byte in range(32)),
        "a=setup:active",
        "a=mid:audio",
        "a=sendrecv",
        "a=rtcp-mux",
        "a=rtpmap:111 opus/48000/2",
        "a=fmtp:111 minptime=10;useinbandfec=1",
        "a=rtpmap:126 telephone-event/8000",
        "a=ptime:20",
        "a=ssrc:2000000002 cname:floor",
    )
)


class Floor:
    """The webhook, and the two requests of a call."""

    def __init__(self) -> None:
        self.secret = os.environ["APP_SECRET"].encode()
        self.url = f"{os.environ['GRAPH_URL']}/v26.0/{os.environ['PHONE_NUMBER_ID']}/calls"
        self.headers = {"Authorization": f"Bearer {os.environ['ACCESS_TOKEN']}"}

    async def running(self, app: web.Application) -> AsyncIterator[None]:
        """Keep the HTTP client and the tasks that answer calls."""
        async with aiohttp.ClientSession(headers=self.headers) as self.http, asyncio.TaskGroup() as self.calls:
            yield

    async def verify(self, request: web.Request) -> web.Response:
        """Echo the challenge."""
        known = request.query.get("hub.verify_token") == os.environ["VERIFY_TOKEN"]
        return web.Response(text=request.query.get("hub.challenge", "")) if known else web.Response(status=403)

    async def webhook(self, request: web.Request) -> web.Response:
        """Process a delivery."""
        body = await request.read()
        expected = "sha256=" + hmac.new(self.secret, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(request.headers.get("X-Hub-Signature-256", "").encode(), expected.encode()):
            return web.Response(status=401)
        for entry in json.loads(body)["entry"]:
            for change in entry["changes"]:
                for call in change["value"].get("calls", ()):
                    if call.get("event") == "connect":
                        self.calls.create_task(self.answer(call["id"]))
        return web.Response()

    async def answer(self, call_id: str) -> None:
        """Send both requests, whatever Graph answers."""
        for action in ("pre_accept", "accept"):
            body = {
                "messaging_product": "whatsapp",
                "action": action,
                "call_id": call_id,
                "session": {"sdp_type": "answer", "sdp": ANSWER},
            }
            async with self.http.post(self.url, json=body) as response:
                await response.read()

    async def live(self, request: web.Request) -> web.Response:
        """Return 0: no call is remembered."""
        return web.json_response({"live": 0})


def main() -> None:
    """Serve until stopped."""
    floor = Floor()
    app = web.Application()
    app.cleanup_ctx.append(floor.running)
    app.add_routes([web.get("/hook", floor.verify), web.post("/hook", floor.webhook), web.get("/live", floor.live)])
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
