"""pywa 4.5.0 with aiortc 1.16.0 answering WhatsApp calls. Run in an environment made from pywa.txt.

Stock: pywa's async client on FastAPI with its own webhook routes, signature check and duplicate filter; aiortc's
`RTCPeerConnection`; uvicorn.

pywa has no media, so the following is ours and as short as possible: a handler of `connect` that lets aiortc answer,
sends `pre_accept` and `accept`, and ends the call if Meta refuses; and a handler of `terminate`. A call is stored
before Meta is asked, so that its end is noticed. Required by Meta: of aiortc's three fingerprints only SHA-256 is kept.
Changed to run here: Graph's address. In its favour: its log is at WARNING, and there is no log line per request.

Settings are environment variables: PEER_PORT, GRAPH_URL, APP_SECRET, VERIFY_TOKEN, ACCESS_TOKEN, PHONE_NUMBER_ID.
`/live` returns the number of live calls, for the comparison.
"""

import logging
import os
from contextlib import suppress

import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from fastapi import FastAPI
from pywa.errors import WhatsAppError
from pywa_async import WhatsApp, types
from pywa_async.types.calls import SessionDescription

app = FastAPI()
wa = WhatsApp(
    phone_id=os.environ["PHONE_NUMBER_ID"],
    token=os.environ["ACCESS_TOKEN"],
    app_secret=os.environ["APP_SECRET"],
    verify_token=os.environ["VERIFY_TOKEN"],
    server=app,
    webhook_endpoint="/hook",
)
wa.api._session.base_url = f"{os.environ['GRAPH_URL']}/v23.0"
calls: dict[str, RTCPeerConnection] = {}


@wa.on_call_connect  # type: ignore[untyped-decorator]
async def answer(client: WhatsApp, call: types.CallConnect) -> None:
    """Answer a user's call."""
    peer = calls[call.id] = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        peer.addTrack(AudioStreamTrack())
        await peer.setRemoteDescription(RTCSessionDescription(sdp=call.session.sdp, type="offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        lines = peer.localDescription.sdp.splitlines(keepends=True)
        other = ("a=fingerprint:sha-384", "a=fingerprint:sha-512")
        sdp = SessionDescription(sdp_type="answer", sdp="".join(one for one in lines if not one.startswith(other)))
        await call.pre_accept(sdp=sdp)
        if call.id in calls:
            await call.accept(sdp=sdp)
    except WhatsAppError:
        with suppress(WhatsAppError):
            await call.terminate()
        await forget(call.id)
        raise


@wa.on_call_terminate  # type: ignore[untyped-decorator]
async def ended(client: WhatsApp, call: types.CallTerminate) -> None:
    """Close a call's media when the call ends."""
    await forget(call.id)


async def forget(call_id: str) -> None:
    """Close a call's media, once."""
    peer = calls.pop(call_id, None)
    if peer is not None:
        await peer.close()


@app.get("/live")  # type: ignore[untyped-decorator]
async def live() -> dict[str, int]:
    """Return the number of live calls."""
    return {"live": len(calls)}


def main() -> None:
    """Serve until stopped."""
    logging.basicConfig(level=logging.WARNING)
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
