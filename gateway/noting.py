"""Keeps what a live call knows of its contact before Meta tells it.

Responsible for applying such a fact at once where the contact is in memory, so that the next decision counts it. Not
responsible for what the facts are (see `driver`, `event_facts`).
"""

import asyncio

import structlog

from gateway.contacts import Contact
from gateway.errors import GatewayError
from gateway.services import Origin, Services
from policy.facts import Fact

log = structlog.get_logger()


def note(fact: Fact | None, origin: Origin, services: Services, tasks: asyncio.TaskGroup) -> None:
    """Apply a fact now if the contact is in memory, else in a task."""
    if fact is None:
        return
    contact = services.contacts.peek(origin.number.id, origin.user)
    if contact is not None:
        _write(contact, fact, services)
    else:
        tasks.create_task(_load_and_note(fact, origin, services))


async def _load_and_note(fact: Fact, origin: Origin, services: Services) -> None:
    try:
        contact = await services.contacts.get(origin.number, origin.user, origin.user_name)
        _write(contact, fact, services)
    except GatewayError as error:  # a store that is away must not end the call
        log.warning("fact_not_kept", fact=type(fact).__name__, detail=error.public)


def _write(contact: Contact, fact: Fact, services: Services) -> None:
    services.store.write_soon(*services.contacts.apply(contact, fact, seen_at=services.clock.now()))
