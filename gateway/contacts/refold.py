"""Fold the facts of every contact again, compare with the stored snapshots, and correct those that differ.

Each page is one read-only transaction that sees contacts and facts at the same instant, and the gateway writes facts
in one transaction with their snapshot. So comparing is correct even while a gateway runs. Correcting is not, because
that gateway would overwrite the correction with its own state: it is refused while a gateway is connected to the
database.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.common.errors import StoreError
from gateway.contacts.directory import refold
from gateway.store import rows
from gateway.store.migrations import migrate
from gateway.store.postgres import APPLICATION_NAME, Connection, connect_options, driver, prepare, translated
from gateway.store.queries import QUERIES
from gateway.store.records import ContactRecord, FactRecord
from policy.contact import state_from_dict, state_to_dict
from policy.facts import FactError

log = structlog.get_logger()

PAGE: Final = 500
#: Statement timeout: a page of contacts with long histories takes time.
STATEMENT_S: Final = 60.0


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """The figures of a rebuild."""

    contacts: int = 0
    facts: int = 0
    differing: int = 0  #: snapshots that differ from their folded facts
    outdated: int = 0  #: of those, written by another version of the program
    corrected: int = 0


async def rebuild(
    dsn: str,
    *,
    check: bool = False,
    page: int = PAGE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rebuilt:
    """Compare every snapshot with its facts; correct it unless `check`. `progress` gets contacts done and in total.

    Raises: StoreDown, StoreError: also, without `check`, if a gateway uses the database
    """
    with translated():
        options = connect_options(timeout_s=10.0, statement_timeout_s=STATEMENT_S)
        connection: Connection = await driver.connect(dsn, target_session_attrs="read-write", **options)
        try:
            await prepare(connection)
            if not check and await connection.fetchval(QUERIES["other_gateways"], APPLICATION_NAME):
                raise StoreError(
                    public="A gateway is running on this database: stop it first, or use --check to compare only."
                )
            await migrate(dsn)
            return await _compare_all(connection, check, page, progress)
        finally:
            connection.terminate()


async def _compare_all(connection: Connection, check: bool, page: int, progress: Callable[[int, int], None]) -> Rebuilt:
    found, last = Rebuilt(), ""
    total = await connection.fetchval(QUERIES["count_contacts"])
    while True:
        contacts, facts = await _read_page(connection, last, page)
        if not contacts:
            return found
        for contact in contacts:
            await _compare_contact(connection, contact, facts[contact.contact_id], found, check)
        found.contacts += len(contacts)
        last = contacts[-1].contact_id
        progress(found.contacts, max(total, found.contacts))


async def _read_page(
    connection: Connection, after: str, page: int
) -> tuple[list[ContactRecord], defaultdict[str, list[FactRecord]]]:
    facts: defaultdict[str, list[FactRecord]] = defaultdict(list)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        contacts = [rows.contact(row) for row in await connection.fetch(QUERIES["contacts_after"], after, page)]
        ids = [contact.contact_id for contact in contacts]
        for row in await connection.fetch(QUERIES["facts_of_contacts"], ids):
            facts[row["contact_id"]].append(rows.fact(row))
    return contacts, facts


async def _compare_contact(
    connection: Connection, contact: ContactRecord, facts: list[FactRecord], found: Rebuilt, check: bool
) -> None:
    found.facts += len(facts)
    folded = refold(facts)
    try:
        if state_from_dict(contact.state) == folded:
            return
    except FactError:
        found.outdated += 1
    found.differing += 1
    log.warning("snapshot_differs", contact_id=contact.contact_id, facts=len(facts))
    if not check:
        new = state_to_dict(folded)
        if await connection.fetchval(QUERIES["correct_snapshot"], contact.contact_id, contact.state, new):
            found.corrected += 1
