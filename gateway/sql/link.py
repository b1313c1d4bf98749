"""One connection to PostgreSQL, set up the way the store needs it, and the driver's errors in our words.

Not responsible for when to connect again (see `gateway.writer`) nor for rows (see `gateway.sql.rows`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
import orjson

from gateway.errors import StoreDown, StoreError
from gateway.records import Change
from gateway.sql import QUERIES, rows

#: asyncpg is untyped.
driver: Any = asyncpg
Connection = Any

APPLICATION_NAME: Final = "whatsapp-call-gateway"

#: The database is away, starting, full, read-only or too slow: the same statement may succeed later.
_AWAY: Final = (
    OSError,  # TimeoutError is one
    driver.PostgresConnectionError,
    driver.OperatorInterventionError,
    driver.InsufficientResourcesError,
    driver.PostgresSystemError,  # class 58: the disk under it, its I/O workers gone
    driver.ReadOnlySQLTransactionError,
    driver.TransactionRollbackError,
    driver.InvalidAuthorizationSpecificationError,
    driver.InvalidCatalogNameError,
    driver.InternalClientError,  # the driver lost its way: so it is when the connection breaks in the middle
    driver.InterfaceError,  # "connection is closed"; DataError, its bad child, is sorted out before
)


def in_our_words(error: Exception) -> StoreError:
    """Return StoreDown if waiting may help, StoreError if the statement or its values are bad.

    The text names no value: PostgreSQL's messages may quote them.
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
    """Turn whatever the driver raises into StoreDown or StoreError; cancellation passes."""
    try:
        yield
    except Exception as error:
        raise in_our_words(error) from error


async def prepare(connection: Connection) -> None:
    """Read and write jsonb with orjson."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",  # one version byte, then the text
        encoder=lambda value: b"\x01" + rows.json_bytes(value),
        decoder=lambda data: orjson.loads(data[1:]),
    )


def connect_options(*, timeout_s: float, statement_timeout_s: float | None = None) -> dict[str, Any]:
    """Return what all our connections share."""
    limit_ms = round((statement_timeout_s if statement_timeout_s is not None else timeout_s) * 1000)
    return {
        "timeout": timeout_s,
        "server_settings": {
            "application_name": APPLICATION_NAME,
            "statement_timeout": str(limit_ms),  # 0: none
            "synchronous_commit": "on",  # a promise, so not left to the database's own default
            "timezone": "UTC",
        },
    }


class PostgresLink:
    """The writer's connection: applies groups of changes, one transaction at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, dsn: str, *, timeout_s: float, on_closed: Callable[[], object]) -> "PostgresLink":
        """Connect to the server that takes writes; `on_closed` is called when the connection is lost.

        Raises: StoreDown, StoreError
        """
        with translated():
            connection: Connection = await driver.connect(
                dsn, target_session_attrs="read-write", **connect_options(timeout_s=timeout_s)
            )
            try:
                await prepare(connection)
            except BaseException:
                connection.terminate()
                raise
        connection.add_termination_listener(lambda _: on_closed())
        return cls(connection)

    @property
    def closed(self) -> bool:
        return bool(self._connection.is_closed())

    async def apply(self, groups: Sequence[Sequence[Change]]) -> None:
        """Write all groups in one transaction.

        Raises: StoreDown, StoreError; after either nothing is kept, unless the answer to the commit was lost
        """
        with translated():
            argument = rows.argument(change for group in groups for change in group)
            await self._connection.execute(QUERIES["save_changes"], argument)  # one statement, one transaction

    async def ping(self) -> None:
        with translated():
            await self._connection.execute("select 1")

    def terminate(self) -> None:
        """Drop the connection at once."""
        self._connection.terminate()

    async def close(self) -> None:
        with translated():
            await self._connection.close()
