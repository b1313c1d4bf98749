"""Measure the gate on this machine: decisions with the state in memory, and with a contact read from PostgreSQL.

The output is one JSON object per line: `{"step": ...}` for progress and `{"figures": ...}` at the end. `python -m
loadtest gate` displays it.
"""

import gc
import os
import platform
import random
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.common.ids import PhoneNumberId, UserRef
from gateway.config.settings import NumberSettings
from gateway.contacts.directory import CACHE_SIZE, Contacts
from gateway.numbers.number import Number
from gateway.store.embedded import embedded_postgres
from gateway.store.migrations import migrate
from gateway.store.postgres import driver, prepare
from gateway.store.queries import QUERIES
from gateway.store.store import PostgresStore
from policy import facts as f
from policy.contact import ContactState, fold, state_to_dict
from policy.gate import evaluate
from policy.number import CallingStatus, NumberState
from policy.pack import BUILT_IN, Pack, load_pack
from policy.request import AskPermission, PlaceCall, Request

NUMBER_ID: Final = PhoneNumberId("200000000000002")
NOW: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
GOOD: Final = NumberState(country="BR", calling=CallingStatus.ENABLED, messaging_limit=10_000)
#: The number of different histories; contacts share them.
HISTORIES: Final = 2_000
#: Rows of one COPY.
CHUNK: Final = 20_000
COLUMNS: Final = ("contact_id", "phone_number_id", "wa_id", "user_id", "name", "state", "seen_at")

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What to measure. Without a database URL, a temporary PostgreSQL is started."""

    contacts: int = 1_000_000
    decisions: int = 100_000
    reads: int = 20_000
    seed: int = 20261122
    database_url: str | None = None  #: of an empty database, which will be filled
    cache: int = CACHE_SIZE


async def run_bench(config: BenchConfig, say: Say) -> dict[str, Any]:
    """Measure everything and return the figures. Raises: StoreError."""
    rng = random.Random(config.seed)
    states = [_history(rng) for _ in range(HISTORIES)]
    say({"step": "decide", "done": 0, "total": 1})
    gate = _measure_gate(states, config.decisions, rng)
    async with _database(config) as dsn:
        load_s = await _load_contacts(dsn, config, states, say)
        plan = await explain(dsn, config)
        reads = await _measure_reads(dsn, config, rng, say)
    return {
        "seed": config.seed,
        "machine": machine(),
        "contacts": config.contacts,
        "evaluate_us": gate,
        "load_s": round(load_s, 1),
        "plan": plan,
        **reads,
    }


def machine() -> dict[str, Any]:
    """Describe the machine."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


# --- a decision with the state in memory -------------------------------------------------------------


def _measure_gate(states: Sequence[ContactState], decisions: int, rng: random.Random) -> dict[str, float]:
    """Time single decisions, with random histories, packs and requests."""
    packs = [load_pack(name) for name in BUILT_IN]
    requests: list[Request] = [PlaceCall(), AskPermission(), PlaceCall(in_flight=1)]
    cases = [(rng.choice(packs), rng.choice(states), rng.choice(requests)) for _ in range(decisions)]
    _time_cases(cases[:2_000])  # warm
    gc.collect()
    gc.freeze()  # as the running gateway does
    taken_ns = _time_cases(cases)
    gc.unfreeze()
    return {name: round(ns / 1_000, 1) for name, ns in _percentiles(taken_ns).items()}


def _time_cases(cases: Sequence[tuple[Pack, ContactState, Request]]) -> list[int]:
    """Time each decision three times and take the median, to leave out other load on the machine."""
    taken_ns = []
    for pack, state, request in cases:
        tries = []
        for _ in range(3):
            begun = time.perf_counter_ns()
            evaluate(pack, GOOD, state, request, now=NOW)
            tries.append(time.perf_counter_ns() - begun)
        taken_ns.append(sorted(tries)[1])
    return taken_ns


def _percentiles(taken_ns: list[int]) -> dict[str, int]:
    ordered = sorted(taken_ns)
    return {
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "max": ordered[-1],
    }


def _history(rng: random.Random) -> ContactState:
    """Generate the state of a contact with a random history of requests, replies, calls and messages."""
    lived: list[f.Fact] = []
    for number in range(rng.randint(0, 14)):
        at, key = NOW - timedelta(seconds=rng.randint(0, 9 * 86_400)), f"wacid.{rng.getrandbits(96):024x}{number}"
        make = rng.choice(_MAKERS)
        lived.append(make(at, key))
    return fold(lived)


_MAKERS: Final[tuple[Callable[[datetime, str], f.Fact], ...]] = (
    lambda at, key: f.PermissionRequested(at=at, key=key, form=f.RequestForm.TEMPLATE, request_id=key),
    lambda at, key: f.PermissionGranted(at=at, key=key, request_id=key),
    lambda at, key: f.PermissionGranted(at=at, key=key, permanent=True),
    lambda at, key: f.PermissionDeclined(at=at, key=key, request_id=key),
    lambda at, key: f.CallConnected(at=at, key=key, direction=f.Direction.BUSINESS_INITIATED),
    lambda at, key: f.CallConnected(at=at, key=key, direction=f.Direction.USER_INITIATED),
    lambda at, key: f.CallUnanswered(at=at, key=key),
    lambda at, key: f.CallRejected(at=at, key=key),
    lambda at, key: f.WindowOpened(at=at, key=key),
)


