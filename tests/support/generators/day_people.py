"""The people of a random day: what WhatsApp users do at the simulated Meta, as often as it lets them."""

import random
from collections.abc import Callable

from loadtest.simulator.config import UserSpec
from loadtest.simulator.errors import NotPossible
from loadtest.simulator.meta_sim import MetaSim, SimUser
from loadtest.simulator.payloads import Direction
from loadtest.simulator.state import Call
from loadtest.simulator.state import CallState as At
from tests.support.fakes.clock import FakeClock

PEOPLE = 40
FAVOURITES = 3  #: people with whom half of everything happens, so that limits are reached
HIDDEN = 6  #: people who show no number


def people() -> tuple[UserSpec, ...]:
    return tuple(
        UserSpec(
            wa_id=f"55119000010{number:02d}",
            name=f"Pessoa {number}",
            hides_number=FAVOURITES <= number < FAVOURITES + HIDDEN,
        )
        for number in range(PEOPLE)
    )


class People:
    """Everybody who may call, write, allow and hang up; one action at a time."""

    def __init__(self, sim: MetaSim, clock: FakeClock, *, seed: int) -> None:
        self.sim, self.clock = sim, clock
        self.count = 0  #: actions so far
        self.random = random.Random(seed)
        self.users = [sim.user(wa_id) for wa_id in sim.world.users]
        self.heard_of: set[str] = set()  # users of whom a webhook has told both names
        #: Users who took their permission back in the profile: Meta tells nobody.
        self.unknowable: set[str] = set()

    # Who

    @property
    def rush(self) -> bool:
        """For some while one call follows the other, with one person: so that Meta's hundred is reached."""
        return self.count % 2_500 > 2_000

    def _next_in_a_rush(self) -> str:
        call = self.users[0].current_call
        if call is None:
            return "user_grants" if self.random.random() < 0.02 else "dial"
        theirs = call.facts.direction is Direction.USER_INITIATED
        return "user_picks_up" if call.state is At.RINGING and not theirs else "user_hangs_up"

    def _anybody(self) -> SimUser:
        if self.rush:
            return self.users[0]
        few = self.random.random() < 0.5
        return self.random.choice(self.users[:FAVOURITES] if few else self.users)

    # What

    async def user_calls(self) -> bool:
        user = self._anybody()
        return self._tries(user, user.call)

    async def user_writes(self) -> bool:
        user = self._anybody()
        return self._tries(user, lambda: user.message("Oi"))

    async def user_grants(self) -> bool:
        user = self._anybody()
        return self._decides(user, user.grant)

    async def user_revokes(self) -> bool:
        user = self._anybody()
        self.unknowable.add(user.wa_id)
        user.revoke()
        return True

    async def user_allows(self) -> bool:
        user, permanent = self._anybody(), self.random.random() < 0.15
        permanent = permanent and self.sim.world.limits.permanent_permission
        return self._decides(user, lambda: user.answer_permission(accept=True, permanent=permanent))

    async def user_declines(self) -> bool:
        user = self._anybody()
        return self._decides(user, lambda: user.answer_permission(accept=False))

    def _decides(self, user: SimUser, act: Callable[[], object]) -> bool:
        """Nobody decides twice within a second, and Meta's webhooks tell no more than the second."""
        self.clock.advance(1.0)
        return self._tries(user, act)

    def _tries(self, user: SimUser, act: Callable[[], object]) -> bool:
        try:
            act()
        except NotPossible:
            return False
        self.heard_of.add(user.wa_id)
        return True

    async def user_picks_up(self) -> bool:
        call = self._one(Direction.BUSINESS_INITIATED, At.RINGING)
        return call is not None and self._tries(self.sim.user(call.facts.user.wa_id), self._of(call).accept)

    async def user_rejects(self) -> bool:
        call = self._one(Direction.BUSINESS_INITIATED, At.RINGING)
        return call is not None and self._tries(self._of(call), self._of(call).decline)

    async def user_does_not_answer(self) -> bool:
        call = self._one(Direction.BUSINESS_INITIATED, At.RINGING)
        return call is not None and self._tries(self._of(call), self._of(call).let_it_ring_out)

    async def user_hangs_up(self) -> bool:
        call = self._one(None, At.ACTIVE, At.PRE_ACCEPTED)
        return call is not None and self._tries(self._of(call), self._of(call).hang_up)

    def _of(self, call: Call) -> SimUser:
        return self.sim.user(call.facts.user.wa_id)

    def _one(self, direction: Direction | None, *states: At) -> Call | None:
        whose = self.users[0].wa_id if self.rush else None
        found = [
            call
            for call in self.sim.world.live_calls(user=whose)
            if call.state in states and direction in (None, call.facts.direction)
        ]
        return self.random.choice(found) if found else None
