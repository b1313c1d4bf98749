"""The Graph API's errors: codes, HTTP status, JSON shape. Pure.

Source: Meta's calling troubleshooting page and Cloud API error codes, read 2026. Where Meta documents no code (an
unknown or ended call, an `accept` with a different SDP), code 100 with details is used; 138008 has no documented HTTP
status and gets 400.
"""

from collections.abc import Mapping
from typing import Any, Final

#: code -> (HTTP status, title)
CODES: Final[Mapping[int, tuple[int, str]]] = {
    1: (400, "Unknown error"),
    2: (503, "Service temporarily unavailable"),
    4: (400, "Application request limit reached"),
    10: (403, "Permission denied"),
    100: (400, "Invalid parameter"),
    190: (401, "Invalid OAuth access token"),
    368: (403, "Temporarily blocked for policies violations"),
    613: (429, "Calls to this API have exceeded the rate limit"),
    2500: (404, "Unknown path components"),
    80007: (400, "Rate limit issues"),
    130429: (400, "Rate limit hit"),
    131000: (500, "Something went wrong"),
    131005: (403, "Access denied"),
    131008: (400, "Required parameter is missing"),
    131009: (400, "Parameter value is not valid"),
    131016: (500, "Service unavailable"),
    131026: (400, "Message undeliverable"),
    131030: (400, "Recipient phone number not in allowed list"),
    131031: (403, "Account has been locked"),
    131044: (400, "No valid payment method"),
    131047: (400, "Re-engagement message"),
    131055: (400, "Method not allowed"),
    131056: (400, "Pair rate limit hit"),
    131057: (500, "Account in maintenance mode"),
    132001: (404, "Template does not exist"),
    138000: (401, "Calling not enabled"),
    138001: (400, "Receiver uncallable"),
    138002: (429, "Concurrent calls limit"),
    138003: (400, "Duplicate call"),
    138004: (500, "Connection error"),
    138005: (429, "Call rate limit exceeded"),
    138006: (401, "No approved call permission from the recipient"),
    138007: (500, "Connect timeout"),
    138008: (400, "SDP Validation error"),
    138009: (400, "Call permission request limit hit"),
    138012: (400, "Business-initiated connected calls limit hit"),
    138013: (400, "Business-initiated calling is not available for this phone number"),
    138014: (400, "Calling is temporarily disabled"),
    138015: (400, "Calling cannot be enabled"),
    138017: (400, "Call permission request refused: permanent permission exists"),
    138018: (400, "Calling cannot be enabled: no app is subscribed to calls"),
    138019: (400, "WhatsApp client failed to set up the call"),
    138020: (400, "WhatsApp client could not reach the relay"),
    138021: (
        400,
        "WhatsApp client terminated the call due to not receiving any media for a long time. Please try again",
    ),
    138022: (400, "WhatsApp client terminated the call due to not sending any media for a long time"),
    138023: (400, "Call was accepted but no media signals were received"),
}


class GraphError(Exception):
    """A request that the simulated Graph refuses."""

    def __init__(self, code: int, details: str, *, status: int | None = None, subcode: int | None = None) -> None:
        super().__init__(f"(#{code}) {details}")
        self.code, self.details, self.subcode = code, details, subcode
        self.status = status if status is not None else CODES.get(code, (400, ""))[0]

    def body(self, trace_id: str) -> dict[str, Any]:
        """Return the response body in Graph's format."""
        title = CODES.get(self.code, (400, "Unknown error"))[1]
        error: dict[str, Any] = {
            "message": f"(#{self.code}) {title}",
            "type": "OAuthException",
            "code": self.code,
            "error_data": {"messaging_product": "whatsapp", "details": self.details},
            "fbtrace_id": trace_id,
        }
        if self.subcode is not None:
            error["error_subcode"] = self.subcode
        return {"error": error}


class NotPossible(Exception):
    """A simulated user's action is not possible now; the text says why."""


def webhook_error(code: int) -> dict[str, Any]:
    """Return the error entry in the terminate webhook of a failed call."""
    title = CODES[code][1]
    return {"code": code, "title": title, "message": title, "error_data": {"details": title}}
