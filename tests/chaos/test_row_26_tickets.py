"""Row 26: a ticket opens one session, once, within 30 seconds, never out of a URL; a foreign page opens none."""

import asyncio
import random
import re
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector, WSServerHandshakeError

from gateway.common.ids import OperatorId
from gateway.operators.hub import Hub
from gateway.softphone.tickets import TICKET_S, Tickets
from gateway.wire import messages as msg
from tests.support.harness.chaos import Chaos
from tests.support.harness.doors import Doors, SocketClient, doors
from tests.support.harness.world import a_world

ANA = OperatorId("ana")
OWN = "https://calls.example.com"
STATIC = Path(msg.__file__).parents[1] / "softphone" / "page"


async def welcomed(opened: Doors, ticket: str) -> bool:
    """Try a ticket at a socket of its own; a refusal must close that."""
    socket = await opened.socket()
    answer = await socket.ask("hello", ticket=ticket)
    if answer["type"] == "ok":
        return True
    assert await socket.closed() == msg.CLOSE_UNAUTHORIZED
    return False


async def at_once(opened: Doors, ticket: str, sockets: int) -> int:
    """Use one ticket at so many open sockets in the same moment; return how many were welcomed."""
    url = f"http://127.0.0.1:{opened.server.port}/v1/softphone"
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        found = [SocketClient(await session.ws_connect(url, protocols=["calls.v1"])) for _ in range(sockets)]
        sent = [(socket, await socket.send("hello", ticket=ticket)) for socket in found]
        answers = [await socket.answer(request_id) for socket, request_id in sent]
        for socket in found:
            await socket.ws.close()
    return sum(answer["type"] == "ok" for answer in answers)


def used(desk: Tickets, tries: int, rng: random.Random) -> tuple[int, int]:
    """Use one ticket often, in time and late; return how often in time and how often late it was good."""
    ticket = desk.issue(ANA, now=0.0)
    assert ticket is not None
    times = sorted(rng.uniform(0, 2 * TICKET_S) for _ in range(tries))
    good = [now for now in times if desk.use(ticket, now=now) == ANA]
    return sum(now < TICKET_S for now in good), sum(now >= TICKET_S for now in good)


def foreign(rng: random.Random, port: int) -> str:
    """Make an Origin that is nearly one of ours."""
    host = f"127.0.0.1:{port}"
    word = "".join(rng.choices("abcdefghij", k=5))
    return rng.choice(
        [
            f"https://{word}.example",
            f"{OWN}.{word}.example",
            f"https://{word}calls.example.com",
            f"https://{word}.calls.example.com",
            f"{OWN}:{rng.randrange(1, 65_536)}1",
            f"{OWN}@{word}.example",
            f"https://{word}@calls.example.com",
            OWN.replace("https", "http"),
            OWN.replace(".", word),
            f"http://{host}.{word}.example",
            f"http://{word}@{host}",
            f"http://{host}1",
            f"http://127.0.0.1:{port - 1}",
            f"http://localhost:{port}",
            f"http://[::1]:{port}",
            "null",
            "file://",
            "http://[",
            f"chrome-extension://{word}",
            f"{OWN} {OWN}",
        ]
    )


async def opened_by(opened: Doors, origin: str) -> bool:
    try:
        socket = await opened.socket(Origin=origin)
    except WSServerHandshakeError as error:
        if error.status != 403:
            raise
        return False
    await socket.ws.close()
    return True


