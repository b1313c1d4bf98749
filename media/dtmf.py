"""Read key presses from `telephone-event` packets (RFC 4733). Pure.

One press is several packets: one every 20-50 ms while the key is down, and the final one sent three times. All carry
the RTP timestamp of the press, which distinguishes them from the next press of the same key.
"""

from typing import Final

DIGITS: Final = "0123456789*#ABCD"
#: A press longer than this many timestamp units continues under a new timestamp (RFC 4733 §2.5.1.3).
LONGEST_SEGMENT: Final = 0xFFFF


class DtmfReader:
    """Turn the `telephone-event` packets of one stream into key presses, each reported once."""

    __slots__ = ("_event", "_timestamp")

    def __init__(self) -> None:
        self._event = -1
        self._timestamp = -1

    def read(self, timestamp: int, payload: bytes) -> str | None:
        """Return the digit if this packet starts a press, else None."""
        if len(payload) < 4 or payload[0] >= len(DIGITS):
            return None  # hook flash, fax and modem tones are not keys
        event, previous = payload[0], self._timestamp
        if timestamp == previous:
            return None
        if previous >= 0 and (previous - timestamp) & 0xFFFFFFFF < 0x80000000:
            return None  # a late packet of an earlier press
        goes_on = event == self._event and timestamp == (previous + LONGEST_SEGMENT) & 0xFFFFFFFF
        self._event, self._timestamp = event, timestamp
        return None if goes_on else DIGITS[event]
