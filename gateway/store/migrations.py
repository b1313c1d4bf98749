"""Numbered migrations, applied by the gateway itself at start.

Each of `sql/migrations/0001_name.sql`, `0002_...` is applied once, in one transaction with its row in
`schema_migrations`, under an advisory lock, so that processes that start together migrate once. The gateway does not
start if a file was changed after it was applied, or if the database is newer than this program. There are no down
migrations: a mistake is corrected by the next migration.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from gateway.common.errors import StoreDown, StoreError
from gateway.store.postgres import Connection, connect_options, driver, translated

#: The key of the advisory lock: any number, but it must never change.
_LOCK: Final = 7_240_913_551_862
_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_TABLE: Final = """
create table if not exists schema_migrations (
    version    integer     primary key,
    name       text        not null,
    checksum   text        not null,
    applied_at timestamptz not null default now()
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def parse(sources: Mapping[str, str]) -> tuple[Migration, ...]:
    """Order the files of a folder (name to text). Raises: StoreError unless they count from 0001 without a gap."""
    found = []
    for file_name, text in sources.items():
        if (match := _FILE.fullmatch(file_name)) is None:
            raise StoreError(f"{file_name} is not a valid name for a migration")
        sql = text.replace("\r\n", "\n")  # a checkout may have changed the line ends, not the content
        found.append(Migration(version=int(match[1]), name=match[2], sql=sql))
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise StoreError("migrations must count 0001, 0002, ... without a gap")
    return tuple(found)


@cache
def bundled() -> tuple[Migration, ...]:
    """Return the migrations of this program."""
    folder = files("gateway.store").joinpath("sql/migrations")
    return parse({entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".sql")})


def pending(applied: Mapping[int, str], known: Sequence[Migration]) -> Sequence[Migration]:
    """Return the migrations still to be applied; `applied` maps version to checksum.

    Raises: StoreError: the database is newer than this program, or was created from other files
    """
    if newer := sorted(applied.keys() - {migration.version for migration in known}):
        raise StoreError(
            f"the database has migration {newer[-1]:04}, but this program knows only up to {len(known):04}: "
            "run the newer version of the gateway"
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise StoreError(
                f"migration {migration.version:04}_{migration.name} was changed after it was applied to this "
                "database: restore the file, and put the change into a new migration"
            )
    return [migration for migration in known if migration.version not in applied]


async def migrate(
    dsn: str, migrations: Sequence[Migration] | None = None, *, timeout_s: float = 60.0
) -> Sequence[Migration]:
    """Bring the database up to date and return the applied migrations.

    Raises: StoreDown: no answer, or the lock was not free within `timeout_s`. StoreError: see `pending`
    """
    known = migrations if migrations is not None else bundled()
    options = connect_options(timeout_s=min(timeout_s, 5.0), statement_timeout_s=0)
    try:
        async with asyncio.timeout(timeout_s):
            with translated():
                connection: Connection = await driver.connect(dsn, target_session_attrs="read-write", **options)
                try:
                    return await _migrate(connection, known)
                finally:
                    connection.terminate()  # which frees the lock
    except TimeoutError as error:
        raise StoreDown(f"the migrations did not finish within {timeout_s:g} s") from error


async def _migrate(connection: Connection, known: Sequence[Migration]) -> Sequence[Migration]:
    await connection.execute("select pg_advisory_lock($1)", _LOCK)
    await connection.execute(_TABLE)
    rows = await connection.fetch("select version, checksum from schema_migrations")
    todo = pending({row["version"]: row["checksum"] for row in rows}, known)
    for migration in todo:
        try:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into schema_migrations (version, name, checksum) values ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.checksum,
                )
        except (driver.SyntaxOrAccessError, driver.IntegrityConstraintViolationError) as error:
            raise StoreError(f"migration {migration.version:04}_{migration.name}: {error}") from error
    return todo
