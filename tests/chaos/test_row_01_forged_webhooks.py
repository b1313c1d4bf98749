"""Row 1: what Meta did not sign is not even parsed. Each forgery goes over a real connection, byte by byte as made."""

import asyncio
import hashlib
import hmac
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson
import pytest

from gateway.intake.webhook import Webhook
from gateway.meta.events import read_delivery
from tests.support.harness.chaos import Chaos
from tests.support.harness.doors import doors, signature
from tests.support.harness.world import APP_SECRET, OLD_SECRET, a_world

BODY = b'{"object":"whatsapp_business_account","entry":[{"id":"1","changes":[{"field":"calls","value":{}}]}]}'
NAME = b"X-Hub-Signature-256"
GOOD = signature(BODY).encode()

#: Headers of one request, and its body.
Forged = tuple[list[tuple[bytes, bytes]], bytes]


def _flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) * 8)
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def _signed(value: bytes, body: bytes = BODY) -> Forged:
    return [(NAME, value)], body


def _visible(make: Callable[[], bytes]) -> bytes:
    """A header that a server's parser takes: what it refuses by itself proves nothing of ours."""
    while True:
        value = make()
        if all(32 < byte < 127 for byte in value):
            return value


def _digest(algorithm: str, secret: str = APP_SECRET) -> bytes:
    return hmac.digest(secret.encode(), BODY, algorithm).hex().encode()


FORGERIES: dict[str, Callable[[random.Random], Forged]] = {
    "a bit of the body": lambda rng: _signed(GOOD, _flip(BODY, rng)),
    "a bit of the signature": lambda rng: _signed(_visible(lambda: _flip(GOOD, rng))),
    "a body cut short": lambda rng: _signed(GOOD, BODY[: rng.randrange(len(BODY))]),
    "a body with more": lambda rng: _signed(GOOD, BODY + rng.randbytes(1 + rng.randrange(9))),
    "no header": lambda rng: ([], BODY),
    "another header": lambda rng: ([(b"X-Hub-Signature", GOOD)], BODY),
    "twice": lambda rng: ([(NAME, GOOD)] * 2, BODY),
    "good and bad": lambda rng: (rng.sample([(NAME, GOOD), (NAME, b"sha256=" + b"0" * 64)], 2), BODY),
    "two in one header": lambda rng: _signed(GOOD + b", " + GOOD),
    "another secret": lambda rng: _signed(signature(BODY, rng.randbytes(16).hex()).encode()),
    "an empty secret": lambda rng: _signed(signature(BODY, "").encode()),
    "no secret at all": lambda rng: _signed(b"sha256=" + hashlib.sha256(BODY).hexdigest().encode()),
    "sha1": lambda rng: _signed(rng.choice([b"sha1=", b"sha256="]) + _digest("sha1")),
    "sha512": lambda rng: _signed(rng.choice([b"sha512=", b"sha256="]) + _digest("sha512")),
    "another name of the algorithm": lambda rng: _signed(
        rng.choice([b"SHA256=", b"Sha256=", b"sha256:", b"sha-256=", b"", b"sha256==", b"md5="]) + GOOD[7:]
    ),
    "digits in capitals": lambda rng: _signed(b"sha256=" + GOOD[7:].upper()),
    "one digit in capitals": lambda rng: _signed(_one_capital(rng)),
    "cut short": lambda rng: _signed(GOOD[: rng.randrange(len(GOOD))]),
    "longer": lambda rng: _signed(GOOD + rng.choice(b"0123456789abcdef").to_bytes(1, "big")),
    "white space": lambda rng: _signed(_put_in(rng, rng.choice([b" ", b"\t", b"\xc2\xa0", b"%20"]))),
    "not ASCII": lambda rng: _signed(b"sha256=" + bytes(rng.randrange(128, 256) for _ in range(64))),
    "a replay for another body": lambda rng: _signed(signature(rng.randbytes(20)).encode()),
}  # fmt: skip


def _one_capital(rng: random.Random) -> bytes:
    at = rng.choice([n for n in range(7, len(GOOD)) if GOOD[n : n + 1].isalpha()])
    return GOOD[:at] + GOOD[at : at + 1].upper() + GOOD[at + 1 :]


