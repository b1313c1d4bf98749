"""Row 28: what must not be known comes out nowhere: not in a log, an error, a metric, a page about health.

Canaries stand where secrets and people stand: keys, tokens, an SDP's password and fingerprint, numbers, names. They
go down every path of a real gateway process at log level debug, whose Graph API echoes all it hears and fails, and
through bugs of ours in a gateway in memory; then everything that came out is searched.
"""

import asyncio
import base64
import io
import json
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from gateway.common import log as gateway_log
from gateway.common.log import configure_logging
from gateway.http.api import Api
from gateway.softphone.server import SoftphoneServer
from loadtest.measure.stack import free_port
from loadtest.simulator.payloads import signature
from loadtest.simulator.sdp import MetaMedia, write_offer
from tests.support.harness.chaos import Chaos, Scale
from tests.support.harness.doors import KEYED, doors
from tests.support.harness.world import NUMBER_ID, a_world

ENCODED = ["acc", "app", "old", "ver", "opk", "api", "pwd", "dev"]


class Canaries:
    """Secrets without any looks, and people. Everything ever made is remembered."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.secrets = {name: f"{name}{self.rng.randbytes(10).hex()}Zq" for name in ENCODED}
        self.media: dict[str, str] = {}  #: an SDP's
        self.people: dict[str, str] = {}

    def person(self) -> tuple[str, str, str]:
        """Return a number, a BSUID and a name that are new."""
        n = len(self.people)
        number = f"55119{self.rng.randrange(10**8):08d}"
        bsuid, name = f"BR.{self.rng.randrange(10**19, 10**20)}", f"Zenobia{self.rng.randbytes(4).hex()} Quartzo"
        shown = f"{number[4:9]}-{number[9:]}"
        forms = [number[4:], shown, shown.replace("-", " "), bsuid[3:], name]
        encoded = [base64.b64encode(bytes(pad) + number.encode())[4:-4].decode() for pad in range(3)]
        self.people |= {f"person {n} {k}": form for k, form in enumerate([*forms, *encoded])}
        return number, bsuid, name

    def sdp(self) -> str:
        """Return an offer of Meta's with a password and a fingerprint that are new."""
        password = f"ice{self.rng.randbytes(11).hex()}"
        print_ = ":".join(f"{byte:02X}" for byte in self.rng.randbytes(32))
        n = len(self.media)
        self.media |= {f"password {n}": password, f"fingerprint {n}": print_[:47]}
        media = MetaMedia(
            host="127.0.0.1", port=9, ufrag="ufra", password=password, fingerprint=print_, ssrc=7, session_id=1
        )
        return write_offer(media)

    def found_in(self, text: str, *, people: bool = True) -> Iterator[str]:
        """Yield the names of those that are in a text."""
        looked_for = self.secrets | self.media | (self.people if people else {})
        yield from (name for name, canary in looked_for.items() if canary in text)


class Outlet:
    """All that came out, by where; `leaks` names what was found there."""

    def __init__(self, canaries: Canaries) -> None:
        self.canaries = canaries
        self.texts: dict[str, list[str]] = {}

    def add(self, where: str, text: str) -> None:
        self.texts.setdefault(where, []).append(text)

    @property
    def leaks(self) -> Counter[str]:
        """What an owner may see of people in an answer is theirs; nobody sees a secret."""
        return Counter(
            f"{where}: {name}"
            for where, texts in self.texts.items()
            for text in texts
            for name in self.canaries.found_in(text, people=not where.startswith("answers"))
        )

    def hold(self, chaos: Chaos) -> None:
        """Hold against the promise what was found."""
        leaks = self.leaks
        for where, texts in self.texts.items():
            chaos.note(f"{where} searched", sum(map(len, texts)), unit="characters")
        chaos.note("first found", next(iter(leaks), "none"))
        chaos.promise("canaries found", leaks.total(), at_most=0)


# --- a Graph API that talks ----------------------------------------------------------------------------


