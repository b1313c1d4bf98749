"""The `Store` protocol, and its implementation on PostgreSQL.

One task writes, with group commit (see `group_commit`); reads use a few connections of their own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Protocol

import structlog

from gateway.common.errors import StoreDown, StoreError
from gateway.common.ids import CallId, MetaCallId, OperatorId, PhoneNumberId, UserRef
from gateway.store import rows
from gateway.store.group_commit import Writer, WriterLimits
from gateway.store.migrations import bundled, migrate
from gateway.store.postgres import PostgresLink, PostgresReaders
from gateway.store.queries import QUERIES
from gateway.store.records import CallRecord, Change, ContactRecord, DecisionRecord, FactRecord, Json, NumberSaved

log = structlog.get_logger(__name__)

#: After this time, a key may be used for a new request.
IDEMPOTENCY_TTL: Final = timedelta(hours=24)


class ReplayState(StrEnum):
    """What became of the first request with an idempotency key."""

    IN_PROGRESS = "in_progress"  #: it has no answer yet, or a crash lost it
    DONE = "done"
    CONFLICT = "conflict"  #: it was a different request


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The result of an idempotency key that was used before."""

    state: ReplayState
    response: Json | None = None  #: with DONE


class Store(Protocol):
    """The gateway's persistent data.

    Every method but `write_soon`, `up` and `aclose` raises StoreDown while the database does not answer.
    """

    @property
    def up(self) -> bool:
        """Whether the database answers; updated automatically."""
        ...

    async def start(self) -> None:
        """Connect, and bring the schema up to date.

        Raises: StoreDown, StoreError: the database is newer than the program, or was created from other files
        """
        ...

    async def aclose(self) -> None:
        """Write the queued changes, for a short time at most, and disconnect."""
        ...

    async def write(self, *changes: Change) -> None:
        """Write `changes` in one transaction, after all earlier ones; return when they are durable.

        After a StoreDown it is not known whether they were stored. Every change may be written again.

        Raises: StoreDown, StoreError: these changes are invalid (others are not affected)
        """
        ...

    def write_soon(self, *changes: Change) -> None:
        """Queue `changes` in the same order as `write`, without waiting; they stay queued in an outage."""
        ...

    async def contact(self, phone_number_id: PhoneNumberId, user: UserRef) -> ContactRecord | None:
        """Find a contact by BSUID first; by number only if the BSUIDs do not differ."""
        ...

    async def contacts_named(self, phone_number_id: PhoneNumberId, user: UserRef) -> list[ContactRecord]:
        """Find all contacts with the BSUID or the number: with the BSUID, then without one, then with another one."""
        ...

    async def facts(self, contact_id: str) -> list[FactRecord]:
        """Return all facts of a contact in the order they happened."""
        ...

    async def call(self, call_id: CallId) -> CallRecord | None: ...

    async def call_by_meta_id(self, meta_call_id: MetaCallId) -> CallRecord | None: ...

    async def recent_calls(
        self, *, phone_number_ids: Sequence[PhoneNumberId], limit: int, operator: OperatorId | None = None
    ) -> list[CallRecord]:
        """Return calls of these numbers, latest first."""
        ...

    async def unfinished_calls(self) -> list[CallRecord]:
        """Return the calls that have not ended or for which we owe Meta a hang-up, oldest first. Used after a start."""
        ...

    async def decisions(
        self, phone_number_id: PhoneNumberId, *, user_key: str | None = None, limit: int = 50
    ) -> list[DecisionRecord]:
        """Return the gate's answers, latest first."""
        ...

    async def numbers(self) -> list[NumberSaved]:
        """Return the stored facts of each business number."""
        ...

    async def placed_calls(
        self, phone_number_ids: Sequence[PhoneNumberId], since: datetime
    ) -> dict[PhoneNumberId, list[datetime]]:
        """Return for each number when it placed calls that count against its limits after `since`, in order."""
        ...

    async def recent_event_keys(self, since: datetime) -> set[str]:
        """Return the dedupe keys of events received at or after `since`."""
        ...

    async def known_events(self, phone_number_id: str, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that the journal holds for a number."""
        ...

    async def forget(self, *, events_before: datetime, keys_before: datetime, limit: int) -> int:
        """Delete older events and idempotency keys, at most `limit` of each; return how many were deleted."""
        ...

    async def idempotent(self, key: str, fingerprint: str, now: datetime) -> Replay | None:
        """Claim `key`. None: it is ours, so do the request and `save_idempotent` its answer. Else return the Replay."""
        ...

    async def save_idempotent(self, key: str, fingerprint: str, response: Json) -> None: ...

    async def healthy(self, timeout_s: float = 1.0) -> bool:
        """Return whether the database answers now and has every migration that this program needs. Never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """The limits of a `PostgresStore`."""

    timeout_s: float = 1.0  #: for each statement
    start_timeout_s: float = 10.0  #: the database may still be starting
    readers: int = 4
    writer: WriterLimits = field(default_factory=WriterLimits)


class PostgresStore:
    """`Store` on PostgreSQL: one connection for writing, up to `readers` for reading."""

    def __init__(self, dsn: str, limits: StoreLimits | None = None) -> None:
        self._dsn = dsn
        self._limits = limits or StoreLimits()
        self._writer = Writer(self._connect, self._limits.writer)
        self._readers: PostgresReaders | None = None
        self._tasks = asyncio.TaskGroup()
        self._running: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self._writer.up

    @property
    def backlog(self) -> int:
        """The number of queued groups of changes."""
        return self._writer.backlog

    @property
    def dropped(self) -> int:
        """The number of groups of `write_soon` that were lost."""
        return self._writer.dropped

    async def start(self) -> None:
        await self._migrate()
        self._readers = PostgresReaders(self._dsn, count=self._limits.readers, timeout_s=self._limits.timeout_s)
        await self._tasks.__aenter__()
        self._running = self._tasks.create_task(self._writer.run(), name="store-writer")
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                await self._writer.until_up()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise StoreDown("the database does not accept writes") from error
            raise

    async def _migrate(self) -> None:
        """Run the migrations, as soon as the database answers. Raises: StoreDown, StoreError."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._limits.start_timeout_s
        while True:
            try:
                applied = await migrate(self._dsn)
            except StoreDown:
                if loop.time() >= give_up_at:
                    raise
                await asyncio.sleep(self._limits.writer.retry_s)
            else:
                for migration in applied:
                    log.info("store_migrated", version=migration.version, name=migration.name)
                return

    async def aclose(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            self._writer.close()
            await asyncio.wait([running], timeout=self._limits.writer.flush_s)
            running.cancel()
            await self._tasks.__aexit__(None, None, None)
        if self._readers is not None:
            self._readers.terminate()
            self._readers = None

    async def _connect(self, on_closed: Any) -> PostgresLink:
        return await PostgresLink.open(self._dsn, timeout_s=self._limits.timeout_s, on_closed=on_closed)

    # --- writing --------------------------------------------------------------------------------

    async def write(self, *changes: Change) -> None:
        await self._writer.write(changes)

    def write_soon(self, *changes: Change) -> None:
        self._writer.write_soon(changes)

    # --- reading --------------------------------------------------------------------------------

    async def contact(self, phone_number_id: PhoneNumberId, user: UserRef) -> ContactRecord | None:
        found = await self._fetch("find_contact", phone_number_id, user.user_id, user.wa_id)
        return rows.contact(found[0]) if found else None

    async def contacts_named(self, phone_number_id: PhoneNumberId, user: UserRef) -> list[ContactRecord]:
        found = await self._fetch("find_contacts", phone_number_id, user.user_id, user.wa_id)
        return [rows.contact(row) for row in found]

    async def facts(self, contact_id: str) -> list[FactRecord]:
        return [rows.fact(row) for row in await self._fetch("facts", contact_id)]

    async def call(self, call_id: CallId) -> CallRecord | None:
        found = await self._fetch("call", call_id)
        return rows.call(found[0]) if found else None

    async def call_by_meta_id(self, meta_call_id: MetaCallId) -> CallRecord | None:
        found = await self._fetch("call_by_meta_id", meta_call_id)
        return rows.call(found[0]) if found else None

    async def recent_calls(
        self, *, phone_number_ids: Sequence[PhoneNumberId], limit: int, operator: OperatorId | None = None
    ) -> list[CallRecord]:
        numbers = list(dict.fromkeys(phone_number_ids))
        if operator is None:
            found = await self._fetch("recent_calls", numbers, limit)
        else:
            found = await self._fetch("recent_calls_of_operator", numbers, limit, operator)
        return [rows.call(row) for row in found]

    async def unfinished_calls(self) -> list[CallRecord]:
        return [rows.call(row) for row in await self._fetch("unfinished_calls")]

    async def decisions(
        self, phone_number_id: PhoneNumberId, *, user_key: str | None = None, limit: int = 50
    ) -> list[DecisionRecord]:
        if user_key is None:
            found = await self._fetch("decisions", phone_number_id, limit)
        else:
            found = await self._fetch("decisions_of_user", phone_number_id, limit, user_key)
        return [rows.decision(row) for row in found]

    async def numbers(self) -> list[NumberSaved]:
        return [rows.number(row) for row in await self._fetch("numbers")]

    async def placed_calls(
        self, phone_number_ids: Sequence[PhoneNumberId], since: datetime
    ) -> dict[PhoneNumberId, list[datetime]]:
        found: dict[PhoneNumberId, list[datetime]] = {number_id: [] for number_id in phone_number_ids}
        for row in await self._fetch("placed_calls", list(found), since):
            found[PhoneNumberId(row["phone_number_id"])].append(row["created_at"])
        return found

    async def recent_event_keys(self, since: datetime) -> set[str]:
        return {row["dedupe_key"] for row in await self._fetch("recent_event_keys", since)}

    async def known_events(self, phone_number_id: str, keys: Sequence[str]) -> set[str]:
        return {row["dedupe_key"] for row in await self._fetch("known_events", phone_number_id, list(keys))}

    async def forget(self, *, events_before: datetime, keys_before: datetime, limit: int) -> int:
        events = await self._fetch("forget_events", events_before, limit)
        return len(events) + len(await self._fetch("forget_idempotency", keys_before, limit))

    async def idempotent(self, key: str, fingerprint: str, now: datetime) -> Replay | None:
        if await self._fetch("claim_idempotency", key, fingerprint, now, now - IDEMPOTENCY_TTL):
            return None
        found = await self._fetch("find_idempotency", key)
        if not found or found[0]["fingerprint"] != fingerprint:
            return Replay(state=ReplayState.CONFLICT)
        response = found[0]["response"]
        if response is None:
            return Replay(state=ReplayState.IN_PROGRESS)
        return Replay(state=ReplayState.DONE, response=response)

    async def save_idempotent(self, key: str, fingerprint: str, response: Json) -> None:
        await self._fetch("save_idempotency", key, fingerprint, response)

    async def healthy(self, timeout_s: float = 1.0) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                found = await self._fetch("schema_version")
        except (StoreError, TimeoutError):
            return False
        # A newer schema is fine: a rolling upgrade must not take the old processes out of service.
        return self.up and (found[0][0] or 0) >= len(bundled())

    async def _fetch(self, name: str, *args: object) -> list[Any]:
        """Run a named query; if the connection breaks, retry once on another.

        Raises: StoreDown, StoreError
        """
        readers = self._readers
        if readers is None:
            raise StoreDown("not started")
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                try:
                    return await readers.fetch(QUERIES[name], *args)
                except StoreDown:
                    return await readers.fetch(QUERIES[name], *args)
        except TimeoutError as error:
            raise StoreDown(f"no answer within {self._limits.timeout_s:g} s") from error
