"""Damaged session descriptions, by a seed: the documents of `tests/data/sdp`, changed in a few places.

Each document found to break something belongs into `tests/data/sdp/hostile`; all of those are tried unchanged, too.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parents[2] / "data" / "sdp"

_NUMBERS: Final = (b"0", b"-1", b"65536", b"4294967296", b"18446744073709551616", b"9" * 400, b"1e309", b"0x7f", b"+1")
_WORDS: Final = (
    b"\0", b"\r", b"\t", b"\x7f", b"\xff", b"\xc3\x28", "٣".encode(), "é".encode(), "\u2028".encode(),
    "\U0001f600".encode(), b"\xed\xa0\x80", b":", b" ", b"  ", b"=", b"%s%n", b"a=", b"m=audio ", b"\r\n", b"\n\n",
)  # fmt: skip
#: Addresses that a candidate may name and that we may not write to; none is reachable from a test in any case.
ADDRESSES: Final = (
    b"127.0.0.1", b"0.0.0.0", b"10.0.0.1", b"169.254.169.254", b"224.0.0.1", b"255.255.255.255", b"::1", b"::",
    b"fe80::1", b"fe80::1%lo", b"ff02::1", b"fc00::1", b"::ffff:127.0.0.1", b"64:ff9b::7f00:1", b"2002:7f00:1::1",
    b"localhost", b"a.local", b"1", b"0177.0.0.1", b"127.1", b"[::1]", b"192.0.2.1", b"",
)  # fmt: skip

Mutation = Callable[[random.Random, bytearray], None]


def documents() -> dict[str, bytes]:
    """Return the good ones by name."""
    return {path.stem: path.read_bytes() for path in sorted(CORPUS.glob("*.sdp"))}


def hostile_documents() -> dict[str, bytes]:
    """Return those kept because they are, or once were, trouble."""
    return {path.stem: path.read_bytes() for path in sorted((CORPUS / "hostile").glob("*.sdp"))}


def mutate(rng: random.Random, document: bytes) -> bytes:
    """Return the document with one to six things wrong with it."""
    data = bytearray(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(MUTATIONS)(rng, data)
        if not data:
            data += b"v"
    return bytes(data)


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _cut_out(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 60)]


def _cut_off(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start:start] = rng.choice(_WORDS)


def _number(rng: random.Random, data: bytearray) -> None:
    """Replace a number."""
    digits = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        start = end = rng.choice(digits)
        while end < len(data) and 48 <= data[end] <= 57:
            end += 1
        data[start:end] = rng.choice(_NUMBERS)


def _drop_line(rng: random.Random, data: bytearray) -> None:
    lines = data.split(b"\r\n")
    del lines[rng.randrange(len(lines))]
    data[:] = b"\r\n".join(lines)


def _repeat_line(rng: random.Random, data: bytearray) -> None:
    lines = data.split(b"\r\n")
    at = rng.randrange(len(lines))
    lines[at:at] = [lines[at]] * rng.choice((1, 1, 2, 63, 64, 400))
    data[:] = b"\r\n".join(lines)


def _swap_lines(rng: random.Random, data: bytearray) -> None:
    lines = data.split(b"\r\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    data[:] = b"\r\n".join(lines)


def _lengthen(rng: random.Random, data: bytearray) -> None:
    """Make a line long."""
    at = rng.randrange(len(data))
    data[at:at] = rng.choice((b"A", b"0", b":", b" ", b"\xc3\xa9")) * rng.choice((100, 4_000, 8_000, 20_000))


def _line_ends(rng: random.Random, data: bytearray) -> None:
    data[:] = data.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\n\r", b"\0", b"\r\n\r\n")))


def _candidates(rng: random.Random, data: bytearray) -> None:
    """Add candidates, now and then five thousand."""
    for n in range(rng.choice((1, 2, 16, 40, 70, 5_000))):
        data += b"a=candidate:%d 1 udp %d %s %d typ host\r\n" % (n, n, rng.choice(ADDRESSES), rng.randrange(70_000))


def _splice(rng: random.Random, data: bytearray) -> None:
    """Go on as another document does."""
    other = rng.choice(tuple(_GOOD.values()))
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _noise(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start : start + rng.randint(1, 40)] = rng.randbytes(rng.randint(1, 40))


MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip, _flip, _overwrite, _cut_out, _cut_off, _insert, _insert, _number, _number, _drop_line, _repeat_line,
    _swap_lines, _lengthen, _line_ends, _candidates, _splice, _noise,
)  # fmt: skip
_GOOD: Final = documents()