@asynccontextmanager
async def echoing_graph(rng: random.Random, outlet: Outlet) -> AsyncIterator[str]:
    """Serve a Graph API that answers with everything it was told, in all kinds of errors, and now and then a yes."""

    async def answer(request: web.Request) -> web.Response:
        body = (await request.read()).decode(errors="replace")
        heard = f"{request.headers.get('Authorization')} at {request.path_qs} said {body}"
        error = {"message": heard, "type": "OAuthException", "error_data": {"details": heard}, "fbtrace_id": heard[:80]}
        match rng.randrange(6):
            case 0:
                code = rng.choice([100, 131009, 131030, 138001, 138006, 138021])
                return web.json_response({"error": error | {"code": code}}, status=400)
            case 1:
                return web.json_response({"error": error | {"code": 1}, "more": heard}, status=500)
            case 2:
                return web.Response(text=heard, status=rng.choice([200, 502]))
            case _:
                yes = {"success": True, "messages": [{"id": "wamid.HBgN"}], "calls": [{"id": f"wacid.{rng.random()}"}]}
                return web.json_response(yes)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/v26.0"
    finally:
        await runner.cleanup()


# --- a gateway process ---------------------------------------------------------------------------------


class Process:
    """`gateway serve` with every secret a canary, at log level debug; everything that it prints is kept."""

    def __init__(self, canaries: Canaries, outlet: Outlet) -> None:
        self.canaries = canaries
        self.outlet = outlet
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = aiohttp.ClientSession()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, graph_url: str, database_url: str, folder: Path, log_format: str) -> None:
        secrets = self.canaries.secrets
        environ = {
            "PORT": str(self.port),
            "ADMIN_PORT": str(self.admin_port),
            "GRAPH_URL": graph_url,
            "APP_SECRET": secrets["app"],
            "APP_SECRET_PREVIOUS": secrets["old"],
            "VERIFY_TOKEN": secrets["ver"],
            "ACCESS_TOKEN": secrets["acc"],
            "PHONE_NUMBER_ID": NUMBER_ID,
            "PHONE_NUMBER": "+551155550100",
            "OPERATORS": json.dumps({"ana": secrets["opk"]}),
            "API_KEY": secrets["api"],
            "MEDIA_BIND_ADDRESS": "127.0.0.1",
            "MEDIA_PORTS": "0",
            "DATABASE_URL": database_url.replace("postgres@", f"postgres:{secrets['pwd']}@"),
            "DATA_DIR": str(folder),
            "LOG_LEVEL": "debug",
            "LOG_FORMAT": log_format,
        }
        self._environ = os.environ | {f"GATEWAY_{name}": value for name, value in environ.items()}
        self._process = await self._run("serve")
        async with asyncio.timeout(30):
            while not await self._is_ready():  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.1)

    async def _run(self, command: str) -> asyncio.subprocess.Process:
        pipe = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
        arguments = (sys.executable, "-m", "gateway", command)
        return await asyncio.create_subprocess_exec(*arguments, env=self._environ, limit=1 << 26, **pipe)  # type: ignore[arg-type]

    async def show(self, command: str) -> None:
        """Run a command that shows what is set."""
        out, _ = await (await self._run(command)).communicate()
        self.outlet.add(f"gateway {command}", out.decode())

    async def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None
        try:
            async with self.session.get(f"http://127.0.0.1:{self.admin_port}/healthz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def stop(self) -> None:
        """Twice: at once. What it printed is all there then."""
        if self._process is not None:
            for path in ("healthz", "readyz", "metrics", "version"):
                async with self.session.get(f"http://127.0.0.1:{self.admin_port}/{path}") as response:
                    self.outlet.add("pages of the private port", await response.text())
            reading = asyncio.get_running_loop().create_task(self._process.communicate())
            self._process.terminate()
            await asyncio.sleep(0.3)
            if self._process.returncode is None:
                self._process.terminate()
            out, _ = await reading
            self.outlet.add("the log", out.decode())
        await self.session.close()

    # --- what is asked of it -----------------------------------------------------------------------

    async def ask(self, method: str, path: str, *, key: str | None = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.session.request(method, self.url + path, headers=headers, **more) as response:
            text = await response.text()
            self.outlet.add("errors" if response.status >= 400 else "answers", f"{response.headers}\n{text}")
            return json.loads(text) if text and "json" in response.content_type else None

    async def webhook(self, value: dict[str, Any], *, field: str = "calls", secret: str | None = None) -> None:
        metadata = {"display_phone_number": "551155550100", "phone_number_id": NUMBER_ID}
        change = {"field": field, "value": {"messaging_product": "whatsapp", "metadata": metadata, **value}}
        entry = {"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [change]}]}
        body = json.dumps(entry, ensure_ascii=False).encode()
        headers = {"X-Hub-Signature-256": signature(body, secret or self.canaries.secrets["app"])}
        async with self.session.post(self.url + "/webhooks/meta", data=body, headers=headers) as response:
            self.outlet.add("errors", await response.text())

    async def raw(self, head: str) -> None:
        """Say something that is no HTTP. The answer may repeat it: to who said it, and in the log it must not stand."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode())
        async with asyncio.timeout(20):
            await reader.read(65_536)
        writer.close()
        await writer.wait_closed()


class Day:
    """Sends canaries down every path of a gateway process, once a round."""

    def __init__(self, process: Process, canaries: Canaries) -> None:
        self.process = process
        self.canaries = canaries
        self.secrets = canaries.secrets
        self._calls = 0

    async def round(self) -> None:
        await self.keys()
        await self.api()
        await self.users()
        await self.softphone()
        await self.nonsense()

    async def keys(self) -> None:
        """Right keys, and right ones in wrong places."""
        ask, secrets = self.process.ask, self.secrets
        for wanted in (
            {"operator": "ana", "key": secrets["acc"]},
            {"operator": secrets["opk"], "key": "ana"},
            {"operator": secrets["api"]},
            {"operator": "ana", "key": secrets["opk"], "device": secrets["dev"]},
            {"operator": "ana", "key": secrets["opk"], secrets["pwd"]: 1},
            {"operator": ["ana", secrets["opk"]], "key": secrets["opk"]},
        ):
            await ask("POST", "/v1/tickets", json=wanted)
        await ask("POST", "/v1/tickets", data=f'{{"operator":"ana","key":"{secrets["opk"]}"')
        for key in (secrets["opk"], secrets["acc"], secrets["app"], secrets["api"] + "x"):
            await ask("GET", "/v1/numbers", key=key)
        await ask("GET", f"/v1/{secrets['api']}")
        await ask("GET", f"/static/{secrets['api']}")
        await ask("GET", f"/webhooks/meta?hub.mode=subscribe&hub.challenge=1&hub.verify_token={secrets['ver']}")
        await ask("GET", f"/webhooks/meta?hub.mode=subscribe&hub.challenge=1&hub.verify_token={secrets['ver']}x")

    async def api(self) -> None:
        number, bsuid, _ = self.canaries.person()
        ask, key = self.process.ask, self.secrets["api"]
        for user in (f"+{number}", number, bsuid, f"%2B55%2011%20{number[4:9]}-{number[9:]}", f"{number}x"):
            contact = f"/v1/numbers/{NUMBER_ID}/contacts/{user}"
            await ask("GET", contact, key=key)
            await ask("POST", contact + "/permission-requests", key=key)
            await ask("POST", contact + "/reconcile", key=key)
            await ask("GET", f"/v1/numbers/{NUMBER_ID}/decisions?user={user}", key=key)
            await ask("POST", f"/v1/numbers/{NUMBER_ID}/calls", key=key, json={"to": user, "operator": "ana"})
            await ask("GET", f"/v1/numbers/{number}/contacts/{user}", key=key)
        await ask("POST", f"/v1/numbers/{NUMBER_ID}/refresh", key=key)
        await ask("GET", "/v1/calls?limit=" + number, key=key)

    async def users(self) -> None:
        """What Meta tells of people, right, wrong, unsigned."""
        number, bsuid, name = self.canaries.person()
        self._calls += 1
        person = {"contacts": [{"profile": {"name": name}, "wa_id": number, "user_id": bsuid}]}
        call = {"id": f"wacid.{self._calls}{base64.b64encode(number.encode()).decode()}", "from": number}
        call |= {"from_user_id": bsuid, "to": "551155550100", "direction": "USER_INITIATED"}
        call["timestamp"] = str(int(await self._now()))
        webhook = self.process.webhook
        for sdp in (self.canaries.sdp(), self.canaries.sdp()[:300], f"v=0 {self.canaries.sdp()}"):
            session = {"sdp_type": "offer", "sdp": sdp}
            await webhook(person | {"calls": [call | {"event": "connect", "session": session}]})
            call["id"] += "x"
        errors = [{"code": 138000, "message": f"{name} {number}", "error_data": {"details": f"+{number} {bsuid}"}}]
        await webhook(person | {"calls": [call | {"event": "terminate", "status": "FAILED"}], "errors": errors})
        message = {"from": number, "from_user_id": bsuid, "id": "wamid.1", "timestamp": call["timestamp"]}
        text = {"type": "text", "text": {"body": f"{name} {number}"}}
        await webhook(person | {"messages": [message | text]}, field="messages")
        reply = {"response": "accept", "response_source": name, "expiration_timestamp": number}
        interactive = {
            "type": "interactive",
            "interactive": {"type": "call_permission_reply", "call_permission_reply": reply},
        }
        await webhook(person | {"messages": [message | interactive]}, field="messages")
        await webhook({"calls": [{"id": number, name: bsuid}], "x": self.canaries.sdp()}, field=name)
        await webhook(person | {"calls": [call]}, secret=self.secrets["acc"])

    async def _now(self) -> float:
        async with self.process.session.get(self.process.url + "/v1/nothing") as response:
            return parsedate_to_datetime(response.headers["Date"]).timestamp()

    async def softphone(self) -> None:
        """An operator who says everything wrong that can be said, and some things right."""
        number, _, name = self.canaries.person()
        wanted = {"operator": "ana", "key": self.secrets["opk"]}
        got = await self.process.ask("POST", "/v1/tickets", json=wanted)
        ticket = got["ticket"] if "ticket" in got else self.secrets["opk"]
        where = {"number_id": NUMBER_ID, "to": f"+{number}"}
        said: list[dict[str, Any]] = [
            {"type": "hello", "ticket": ticket},
            {"type": "leg", "worker": 0, "sdp": self.canaries.sdp()[:400]},
            {"type": "leg", "worker": 0, "sdp": self.canaries.sdp()},
            {"type": "check", **where},
            {"type": "dial", **where},
            {"type": "ask_permission", **where},
            {"type": "dial", "number_id": number, "to": name},
            {"type": "accept", "call_id": self.secrets["acc"]},
            {"type": self.secrets["opk"]},
            {"type": "hold", "call_id": number, "on": name},
            {"type": "check", **where, number: name},
            {"type": "recent", "limit": 5},
            {"type": "hello", "ticket": self.secrets["opk"], "resume": self.secrets["api"]},
            {"type": "bye"},
        ]
        for first in ({"type": "hello", "ticket": self.secrets["opk"]}, {"type": "hello", "resume": number}, said[0]):
            await self._say([first, *said[1:]])

    async def _say(self, said: list[dict[str, Any]]) -> None:
        ws = await self.process.session.ws_connect(self.process.url + "/v1/softphone", protocols=["calls.v1"])
        for n, message in enumerate(said):
            if ws.closed:
                break
            await ws.send_str(json.dumps(message | {"id": n}))
        async for frame in ws:
            message = json.loads(frame.data)
            is_error = message["type"] == "error"
            shown = frame.data if is_error else json.dumps({**message, "data": _without_sdp(message.get("data"))})
            self.process.outlet.add("errors of the socket" if is_error else "answers of the socket", shown)

    async def nonsense(self) -> None:
        number, _, _ = self.canaries.person()
        key = self.secrets["api"]
        for head in (
            f"GET /v1/numbers/{number}?token={key} HTTP/9.9\r\n\r\n",
            f"GET /{'x' * 9_000}{number} HTTP/1.1\r\n\r\n",
            f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}{'x' * 9_000}\r\n\r\n",
            f"GET / HTTP/1.1\r\nHost: x\r\nX-{key}\x00: {number}\r\n\r\n",
            f"{key} / {number}\r\n\r\n",
            f"POST /v1/tickets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {key}\r\nContent-Length: 5\r\n\r\n{number}",
        ):
            await self.process.raw(head)


def _without_sdp(data: Any) -> Any:
    return {name: part for name, part in data.items() if name != "sdp"} if isinstance(data, dict) else data


@pytest.mark.row(28, "No key, token, SDP secret, number or name in any log, error, metric or page about health")
@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.timeout(600)
async def test_secrets_of_a_process(chaos: Chaos, database: str, tmp_path: Path) -> None:
    canaries = Canaries(chaos.seed)
    outlet = Outlet(canaries)
    rounds = chaos.size(test=1, short=10, long=60)
    async with echoing_graph(random.Random(chaos.seed), outlet) as graph_url:
        process = Process(canaries, outlet)
        try:
            await process.start(graph_url, database, tmp_path, "json" if chaos.seed % 2 else "console")
            if chaos.scale is not Scale.TEST:
                await process.show("check")
            day = Day(process, canaries)
            for _ in range(rounds):
                await day.round()
        finally:
            await process.stop()
    chaos.note("canaries", len(canaries.secrets) + len(canaries.media) + len(canaries.people))
    outlet.hold(chaos)
    log = "".join(outlet.texts["the log"])
    for event in ("key_refused", "webhook_signature_wrong", "call_finished", "graph", "gateway_ready"):
        assert event in log, f"no {event}: a path was not taken"


# --- bugs of ours --------------------------------------------------------------------------------------


@contextmanager
def logged(outlet: Outlet, log_format: str) -> Iterator[None]:
    """Log as `gateway serve` does, but for keeping it; afterwards as before."""
    stream = io.StringIO()
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    configure_logging(level="debug", log_format=log_format, stream=stream, secrets=outlet.canaries.secrets.values())
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(False)
        structlog.configure(**before)
        gateway_log.hide_values(())
        outlet.add("the log", stream.getvalue())


async def broken_gateway(canaries: Canaries, outlet: Outlet, log_format: str) -> None:
    """Let bugs of ours and libraries' warnings carry every canary in their texts."""
    number, bsuid, _ = canaries.person()
    text = f"{canaries.secrets} {canaries.sdp()} +{number} {number} {bsuid} {canaries.sdp()!r}"

    async def bug(*args: Any, **more: Any) -> Any:
        raise ValueError(text) from KeyError(text)

    with logged(outlet, log_format), pytest.MonkeyPatch.context() as patch:
        async with a_world() as world, doors(world) as opened:
            patch.setattr(Api, "show_number", bug)
            patch.setattr(SoftphoneServer, "_carry_out", bug)
            socket, _ = await opened.login(leg=False)
            outlet.add("errors of the socket", str(await socket.ask("recent")))
            async with opened.client.get(f"/v1/numbers/{NUMBER_ID}", headers=KEYED) as response:
                outlet.add("errors", await response.text())
            driver = await world.user_calls()
            assert driver is not None
            driver.feed(None)  # type: ignore[arg-type]
            await world.until(lambda: driver.is_over)
            asyncio.get_running_loop().call_exception_handler({"message": text, "exception": ValueError(text)})
            logging.getLogger("aiohttp.server").error("Error handling %s", text, exc_info=ValueError(text))
            structlog.get_logger().info(text, text=text, nested={"a": [text, {"b": text}]}, error=ValueError(text))
            outlet.add("metrics", (await world.metrics.render()).decode())


@pytest.mark.row(28, "An exception of ours with a secret in its text shows it to nobody")
@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_secrets_in_bugs(chaos: Chaos, log_format: str) -> None:
    canaries = Canaries(chaos.seed)
    outlet = Outlet(canaries)
    await broken_gateway(canaries, outlet, log_format)
    outlet.hold(chaos)
    log = "".join(outlet.texts["the log"])
    for event in ("request_broken", "softphone_request_broken", "call_broken", "Error handling"):
        assert event in log, f"no {event}: a path was not taken"


@pytest.mark.parametrize("part", ["mask_text", "hide_values"])
async def test_a_log_that_masks_nothing_would_be_seen(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    def nothing(*args: Any) -> Any:
        return args[-1]

    monkeypatch.setattr(gateway_log, part, nothing)
    canaries = Canaries(1)
    outlet = Outlet(canaries)
    await broken_gateway(canaries, outlet, "json")
    assert outlet.leaks.total() > 0
