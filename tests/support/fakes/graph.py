"""A Graph API that does what a test tells it."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.common.errors import GraphError, GraphRefused, GraphUnreachable
from gateway.common.ids import MetaCallId, PhoneNumberId, UserRef
from gateway.meta.answers import NumberCallingSettings, NumberInfo, Permissions, ReportedPermission
from gateway.meta.error_codes import lookup
from policy.number import CallingStatus


def refused(op: str, code: int, details: str = "", *, http_status: int = 400) -> GraphRefused:
    """Build the error that `GraphClient` would raise for a code of Meta's."""
    known = lookup(code, http_status)
    return GraphRefused(
        op=op,
        code=code,
        http_status=http_status,
        details=details,
        meaning=known.meaning,
        who_must_act=known.who.value,
        retryable=known.retryable,
        transient=known.transient,
    )


def unreachable(op: str, *, maybe_sent: bool = True) -> GraphUnreachable:
    """Build the error for a request without an answer."""
    return GraphUnreachable(
        "no answer", op=op, maybe_sent=maybe_sent, status="timeout" if maybe_sent else "not_connected"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request, as it left the gateway."""

    op: str
    number: PhoneNumberId
    args: Mapping[str, Any]


class FakeGraph:
    """`gateway.meta.graph.Graph` in memory: records requests, answers well unless told otherwise.

    A request is recorded when it is made, before any delay or failure: Meta may have heard it. A method is named
    by its own name in `fail`, `hold` and `ops`.
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.permissions: dict[str, Permissions] = {}  #: by UserRef.key
        self.number_settings = NumberCallingSettings(calling=CallingStatus.ENABLED)
        self.info = NumberInfo()
        self._failures: defaultdict[str, deque[GraphError]] = defaultdict(deque)
        self._held: dict[str, asyncio.Event] = {}
        self._arrived = asyncio.Condition()

    # --- for the test ----------------------------------------------------------------------------

    def fail(self, op: str, *errors: GraphError) -> None:
        """Let the next requests of one method raise these errors, one each."""
        self._failures[op].extend(errors)

    def hold(self, op: str) -> asyncio.Event:
        """Let requests of one method wait until the event is set."""
        return self._held.setdefault(op, asyncio.Event())

    def ops(self) -> list[str]:
        """Return the names of all requests in order."""
        return [sent.op for sent in self.sent]

    def only(self, op: str) -> Sent:
        """Return the one request of a method; there must be exactly one."""
        (sent,) = (sent for sent in self.sent if sent.op == op)
        return sent

    async def arrival(self, op: str, *, count: int = 1, timeout_s: float = 5.0) -> Sent:
        """Wait until a method has been asked so many times and return the last of them."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: self.ops().count(op) >= count)
        return [sent for sent in self.sent if sent.op == op][count - 1]

    # --- Graph -----------------------------------------------------------------------------------

    async def connect(self, number: PhoneNumberId, to: UserRef, offer_sdp: str, opaque: str) -> MetaCallId:
        await self._take("connect", number, to=to, offer_sdp=offer_sdp, opaque=opaque)
        return MetaCallId(f"wacid.FAKE{self.ops().count('connect'):04d}")

    async def pre_accept(self, number: PhoneNumberId, call: MetaCallId, answer_sdp: str) -> None:
        await self._take("pre_accept", number, call=call, answer_sdp=answer_sdp)

    async def accept(self, number: PhoneNumberId, call: MetaCallId, answer_sdp: str, opaque: str) -> None:
        await self._take("accept", number, call=call, answer_sdp=answer_sdp, opaque=opaque)

    async def reject(self, number: PhoneNumberId, call: MetaCallId) -> None:
        await self._take("reject", number, call=call)

    async def terminate(self, number: PhoneNumberId, call: MetaCallId) -> None:
        await self._take("terminate", number, call=call)

    async def call_permissions(self, number: PhoneNumberId, user: UserRef) -> Permissions:
        await self._take("call_permissions", number, user=user)
        return self.permissions.get(user.key, Permissions(status=ReportedPermission.NO_PERMISSION))

    async def request_permission_free_form(self, number: PhoneNumberId, user: UserRef, text: str) -> str:
        await self._take("request_permission_free_form", number, user=user, text=text)
        return self._message_id()

    async def request_permission_template(
        self, number: PhoneNumberId, user: UserRef, name: str, language: str, parameters: Sequence[str]
    ) -> str:
        values = {"user": user, "name": name, "language": language, "parameters": tuple(parameters)}
        await self._take("request_permission_template", number, **values)
        return self._message_id()

    async def settings(self, number: PhoneNumberId) -> NumberCallingSettings:
        await self._take("settings", number)
        return self.number_settings

    async def number_info(self, number: PhoneNumberId) -> NumberInfo:
        await self._take("number_info", number)
        return self.info

    async def _take(self, op: str, number: PhoneNumberId, **args: Any) -> None:
        self.sent.append(Sent(op=op, number=number, args=args))
        async with self._arrived:
            self._arrived.notify_all()
        if op in self._held:
            await self._held[op].wait()
        if self._failures[op]:
            raise self._failures[op].popleft()

    def _message_id(self) -> str:
        return f"wamid.FAKE{sum(op.startswith('request_') for op in self.ops()):04d}"
