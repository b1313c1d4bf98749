"""Three calls at once of which one breaks: what became of the others, and what is left of it.

Loop time is virtual (see `looptime`), so that every deadline of a call can pass.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from gateway.callflow.call import CallInput, CallState, InputKind
from gateway.calls.driver import CallDriver
from gateway.calls.registry import LiveCall
from gateway.common.ids import CallId, MetaCallId, PhoneNumberId, UserRef
from gateway.operators.phone import Phone
from policy.facts import PermissionGranted
from tests.support.harness.injection import Injector
from tests.support.harness.world import NUMBER_ID, FakeLine, World

#: Longer than any deadline of a call.
LATER_S: Final = 200.0
BROKEN = UserRef(wa_id="5511900000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What one injection did."""

    broke_at: str | None  #: None: the call has not so many points
    others: int  #: other calls that did not end as they should
    left: str  #: slots, tasks, calls and the like that are left
    untold: bool  #: Meta still thinks the call alive

    @property
    def nothing(self) -> bool:
        return not self.others and not self.left and not self.untold


class Trial:
    """Three calls at once; the first breaks."""

    def __init__(self, world: World, injector: Injector, *, seed: int) -> None:
        self.world = world
        self.injector = injector
        self._random = random.Random(seed)
        self._base = len(world.tasks._tasks)

    async def run(self) -> Harm:
        world = self.world
        phones = [await world.login(name) for name in ("ana", "bia", "cai")]
        self._base = len(world.tasks._tasks)
        world.graph.connect = self._connect  # type: ignore[method-assign]
        self.injector.arm(world)
        async with asyncio.TaskGroup() as tasks:
            others = [
                tasks.create_task(self._good_theirs("wacid.GOOD", phones[1][0])),
                tasks.create_task(self._good_ours(phones[2][0])),
            ]
            with self.injector.on_behalf():
                broken = tasks.create_task(self._broken_life(phones[0][0]))
        await asyncio.sleep(LATER_S)
        return Harm(
            broke_at=self.injector.broke_at,
            others=[other.result() for other in others].count(False),
            left=self._left(phones),
            untold=not broken.result(),
        )

    async def _connect(self, number: PhoneNumberId, to: UserRef, offer_sdp: str, opaque: str) -> MetaCallId:
        """Meta names each call after our own id of it."""
        await self.world.graph._take("connect", number, to=to, offer_sdp=offer_sdp, opaque=opaque)
        return MetaCallId(f"wacid.{opaque}")

    # --- the calls that nothing happens to -----------------------------------------------------------

    async def _good_theirs(self, wacid: str, phone: Phone) -> bool:
        driver = await self._offer(wacid, UserRef(wa_id="5511900000002"))
        await asyncio.sleep(2)
        if driver is None or not driver.claim(phone.operator):
            return False
        self.world.hub.take(phone, driver.call.call_id)
        await asyncio.sleep(30)
        return await self._ends_well(driver, wacid)

    async def _good_ours(self, phone: Phone) -> bool:
        driver = await self._dial(phone, UserRef(wa_id="5511900000003"))
        await asyncio.sleep(1)
        if not isinstance(driver, CallDriver) or driver.call.meta_call_id is None:
            return False
        wacid = driver.call.meta_call_id
        for event in ("connect", "RINGING", "ACCEPTED"):
            await self.world.meta_says(event, wacid)
            await asyncio.sleep(1)
        await asyncio.sleep(30)
        return await self._ends_well(driver, wacid)

    async def _ends_well(self, driver: LiveCall, wacid: str) -> bool:
        active = driver.call.state is CallState.ACTIVE
        await self.world.meta_terminates(wacid, talked_s=25, direction=driver.call.direction.value)
        await asyncio.sleep(1)
        record = await self.world.store.call(driver.call.call_id)
        return active and record is not None and (record.state, record.result) == ("ended", "completed")

    # --- the call that breaks ------------------------------------------------------------------------

    async def _broken_life(self, phone: Phone) -> bool:
        """Live, whatever breaks; return whether Meta knows at the end that the call is over."""
        ours = self._random.random() < 0.5
        wacid = await (self._begin_ours(phone) if ours else self._begin_theirs(phone))
        await self._middle(phone, wacid)
        user_hangs_up = self._random.random() < 0.5
        if user_hangs_up:
            direction = "BUSINESS_INITIATED" if ours else "USER_INITIATED"
            await self._until_taken(lambda: self.world.meta_terminates(wacid, talked_s=5, direction=direction))
        else:
            self._hang_up(phone)
        await asyncio.sleep(LATER_S)
        sent = {str(sent.args.get("call")) for sent in self.world.graph.sent if sent.op in ("terminate", "reject")}
        return user_hangs_up or wacid in sent or (ours and not self._placed())

    async def _begin_theirs(self, phone: Phone) -> str:
        wacid = "wacid.BROKEN"
        await self._until_taken(lambda: self._offer(wacid, BROKEN))
        await asyncio.sleep(1)
        if self._random.random() < 0.2:
            self._guarded(lambda: self.world.hub.decline(phone, self._call_id(wacid)))
        else:
            self._guarded(lambda: self._pick_up(phone, wacid))
        await asyncio.sleep(1)
        return wacid

    async def _begin_ours(self, phone: Phone) -> str:
        """Dial; Meta tells of the call whatever became of it here."""
        await self._until_taken(lambda: self._dial(phone, BROKEN), tries=1)
        await asyncio.sleep(1)
        opaque = self._placed()
        if not opaque:
            return "wacid.NEVER"
        wacid = f"wacid.{opaque}"
        for event in self._random.choice((["connect", "RINGING", "ACCEPTED"], ["RINGING"], ["connect", "ACCEPTED"])):
            await self._until_taken(partial(self.world.meta_says, event, wacid, biz_opaque_callback_data=opaque))
            await asyncio.sleep(0.5)
        return wacid

    async def _middle(self, phone: Phone, wacid: str) -> None:
        """Something happens while they talk."""
        driver = self.world.registry.by_meta_id(MetaCallId(wacid))
        if driver is None:
            return
        what = self._random.choice(("hold", "leg", "media", "nothing", "gone"))
        if what == "hold":
            for on in (True, False):
                driver.feed(CallInput(kind=InputKind.OPERATOR_HOLD, hold=on))
                await asyncio.sleep(1)
        elif what == "leg":
            self._guarded(driver.operator_leg_changed)
        elif what == "media":
            driver.feed(CallInput(kind=InputKind.MEDIA_FAILED))
        elif what == "gone":
            driver.feed(CallInput(kind=InputKind.OPERATOR_GONE, operator=phone.operator))
        await asyncio.sleep(1)

    def _hang_up(self, phone: Phone) -> None:
        driver = self.world.registry.get(phone.call) if phone.call else None
        if driver is not None:
            driver.feed(CallInput(kind=InputKind.OPERATOR_HANGUP, operator=phone.operator))

    # --- pieces --------------------------------------------------------------------------------------

    async def _offer(self, wacid: str, user: UserRef) -> LiveCall | None:
        at = str(int(self.world.clock.now().timestamp()))
        call = {"id": wacid, "from": user.wa_id, "to": "551155550100", "event": "connect", "timestamp": at}
        offer = {"direction": "USER_INITIATED", "session": {"sdp_type": "offer", "sdp": "v=0 offer"}}
        await self.world.deliver(calls=[call | offer])
        return self.world.registry.by_meta_id(MetaCallId(wacid))

    async def _dial(self, phone: Phone, user: UserRef) -> object:
        world, now = self.world, self.world.clock.now()
        contact = await world.contacts.get(world.number, user)
        world.contacts.apply(contact, PermissionGranted(at=now, key="grant"), seen_at=now)
        return await world.admission.place(NUMBER_ID, f"+{user.wa_id}", operator=phone.operator)

    def _pick_up(self, phone: Phone, wacid: str) -> None:
        driver = self.world.registry.by_meta_id(MetaCallId(wacid))
        if driver is not None and driver.claim(phone.operator):
            driver.shown_by(lambda: self.world.hub.take(phone, driver.call.call_id))

    def _call_id(self, wacid: str) -> CallId:
        driver = self.world.registry.by_meta_id(MetaCallId(wacid))
        return driver.call.call_id if driver is not None else CallId("")

    async def _until_taken(self, deliver: Callable[[], Awaitable[object]], *, tries: int = 3) -> None:
        """Meta repeats a webhook that was not acknowledged."""
        for _ in range(tries):
            try:
                await deliver()
                return
            except (Exception, asyncio.CancelledError):
                await asyncio.sleep(1)

    @staticmethod
    def _guarded(act: Callable[[], object]) -> None:
        """A softphone's request that breaks is its own (see `softphone`)."""
        try:
            act()
        except (Exception, asyncio.CancelledError):
            return

    def _placed(self) -> str:
        """Return our id of the broken call, if it was placed at Meta."""
        sent = [sent for sent in self.world.graph.sent if sent.op == "connect" and sent.args["to"].key == BROKEN.key]
        assert len(sent) <= 1, "rung twice"
        return str(sent[0].args["opaque"]) if sent else ""

    def _left(self, phones: list[tuple[Phone, FakeLine]]) -> str:
        world = self.world
        legs = {leg for phone, _ in phones for leg in phone.legs.values()}
        broke_at = self.injector.broke_at or ""  # what broke in being given back cannot be given back
        left = {
            "incoming slots": world.number.incoming.in_use,
            "outgoing slots": world.number.outgoing.in_use,
            "calls": len(world.registry),
            "engaged": len(world.engagements),
            "endings": len(world.owed_hangups._owed),
            "tasks": len(world.tasks._tasks) - self._base,
            "busy phones": 0 if broke_at == "Hub.release" else sum(phone.call is not None for phone, _ in phones),
            "ringing": len(world.hub._ringing),
            "legs": 0 if broke_at == "before FakeMedia.close" else len(world.media.legs - legs),
        }
        return ", ".join(f"{count} {what}" for what, count in left.items() if count)
