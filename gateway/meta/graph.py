"""The client of Meta's Graph API: one method per endpoint. Nothing else sends requests to Meta.

This module defines the content of each request and whether it may be retried. `graph_http` sends it.

`connect` is sent once, because a phone that rings twice is worse than one that does not ring. A `connect` without an
answer raises `GraphUnreachable(maybe_sent=True)`, and the webhook that carries our `biz_opaque_callback_data` tells
what happened. A permission request is retried only if Meta certainly has not acted on it: otherwise the user gets it
twice and Meta counts it twice. All other requests may be retried. If such a retry is refused because an earlier try
succeeded, or because the call to be ended is over already, that is success.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, Self

from gateway.common.clock import Clock
from gateway.common.errors import GraphRefused, GraphUnreachable
from gateway.common.ids import MetaCallId, PhoneNumberId, UserRef
from gateway.meta import answers, error_codes
from gateway.meta.answers import Json, NumberCallingSettings, NumberInfo, Permissions
from gateway.meta.graph_http import GraphHttp, GraphRequest, Observe, Repeat, Retries
from gateway.meta.health import MetaHealth

#: `biz_opaque_callback_data`. Source: Meta, "Business-initiated calls", read 2026-11-22.
MAX_OPAQUE: Final = 512

#: The fields for `number_info`. Meta refuses a field that its version does not know with 100; then the next set is
#: tried.
_INFO_FIELDS: Final = "id,display_phone_number,verified_name,quality_rating"
_INFO_FIELD_SETS: Final = (
    f"{_INFO_FIELDS},is_on_biz_app,whatsapp_business_manager_messaging_limit",
    f"{_INFO_FIELDS},is_on_biz_app,messaging_limit_tier",
    _INFO_FIELDS,
)


class Graph(Protocol):
    """Meta's endpoints. Every method may raise `GraphRefused`, `GraphUnreachable` and `GraphPaused`."""

    async def connect(self, number: PhoneNumberId, to: UserRef, offer_sdp: str, opaque: str) -> MetaCallId:
        """Place a call and return Meta's id of it; sent only once, even on failure."""
        ...

    async def pre_accept(self, number: PhoneNumberId, call: MetaCallId, answer_sdp: str) -> None:
        """Set up the media path while the softphones still ring."""
        ...

    async def accept(self, number: PhoneNumberId, call: MetaCallId, answer_sdp: str, opaque: str) -> None:
        """Accept a call; `answer_sdp` must be identical to that of `pre_accept`. Media may flow after this returns."""
        ...

    async def reject(self, number: PhoneNumberId, call: MetaCallId) -> None:
        """Decline a call that was not accepted; succeed if it is over already."""
        ...

    async def terminate(self, number: PhoneNumberId, call: MetaCallId) -> None:
        """End a call; succeed if it is over already."""
        ...

    async def call_permissions(self, number: PhoneNumberId, user: UserRef) -> Permissions:
        """Read what Meta would allow us to do with a user now."""
        ...

    async def request_permission_free_form(self, number: PhoneNumberId, user: UserRef, text: str) -> str:
        """Ask a user for permission inside the customer service window; return the message's id."""
        ...

    async def request_permission_template(
        self, number: PhoneNumberId, user: UserRef, name: str, language: str, parameters: Sequence[str]
    ) -> str:
        """Ask a user for permission with a template; return the message's id."""
        ...

    async def settings(self, number: PhoneNumberId) -> NumberCallingSettings:
        """Read the number's calling settings."""
        ...

    async def number_info(self, number: PhoneNumberId) -> NumberInfo:
        """Read Meta's record of the number."""
        ...


