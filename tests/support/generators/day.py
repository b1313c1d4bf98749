"""Random days between a gateway and the simulated Meta: each counts for itself, on one clock.

The gateway is the one in memory (`world.py`), but speaks to Meta's Graph API over HTTP; webhooks come back as signed
bytes would, one after the other, now and then twice. Of media there is none on either side.
"""

import asyncio
import json
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.callflow.call import CallInput, CallState, InputKind
from gateway.calls.registry import LiveCall
from gateway.common.errors import GraphError
from gateway.common.ids import MetaCallId
from gateway.meta.events import read_delivery
from gateway.meta.graph import GraphClient
from gateway.operators.phone import Phone
from loadtest.simulator.config import NumberSpec, Profile, SimConfig, Timers
from loadtest.simulator.errors import GraphError as MetaRefused
from loadtest.simulator.meta_sim import MetaSim, SimUser
from loadtest.simulator.payloads import Direction, envelope
from loadtest.simulator.state import Call
from loadtest.simulator.state import CallState as At
from media.engine import LegId, WorkerId
from policy.decision import Allow, Decision, Refusal
from policy.facts import RequestForm
from policy.gate import choose_form, evaluate
from policy.pack import Pack
from policy.request import AskPermission
from tests.loadtest.helpers import answer_sdp, offer_sdp
from tests.support.fakes.clock import FakeClock
from tests.support.fakes.media import FakeMedia
from tests.support.generators.day_people import People, people
from tests.support.harness.waiting import until
from tests.support.harness.world import NUMBER_ID, World

OPERATORS = 12
FOREVER_S = 86_400.0
#: Nothing waits for real time: what must happen happens when the day says so.
TIMERS = Timers(
    answer_after_s=0.0,
    ringing_after_s=0.0,
    speak_after_s=0.0,
    business_initiated_ring_s=FOREVER_S,
    user_initiated_ring_s=FOREVER_S,
    media_check_every_s=FOREVER_S,
)
#: What the two sides call the same moment of a call.
SAME = {
    At.DIALING: {CallState.REQUESTED},
    At.RINGING: {CallState.RINGING},
    At.PRE_ACCEPTED: {CallState.RINGING},
    At.ACTIVE: {CallState.ACTIVE},
}


class SdpMedia(FakeMedia):
    """The gateway's media: none, but what it says is SDP."""

    async def answer_meta(self, leg: LegId, worker: WorkerId, offer_sdp: str) -> str:
        await super().answer_meta(leg, worker, offer_sdp)
        return answer_sdp()

    async def offer_meta(self, leg: LegId, worker: WorkerId) -> str:
        await super().offer_meta(leg, worker)
        return offer_sdp()


def everywhere(monkeypatch: pytest.MonkeyPatch, real: object, instead: object) -> None:
    """Put something into every module of the gateway that has imported the real one."""
    modules = [module for name, module in sys.modules.items() if name.startswith("gateway.")]
    for module in modules:
        for name, value in list(vars(module).items()):
            if value is real:
                monkeypatch.setattr(module, name, instead)


