"""The callback URL: check method, size, time and the signature over the raw bytes, then hand the body to `intake`.

Source: Meta, "Create a webhook endpoint", read 2026-11-22.
"""

import asyncio
import hmac
from collections.abc import Sequence
from typing import Final

import structlog
from aiohttp import web

from gateway.common.errors import SpoolDown
from gateway.common.metrics import Metrics
from gateway.intake.intake import Intake

log = structlog.get_logger()

#: Meta's deliveries are up to 3 MB.
MAX_BODY_BYTES: Final = 3_200_000
#: A body must arrive within this time, plus a second for each 100 kB received.
BODY_S: Final = 5.0
BYTES_PER_FURTHER_S: Final = 100_000
SIGNATURE_PREFIX: Final = "sha256="


class Webhook:
    """The two handlers of `/webhooks/meta`."""

    def __init__(self, intake: Intake, metrics: Metrics, *, app_secrets: Sequence[str], verify_token: str) -> None:
        self._intake = intake
        self._metrics = metrics
        self._keys = [secret.encode() for secret in app_secrets]
        self._verify_token = verify_token.encode()
        self.body_s = BODY_S

    async def verify(self, request: web.Request) -> web.Response:
        """Answer Meta's verification request: echo the challenge if the token is ours."""
        query = request.query
        token = query.get("hub.verify_token", "").encode("utf-8", "surrogateescape")
        if query.get("hub.mode") != "subscribe" or not hmac.compare_digest(token, self._verify_token):
            return self._respond("verify_refused", 403)
        self._count_result("verified")
        return web.Response(text=query.get("hub.challenge", ""), content_type="text/plain")

    async def receive(self, request: web.Request) -> web.Response:
        """Receive one delivery; 200 means that every event in it is durable."""
        began = asyncio.get_running_loop().time()
        try:
            body = await self._read_body(request)
        except TimeoutError:
            return self._respond("slow_body", 408)
        except web.RequestPayloadError:
            return self._respond("broken_body", 400)
        if body is None:
            return self._respond("too_large", 413)
        if not self._is_signed(body, request.headers.getall("X-Hub-Signature-256", [])):
            log.warning("webhook_signature_wrong", size_bytes=len(body))
            return self._respond("bad_signature", 401)
        try:
            kept = await self._intake.keep(body)
        except SpoolDown:
            return self._respond("not_kept", 503, retry_after_s=5)
        self._metrics.webhook_ack_seconds.observe(asyncio.get_running_loop().time() - began)
        return self._respond(kept.value, 200)

    async def _read_body(self, request: web.Request) -> bytes | None:
        """Return the body; None if it is larger than any delivery of Meta's.

        Raises: TimeoutError for a slow sender, RequestPayloadError for broken framing.
        """
        if (request.content_length or 0) > MAX_BODY_BYTES:
            return None
        if request.content.is_eof() and request.content_length:  # it came in one piece, as it nearly always does
            return await request.content.read()
        loop = asyncio.get_running_loop()
        began, body = loop.time(), bytearray()
        while True:
            async with asyncio.timeout_at(began + self.body_s + len(body) / BYTES_PER_FURTHER_S):
                chunk = await request.content.readany()
            if not chunk:
                return bytes(body)
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return None

    def _is_signed(self, body: bytes, headers: Sequence[str]) -> bool:
        """Check the single signature header against every valid secret, each in constant time."""
        if len(headers) != 1 or not headers[0].startswith(SIGNATURE_PREFIX):
            return False
        given = headers[0].removeprefix(SIGNATURE_PREFIX).encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(hmac.digest(key, body, "sha256").hex().encode(), given) for key in self._keys]
        return any(matches)

    def _respond(self, result: str, status: int, *, retry_after_s: int | None = None) -> web.Response:
        self._count_result(result)
        headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else None
        return web.Response(status=status, headers=headers)

    def _count_result(self, result: str) -> None:
        self._metrics.webhooks_total.labels(result=result).inc()
