"""Connections to PostgreSQL: one for writing, a few for reading, and the driver's errors as ours.

`group_commit` decides when to reconnect.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
import orjson

from gateway.common.errors import StoreDown, StoreError
from gateway.store import rows
from gateway.store.queries import QUERIES
from gateway.store.records import Change

#: asyncpg is untyped.
driver: Any = asyncpg
Connection = Any

APPLICATION_NAME: Final = "whatsapp-call-gateway"

#: The database is unreachable, starting, full, read-only or too slow: the same statement may succeed later.
_AWAY: Final = (
    OSError,  # TimeoutError is one
    driver.PostgresConnectionError,
    driver.OperatorInterventionError,
    driver.InsufficientResourcesError,
    driver.PostgresSystemError,  # class 58: a disk error, or its I/O workers are gone
    driver.ReadOnlySQLTransactionError,
    driver.TransactionRollbackError,
    driver.InvalidAuthorizationSpecificationError,
    driver.InvalidCatalogNameError,
    driver.InternalClientError,  # raised when the connection breaks in the middle of an exchange
    driver.InterfaceError,  # "connection is closed"; its subclass DataError is excluded below
)


def store_error_from(error: Exception) -> StoreError:
    """Return StoreDown if waiting may help, StoreError if the statement or its values are bad.

    The text leaves out PostgreSQL's message, which may quote values.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, driver.PostgresError):
        constraint = getattr(error, "constraint_name", None)
        text = f"{type(error).__name__} ({error.sqlstate})" + (f" on {constraint}" if constraint else "")
    else:
        text = type(error).__name__
    away = isinstance(error, _AWAY) and not isinstance(error, driver.DataError)
    return StoreDown(text) if away else StoreError(text)


@contextmanager
def translated() -> Iterator[None]:
    """Convert every exception of the driver to StoreDown or StoreError; cancellation passes."""
    try:
        yield
    except Exception as error:
        raise store_error_from(error) from error


async def prepare(connection: Connection) -> None:
    """Make a connection read and write jsonb with orjson."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",  # one version byte, then the text
        encoder=lambda value: b"\x01" + rows.json_bytes(value),
        decoder=lambda data: orjson.loads(data[1:]),
    )


def connect_options(*, timeout_s: float, statement_timeout_s: float | None = None) -> dict[str, Any]:
    """Return the connect options that all our connections share."""
    limit_ms = round((statement_timeout_s if statement_timeout_s is not None else timeout_s) * 1000)
    return {
        "timeout": timeout_s,
        "server_settings": {
            "application_name": APPLICATION_NAME,
            "statement_timeout": str(limit_ms),  # 0: no limit
            "synchronous_commit": "on",  # we promise durability, so we do not rely on the database's default
            "timezone": "UTC",
        },
    }


async def _connect(dsn: str, timeout_s: float, **options: Any) -> Connection:
    connection: Connection = await driver.connect(dsn, **connect_options(timeout_s=timeout_s), **options)
    try:
        await prepare(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


class PostgresLink:
    """The writer's connection: applies groups of changes, one transaction at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, dsn: str, *, timeout_s: float, on_closed: Callable[[], object]) -> "PostgresLink":
        """Connect to the server that accepts writes; `on_closed` is called when the connection is lost.

        Raises: StoreDown, StoreError
        """
        with translated():
            connection = await _connect(dsn, timeout_s, target_session_attrs="read-write")
        connection.add_termination_listener(lambda _: on_closed())
        return cls(connection)

    @property
    def closed(self) -> bool:
        return bool(self._connection.is_closed())

    async def apply(self, groups: Sequence[Sequence[Change]]) -> None:
        """Write all groups in one transaction, which is one statement.

        Raises: StoreDown, StoreError; after either nothing was written, unless only the answer was lost
        """
        with translated():
            argument = rows.argument(change for group in groups for change in group)
            await self._connection.execute(QUERIES["save_changes"], argument)

    async def ping(self) -> None:
        with translated():
            await self._connection.execute("select 1")

    def terminate(self) -> None:
        """Drop the connection at once."""
        self._connection.terminate()

    async def close(self) -> None:
        with translated():
            await self._connection.close()


class PostgresReaders:
    """A pool of up to `count` connections, opened when needed and then kept open."""

    def __init__(self, dsn: str, *, count: int, timeout_s: float) -> None:
        self._dsn = dsn
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(count)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False

    async def fetch(self, sql: str, *args: object) -> list[Any]:
        """Run a query. Raises: StoreDown, StoreError"""
        with translated():
            async with self._turns:
                connection = await self._take_connection()
                self._busy.add(connection)
                try:
                    found: list[Any] = await connection.fetch(sql, *args)
                    return found
                except driver.PostgresError:
                    raise
                except BaseException:
                    connection.terminate()  # cancelled or broken: its state is unknown
                    raise
                finally:
                    self._busy.remove(connection)
                    if not connection.is_closed():
                        self._idle.append(connection)

    async def _take_connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():  # it may have been lost while idle
                return connection
        connection = await _connect(self._dsn, self._timeout_s)
        if self._closed:
            connection.terminate()
        return connection

    def terminate(self) -> None:
        """Drop all connections at once; running queries raise StoreDown."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.terminate()
        self._idle.clear()
