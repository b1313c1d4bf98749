"""Deliveries of user events as a load. Rates and common figures are in `job.py`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from loadtest.loads.generator import Shot, SignedWebhooks
from loadtest.loads.job import OK, Job, Load
from loadtest.loads.scenarios import Step
from loadtest.measure.between_database import Database, between
from loadtest.measure.results import StepResult
from loadtest.simulator.config import UserSpec

_PERMISSIONS: Final = 0.1
#: Share of a step before the database is stalled.
_CALM_SHARE: Final = 0.2


@asynccontextmanager
async def taking_in(job: Job) -> AsyncIterator["Intake"]:
    """Yield the load, with a proxy in front of the database if a step delays or stalls it."""
    intake = Intake(job)
    if not any(step.database_ms or step.database_silent_s for step in job.form.steps):
        yield intake
        return
    async with between(job.stack) as intake.database:
        job.result.load.append("PostgreSQL behind a proxy in the generator's process")
        yield intake


class Intake(Load):
    """Deliveries of user events: messages, and one permission in ten."""

    decides = "ack"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._users: list[UserSpec] = list(self.stack.sim.world.users.values())
        self._webhooks: SignedWebhooks | None = None
        self._events = 0
        #: Events in deliveries answered with 200, and what became of them.
        self._acknowledged = 0
        self._kept: dict[str, float] = {}
        self._most = 1
        self._silent_from, self._silent_s = 0, 0.0
        #: The database behind its proxy, if a step tampers with it.
        self.database: Database | None = None

    def begin(self, step: Step) -> None:
        super().begin(step)
        self._events, self._acknowledged, self._most = 0, 0, step.batch
        self._silent_from, self._silent_s = round(_CALM_SHARE * step.count), step.database_silent_s

    @asynccontextmanager
    async def ready(self, step: Step) -> AsyncIterator[None]:
        """Connect to the gateway."""
        sim = self.stack.sim
        async with SignedWebhooks(
            f"{self.stack.url}/webhooks/meta", app_secret=sim.config.app_secret, number=sim.number.spec
        ) as webhooks:
            self._webhooks = webhooks
            if self.database is None:
                yield
                return
            before, spooled = await self.database.events(), await self._spooled()
            self.database.be_late(step.database_ms / 1_000)
            yield
            self._kept["missing"] = float(before + self._acknowledged - await self.database.events())
            self._kept["spooled"] = await self._spooled() - spooled

    async def _spooled(self) -> float:
        """Return the number of deliveries written to the spool so far."""
        return (await self.stack.metrics())["wacg_spooled_total"]

    async def arrive(self, index: int) -> int:
        """Post one delivery."""
        webhooks = self._webhooks
        assert webhooks is not None, "ready() must be entered first"
        if self.database is not None and index == self._silent_from:
            self.database.be_silent(self._silent_s)
        count = self.random.randint(1, self._most)
        self._events += count
        users = self.random.choices(self._users, k=count)
        status = await webhooks.post(
            [
                webhooks.permission(user) if self.random.random() < _PERMISSIONS else webhooks.message(user)
                for user in users
            ]
        )
        self._acknowledged += count if status == OK else 0
        return status

    def finish(self, step: Step, shots: Sequence[Shot], result: StepResult) -> None:
        """Measure each response from when its delivery was due."""
        self.instants["ack"] = [1_000 * shot.took_s for shot in shots if shot.status == OK]
        result.figures |= self._kept
        result.figures["events_per_s"] = self._events / (shots[-1].due_s + shots[-1].took_s)