class GraphClient:
    """`Graph` over HTTP. Call `start` in the event loop that uses it, and `aclose` at the end."""

    def __init__(
        self,
        *,
        base_url: str,
        token_for: Callable[[PhoneNumberId], str],
        clock: Clock,
        observe: Observe = lambda op, status, seconds: None,
        timeout_s: float = 5.0,
        retries: Retries | None = None,
        health: MetaHealth | None = None,
        http: Callable[..., GraphHttp] = GraphHttp,
    ) -> None:
        self._http = http(
            base_url=base_url,
            token_for=token_for,
            clock=clock,
            observe=observe,
            timeout_s=timeout_s,
            retries=retries or Retries(),
            health=health or MetaHealth(token_for=token_for, clock=clock),
        )

    async def start(self) -> None:
        """Create the connection pool; no connection is opened yet."""
        await self._http.start()

    async def aclose(self) -> None:
        """Close every connection, also those with a request under way. Idempotent."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- calls -----------------------------------------------------------------------------------

    async def connect(self, number: PhoneNumberId, to: UserRef, offer_sdp: str, opaque: str) -> MetaCallId:
        body = {
            **_addressed_to(to),
            "action": "connect",
            "session": {"sdp_type": "offer", "sdp": offer_sdp},
            "biz_opaque_callback_data": _opaque(opaque),
        }
        answer = await self._http.send(_post("connect", number, "calls", body, Repeat.NEVER))
        call_id = answers.read_call_id(answer)
        if call_id is None:
            raise _incomplete("connect", "no call id in the answer")
        return MetaCallId(call_id)

    async def pre_accept(self, number: PhoneNumberId, call: MetaCallId, answer_sdp: str) -> None:
        await self._answer("pre_accept", number, call, answer_sdp, {})

    async def accept(self, number: PhoneNumberId, call: MetaCallId, answer_sdp: str, opaque: str) -> None:
        await self._answer("accept", number, call, answer_sdp, {"biz_opaque_callback_data": _opaque(opaque)})

    async def _answer(self, action: str, number: PhoneNumberId, call: MetaCallId, answer_sdp: str, more: Json) -> None:
        # Meta's table says `offer` for these two; its examples and its servers require `answer`.
        # Source: Meta, "User-initiated calls", read 2026-11-22.
        session = {"sdp_type": "answer", "sdp": answer_sdp}
        body = {"call_id": call, "action": action, "session": session, **more}
        await self._http.send(
            _post(
                action,
                number,
                "calls",
                body,
                Repeat.ALWAYS,
                settled=error_codes.already_accepted,
                settled_if_doubtful=True,
            )
        )

    async def reject(self, number: PhoneNumberId, call: MetaCallId) -> None:
        await self._end("reject", number, call)

    async def terminate(self, number: PhoneNumberId, call: MetaCallId) -> None:
        await self._end("terminate", number, call)

    async def _end(self, action: str, number: PhoneNumberId, call: MetaCallId) -> None:
        body = {"call_id": call, "action": action}
        await self._http.send(_post(action, number, "calls", body, Repeat.ALWAYS, settled=error_codes.already_ended))

    # --- permissions -----------------------------------------------------------------------------

    async def call_permissions(self, number: PhoneNumberId, user: UserRef) -> Permissions:
        query = {"user_wa_id": user.wa_id} if user.wa_id else {"recipient": user.key}
        return answers.read_permissions(
            await self._http.send(_get("call_permissions", number, "/call_permissions", query))
        )

    async def request_permission_free_form(self, number: PhoneNumberId, user: UserRef, text: str) -> str:
        interactive = {
            "type": "call_permission_request",
            "action": {"name": "call_permission_request"},
            "body": {"text": text},
        }
        return await self._send_message(
            "request_free_form", number, user, {"type": "interactive", "interactive": interactive}
        )

    async def request_permission_template(
        self, number: PhoneNumberId, user: UserRef, name: str, language: str, parameters: Sequence[str]
    ) -> str:
        template: dict[str, Any] = {"name": name, "language": {"code": language}}
        if parameters:
            texts = [{"type": "text", "text": text} for text in parameters]
            template["components"] = [{"type": "body", "parameters": texts}]
        return await self._send_message("request_template", number, user, {"type": "template", "template": template})

    async def _send_message(self, op: str, number: PhoneNumberId, user: UserRef, content: Json) -> str:
        body = {"recipient_type": "individual", **_addressed_to(user), **content}
        answer = await self._http.send(_post(op, number, "messages", body, Repeat.UNSENT))
        message_id = answers.read_message_id(answer)
        if message_id is None:
            raise _incomplete(op, "no message id in the answer")
        return message_id

    # --- the number ------------------------------------------------------------------------------

    async def settings(self, number: PhoneNumberId) -> NumberCallingSettings:
        return answers.read_settings(await self._http.send(_get("settings", number, "/settings")))

    async def number_info(self, number: PhoneNumberId) -> NumberInfo:
        *rich, plain = _INFO_FIELD_SETS
        for fields in rich:
            try:
                return await self._number_info(number, fields)
            except GraphRefused as error:
                if error.code != 100:
                    raise
        return await self._number_info(number, plain)

    async def _number_info(self, number: PhoneNumberId, fields: str) -> NumberInfo:
        return answers.read_number_info(await self._http.send(_get("number_info", number, "", {"fields": fields})))


def _post(
    op: str,
    number: PhoneNumberId,
    path: str,
    body: Json,
    repeat: Repeat,
    *,
    settled: Callable[[GraphRefused], bool] | None = None,
    settled_if_doubtful: bool = False,
) -> GraphRequest:
    return GraphRequest(
        op=op,
        number=number,
        path=f"/{path}",
        body={"messaging_product": "whatsapp", **body},
        repeat=repeat,
        settled=settled,
        settled_if_doubtful=settled_if_doubtful,
    )


def _get(op: str, number: PhoneNumberId, path: str, query: Mapping[str, str] | None = None) -> GraphRequest:
    return GraphRequest(op=op, number=number, path=path, query=query, repeat=Repeat.ALWAYS)


def _addressed_to(user: UserRef) -> Json:
    """Address a user by number if we know it (Meta prefers the number if both are sent), else by BSUID."""
    return {"to": user.wa_id} if user.wa_id else {"recipient": user.user_id}


def _opaque(text: str) -> str:
    if len(text) > MAX_OPAQUE:
        raise ValueError(f"biz_opaque_callback_data is longer than {MAX_OPAQUE} characters")
    return text


def _incomplete(op: str, detail: str) -> GraphUnreachable:
    return GraphUnreachable(detail, op=op, maybe_sent=True, status="200", http_status=200)