def _put_in(rng: random.Random, what: bytes) -> bytes:
    at = rng.randrange(1, len(GOOD))  # around the value, white space is HTTP's and no part of it
    return GOOD[:at] + what + GOOD[at:]


class Sender:
    """Sends requests over one connection; makes a new one when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, forged: Forged) -> int:
        headers, body = forged
        head = b"POST /webhooks/meta HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        self._writer.write(head + lines + b"\r\n" + body)
        async with asyncio.timeout(10):
            answer = await self._reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in answer.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
            await self._reader.readexactly(length)
        if answer.startswith(b"HTTP/1.0") or b"\r\nConnection: close" in answer:
            await self.close()
        return int(answer.split()[1])

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()
        self._writer = None


@asynccontextmanager
async def a_door(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Sender, Counter[str]]]:
    """A gateway's webhook, and how often it has parsed something."""
    counted: Counter[str] = Counter()

    loads = orjson.loads

    def spied(text: bytes) -> object:
        counted["parsed"] += 1
        return loads(text)

    monkeypatch.setattr(orjson, "loads", spied)
    async with a_world() as world, doors(world) as opened:
        sender = Sender(int(opened.server.port or 0))
        counted.clear()  # the settings are JSON too
        yield sender, counted
        await sender.close()


async def forge(sender: Sender, rng: random.Random, count: int) -> Counter[int]:
    """Send so many forgeries, each kind as often; return the answers."""
    kinds = list(FORGERIES.values())
    answers: Counter[int] = Counter()
    for n in range(count):
        answers[await sender.send(kinds[n % len(kinds)](rng))] += 1
    return answers


@pytest.mark.row(1, "Nothing is parsed before its signature holds; the old and the new secret both hold in a change")
async def test_forged_webhooks(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    count = chaos.size(test=500, short=10_000, long=100_000)
    async with a_door(monkeypatch) as (sender, counted):
        answers = await forge(sender, random.Random(chaos.seed), count)
        parsed = counted["parsed"]
        genuine = [await sender.send(_signed(signature(BODY, key).encode())) for key in (APP_SECRET, OLD_SECRET)]
    chaos.note("forged deliveries", count)
    chaos.note("kinds of forgery", len(FORGERIES))
    chaos.promise("forged deliveries accepted", answers[200], at_most=0)
    chaos.promise("forged deliveries parsed", parsed, at_most=0)
    chaos.promise("answers other than 401 and 400", count - answers[401] - answers[400], at_most=0)
    chaos.promise("genuine ones accepted, new and old secret", genuine.count(200), at_least=2)
    assert counted["parsed"] >= 1, "the counter counts nothing"


async def test_every_kind_is_refused_by_us_and_not_by_the_parser_of_http(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    async with a_door(monkeypatch) as (sender, _):
        answers = {kind: await sender.send(make(rng)) for kind, make in FORGERIES.items()}
    assert set(answers.values()) == {401}, answers


async def test_each_secret_is_compared_in_constant_time_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    compare = hmac.compare_digest

    def spied(a: bytes, b: bytes) -> bool:
        compared.append(len(a))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spied)
    async with a_door(monkeypatch) as (sender, _):
        for value in (GOOD, b"sha256=" + b"0" * 64, signature(BODY, OLD_SECRET).encode()):
            compared.clear()
            await sender.send(_signed(value))
            assert compared == [64, 64]


async def test_a_check_that_is_kind_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(self: Webhook, body: bytes, headers: list[str]) -> bool:
        return any(header.lower().strip() in (GOOD.decode(), signature(body)) for header in headers)

    monkeypatch.setattr(Webhook, "_is_signed", kind)
    async with a_door(monkeypatch) as (sender, counted):
        answers = await forge(sender, random.Random(1), 100)
    assert answers[200] > 0
    assert counted["parsed"] > 0


async def test_parsing_before_the_check_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Webhook._is_signed

    def early(self: Webhook, body: bytes, headers: list[str]) -> bool:
        read_delivery(body)
        return check(self, body, headers)

    monkeypatch.setattr(Webhook, "_is_signed", early)
    async with a_door(monkeypatch) as (sender, counted):
        answers = await forge(sender, random.Random(1), 50)
    assert answers[200] == 0
    assert counted["parsed"] > 0