# --- many contacts in PostgreSQL ---------------------------------------------------------------------


@asynccontextmanager
async def _database(config: BenchConfig) -> AsyncIterator[str]:
    async with AsyncExitStack() as stack:
        dsn = config.database_url
        if dsn is None:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="gateway-bench-", ignore_cleanup_errors=True)
            )
            dsn = await stack.enter_async_context(embedded_postgres(Path(folder)))
        await migrate(dsn)
        yield dsn


def user_at(index: int) -> UserRef:
    """Return the user of a row: most have both a number and a BSUID, some have only one."""
    wa_id, user_id = f"5511{900_000_000 + index}", f"BR.{900_000_000 + index:020d}"
    match index % 10:
        case 0:
            return UserRef(user_id=user_id)
        case 1 | 2:
            return UserRef(wa_id=wa_id)
        case _:
            return UserRef(wa_id=wa_id, user_id=user_id)


def _rows(config: BenchConfig, states: Sequence[ContactState]) -> Iterator[tuple[Any, ...]]:
    plain = [state_to_dict(state) for state in states]
    for index in range(config.contacts):
        user, state = user_at(index), plain[index % len(plain)]
        yield f"{index:032x}", NUMBER_ID, user.wa_id, user.user_id, f"Contact {index}", state, NOW


async def _load_contacts(dsn: str, config: BenchConfig, states: Sequence[ContactState], say: Say) -> float:
    """Fill the table with COPY, then vacuum and analyze it; return the seconds it took."""
    begun, rows, done = time.perf_counter(), _rows(config, states), 0
    connection = await driver.connect(dsn, timeout=10)
    try:
        await prepare(connection)
        while chunk := list(islice(rows, CHUNK)):
            await connection.copy_records_to_table("contacts", records=chunk, columns=COLUMNS)
            done += len(chunk)
            say({"step": "load", "done": done, "total": config.contacts})
        await connection.execute("vacuum analyze contacts", timeout=600)
    finally:
        await connection.close(timeout=10)
    return time.perf_counter() - begun


async def explain(dsn: str, config: BenchConfig) -> list[str]:
    """List the plan nodes for finding a contact by number and BSUID, outermost first."""
    user = user_at(config.contacts // 2 + 3)
    connection = await driver.connect(dsn, timeout=10)
    try:
        (row,) = await connection.fetch(
            "explain (format json) " + QUERIES["find_contact"], NUMBER_ID, user.user_id, user.wa_id
        )
    finally:
        await connection.close(timeout=10)
    return list(_nodes(orjson.loads(row[0])[0]["Plan"]))


def _nodes(plan: dict[str, Any]) -> Iterator[str]:
    name = plan["Node Type"]
    yield f"{name} {plan['Index Name']}" if "Index Name" in plan else name
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


# --- a contact that is not in memory -----------------------------------------------------------------


async def _measure_reads(dsn: str, config: BenchConfig, rng: random.Random, say: Say) -> dict[str, Any]:
    """Time the read of a contact plus a decision about a call; report the memory that the cache uses."""
    store, number = PostgresStore(dsn), _number()
    await store.start()
    try:
        contacts = Contacts(store, cache_size=config.cache)
        warm = [rng.randrange(config.contacts) for _ in range(200)]  # the pool connects, statements are prepared
        await _time_reads(contacts, number, warm)
        before_kb = _resident_kb()
        wanted = rng.sample(range(config.contacts), min(config.reads, config.contacts))
        cold_ns: list[int] = []
        for start in range(0, len(wanted), 1_000):
            cold_ns += await _time_reads(contacts, number, wanted[start : start + 1_000])
            say({"step": "read", "done": len(cold_ns), "total": len(wanted)})
        kept = len(contacts)
        return {
            "cold_ms": {name: round(ns / 1e6, 2) for name, ns in _percentiles(cold_ns).items()},
            "cache": {"limit": config.cache, "kept": kept, "kb": _resident_kb() - before_kb},
        }
    finally:
        await store.aclose()


async def _time_reads(contacts: Contacts, number: Number, indexes: Sequence[int]) -> list[int]:
    taken_ns = []
    for index in indexes:
        begun = time.perf_counter_ns()
        contact = await contacts.get(number, user_at(index))
        evaluate(number.pack, GOOD, contact.state, PlaceCall(), now=NOW)
        taken_ns.append(time.perf_counter_ns() - begun)
    return taken_ns


def _number() -> Number:
    settings = NumberSettings(phone_number_id=NUMBER_ID, phone_number="+551155550100")
    return Number(settings, load_pack(), on_slots=lambda number: None)


def _resident_kb() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize() // 1024
