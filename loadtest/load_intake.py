"""Deliveries of events about users, as a load. Not responsible for rates and figures (see `loads`)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from loadtest.generator import Shot, SignedWebhooks
from loadtest.loads import OK, Job, Load
from loadtest.results import StepResult
from loadtest.scenarios import Step
from loadtest.sim_config import UserSpec

_PERMISSIONS: Final = 0.1


class Intake(Load):
    """Deliveries of events about users: messages, and one in ten a permission."""

    decides = "ack"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._users: list[UserSpec] = list(self.stack.sim.world.users.values())
        self._webhooks: SignedWebhooks | None = None
        self._events = 0
        self._most = 1

    def begin(self, step: Step) -> None:
        super().begin(step)
        self._events, self._most = 0, step.batch

    @asynccontextmanager
    async def ready(self, step: Step) -> AsyncIterator[None]:
        """Be connected to the gateway."""
        sim = self.stack.sim
        async with SignedWebhooks(
            f"{self.stack.url}/webhooks/meta", app_secret=sim.config.app_secret, number=sim.number.spec
        ) as webhooks:
            self._webhooks = webhooks
            yield

    async def arrive(self, index: int) -> int:
        """Post one delivery."""
        webhooks = self._webhooks
        assert webhooks is not None, "ready() comes first"
        count = self.random.randint(1, self._most)
        self._events += count
        users = self.random.choices(self._users, k=count)
        return await webhooks.post(
            [
                webhooks.permission(user) if self.random.random() < _PERMISSIONS else webhooks.message(user)
                for user in users
            ]
        )

    def finish(self, step: Step, shots: Sequence[Shot], result: StepResult) -> None:
        """Count each answer from when its delivery was due."""
        self.instants["ack"] = [1_000 * shot.took_s for shot in shots if shot.status == OK]
        result.figures["events_per_s"] = self._events / (shots[-1].due_s + shots[-1].took_s)
