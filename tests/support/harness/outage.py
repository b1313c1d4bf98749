"""A gateway process of its own with null media, a ledger of what it acknowledged, and looks at it from outside."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from loadtest.loads.generator import SignedWebhooks
from loadtest.measure.stack import Stack, StackConfig, operators
from loadtest.simulator.config import UserSpec
from loadtest.simulator.state import Call, CallState
from tests.support.harness.ledger import Ledger
from tests.support.harness.waiting import until

ROOT = Path(__file__).resolve().parents[3]


@asynccontextmanager
async def a_gateway(
    database: str | None,
    folder: Path,
    seed: int,
    *,
    crew: int = 1,
    calls: bool = True,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Stack, Ledger]]:
    """Start it; `crew` operators may log in. Without a database it brings its own. `calls`: in the ledger, too."""
    config = StackConfig(
        port=0,
        admin_port=0,
        sim_port=0,
        data_dir=folder / "data",
        null_media=True,
        operators=operators(crew),
        environment={
            **({"GATEWAY_DATABASE_URL": database} if database else {}),
            "GATEWAY_LOG_LEVEL": "warning",
            "GATEWAY_CONTACT_CACHE": "1000",
            **(environment or {}),
        },
    )
    async with Stack(config) as stack:
        sim = stack.sim
        url = f"{stack.url}/webhooks/meta"
        async with SignedWebhooks(url, app_secret=sim.config.app_secret, number=sim.number.spec) as webhooks:
            yield stack, Ledger(webhooks, seed=seed, calls=calls)


def broken(folder: Path, code: str) -> dict[str, str]:
    """Return what makes a gateway run `code` before everything else."""
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


async def seconds_until(condition: Callable[[], Awaitable[bool]], *, timeout_s: float = 60.0) -> float:
    """Ask until the answer is yes; return how long that took. Raises: TimeoutError."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    return loop.time() - began


async def spool_empty(stack: Stack) -> float:
    """Wait until nothing is in the spool; return how long that took."""

    async def empty() -> bool:
        return not (await stack.metrics())["wacg_spool_deliveries"]

    return await seconds_until(empty)


async def ready(stack: Stack) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.get(f"{stack.admin_url}/readyz") as response:
        return response.status, await response.json()


async def as_it_should_be(stack: Stack) -> bool:
    """Tell whether the gateway is ready and nothing is degraded."""
    status, body = await ready(stack)
    return status == 200 and not body["degraded"]


async def dial(stack: Stack, operator: str, to: str) -> tuple[int, str | None, dict[str, Any]]:
    """Ask for a call by REST; return status, Retry-After and what was said."""
    url = f"{stack.url}/v1/numbers/{stack.sim.number.spec.phone_number_id}/calls"
    headers = {"Authorization": f"Bearer {stack.config.api_key}"}
    wanted = {"to": f"+{to}", "operator": operator}
    async with aiohttp.ClientSession() as http, http.post(url, json=wanted, headers=headers) as response:
        return response.status, response.headers.get("Retry-After"), await response.json(content_type=None)


def user_calls(stack: Stack, number: int) -> Call:
    """Let a user who has not called before call the business."""
    return stack.sim.add_user(UserSpec(wa_id=f"55119{number:08d}", name=f"User {number}")).call()


async def bring_up(stack: Stack, count: int) -> list[Call]:
    """Return so many calls that are up; somebody must answer them."""
    calls: list[Call] = []
    for number in range(count):
        calls.append(user_calls(stack, number))
        await until(lambda: sum(one.state is not CallState.ACTIVE for one in calls) < 20)
    await until(lambda: all(one.state is CallState.ACTIVE for one in calls), timeout_s=30)
    return calls
