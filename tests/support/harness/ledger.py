"""What Meta was told is kept, and whether the database holds all of it, once: the check behind every crash.

Sends webhooks of all kinds about many users as Meta does, and remembers which were answered with 200. What was not is
sent again later, and some of what was, too: a sender that does not know better. Not responsible for crashes.
"""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from gateway.contacts.refold import rebuild
from loadtest.loads.generator import SignedWebhooks
from loadtest.simulator.config import crowd
from tests.support.harness.postgres import execute

#: Of deliveries that repeat an earlier one.
SHARE_AGAIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One delivery of one event."""

    key: str  #: the event's dedupe key
    fact: str | None  #: the key of the fact that it is
    change: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What is wrong. All are empty if nothing is."""

    lost: list[str]  #: acknowledged, and not in the journal
    lost_facts: list[str]
    doubled: list[str]  #: in the journal, or in the facts of all contacts, more than once
    unrecorded: int  #: acknowledged calls without a record
    differing: int  #: contacts whose state is not what their facts say


class Ledger:
    """Posts, and keeps the books."""

    def __init__(
        self, webhooks: SignedWebhooks, *, seed: int, users: int = 200, calls: bool = True, text: str = "hello"
    ) -> None:
        """`calls`: whether users call, too; `text`: what they write."""
        self.webhooks = webhooks
        self.text = text
        self._calls = calls
        self.users = crowd(users)
        self.acknowledged: dict[str, Sent] = {}
        self.pending: list[Sent] = []  #: not acknowledged yet
        self.statuses: Counter[int] = Counter()
        self._random = random.Random(seed)

    async def post(self, index: int) -> int:
        """Post one delivery, fit for `open_loop`."""
        again = list(self.acknowledged.values()) if self._random.random() < SHARE_AGAIN else []
        sent = self._random.choice(again) if again else self._new()
        return await self._post(sent)

    async def post_pending(self) -> None:
        """Post what was not acknowledged once more, as Meta does."""
        waiting, self.pending = self.pending, []
        for sent in waiting:
            await self._post(sent)

    async def _post(self, sent: Sent) -> int:
        status = await self.webhooks.post([sent.change])
        self.statuses[status] += 1
        if status == 200:
            self.acknowledged[sent.key] = sent
        else:
            self.pending.append(sent)
        return status

    def _new(self) -> Sent:
        user = self._random.choice(self.users)
        match self._random.randrange(0 if self._calls else 2, 10):
            case 0:
                call = self.webhooks.facts(user)
                change = self.webhooks.connect(call)
                return Sent(key=f"calls/{call.id}/connect", fact=f"window/{call.id}", change=change)
            case 1:
                call = self.webhooks.facts(user)
                change = self.webhooks.terminate(call)
                return Sent(key=f"calls/{call.id}/terminate", fact=None, change=change)
            case 2 | 3:
                change = self.webhooks.permission(user)
            case _:
                change = self.webhooks.message(user, self.text)
        key = f"messages/{change['value']['messages'][0]['id']}"
        return Sent(key=key, fact=key, change=change)

    async def check(self, dsn: str) -> Verdict:
        """Compare with what the database holds."""
        found = await execute(dsn, "select dedupe_key from events")
        events = Counter(row["dedupe_key"] for row in found)
        facts = Counter(row["key"] for row in await execute(dsn, "select key from facts"))
        calls = {row["meta_call_id"] for row in await execute(dsn, "select meta_call_id from calls")}
        rebuilt = await rebuild(dsn, check=True)
        wanted = {sent.fact for sent in self.acknowledged.values() if sent.fact is not None}
        return Verdict(
            lost=sorted(self.acknowledged.keys() - events.keys()),
            lost_facts=sorted(wanted - facts.keys()),
            doubled=sorted(key for counted in (events, facts) for key, count in counted.items() if count > 1),
            unrecorded=sum(key.split("/")[1] not in calls for key in self.acknowledged if key.endswith("/connect")),
            differing=rebuilt.differing,
        )
