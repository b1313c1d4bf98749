"""pipecat-ai 1.14.0 answering WhatsApp calls. Run in an environment made from pipecat.txt.

Stock: its runner, started with `--whatsapp`, with everything that this includes: the FastAPI app, its routes,
`WhatsAppClient`, uvicorn.

Changed to run here: the Graph address of its API module (a class constant) points at the simulated Meta; no STUN server
(the route has no setting for it; the default is a public one). In its favour: its log is off (the runner sets DEBUG),
and there is no log line per request; the bot does nothing, where a real one builds a pipeline.

Settings are environment variables: PEER_PORT, GRAPH_URL, APP_SECRET, VERIFY_TOKEN, ACCESS_TOKEN, PHONE_NUMBER_ID.
`/live` returns the number of calls that its client holds, for the comparison.
"""

import functools
import os
import sys
from typing import Any

import uvicorn
from loguru import logger
from pipecat.transports.whatsapp import api, client

os.environ |= {
    "WHATSAPP_APP_SECRET": os.environ["APP_SECRET"],
    "WHATSAPP_PHONE_NUMBER_ID": os.environ["PHONE_NUMBER_ID"],
    "WHATSAPP_TOKEN": os.environ["ACCESS_TOKEN"],
    "WHATSAPP_WEBHOOK_VERIFICATION_TOKEN": os.environ["VERIFY_TOKEN"],
}
from pipecat.runner import run as runner  # it reads the environment

api.WhatsAppApi.BASE_URL = f"{os.environ['GRAPH_URL']}/v23.0/"
clients: list[client.WhatsAppClient] = []


class Client(client.WhatsAppClient):  # type: ignore[misc]
    """The client without a STUN server."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, ice_servers=[])
        clients.append(self)


client.WhatsAppClient = Client  # the route imports it by this name


async def bot(arguments: Any) -> None:
    """Serve as the bot that the runner starts for each call."""
    await arguments.webrtc_connection.connect()


@runner.app.get("/live")  # type: ignore[untyped-decorator]
async def live() -> dict[str, int]:
    """Return the number of live calls."""
    return {"live": sum(len(one._ongoing_calls_map) for one in clients)}


def main() -> None:
    """Serve until stopped."""
    logger.disable("pipecat")
    runner.uvicorn.run = functools.partial(uvicorn.run, log_level="warning", access_log=False)
    sys.argv[1:] = ["--whatsapp", "--host", "127.0.0.1", "--port", os.environ["PEER_PORT"]]
    runner.main()


if __name__ == "__main__":
    main()