class Days(People):
    """What happens, and what each side thought of it."""

    def __init__(self, world: World, sim: MetaSim, clock: FakeClock, *, seed: int) -> None:
        super().__init__(sim, clock, seed=seed)
        self.world = world
        self.form: RequestForm | None = None
        self.done = Counter[str]()  #: actions
        self.said = Counter[str]()  #: the gate's answers
        self.refused = Counter[int]()  #: Meta's refusals, by code
        self.excused = Counter[int]()  #: those that the gateway could not know
        self.too_strict = Counter[str]()  #: what the gate refused and Meta would not have
        self._webhooks: deque[tuple[dict[str, Any], str]] = deque()
        self._arrived = asyncio.Event()
        self._busy = 0

    # Meta's webhooks

    def webhook(self, key: str, change: dict[str, Any], *, waba_id: str) -> None:
        for message in change["value"].get("messages", []):
            reply = message.get("interactive", {}).get("call_permission_reply")
            if reply is not None and reply["response"] == "accept":
                self.unknowable.discard(str(int(message["from_user_id"].removeprefix("BR."))))
            elif reply is not None and reply["response_source"] == "automatic":
                return  # Meta's own end of a permission is lost: the gate has to count the streak by itself
        again = 2 if self.random.random() < 0.03 else 1
        self._webhooks.extend([(change, waba_id)] * again)
        self._arrived.set()

    async def deliver(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._webhooks:
                self._busy += 1
                change, waba_id = self._webhooks.popleft()
                body = json.dumps(envelope([change], waba_id)).encode()
                await self.world.inbox.deliver(read_delivery(body))
                self._busy -= 1

    async def calm(self) -> None:
        """Wait until both sides see the same calls in the same state."""
        for _ in range(200_000):
            if self._is_calm():
                return
            await asyncio.sleep(0)
        raise AssertionError(f"not calm: {self._seen()}")

    def _is_calm(self) -> bool:
        if self._webhooks or self._busy:
            return False
        ours, theirs = self._seen()
        return ours.keys() == theirs.keys() and all(ours[call] in SAME[theirs[call]] for call in ours)

    def _seen(self) -> tuple[dict[str | None, CallState], dict[str | None, At]]:
        ours: dict[str | None, CallState] = {
            driver.call.meta_call_id: driver.call.state for driver in self.world.registry
        }
        theirs: dict[str | None, At] = {call.id: call.state for call in self.sim.world.live_calls()}
        return ours, theirs

    # One action

    async def action(self) -> None:
        self.count += 1
        if self.count % 100 == 0:
            self.world.store.forget_the_past()
        (name,) = self.random.choices(tuple(ACTIONS), tuple(ACTIONS.values()))
        if self.rush:
            name = self._next_in_a_rush()
        if not await getattr(self, name)():
            name = "dial"  # there was nothing to do it with
            await self.dial()
        self.done[name] += 1
        await self.calm()
        self.clock.advance(self.random.choice([0.0, 0.25, 1.0, 7.5, 20.0]))

    # The operator acts

    async def operator_picks_up(self) -> bool:
        call = self._one(Direction.USER_INITIATED, At.PRE_ACCEPTED)
        phone = self._free_phone()
        if call is None or phone is None:
            return False
        driver = self._driver(call)
        assert driver.claim(phone.operator)
        self.world.hub.take(phone, driver.call.call_id)
        return await self._turned(call)

    async def operator_declines(self) -> bool:
        call = self._one(Direction.USER_INITIATED, At.PRE_ACCEPTED)
        if call is None:
            return False
        self._driver(call).feed(CallInput(kind=InputKind.ALL_DECLINED))
        return await self._turned(call)

    async def operator_hangs_up(self) -> bool:
        call = self._one(Direction.BUSINESS_INITIATED, At.ACTIVE, At.RINGING)
        if call is None:
            return False
        driver = self._driver(call)
        driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=driver.call.operator))
        return await self._turned(call)

    async def audio_breaks(self) -> bool:
        call = self._one(Direction.BUSINESS_INITIATED, At.ACTIVE, At.RINGING)
        if call is None:
            return False
        self._driver(call).feed(CallInput(kind=InputKind.MEDIA_FAILED))
        return await self._turned(call)

    async def _turned(self, call: Call) -> bool:
        """Wait until Meta has heard of it."""
        before = call.state
        await until(lambda: call.state is not before, every_s=0)
        return True

    def _driver(self, call: Call) -> LiveCall:
        driver = self.world.registry.by_meta_id(MetaCallId(call.id))
        assert driver is not None
        return driver

    def _free_phone(self) -> Phone | None:
        return next((phone for phone in self.world.hub if phone.call is None), None)

    async def dial(self) -> bool:
        user, phone = self._anybody(), self._free_phone()
        if phone is None:
            return False
        metas = self._metas_word(user)
        answer = await self.world.admission.place(NUMBER_ID, self._name(user), operator=phone.operator)
        self._note("dial", answer, metas)
        if not isinstance(answer, Refusal):
            await self.calm()
            self._count(user)
        return True

    async def ask(self) -> bool:
        user = self._anybody()
        self.form = self.random.choice([None, *RequestForm])
        free = self.form is RequestForm.FREE_FORM
        metas = self._metas_word(user, lambda contact, now: contact.check_request(now=now, free_form=free))
        try:
            answer = await self.world.admission.ask_permission(NUMBER_ID, self._name(user), asked_by="ana")
            self._note("ask", answer, metas)
        except GraphError:
            self.said["ask: allowed"] += 1
        self._count(user)
        return True

    def _name(self, user: SimUser) -> str:
        """Name a user as an operator would; the BSUID is known after the first webhook."""
        known = user.wa_id in self.heard_of
        if user.spec.hides_number or (known and self.random.random() < 0.2):
            return user.spec.user_id
        return f"+{user.wa_id}"

    # What each side says

    def _metas_word(self, user: SimUser, check: Any = None) -> int | None:
        """Give the code with which Meta would refuse now; None: it would not."""
        world, number = self.sim.world, self.sim.number
        contact, now = world.contact(number, user.spec), world.clock()
        try:
            if check is not None:
                check(contact, now)
            elif world.live_calls(number=number, user=user.wa_id):
                return 138003
            else:
                contact.check_call(now=now)
        except MetaRefused as error:
            return error.code
        return None

    def _note(self, what: str, answer: object, metas: int | None) -> None:
        reason = answer.reason.value if isinstance(answer, Refusal) else "allowed"
        self.said[f"{what}: {reason}"] += 1
        if isinstance(answer, Refusal) and metas is None:
            self.too_strict[f"{what}: {reason}"] += 1

    def _count(self, user: SimUser) -> None:
        """Look at what Meta refused meanwhile."""
        requests = self.sim.world.requests
        while requests:
            request = requests.popleft()
            if request.code is None or request.action not in ("connect", "messages"):
                continue
            if request.code == 138006 and user.wa_id in self.unknowable:
                self.excused[request.code] += 1
            else:
                self.refused[request.code] += 1

    # Time

    async def time_passes(self) -> bool:
        """Minutes, hours or days; nobody's phone rings that long."""
        while (call := self._one(None, At.RINGING, At.PRE_ACCEPTED)) is not None:
            user = self._of(call)
            ours = call.facts.direction is Direction.BUSINESS_INITIATED
            self._tries(user, user.let_it_ring_out if ours else user.hang_up)
            await self.calm()
        leap = self.random.choice(LEAPS_S)
        if self.random.random() < 0.5:
            self._to_an_edge(leap)
        else:
            self.clock.advance(leap)
        return True

    def _to_an_edge(self, leap: float) -> None:
        """Stop exactly where something of Meta's ends, or a moment beside it."""
        now, limits = self.sim.world.clock(), self.sim.world.limits
        ends: list[float] = []
        for contact in self.sim.world.contacts.values():
            ends += [at + 86_400 for at in (*contact.connected, *contact.request_times)]
            ends += [at + 7 * 86_400 for at in contact.request_times]
            ends.append(contact.window_until)
            if contact.permission is not None and contact.permission.expires_at is not None:
                ends.append(contact.permission.expires_at)
            if contact.declined_at is not None:
                ends.append(contact.declined_at + limits.after_decline_s)
        ahead = [end for end in ends if now < end <= now + leap]
        if ahead:
            self.clock.advance(self.random.choice(ahead) - now + self.random.choice([-1.0, 0.0, 0.0, 1.0]))


