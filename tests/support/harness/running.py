"""A real gateway in this process, with real media workers and PostgreSQL, beside a simulated Meta."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.app import Gateway
from gateway.common.ids import OperatorId
from gateway.config.loading import load
from gateway.shutdown import Stop
from loadtest.measure.stack import free_port
from loadtest.operators.softphone_bot import SoftphoneBot
from loadtest.simulator.config import SimConfig
from loadtest.simulator.meta_sim import MetaSim
from tests.support.harness.waiting import until

KEYS = {"ana": "key-of-ana", "bia": "key-of-bia"}
API_KEY = "key-of-the-api"


class Running:
    """Both sides of a call, and what a test wants to know of them."""

    def __init__(self, gateway: Gateway, sim: MetaSim) -> None:
        self.gateway = gateway
        self.sim = sim
        self.url = f"http://127.0.0.1:{gateway.port}"
        self.number_id = sim.number.spec.phone_number_id
        self.ana = sim.user("5511900000001")

    @asynccontextmanager
    async def operator(self, name: str = "ana", *, tone_hz: int = 1000) -> AsyncIterator[SoftphoneBot]:
        """An operator at a softphone, with a warm leg."""
        bot = SoftphoneBot(self.url, operator=name, key=KEYS[name], tone_hz=tone_hz)
        try:
            await bot.start()
            # The gateway hears of the leg a moment later than the bot, and until then refuses to dial.
            phone = self.gateway.parts.hub.phone(OperatorId(name))
            await until(lambda: phone is not None and phone.connected == set(phone.legs.values()))
            yield bot
        finally:
            await bot.close()

    @property
    def slots(self) -> tuple[int, int]:
        (number,) = self.gateway.parts.numbers
        return number.incoming.in_use, number.outgoing.in_use


@asynccontextmanager
async def running(database_url: str, *, sim: dict[str, Any] | None = None, **settings: str) -> AsyncIterator[Running]:
    """Yield a gateway that is ready and a simulated Meta that knows it; both are gone afterwards."""
    port = free_port()
    callback = f"http://127.0.0.1:{port}/webhooks/meta"
    meta = MetaSim(SimConfig(callback_url=callback, **(sim or {})))
    await meta.start()
    folder = tempfile.TemporaryDirectory(prefix="gateway-")
    operators = ", ".join(f'"{name}": "{key}"' for name, key in KEYS.items())
    environ = {
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_PORT": "0",
        "GATEWAY_GRAPH_URL": f"{meta.url}/v26.0",
        "GATEWAY_APP_SECRET": meta.config.app_secret,
        "GATEWAY_VERIFY_TOKEN": meta.config.verify_token,
        "GATEWAY_ACCESS_TOKEN": meta.config.access_token,
        "GATEWAY_PHONE_NUMBER_ID": meta.number.spec.phone_number_id,
        "GATEWAY_PHONE_NUMBER": f"+{meta.number.spec.display_phone_number}",
        "GATEWAY_NUMBER_NAME": "Loja Exemplo",
        "GATEWAY_OPERATORS": "{" + operators + "}",
        "GATEWAY_API_KEY": API_KEY,
        "GATEWAY_MEDIA_BIND_ADDRESS": "127.0.0.1",
        "GATEWAY_MEDIA_PORTS": "0",
        "GATEWAY_META_CANDIDATE_NETWORKS": "127.0.0.0/8",
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_MAX_LOOP_LAG_MS": "10000",  # the loop is also the test's, and both peers'
        "GATEWAY_DATA_DIR": folder.name,
    } | {f"GATEWAY_{name.upper()}": value for name, value in settings.items()}
    gateway, stop, ready = Gateway(load(environ=environ)), Stop(), asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            life = tasks.create_task(gateway.run(stop, lambda _: ready.set()))
            waiting = tasks.create_task(ready.wait())
            await asyncio.wait([life, waiting], return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                waiting.cancel()
            else:
                yield Running(gateway, meta)
            stop.at_once()
    finally:
        await meta.close()
        folder.cleanup()
