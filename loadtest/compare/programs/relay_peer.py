"""aiortc 1.16.0 joining the two legs of a call: `RTCPeerConnection` and `MediaRelay`. Run with our own environment.

Stock: everything that touches media. aiortc passes tracks on as decoded frames, so each packet is decoded and encoded.

Ours, as short as possible: POST /call takes the offers of both legs as a JSON list and returns the answers; each leg is
sent what the other one receives. Changed to run here: it uses only loopback, which aioice leaves out. In its favour:
uvloop, no log. The port is an environment variable: PEER_PORT.
"""

import os

import uvloop
from aiohttp import web
from aioice import ice
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaRelay

legs: list[RTCPeerConnection] = []
relay = MediaRelay()


def loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """Return the addresses to use."""
    return ["127.0.0.1"]


async def call(request: web.Request) -> web.Response:
    """Join two legs."""
    offers = await request.json()
    pair = [RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in offers]
    legs.extend(pair)
    for leg, offer in zip(pair, offers, strict=True):
        await leg.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
    tracks = [leg.getReceivers()[0].track for leg in pair]
    for leg, track in zip(pair, reversed(tracks), strict=True):
        leg.addTrack(relay.subscribe(track))
        await leg.setLocalDescription(await leg.createAnswer())
    return web.json_response([leg.localDescription.sdp for leg in pair])


async def live(request: web.Request) -> web.Response:
    """Return the number of calls."""
    return web.json_response({"live": len(legs) // 2})


async def serve() -> web.Application:
    """Return the application."""
    app = web.Application()
    app.add_routes([web.post("/call", call), web.get("/live", live)])
    return app


if __name__ == "__main__":
    ice.get_host_addresses = loopback
    uvloop.install()
    web.run_app(serve(), host="127.0.0.1", port=int(os.environ["PEER_PORT"]), print=None, access_log=None)