#: How likely each action is, against the others.
ACTIONS = {
    "dial": 24,
    "user_picks_up": 14,
    "user_rejects": 2,
    "user_does_not_answer": 5,
    "user_hangs_up": 7,
    "operator_hangs_up": 9,
    "operator_picks_up": 3,
    "operator_declines": 1,
    "audio_breaks": 1,
    "user_calls": 4,
    "user_writes": 4,
    "user_grants": 3,
    "user_allows": 6,
    "user_declines": 2,
    "user_revokes": 0.3,
    "ask": 14,
    "time_passes": 0.7,
}
LEAPS_S = (120.0, 3_600.0, 6 * 3_600.0, 25 * 3_600.0, 30 * 3_600.0, 4 * 86_400.0)


@asynccontextmanager
async def days(
    monkeypatch: pytest.MonkeyPatch, *, profile: Profile, pack: Pack, gate: bool, seed: int, callback: bool = True
) -> AsyncIterator[Days]:
    """Yield both sides, ready for actions. Without the gate, everything that is asked is done."""
    clock = FakeClock()
    number = NumberSpec(phone_number_id=NUMBER_ID, callback_permission=callback)
    config = SimConfig(
        numbers=(number,),
        users=people(),
        profile=profile,
        timers=TIMERS,
        history=1_000_000,
        seed=seed,
        silent=True,
        clock=lambda: clock.now().timestamp(),
    )
    sim = MetaSim(config)
    await sim.start()
    graph = GraphClient(base_url=f"{sim.url}/v26.0", token_for=lambda _: config.access_token, clock=clock)
    try:
        async with graph, asyncio.TaskGroup() as tasks:
            world = World(
                tasks, incoming_slots=1_000, outgoing_slots=1_000, clock=clock, graph=graph, media=SdpMedia, pack=pack
            )
            await world.store.start()
            await world.number.read_from_meta(graph, now=clock.now())
            run = Days(world, sim, clock, seed=seed)
            _wire(monkeypatch, run, gate=gate)
            for operator in range(OPERATORS):
                await world.login(f"op{operator}")
            delivering = tasks.create_task(run.deliver())
            yield run
            delivering.cancel()
            world.hub.close()
            for task in tuple(tasks._tasks):
                task.cancel()
    finally:
        await sim.close()


def _wire(monkeypatch: pytest.MonkeyPatch, run: Days, *, gate: bool) -> None:
    monkeypatch.setattr(run.sim.webhooks, "send", run.webhook)

    def form(pack: Pack, contact: Any, *, now: Any) -> RequestForm:
        return run.form or choose_form(pack, contact, now=now)

    def judge(pack: Pack, number: Any, contact: Any, request: Any, *, now: Any) -> Decision:
        if not gate:
            return Allow()
        if isinstance(request, AskPermission) and run.form is not None:
            request = replace(request, form=run.form)
        return evaluate(pack, number, contact, request, now=now)

    everywhere(monkeypatch, choose_form, form)
    everywhere(monkeypatch, evaluate, judge)