@pytest.mark.row(26, "A ticket lives 30 s, works once, never in a URL; a foreign page cannot open the socket")
async def test_tickets(chaos: Chaos) -> None:
    rng = random.Random(chaos.seed)
    rounds, sockets = chaos.size(test=2, short=10, long=10), chaos.size(test=25, short=200, long=400)
    origins, tries = chaos.size(test=60, short=500, long=5_000), 1_000
    desk = Tickets(operators={}, api_key=None)
    uses = [used(desk, tries, rng) for _ in range(chaos.size(test=10, short=100, long=1_000))]
    async with a_world() as world, doors(world, origins=[OWN]) as opened:
        at_sockets = [await at_once(opened, await opened.ticket(), sockets) for _ in range(rounds)]
        again = [await welcomed(opened, ticket) for ticket in [await opened.ticket()] for _ in range(3)]
        now = asyncio.get_running_loop().time()
        late = [opened.tickets.issue(ANA, now=now - TICKET_S - age) for age in (0.0, 1.0, 3_600.0)]
        expired = [await welcomed(opened, ticket) for ticket in late if ticket]
        let_in = [await opened_by(opened, foreign(rng, int(opened.server.port or 0))) for _ in range(origins)]
        ours = [await opened_by(opened, origin) for origin in (OWN, f"http://127.0.0.1:{opened.server.port}")]
    chaos.note("uses of one ticket", f"{len(uses)} x {tries}, and {rounds} x {sockets} sockets at once")
    chaos.promise(
        "tickets good more than once", sum(n != 1 for n, _ in uses) + sum(n != 1 for n in at_sockets), at_most=0
    )
    chaos.promise("good after use", sum(again) - 1, at_most=0)
    chaos.promise("good after 30 s", sum(expired) + sum(n for _, n in uses), at_most=0)
    chaos.note("foreign origins", origins)
    chaos.promise("foreign pages let in", sum(let_in), at_most=0)
    chaos.promise("own pages let in", sum(ours), at_least=2)


@pytest.mark.row(26, "A ticket is never taken from, nor put into, a URL")
async def test_a_ticket_in_the_address_opens_nothing(chaos: Chaos) -> None:
    async with a_world() as world, doors(world, hello_s=0.05) as opened:
        opens = 0
        for name in ("ticket", "token", "access_token", "resume"):
            ticket = await opened.ticket()
            path = f"/v1/softphone?{name}={ticket}"
            socket = SocketClient(await opened.client.ws_connect(path, protocols=["calls.v1"]))
            opens += await socket.closed() != msg.CLOSE_TIMEOUT or bool(socket.heard)
            async with opened.client.post(f"/v1/tickets?operator=ana&key=key-of-ana&{name}={ticket}") as response:
                opens += response.status == 201
            assert await welcomed(opened, ticket)  # it was not used up either
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    addresses = re.findall(r"new WebSocket\(([^,]+),", scripts) + re.findall(r"fetch\(([^,)]+)", scripts)
    chaos.promise("opened by a ticket in the address", opens, at_most=0)
    chaos.promise("addresses of the page that hold one", sum("ticket=" in a or "?" in a for a in addresses), at_most=0)
    assert len(addresses) >= 2


async def test_a_ticket_that_stays_good_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(self: Tickets, ticket: str, *, now: float) -> OperatorId | None:
        operator, _ = self._open.get(ticket, (None, 0.0))
        return operator

    monkeypatch.setattr(Tickets, "use", use)
    in_time, late = used(Tickets(operators={}, api_key=None), 1_000, random.Random(1))
    assert in_time > 1
    assert late > 0
    async with a_world() as world, doors(world) as opened:
        assert await at_once(opened, await opened.ticket(), 10) > 1


async def test_an_origin_check_by_its_beginning_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world, doors(world, origins=[OWN]) as opened:
        check = lambda request: request.headers.get("Origin", OWN).startswith(OWN)  # noqa: E731
        monkeypatch.setattr(opened.softphones, "_is_own_origin", check)
        rng = random.Random(1)
        assert any([await opened_by(opened, foreign(rng, 1)) for _ in range(60)])


async def test_the_one_who_was_let_in_has_the_session() -> None:
    async with a_world() as world, doors(world) as opened:
        assert await at_once(opened, await opened.ticket(), 20) == 1
        hub: Hub = world.hub
        assert [phone.operator for phone in hub] == [ANA]
